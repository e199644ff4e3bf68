"""Verifies admissions: asks beside the placement, decides, and tells the Database Server; what is lost, healing finds.

No object waits for the RIS longer than an admission may: what is late goes on in a pool, and the verdict follows.
"""

import threading
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.domains import Domains
from radmesh.network_gateway.managers import Managers
from radmesh.network_gateway.policy import (
    DOMAIN_UNKNOWN,
    HELD,
    NOT_REQUIRED,
    OVERRIDDEN,
    PENDING,
    UNAVAILABLE,
    UNVERIFIED,
    VERIFIED,
    Answer,
    Facts,
    Standing,
    Verdict,
    decide,
    supersedes,
)
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.transfer.model import key_message, key_of

ACTOR: Final = "network-gateway"
_STUDIES: Final = database_pb2.DESCRIPTOR.services_by_name["StudyService"]
_CALL_SECONDS: Final = 5.0
_PAGE: Final = 100
# Verifications under way at once; more are left to healing.
_MOST_RUNNING: Final = 256
# Verdicts on their way to the database, and admissions that an order may still settle before they are registered.
_MOST: Final = 4096
_OPEN_SECONDS: Final = 300.0
# They tell nothing of how the study was made.
_SECONDARY: Final = frozenset(("DOC", "KO", "OT", "PR", "REG", "SEG", "SR"))


class Studies:
    """The admissions of the Database Server."""

    def __init__(self, context: Context) -> None:
        self._service = context.client(_STUDIES, "database-server")

    def messages(self, token: str = "", **filters: Any) -> tuple[list[database_pb2.Admission], str]:
        """Return a page of admissions, oldest first, and the token of the next; "" = that was all."""
        request = database_pb2.ListAdmissionsRequest(page_size=_PAGE, page_token=token, **filters)
        answer = self._service.ListAdmissions(request, timeout=_CALL_SECONDS)
        return list(answer.admissions), answer.next_page_token

    def page(self, token: str = "", **filters: Any) -> tuple[list[Standing], str]:
        """Return the same for who decides."""
        found, token = self.messages(token, **filters)
        return [standing(message) for message in found], token

    def all(self, **filters: Any) -> list[Standing]:
        """Return the admissions, oldest first; at most a thousand: more is no question about one study or patient."""
        found, token = self.page(**filters)
        while token and len(found) < 10 * _PAGE:
            more, token = self.page(token, **filters)
            found += more
        return found

    def set(
        self,
        facts: Facts,
        verdict: Verdict,
        *,
        digest: bytes = b"",
        revision: int = 0,
        actor: str = ACTOR,
        note: str = "",
    ) -> database_pb2.SetVerificationResponse:
        """Make a verdict known.

        Raises:
            RadmeshError: VERSION_CONFLICT, and whatever keeps the database from answering.
        """
        request = database_pb2.SetVerificationRequest(
            admission_key=key_message(facts.key),
            admission_key_digest=digest,
            verification=verdict.state,  # type: ignore[arg-type]
            reason=verdict.reason,
            mismatched_keywords=verdict.mismatched,
            domain=verdict.domain,
            order=verdict.order,
            expected_revision=revision,
            actor=actor,
            note=note,
        )
        answer: database_pb2.SetVerificationResponse = self._service.SetVerification(request, timeout=_CALL_SECONDS)
        return answer


def standing(message: database_pb2.Admission) -> Standing:
    """Return an admission of the database."""
    modalities = sorted(message.modalities, key=lambda modality: modality in _SECONDARY)
    return Standing(
        facts=Facts(
            key_of(message.admission_key),
            message.source_address,
            message.study_date,
            modalities[0] if modalities else "",
            message.patient_sex,
        ),
        digest=message.admission_key_digest,
        state=message.verification,
        reason=message.reason,
        domain=message.domain,
        mismatched=tuple(message.mismatched_keywords),
        order_id=message.order_id,
        revision=message.revision,
        time=message.receive_time.ToMicroseconds() / 1e6,
    )


@dataclass(frozen=True, slots=True)
class Check:
    """A verification that has begun, or need not begin."""

    facts: Facts
    required: bool
    waits: bool = True
    """Whether an admission waits for it: not where the RIS was late a moment ago."""
    future: "Future[Verdict] | None" = None

    @property
    def state(self) -> int:
        """What the admission begins with."""
        return PENDING if self.required else NOT_REQUIRED

    def wait(self, seconds: float) -> Verdict | None:
        """Return the verdict, if it comes in time."""
        if self.future is None:
            return None
        try:
            return self.future.result(max(0.0, seconds) if self.waits else 0)
        except TimeoutError:
            return None


class Verifier:
    """Verifies. Thread-safe.

    Args:
        context: of the gateway.
        domains: the configured domains and stations.
        deadline: seconds that a manager has for an answer.
        threads: verifications at one time.
    """

    def __init__(self, context: Context, domains: Domains, *, deadline: float, threads: int) -> None:
        self._clock = context.clock
        self._log = context.log
        self._domains = domains
        self._deadline = deadline
        self.managers = Managers(context, domains)
        self.studies = Studies(context)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verify")
        self._lock = threading.Lock()
        self._running: dict[bytes, Future[Verdict]] = {}
        self._late: set[str] = set()
        self._open: OrderedDict[bytes, tuple[float, Standing]] = OrderedDict()
        self._outbox: OrderedDict[bytes, tuple[Facts, Verdict, bool]] = OrderedDict()
        self._healed: OrderedDict[bytes, None] = OrderedDict()
        # One verdict of an admission after the other: a later one must not be overtaken.
        self._telling = threading.Lock()
        self._worker: Worker = context.worker("verdicts", self._step, most_pause=2.0)
        context.status.figure("verifications_running", lambda: len(self._running))
        context.status.figure("verdicts_waiting", lambda: len(self._outbox))

    def start(self) -> None:
        """Begin to tell."""
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End; what is not told is found by healing after the next start."""
        self._worker.stop(grace)
        self._pool.shutdown(wait=False, cancel_futures=True)

    # -- the rules

    def domain_of(self, facts: Facts) -> str:
        """Return the domain of an object; empty = unknown."""
        key = facts.key
        return self._domains.domain_of(key.station, facts.address, key.issuer_of_patient_id, key.accession_number)

    def required(self, facts: Facts) -> bool:
        """Whether the station's studies are verified at all. A mesh without a manager has no RIS to ask."""
        policy = self._domains.station(facts.key.station, facts.address).verification
        if policy == "off":
            return False
        domain = self.domain_of(facts)
        return policy == "required" or not domain or self.managers.exists(domain)

    def verify(self, facts: Facts, *, anyway: bool = False) -> Verdict:
        """Return the verdict; waits for the RIS, unless it is down, or nobody needs be asked, or `anyway`."""
        domain = self.domain_of(facts)
        if not anyway and not self.required(facts):
            return Verdict(NOT_REQUIRED, domain=domain)
        if not domain:
            return Verdict(HELD, DOMAIN_UNKNOWN)
        station = self._domains.station(facts.key.station, facts.address)
        if self.managers.down(domain) and not anyway:
            return decide(station, domain, Answer(UNAVAILABLE))
        return decide(station, domain, self.managers.ask(domain, facts, station, self._deadline))

    def supersedes(self, verdict: Verdict, found: Standing) -> bool:
        """Whether a verdict changes an admission."""
        station = self._domains.station(found.facts.key.station, found.facts.address)
        return supersedes(verdict, found, station.patient_key)

    # -- admissions

    def begin(self, facts: Facts) -> Check:
        """Begin a verification; never waits."""
        if not self.required(facts):
            return Check(facts, required=False)
        digest = facts.key.digest()
        domain = self.domain_of(facts)
        with self._lock:
            running = self._running.get(digest)
            if running is None and domain and not self.managers.down(domain):
                if len(self._running) >= _MOST_RUNNING:
                    return Check(facts, required=True)
                running = self._running[digest] = self._pool.submit(self._run, digest, domain, facts)
            waits = domain not in self._late
        if running is None:
            running = Future()
            running.set_result(self.verify(facts))
        return Check(facts, required=True, waits=waits, future=running)

    def _run(self, digest: bytes, domain: str, facts: Facts) -> Verdict:
        try:
            verdict = self.verify(facts)
            if verdict.known:
                self._late.discard(domain)
            return verdict
        finally:
            with self._lock:
                self._running.pop(digest, None)

    def was_late(self, check: Check) -> None:
        """Note that a verdict did not come in time: the next admissions of the domain do not wait for theirs."""
        if check.waits and check.future is not None:
            self._late.add(self.domain_of(check.facts))

    def running(self, digest: bytes) -> bool:
        """Whether a verdict of an admission is under way."""
        return digest in self._running or digest in self._outbox

    def deliver(self, check: Check, *, first: bool) -> None:
        """Tell the database the verdict when it is there; `first`: the database is known to have none."""
        if check.future is not None:
            check.future.add_done_callback(lambda future: self._decided(check.facts, future, first))

    def _decided(self, facts: Facts, future: "Future[Verdict]", first: bool) -> None:  # noqa: FBT001 - a callback
        if future.cancelled() or future.exception() is not None:
            return  # healing asks again
        verdict = future.result()
        digest = facts.key.digest()
        with self._lock:
            self._outbox.pop(digest, None)
            # Asked before it was healed, and late: that must not undo it.
            self._outbox[digest] = (facts, verdict, first and digest not in self._healed)
            self._open.pop(digest, None)
            if verdict.state != VERIFIED:
                now = Standing(facts, digest, verdict.state, verdict.reason, verdict.domain, verdict.mismatched)
                self._open[digest] = (self._clock.monotonic(), now)
            for kept in (self._outbox, self._open):
                while len(kept) > _MOST:
                    kept.popitem(last=False)
        self._worker.wake()

    def unsettled(self) -> list[Standing]:
        """Return the admissions of the last minutes that were not verified, oldest first: registered or not yet."""
        old = self._clock.monotonic() - _OPEN_SECONDS
        with self._lock:
            while self._open and next(iter(self._open.values()))[0] < old:
                self._open.popitem(last=False)
            return [one for _, one in self._open.values()]

    # -- verdicts

    def _step(self) -> float:
        while self._outbox and not self._worker.stopping:
            digest = next(iter(self._outbox))
            with self._telling:
                entry = self._outbox.get(digest)
                if entry is None:
                    continue
                facts, verdict, first = entry
                try:
                    self._tell(facts, verdict, first=first)
                except RadmeshError as error:
                    if error.transient or error.reason == "INTERNAL":
                        with self._lock:
                            self._outbox.move_to_end(digest)
                        raise
                    self._log.warning("a verdict is refused", reason=error.reason)
                with self._lock:
                    if self._outbox.get(digest) is entry:
                        del self._outbox[digest]
        return 5.0

    def _tell(self, facts: Facts, verdict: Verdict, *, first: bool) -> None:
        if first:
            self.studies.set(facts, verdict)
            return
        digest = facts.key.digest()
        known = self.studies.all(study_instance_uid=facts.key.study_instance_uid)
        found = next((s for s in known if s.digest == digest), None)
        if found is None:
            self.studies.set(facts, verdict)
        else:
            self._change(found, verdict)

    def settle(self, found: Standing, *, anyway: bool = False, actor: str = ACTOR) -> Verdict:
        """Verify an admission again, and tell the database if that changes it.

        Raises:
            RadmeshError: the database does not answer.
        """
        verdict = self.verify(found.facts, anyway=anyway)
        with self._telling:
            self._change(found, verdict, actor)
            self._settled(found.digest, still_open=verdict.state != VERIFIED)
        return verdict

    def _settled(self, digest: bytes, *, still_open: bool) -> None:
        with self._lock:
            self._outbox.pop(digest, None)
            if not still_open:
                self._open.pop(digest, None)
            self._healed[digest] = None
            while len(self._healed) > _MOST:
                self._healed.popitem(last=False)

    def _change(self, found: Standing, verdict: Verdict, actor: str = ACTOR) -> None:
        if not self.supersedes(verdict, found):
            return
        try:
            self.studies.set(found.facts, verdict, digest=found.digest, revision=found.revision, actor=actor)
        except RadmeshError as error:
            # Somebody else was first: what they made of it is looked at in the next round.
            if error.reason != "VERSION_CONFLICT":
                raise

    def override(self, found: Standing, actor: str, note: str) -> None:
        """Let a person answer for an admission.

        Raises:
            RadmeshError: VERSION_CONFLICT: it has changed meanwhile.
        """
        verdict = Verdict(UNVERIFIED, OVERRIDDEN, found.domain)
        with self._telling:
            self.studies.set(found.facts, verdict, digest=found.digest, revision=found.revision, actor=actor, note=note)
            self._settled(found.digest, still_open=False)
