"""Healing: whatever is not verified is verified again when there is a reason to, and now and then without one.

    an order comes or changes       what has its accession number, its Study UID or its patient
    a patient changes               what has the patient
    a domain can be asked again     what nobody could be asked about
    every second or two             what is PENDING and under way nowhere: a gateway died
    every minute                    everything that is not verified, a page a second

One after the other and the oldest first: a study that comes back is not overtaken by later ones.
"""

import heapq
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any, Final

from radmesh.api.database.v1 import database_pb2
from radmesh.dicom.domains import Domains
from radmesh.network_gateway.policy import (
    HELD,
    NOT_REQUIRED,
    PENDING,
    UNKNOWN,
    UNVERIFIED,
    VERIFIED,
    Standing,
)
from radmesh.network_gateway.verifier import Studies, Verifier
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Worker
from radmesh.transfer.feed import Follower

_ORDERS: Final = database_pb2.DESCRIPTOR.services_by_name["OrderService"]
_CALL_SECONDS: Final = 5.0
_PENDING_SECONDS: Final = 2.0
_PAGE_SECONDS: Final = 1.0
# More changes than these at once are a reason to look at everything.
_MOST: Final = 2048
_SOON_SECONDS: Final = 5.0
# Objects that come together are registered in any order: so many admissions are looked at to find the oldest.
_WINDOW: Final = 1024

_Trigger = tuple[str, str]


class Healing:
    """A worker that verifies again.

    Args:
        context: of the gateway.
        domains: the configured domains.
        verifier: asks and tells.
        again: seconds between two looks at everything.
    """

    def __init__(self, context: Context, domains: Domains, verifier: Verifier, again: float) -> None:
        self._clock = context.clock
        self._domains = domains
        self._verifier = verifier
        self._studies: Studies = verifier.studies
        self._orders = context.client(_ORDERS, "database-server")
        self._again = again
        self._lock = threading.Lock()
        self._triggers: OrderedDict[_Trigger, None] = OrderedDict()
        self._pending_at = self._page_at = self._everything_at = context.clock.monotonic()
        self._token: str | None = None
        self.healed = 0
        self._worker: Worker = context.worker("healing", self._step, most_pause=5.0)
        self._follower = Follower(
            context, "healing-feed", ("order", "patient", "domain"), self.trigger, self.look_at_everything
        )

    def start(self) -> None:
        """Begin, with a look at everything: what changed while nobody looked is not known."""
        self._follower.start()
        self._worker.start()

    def stop(self, grace: float) -> None:
        """End after the verification that is under way."""
        self._follower.stop(grace)
        self._worker.stop(grace)

    # -- reasons to look

    def trigger(self, kind: str, key: str) -> None:
        """Take a change of the feed: "order" and "patient" with "<domain> <…>", "domain" with its name."""
        self._put((kind, key))
        self._worker.wake()

    def look_at_everything(self) -> None:
        """Begin to look at everything that is not verified."""
        self._everything_at = self._clock.monotonic()
        self._worker.wake()

    def _put(self, trigger: _Trigger) -> None:
        with self._lock:
            self._triggers[trigger] = None
            if len(self._triggers) > _MOST:
                self._triggers.clear()
                self._everything_at = self._clock.monotonic()

    # -- work

    def _step(self) -> float:
        for domain in self._verifier.managers.returned():
            self._put(("domain", domain))
        while self._triggers and not self._worker.stopping:
            with self._lock:
                trigger = self._triggers.popitem(last=False)[0]
            try:
                self._heal(self._concerned(*trigger))
            except RadmeshError as error:
                if error.transient:
                    self._put(trigger)
                raise
        now = self._clock.monotonic()
        if now >= self._pending_at:
            # Those that a verdict is on its way to are left to it.
            pending = _by_time(self._listed(verifications=[PENDING]))
            self._heal(one for one in pending if not self._verifier.running(one.digest))
            self._pending_at = now + _PENDING_SECONDS
        if self._token is None and now >= self._everything_at:
            self._everything_at = now + self._again
            self._token = ""
        if self._token is not None and now >= self._page_at:
            found, token = self._studies.page(self._token, verifications=[UNVERIFIED, HELD])
            self._heal(found)
            self._token = token or None
            self._page_at = now + _PAGE_SECONDS
        return _PAGE_SECONDS

    def _listed(self, **filters: Any) -> Iterator[Standing]:
        token: str | None = ""
        while token is not None:
            found, token = self._studies.page(token, **filters)
            yield from found
            token = token or None

    def _heal(self, found: Iterable[Standing]) -> None:
        done: set[bytes] = set()
        for one in found:
            if self._worker.stopping:
                return
            if one.digest not in done:
                done.add(one.digest)
                self.healed += self._verifier.settle(one).state == VERIFIED != one.state

    def _concerned(self, kind: str, key: str) -> Iterable[Standing]:
        """Return the admissions that a change may concern, the oldest first."""
        domain, _, rest = key.partition(" ")
        if domain not in self._domains.names:
            return ()
        if kind == "domain":
            return self._unasked(domain)
        filters: list[tuple[str, str]] = []
        orders: set[str] = set()
        if kind == "patient":
            filters.append(("patient_id", rest))
        elif rest:
            filters.append(("accession_number", rest))
            request = database_pb2.FindOrdersRequest(domain=domain, accession_number=rest, page_size=10)
            for order in self._orders.FindOrders(request, timeout=_CALL_SECONDS).orders:
                orders.add(order.order_id)
                filters.append(("study_instance_uid", order.study_instance_uid))
                filters.append(("patient_id", order.patient.patient_id))
        else:
            # Of an order without an accession number the change does not say which it was.
            self._everything_at = min(self._everything_at, self._clock.monotonic() + _SOON_SECONDS)
        # None of an empty value: that would be every admission there is.
        wanted = [(name, value) for name, value in dict.fromkeys(filters) if value]
        known = [one for name, value in wanted for one in self._studies.all(**{name: value})]
        known.sort(key=lambda one: one.time)
        recent = [one for one in self._verifier.unsettled() if any(getattr(one.facts.key, n) == v for n, v in wanted)]
        return [one for one in (*known, *recent) if self._may_heal(one, domain, orders)]

    def _may_heal(self, one: Standing, domain: str, orders: set[str]) -> bool:
        """Whether a change may say something new of an admission."""
        if one.state == NOT_REQUIRED or self._verifier.domain_of(one.facts) != domain:
            return False
        # New demographics of its patient are the database's to lay over; a new patient of its order is not.
        return one.state != VERIFIED or one.order_id in orders

    def _unasked(self, domain: str) -> Iterator[Standing]:
        """Yield what nobody could be asked about."""
        lists = [_by_time(self._listed(reason=reason)) for reason in sorted(UNKNOWN)]
        for one in heapq.merge(*lists, key=lambda one: one.time):
            if self._verifier.domain_of(one.facts) == domain:
                yield one
        for one in self._verifier.unsettled():
            if one.reason in UNKNOWN and self._verifier.domain_of(one.facts) == domain:
                yield one


def _by_time(found: Iterable[Standing]) -> Iterator[Standing]:
    """Yield admissions by time, which are nearly in that order already."""
    heap: list[tuple[float, int, Standing]] = []
    for number, one in enumerate(found):
        heapq.heappush(heap, (one.time, number, one))
        if len(heap) > _WINDOW:
            yield heapq.heappop(heap)[2]
    while heap:
        yield heapq.heappop(heap)[2]
