"""Tickets on both sides: the cache of those who send, the check of those who store."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from threading import Lock
from typing import Final, Protocol

from radmesh.api.common.v1 import common_pb2
from radmesh.api.gateway.v1 import gateway_pb2
from radmesh.dicom.admission import AdmissionKey
from radmesh.runtime.clock import Clock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.study_store import ObjectHeader
from radmesh.transfer.model import Ticket, key_message, key_of

MARGIN: Final = timedelta(seconds=5)
"""A ticket leaves the cache this long before it expires: clocks differ, and the header is still to travel."""
CACHED_MAX: Final = 4_096


@dataclass(frozen=True, slots=True)
class Admission:
    """What is asked of the Network Gateway for one object."""

    header: ObjectHeader
    key: AdmissionKey
    queryable: bytes
    avoid_store_id: str = ""


Admit = Callable[[Admission], Ticket]


class TicketCache:
    """The tickets of one process, by digest of the admission key. Thread-safe, bounded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = Lock()
        self._tickets: OrderedDict[bytes, Ticket] = OrderedDict()

    def get(self, digest: bytes) -> Ticket | None:
        """A ticket that is good for some seconds more, or None."""
        with self._lock:
            ticket = self._tickets.get(digest)
            if ticket is None or ticket.expire_time - MARGIN > self._clock.now():
                return ticket
            del self._tickets[digest]
            return None

    def put(self, digest: bytes, ticket: Ticket) -> None:
        """Keep a ticket; the oldest goes when there are too many."""
        with self._lock:
            self._tickets[digest] = ticket
            self._tickets.move_to_end(digest)
            if len(self._tickets) > CACHED_MAX:
                self._tickets.popitem(last=False)

    def revoke(self, digest: bytes, ticket: Ticket | None = None) -> None:
        """Forget the ticket of a key; with ``ticket`` only if it is still that one."""
        with self._lock:
            if ticket is None or self._tickets.get(digest) is ticket:
                self._tickets.pop(digest, None)

    def revoke_study(self, study_instance_uid: str) -> None:
        """Forget the tickets of a study, as the change feed tells."""
        self._drop(lambda ticket: ticket.study_instance_uid == study_instance_uid)

    def revoke_store(self, store_id: str) -> None:
        """Forget the tickets into a store that fell silent."""
        self._drop(lambda ticket: ticket.store_id == store_id)

    def clear(self) -> None:
        """Forget all, as when the change feed has to be read anew."""
        self._drop(lambda _ticket: True)

    def _drop(self, gone: Callable[[Ticket], bool]) -> None:
        with self._lock:
            for digest in [digest for digest, ticket in self._tickets.items() if gone(ticket)]:
                del self._tickets[digest]


class Signatures(Protocol):
    """What is needed of radmesh.runtime.security.Credentials."""

    def ticket_verify(self, issuer: str, payload: bytes, signature: bytes) -> bool:
        """True: the issuer signed this payload."""


class TicketCheck:
    """Checks tickets for one store: once per distinct ticket and admission key. Thread-safe, bounded."""

    def __init__(self, signatures: Signatures, clock: Clock, store_id: str, epoch: bytes) -> None:
        self._signatures, self._clock, self._store_id, self._epoch = signatures, clock, store_id, epoch
        self._lock = Lock()
        self._known: OrderedDict[tuple[bytes, bytes, bytes], Ticket] = OrderedDict()

    def __call__(
        self, signed: common_pb2.SignedTicket, key: common_pb2.AdmissionKey, study_instance_uid: str
    ) -> Ticket:
        """The ticket, if it admits this object.

        An expired ticket passes, for an object that has begun finishes: see ``expired``.

        Raises:
            RadmeshError: TICKET_INVALID (signature, key or study of another), TICKET_STALE (store, epoch).
        """
        name = (signed.payload, signed.signature, key.SerializeToString())
        with self._lock:
            ticket = self._known.get(name)
        if ticket is None:
            ticket = self._verified(signed, key_of(key))
            with self._lock:
                self._known[name] = ticket
                if len(self._known) > CACHED_MAX:
                    self._known.popitem(last=False)
        if ticket.study_instance_uid != study_instance_uid:
            raise RadmeshError("TICKET_INVALID", "the ticket is for another study: admit again")
        return ticket

    def _verified(self, signed: common_pb2.SignedTicket, key: AdmissionKey) -> Ticket:
        ticket = Ticket.parse(signed)
        if not self._signatures.ticket_verify(ticket.issuer, ticket.payload, ticket.signature):
            raise RadmeshError("TICKET_INVALID", "the ticket was not signed by its issuer: admit again")
        if ticket.store_id != self._store_id:
            raise RadmeshError("TICKET_STALE", "the ticket is for another store: admit again")
        if ticket.epoch != self._epoch:
            raise RadmeshError("TICKET_STALE", "the store was restarted since the ticket was made: admit again")
        if key.study_instance_uid != ticket.study_instance_uid or key.digest() != ticket.admission_key:
            raise RadmeshError("TICKET_INVALID", "the ticket is for another admission key: admit again")
        return ticket

    def expired(self, ticket: Ticket) -> bool:
        """True: it admits no new object."""
        return ticket.expire_time <= self._clock.now()


def admit_by(context: Context, *, timeout: float = 3.0) -> Admit:
    """Admission by the Network Gateway.

    Args:
        context: gives the channel to it.
        timeout: seconds for one call; it answers within 200 ms unless the database is slow.
    """
    service = context.client(gateway_pb2.DESCRIPTOR.services_by_name["AdmissionService"], "network-gateway")

    def admit(admission: Admission) -> Ticket:
        header = admission.header
        request = gateway_pb2.AdmitRequest(
            admission_key=key_message(admission.key),
            called_ae_title=header.called_ae_title,
            source_address=header.source_address,
            header=admission.queryable,
            avoid_store_id=admission.avoid_store_id,
        )
        return Ticket.parse(service.Admit(request, timeout=timeout).ticket)

    return admit
