"""One request of a peer that is being answered, on the thread of its association (PS3.7 section 9.3)."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol

from radmesh.dicom.stations import Station
from radmesh.dicom.transcoding import Transcoder
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.logs import Logger
from radmesh_gateway_proxy.config import Section
from radmesh_gateway_proxy.dimse import Outcome, Request, Response, Status, encode_response
from radmesh_gateway_proxy.negotiation import AcceptedContext, Agreement

Buffer = bytes | bytearray | memoryview

# Of rows that go out with one send; each has its command set beside it.
_BATCH_BYTES: Final = 256 << 10
_NO_ELEMENTS: Final[Mapping[int, bytes]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is on the other side."""

    calling_ae_title: str
    called_ae_title: str
    address: str


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of a retrieve, for one study.

    Attributes:
        destination: AE title it went to.
        instances: those that arrived, failed: those that did not.
        reason: why the first one failed; empty = none did.
    """

    destination: str
    instances: int
    failed: int
    reason: str


class InterruptedExchangeError(Exception):
    """The connection, or what the peer sent next, ended the exchange: let it through, there is nobody to answer.

    Attributes:
        event: of the wire, which the association goes on with.
    """

    def __init__(self, event: tuple[Any, ...]) -> None:
        super().__init__(event[0])
        self.event = event


class RefusalError(Exception):
    """The request gets this outcome, and the association lives."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.comment)
        self.outcome = outcome


def outcome_of(error: RadmeshError, tag: tuple[int, int] | None = None) -> Outcome:
    """Return the DIMSE outcome of an error of the mesh: the status from the table of reasons, with its name."""
    status = error.definition.dimse_status
    return Outcome(status, f"{error.reason}: {error.message}"[:64], tag)


class Mesh(Protocol):
    """What is behind the edge, for those who answer."""

    config: Section
    log: Logger
    transcoder: Transcoder

    @property
    def context(self) -> Context:
        """Clients and channels of the mesh."""

    def station(self, ae_title: str, address: str) -> Station | None:
        """Return the station that calls itself so from there; None if none is known."""

    def destination(self, ae_title: str) -> Station | None:
        """Return the station that takes associations under this AE title; None if none is known that does."""

    def sent(self, peer: Peer, study_instance_uid: str, sent: Sent) -> None:
        """Write to the audit what of a study was sent for a station; returns at once."""


class Line(Protocol):
    """The association, as an exchange uses it. Every method may raise InterruptedExchangeError."""

    def chunks(self) -> Iterator[bytes]:
        """Yield the data set that follows the request, once."""

    def send_rows(self, context_id: int, command: bytes, rows: Sequence[Buffer]) -> None:
        """Send a message for each row: the same command set, and the row as its data set."""

    def send_response(self, context_id: int, command: bytes, identifier: bytes) -> None:
        """Send one response."""

    def cancelled(self) -> bool:
        """Whether a C-CANCEL for the request came. Never waits."""

    def store(self, context_id: int, command: bytes, pieces: Iterable[Buffer]) -> Response:
        """Send a C-STORE request on this association, and return its response."""

    def ask(
        self, context_id: int, command: Callable[[int], bytes], data: bytes, answered: Callable[[Response], None]
    ) -> None:
        """Send a request of ours with a data set, and go on; for `Outcome.then` alone.

        `command` gives the encoded request of a Message ID; `answered` is called when the response comes, if ever.
        """

    def next_message_id(self) -> int:
        """Return the Message ID of a request of ours on this association."""


class Exchange:
    """A request, and what its handler may do about it.

    Attributes:
        peer: who asks.
        request: the command set.
        context: the presentation context it came in.
        agreement: what else was negotiated.
        grants: what the station may do; that it may do this was looked at.
        mesh: what is behind the edge.
    """

    def __init__(
        self,
        line: Line,
        peer: Peer,
        request: Request,
        context: AcceptedContext,
        agreement: Agreement,
        grants: Collection[str],
        mesh: Mesh,
    ) -> None:
        self.peer = peer
        self.request = request
        self.context = context
        self.agreement = agreement
        self.grants = grants
        self.mesh = mesh
        self.line = line

    @property
    def log(self) -> Logger:
        """Where to write; never names, IDs or keys of a query."""
        return self.mesh.log

    def identifier(self, most: int = 1 << 20, *, too_long: int = Status.CANNOT_UNDERSTAND) -> bytes:
        """Return the data set of the request, whole, in the transfer syntax of the context; empty if it has none.

        Args:
            most: bytes that it may have.
            too_long: status of the refusal when it has more.

        Raises:
            RefusalError: it has more.
        """
        if not self.request.has_data_set:
            return b""
        data = bytearray()
        for chunk in self.line.chunks():
            if len(data) + len(chunk) > most:
                raise RefusalError(Outcome(too_long, f"the data set has more than {most} bytes"))
            data += chunk
        return bytes(data)

    def respond(
        self, status: int = Status.PENDING, *, identifier: bytes = b"", elements: Mapping[int, bytes] = _NO_ELEMENTS
    ) -> None:
        """Send a pending response."""
        outcome = Outcome(status, elements=elements, identifier=identifier)
        self.line.send_response(self.context.context_id, encode_response(self.request, outcome), identifier)

    def respond_many(self, rows: Iterable[Buffer], status: int = Status.PENDING) -> None:
        """Send a pending response for each row, many with one send; a row is an identifier, and not empty."""
        command = encode_response(self.request, Outcome(status, identifier=b"\0"))
        batch: list[Buffer] = []
        size = 0
        for row in rows:
            batch.append(row)
            size += len(row) + len(command)
            if size >= _BATCH_BYTES:
                self.line.send_rows(self.context.context_id, command, batch)
                batch, size = [], 0
        if batch:
            self.line.send_rows(self.context.context_id, command, batch)

    def cancelled(self) -> bool:
        """Whether a C-CANCEL for this request came. Never waits: ask before each row, or each sub-operation.

        Other requests that come in the middle wait until this one is answered.
        """
        return self.line.cancelled()

    def store(self, context_id: int, command: bytes, pieces: Iterable[Buffer]) -> Response:
        """Do a C-STORE sub-operation on this association (C-GET), and return its response.

        Args:
            context_id: an accepted context of which the peer is SCP (`agreement.scp_sop_classes`).
            command: the encoded C-STORE request; its Message ID from `line.next_message_id`.
            pieces: the data set; when they raise in its middle, the association is at its end.
        """
        return self.line.store(context_id, command, pieces)
