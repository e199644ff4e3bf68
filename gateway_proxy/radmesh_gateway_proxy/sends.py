"""Studies that are to be sent to stations: jobs of the Database Server, tried until they succeed or cannot.

What a person sends is sent whole with each try: what a station has already it answers with success, and whoever was
restored from an older backup gets everything. What a route sends is what the station was not sent yet.
"""

import json
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from radmesh.api.database.v1 import commitment_pb2, database_pb2, routing_pb2, stations_pb2
from radmesh.dicom.stations import Station, Stations
from radmesh.dicom.transcoding import Transcoder
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.stations import station_of
from radmesh_gateway_proxy.certificates import dialer_of
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.delivery import Delivery, GoneError, Store, is_done
from radmesh_gateway_proxy.key_images import KEY_OBJECTS, referenced
from radmesh_gateway_proxy.objects import Finder, Prepared
from radmesh_gateway_proxy.services.asking import OPTION

KIND: Final = "send"
"""Kind of job; its payload is {"study": UID, "station": AE title}, and of a route "routes": names, "new": true, and
"key_images": whether Key Object Selection documents and what they refer to are sent alone."""
THREADS: Final = 2
_LEASE: Final = timedelta(seconds=60)
# A job that was cancelled is noticed so soon.
_RENEW_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 2.0
# What was sent is noted so often: nothing else is sent again after a failure.
_NOTE_SECONDS: Final = 5.0
_NOTE_MOST: Final = 500
# A station that has no room now may have some later (PS3.4 table B.2-1: A7xx, PS3.7: resource limitation).
_LATER: Final = (*range(0xA700, 0xA800), 0x0213)


class _LostError(Exception):
    """The job is not ours any more, or this process ends."""


class _Renewal:
    """Keeps a job's lease while it is worked on."""

    def __init__(self, jobs: Any, job: database_pb2.Job, stopping: threading.Event) -> None:
        self._jobs, self._job, self._stopping = jobs, job, stopping
        self._due = time.monotonic() + _RENEW_SECONDS

    def __call__(self) -> None:
        """Renew the lease when that is due; raises _LostError when there is nothing to be gone on with."""
        if self._stopping.is_set():
            raise _LostError
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + _RENEW_SECONDS
        request = database_pb2.RenewJobRequest(id=self._job.id, fence=self._job.fence)
        request.lease.FromTimedelta(_LEASE)
        try:
            self._jobs.RenewJob(request)
        except RadmeshError as error:
            if error.reason == "JOB_LOST":
                raise _LostError from None


class _Notes:
    """What a station has acknowledged, noted some at a time."""

    def __init__(self, routes: Any, job: database_pb2.Job, study: str, title: str) -> None:
        self._routes = routes
        self._record = routing_pb2.RecordDeliveriesRequest(
            study_instance_uid=study, station=title, state=routing_pb2.SENT_STATE_SENT, job_id=job.id
        )
        self._due = time.monotonic() + _NOTE_SECONDS

    def sent(self, sop_instance_uid: str) -> None:
        """Note one, now or soon."""
        self._record.sop_instance_uids.append(sop_instance_uid)
        if len(self._record.sop_instance_uids) >= _NOTE_MOST or time.monotonic() >= self._due:
            self.write()

    def write(self) -> None:
        """Note all, now."""
        if self._record.sop_instance_uids:
            self._routes.RecordDeliveries(self._record)
            del self._record.sop_instance_uids[:]
        self._due = time.monotonic() + _NOTE_SECONDS


class Sends:
    """Leases jobs and does them, on threads of its own."""

    def __init__(self, config: Section, context: Context) -> None:
        services = database_pb2.DESCRIPTOR.services_by_name
        self._config = config
        self._context = context
        self._log = context.log
        self._jobs = context.client(services["JobService"], "database-server")
        self._routes = context.client(routing_pb2.DESCRIPTOR.services_by_name["RouteService"], "database-server")
        self._commitments = context.client(
            commitment_pb2.DESCRIPTOR.services_by_name["StationCommitmentService"], "database-server"
        )
        self._registry = context.client(stations_pb2.DESCRIPTOR.services_by_name["StationService"], "database-server")
        self._transcoder = Transcoder()
        self._stopping = threading.Event()
        self._workers = [context.worker(f"send-{number}", self._step) for number in range(THREADS)]

    def start(self) -> None:
        """Begin."""
        for worker in self._workers:
            worker.start()

    def stop(self, grace: float) -> None:
        """Give back what is under way, and end."""
        self._stopping.set()
        for worker in self._workers:
            worker.stop(grace)
        self._transcoder.close()

    def _step(self) -> float:
        if self._stopping.is_set():
            return _POLL_SECONDS
        request = database_pb2.LeaseJobsRequest(kinds=[KIND], count=1)
        request.lease.FromTimedelta(_LEASE)
        jobs = self._jobs.LeaseJobs(request).jobs
        for job in jobs:
            self._do(job)
        return 0.0 if jobs else _POLL_SECONDS

    def _do(self, job: database_pb2.Job) -> None:
        finish = database_pb2.FinishJobRequest(id=job.id, fence=job.fence, state=database_pb2.JOB_STATE_SUCCEEDED)
        try:
            finish.message = self._send(job)
        except _LostError:
            finish.state = database_pb2.JOB_STATE_QUEUED
        except RadmeshError as error:
            again = error.definition.transient
            finish.state = database_pb2.JOB_STATE_QUEUED if again else database_pb2.JOB_STATE_FAILED
            finish.reason, finish.message = error.reason, error.message
            pause = min(self._config.send_pause * 2 ** min(job.attempt - 1, 16), self._config.send_longest_pause)
            finish.retry_delay.FromTimedelta(timedelta(seconds=pause))
            self._log.warning(
                "study not sent", job=job.id, attempt=job.attempt, again=again, reason=error.reason, text=error.message
            )
        try:
            self._jobs.FinishJob(finish)
        except RadmeshError as error:
            # The lease runs out, and the study is sent once more.
            self._log.warning("job not finished", job=job.id, reason=error.reason)

    def _send(self, job: database_pb2.Job) -> str:
        """Send what a job is about; return what was done."""
        payload = json.loads(job.payload)
        study, title = str(payload["study"]), str(payload["station"])
        station = self._station(title)
        items = Finder(self._context, "").items(study)
        if not items:
            raise RadmeshError("STUDY_NOT_FOUND", "there is no such study, or it is held")
        if payload.get("key_images"):
            chosen = referenced([item for item in items if item.sop_class_uid == KEY_OBJECTS])
            items = [item for item in items if item.sop_class_uid == KEY_OBJECTS or item.sop_instance_uid in chosen]
        if payload.get("new"):
            delivered = self._delivered(study, title)
            items = [item for item in items if item.sop_instance_uid not in delivered]
            if not items:
                return "the station has all of it"
        renewal = _Renewal(self._jobs, job, self._stopping)
        delivery = Delivery(
            station,
            self._config.ae_title,
            self._transcoder,
            self._config.max_pdu,
            renewal,
            tls=dialer_of(station, self._config, self._context),
        )
        failures: list[RadmeshError] = []
        notes = _Notes(self._routes, job, study, title)

        def send(outgoing: Iterable[Prepared], store: Store) -> bool:
            for prepared in outgoing:
                renewal()
                try:
                    _store(prepared, store)
                except RadmeshError as error:
                    failures.append(error)
                else:
                    notes.sent(prepared.item.sop_instance_uid)
            return True

        try:
            delivery.run(items, send)
        except GoneError as gone:
            raise gone.cause from None
        finally:
            notes.write()
        if failures:
            # What may pass is tried again, with all the others.
            worst = next((error for error in failures if error.definition.transient), failures[0])
            text = f"{len(failures)} of {len(items)} instances were not sent; {worst.message}"
            raise RadmeshError(worst.reason, text)
        self._log.info("study sent", job=job.id, ae_title=title, instances=len(items), attempt=job.attempt)
        said = f"{len(items)} {'instance' if len(items) == 1 else 'instances'} sent"
        if OPTION in station.options:
            # Durable before the job has ended: who dies here does both again.
            self._commitments.RequestStationCommitment(
                commitment_pb2.RequestStationCommitmentRequest(study_instance_uid=study, station=title, job_id=job.id)
            )
            said += "; the station is asked whether it stores them for good"
        return said

    def _delivered(self, study: str, title: str) -> set[str]:
        """Return the instances that a station has been sent, or came from it."""
        request = routing_pb2.ListDeliveriesRequest(study_instance_uid=study, station=title, page_size=5000)
        found: set[str] = set()
        while True:
            answer = self._routes.ListDeliveries(request)
            found.update(answer.sop_instance_uids)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return found

    def _station(self, title: str) -> Station:
        answer = self._registry.ListStations(stations_pb2.ListStationsRequest())
        known = []
        for message in answer.stations:
            try:
                known.append(station_of(message))
            except ValueError:  # a newer registry knows more than this component
                continue
        station = Stations(known).lookup(title)
        if station is None:
            raise RadmeshError("STATION_NOT_FOUND", f"no station {title} has a host and a port to send to")
        return station


def _store(prepared: Prepared, store: Store) -> None:
    """Send one instance; raises RadmeshError if the station has not got it."""
    if prepared.failure is not None:
        raise prepared.failure
    status = store(prepared).status
    if status in _LATER:
        raise RadmeshError("STATION_FULL", f"the station answers 0x{status:04X}")
    if not is_done(status):
        raise RadmeshError("STATION_REFUSED_OBJECT", f"the station answers 0x{status:04X}")
