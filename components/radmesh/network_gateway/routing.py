"""Routing: which rules fire for a study that has changed, and what is sent for them (FEATURES NG9, GP10).

A study is looked at when it was received, verified, or read; the jobs of the Database Server see to it that none is
forgotten. It leaves when it is complete: its performed procedure steps have ended, or nothing has come for a while.
What is held never leaves, and what nobody could verify waits for its RIS.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from radmesh.api.common.v1 import common_pb2
from radmesh.api.database.v1 import database_pb2, routing_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.dicom.routes import Route
from radmesh.dicom.stations import Stations
from radmesh.network_gateway.policy import UNKNOWN
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker

KIND: Final = "route"
"""Kind of the jobs: a study that has changed; the key is its Study Instance UID."""
_ROUTES: Final = routing_pb2.DESCRIPTOR.services_by_name["RouteService"]
_JOBS: Final = database_pb2.DESCRIPTOR.services_by_name["JobService"]
_LEASE: Final = timedelta(seconds=60)
_AT_ONCE: Final = 20
_LOOK_SECONDS: Final = 1.0
_CALL_SECONDS: Final = 10.0
_AGAIN: Final = timedelta(seconds=30)
COMPLETION, WINDOW = "COMPLETION", "WINDOW"


@dataclass(frozen=True, slots=True)
class Subject:
    """A study as routes are compared with it: what is held of it is not there.

    Attributes:
        stations: AE titles that sent some of it.
        verification: VERIFIED, …, and why if it is not.
        idle: since its last object came.
    """

    stations: frozenset[str]
    modalities: frozenset[str]
    verification: str
    verification_reason: str
    reading: str
    key_objects: bool
    steps_ended: bool
    idle: timedelta


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a route fires: `reason` is empty then. `wait`: it may after so long, if nothing changes."""

    route: Route
    reason: str = ""
    wait: timedelta = timedelta()


def completes_in(study: Subject, quiet: timedelta) -> timedelta:
    """Return after how long a study is complete, if nothing more comes; 0 = it is."""
    return timedelta() if study.steps_ended else max(timedelta(), quiet - study.idle)


def compare(route: Route, study: Subject, now: datetime, quiet: timedelta) -> Verdict:
    """Compare a study with a route.

    Args:
        route: with which.
        study: which.
        now: local time.
        quiet: for so long nothing has come for a study that is complete.
    """
    unanswered = study.verification == "UNVERIFIED" and study.verification_reason in UNKNOWN
    for reason, fits in (
        ("DISABLED", route.enabled),
        ("STATION", not route.stations or not study.stations.isdisjoint(route.stations)),
        ("MODALITY", not route.modalities or not study.modalities.isdisjoint(route.modalities)),
        ("VERIFICATION", study.verification in route.verification and not unanswered),
        ("READING", not route.reading or study.reading in route.reading),
        ("KEY_IMAGES", not route.key_images or study.key_objects),
    ):
        if not fits:
            return Verdict(route, reason)
    if wait := completes_in(study, quiet):
        return Verdict(route, COMPLETION, wait)
    opens_in = route.opens_in(now)
    return Verdict(route, WINDOW, opens_in) if opens_in else Verdict(route)


def _name(enum: Any, value: int, prefix: str) -> str:
    return str(enum.Name(value)).removeprefix(prefix)


def _subject(facts: routing_pb2.RoutingFacts, now: datetime) -> Subject:
    study = facts.study
    last = study.last_receive_time.ToDatetime(tzinfo=UTC)
    return Subject(
        frozenset(study.stations),
        frozenset(study.modalities),
        _name(common_pb2.VerificationState, study.verification, "VERIFICATION_STATE_"),
        study.verification_reason,
        _name(database_pb2.ReadingState, study.reading, "READING_STATE_"),
        facts.key_objects,
        facts.steps_ended,
        max(timedelta(), now - last),
    )


def _route(message: routing_pb2.Route) -> Route:
    return Route(
        message.name,
        tuple(message.destinations),
        tuple(message.stations),
        tuple(message.modalities),
        tuple(message.verification),
        tuple(message.reading),
        message.window,
        message.key_images,
        not message.disabled,
    )


class Routing:
    """A worker that compares studies with routes.

    Args:
        context: of the gateway.
        stations: where destinations are.
        quiet: seconds without an object after which a study is complete.
        attempts: tries of a send before it has failed.
    """

    def __init__(self, context: Context, stations: Stations, *, quiet: float, attempts: int) -> None:
        self._clock = context.clock
        self._log = context.log
        self._stations = stations
        self._quiet = timedelta(seconds=quiet)
        self._attempts = attempts
        self._service = context.client(_ROUTES, "database-server")
        self._jobs = context.client(_JOBS, "database-server")
        self._version = -1
        self._known: tuple[Route, ...] = ()
        self.queued = 0
        self._worker: Worker = context.worker("routing", self._step)

    def start(self) -> None:
        """Begin."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End after the study that is under way."""
        self._worker.stop(grace)

    def test(self, uid: str) -> list[gateway_pb2.RouteTest]:
        """Say which routes would fire for a study now.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, also if all of it is held.
        """
        routes = self._routes()
        places = list(dict.fromkeys(place for route in routes for place in route.destinations))
        study, undelivered = self._subject(uid, places)
        verdicts = self._compare(study, routes)
        return [
            gateway_pb2.RouteTest(
                route=verdict.route.name,
                reason=verdict.reason,
                destinations=[
                    gateway_pb2.RouteDestination(
                        station=place,
                        known=self._stations.lookup(place) is not None,
                        undelivered=undelivered[place],
                    )
                    for place in verdict.route.destinations
                ],
            )
            for verdict in verdicts
        ]

    def _routes(self) -> tuple[Route, ...]:
        request = routing_pb2.ListRoutesRequest(known_version=max(0, self._version))
        answer = self._service.ListRoutes(request, timeout=_CALL_SECONDS)
        if not answer.unchanged:
            found = []
            for message in answer.routes:
                try:
                    found.append(_route(message))
                except ValueError as error:  # a newer database knows more than this component
                    self._log.warning("route not usable", route=message.name, text=str(error))
            self._known, self._version = tuple(found), answer.version
        return self._known

    def _compare(self, study: Subject, routes: Sequence[Route]) -> list[Verdict]:
        now = self._clock.now().astimezone()
        return [compare(route, study, now, self._quiet) for route in routes]

    def _subject(self, uid: str, places: Sequence[str] = ()) -> tuple[Subject, dict[str, int]]:
        """Return a study, and how many of its instances were not sent to some places yet."""
        counts: dict[str, int] = {}
        # So many as one request may name, and one without any.
        for first in range(0, max(1, len(places)), 256):
            some = places[first : first + 256]
            request = routing_pb2.GetRoutingFactsRequest(study_instance_uid=uid, stations=some)
            facts = self._service.GetRoutingFacts(request, timeout=_CALL_SECONDS)
            counts |= dict(zip(some, facts.undelivered, strict=True))
        return _subject(facts, self._clock.now()), counts

    def _step(self) -> float:
        request = database_pb2.LeaseJobsRequest(kinds=[KIND], count=_AT_ONCE)
        request.lease.FromTimedelta(_LEASE)
        jobs = self._jobs.LeaseJobs(request, timeout=_CALL_SECONDS).jobs
        routes = self._routes() if jobs else ()
        for job in jobs:
            if self._worker.stopping:
                break  # the leases run out
            self._finish(job, *self._do(job.key, routes))
        return 0.0 if len(jobs) == _AT_ONCE else _LOOK_SECONDS

    def _do(self, uid: str, routes: Sequence[Route]) -> tuple[timedelta, str, str]:
        """Look at a study; return after how long it is to be looked at again (0 = when it changes), and why."""
        try:
            study, _ = self._subject(uid)
            wait = completes_in(study, self._quiet)
            if not wait:
                request = routing_pb2.QueueAvailabilityRequest(study_instance_uid=uid)
                self._service.QueueAvailability(request, timeout=_CALL_SECONDS)
            verdicts = self._compare(study, routes)
            firing: dict[str, list[Route]] = {}
            for verdict in verdicts:
                if not verdict.reason:
                    for place in verdict.route.destinations:
                        firing.setdefault(place, []).append(verdict.route)
            for place, found in firing.items():
                self._queue(uid, place, found)
        except RadmeshError as error:
            if not error.transient:
                # It is gone, or held: it comes up again when that changes.
                return timedelta(), error.reason, error.message
            return _AGAIN, error.reason, error.message
        waits = [each for each in (wait, *(verdict.wait for verdict in verdicts)) if each]
        return (min(waits) + timedelta(seconds=0.1) if waits else timedelta()), "", ""

    def _queue(self, uid: str, place: str, routes: Sequence[Route]) -> None:
        request = routing_pb2.QueueSendRequest(
            study_instance_uid=uid,
            station=place,
            routes=[route.name for route in routes],
            # All of it goes where one route wants all of it.
            key_images=all(route.key_images for route in routes),
            max_attempts=self._attempts,
        )
        job = self._service.QueueSend(request, timeout=_CALL_SECONDS).job_id
        if job:
            self.queued += 1
            self._log.info("study routed", job=job, ae_title=place, routes=len(routes))

    def _finish(self, job: database_pb2.Job, again: timedelta, reason: str, message: str) -> None:
        request = database_pb2.FinishJobRequest(
            id=job.id,
            fence=job.fence,
            state=database_pb2.JOB_STATE_QUEUED if again else database_pb2.JOB_STATE_SUCCEEDED,
            reason=reason,
            message=message,
        )
        request.retry_delay.FromTimedelta(again)
        try:
            self._jobs.FinishJob(request, timeout=_CALL_SECONDS)
        except RadmeshError as error:
            if error.reason != "JOB_LOST":  # it has changed meanwhile, and is looked at again
                raise
