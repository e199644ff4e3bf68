"""Sends instances to a station: C-STORE as SCU, one association a batch (PS3.4 annex B)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from radmesh.dicom.stations import Station
from radmesh.dicom.transcoding import Transcoder
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.dimse import Response, Status
from radmesh_gateway_proxy.objects import Item, Outgoing, Prepared, context_for, proposals, takes_utf_8
from radmesh_gateway_proxy.pdus import ProposedContext
from radmesh_gateway_proxy.requestor import Requestor, Target
from radmesh_gateway_proxy.tls import Dialer

WARNINGS: Final = frozenset((0x0001, 0x0107, 0x0116, 0xB000, 0xB006, 0xB007))
"""Statuses of a C-STORE that was done, but not quite as asked (PS3.4 table B.2-1, PS3.7 annex C)."""

Store = Callable[[Prepared], Response]


class GoneError(Exception):
    """The station is not there, or not any more: nothing else is tried.

    Attributes:
        cause: STATION_UNREACHABLE, STATION_REFUSED, STATION_ABORTED, STATION_SILENT.
    """

    def __init__(self, cause: RadmeshError) -> None:
        super().__init__(cause.reason)
        self.cause = cause


def is_done(status: int) -> bool:
    """Whether a station has what it was sent."""
    return status == Status.SUCCESS or status in WARNINGS


@dataclass(frozen=True, slots=True)
class Delivery:
    """How instances get to a station.

    Attributes:
        station: one with host and port.
        calling_ae_title: of this side.
        transcoder: for what the station cannot take as stored.
        max_pdu: bytes of a P-DATA-TF behind its header that this side takes.
        between: called at least every 0.2 s while something is waited for, and between pieces; what it raises ends all.
        originator: of a C-MOVE: the AE title that asked for it, and the Message ID of its request.
        tls: how the station is called over TLS; None = without.
    """

    station: Station
    calling_ae_title: str
    transcoder: Transcoder
    max_pdu: int
    between: Callable[[], object]
    originator: tuple[str, int] | None = None
    tls: Dialer | None = None

    def run(self, items: Sequence[Item], send: Callable[[Iterable[Prepared], Store], bool]) -> None:
        """Send all, over as many associations as their presentation contexts need.

        Args:
            items: what to send, in this order.
            send: called for each association with what is to be sent over it and a function that does it, which raises
                RadmeshError for one that cannot be sent; returns whether to go on.

        Raises:
            GoneError: nothing else can be sent.
        """
        left = items
        while left:
            contexts, number = proposals(left, self.station.transfer_syntaxes)
            if not _Batch(self, contexts).run(left[:number], send):
                return
            left = left[number:]


class _Batch:
    """What one association can carry."""

    def __init__(self, delivery: Delivery, contexts: Sequence[ProposedContext]) -> None:
        self._delivery = delivery
        self._contexts = contexts
        station = delivery.station
        self._target = Target(
            station.host,
            station.port,
            station.ae_title.strip(),
            delivery.calling_ae_title,
            max_pdu=delivery.max_pdu,
            tls=delivery.tls,
        )
        self._association = self._open()

    def run(self, items: Sequence[Item], send: Callable[[Iterable[Prepared], Store], bool]) -> bool:
        preferred = self._delivery.station.transfer_syntaxes
        accepted = tuple(self._association.contexts.values())
        try:
            with Outgoing(
                items,
                lambda item: context_for(item, accepted, preferred),
                self._delivery.transcoder,
                utf_8=takes_utf_8(self._delivery.station),
                between=self._delivery.between,
            ) as outgoing:
                go_on = send(outgoing, self._store)
        except BaseException:
            self._association.abort()
            raise
        self._association.release()
        return go_on

    def _open(self) -> Requestor:
        try:
            return Requestor(self._target, self._contexts, between=self._delivery.between)
        except RadmeshError as error:
            raise GoneError(error) from None

    def _store(self, prepared: Prepared) -> Response:
        assert prepared.context is not None
        if not self._association.established:
            # It ended over the object before this one, which is not the fault of those that are left.
            self._association = self._open()
        context = self._association.contexts.get(prepared.context.context_id)
        if context != prepared.context:
            raise RadmeshError("STATION_REFUSED", "the station takes less than it did a moment ago")
        try:
            return self._association.store(
                context, prepared.item.sop_instance_uid, prepared.pieces, originator=self._delivery.originator
            )
        except RadmeshError as error:
            if error.reason == "STATION_SILENT":
                raise GoneError(error) from None
            raise
