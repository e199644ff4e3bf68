"""An association that this side opens (PS3.8 section 9.1, requestor's role), on the loop of native/.

One thread uses it. Every wait has an end, and is cut into turns of 0.2 s in which `between` is called: whoever asked
for the operation may have cancelled it.
"""

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, Final, Self

from radmesh.dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, VERIFICATION_SOP_CLASS
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.dimse import (
    Command,
    CommandError,
    Element,
    Response,
    encode_request,
    is_response,
    parse_response,
    us,
)
from radmesh_gateway_proxy.negotiation import AcceptedContext
from radmesh_gateway_proxy.pdus import (
    AbortReason,
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    ContextResult,
    PduError,
    PduType,
    ProposedContext,
    RoleSelection,
    UserInformation,
    encode_associate_request,
    parse_abort,
    parse_associate_accept,
    parse_associate_reject,
    parse_associate_request,
    parse_release,
)
from radmesh_gateway_proxy.sending import Buffer, in_pieces, send_object
from radmesh_gateway_proxy.tls import Dialer
from radmesh_gateway_proxy.upper_layer import Event, Indication, Machine, State
from radmesh_native import dul

MOST_CONTEXTS: Final = 128
"""Presentation contexts of one association (PS3.8 9.3.2.2: odd ids from 1 to 255)."""
_TURN: Final = 0.2
_LEAST_PDU: Final = 32
_MOST_ANSWER: Final = 1 << 20
_PDU_EVENTS: Final[Mapping[PduType, tuple[Event, Callable[[bytes], object]]]] = {
    PduType.ASSOCIATE_RQ: (Event.EVT6, parse_associate_request),
    PduType.ASSOCIATE_AC: (Event.EVT3, parse_associate_accept),
    PduType.ASSOCIATE_RJ: (Event.EVT4, parse_associate_reject),
    PduType.RELEASE_RQ: (Event.EVT12, parse_release),
    PduType.RELEASE_RP: (Event.EVT13, parse_release),
    PduType.ABORT: (Event.EVT16, parse_abort),
}


@dataclass(frozen=True, slots=True)
class Target:
    """Who is called, by whom, and how long that may take.

    Attributes:
        host: name or address.
        connect_seconds: until the connection is open, and once more until the association is.
        response_seconds: for a response.
        pdu_seconds: within which a PDU that has begun is whole, and the peer reads what it was sent.
        max_pdu: bytes of a P-DATA-TF behind its header that this side takes.
        tls: how it is called over TLS; None = without.
    """

    host: str
    port: int
    called_ae_title: str
    calling_ae_title: str
    connect_seconds: float = 10.0
    response_seconds: float = 60.0
    pdu_seconds: float = 60.0
    max_pdu: int = 131_072
    tls: Dialer | None = None


class Requestor:
    """An established association; use it as a context manager, which releases it, or aborts it after an exception.

    Attributes:
        contexts: accepted contexts by their id.
    """

    def __init__(
        self,
        target: Target,
        contexts: Sequence[ProposedContext],
        *,
        roles: Sequence[RoleSelection] = (),
        between: Callable[[], object] = lambda: None,
    ) -> None:
        """Open the association.

        Args:
            target: who is called.
            contexts: what is proposed, at most 128.
            roles: SCP/SCU role selection.
            between: called at least every 0.2 s while something is waited for; what it raises ends the association.

        Raises:
            RadmeshError: STATION_UNREACHABLE, STATION_REFUSED, STATION_ABORTED, STATION_SILENT.
        """
        self.contexts: Mapping[int, AcceptedContext] = MappingProxyType({})
        self._target = target
        self._between = between
        self._proposed = {c.context_id: c for c in contexts}
        self._socket: socket.socket | None = None
        self._peer_max_pdu = 0
        self._message_id = 0
        self._broken = False
        self._said: object = None
        self._machine = Machine(self, requestor=True)
        user = UserInformation(
            target.max_pdu, IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME, roles=tuple(roles)
        )
        request = AssociateRequest(target.called_ae_title, target.calling_ae_title, tuple(contexts), user)
        try:
            self._open(encode_associate_request(request))
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release()
        else:
            self.abort()

    # What is done with it

    def context_of(self, abstract_syntax: str, transfer_syntaxes: Iterable[str] = ()) -> AcceptedContext | None:
        """Return the accepted context of an abstract syntax: that with the first of the transfer syntaxes, or any."""
        accepted = [c for c in self.contexts.values() if c.abstract_syntax == abstract_syntax]
        wanted = list(transfer_syntaxes)
        if not wanted:
            return accepted[0] if accepted else None
        return next((c for syntax in wanted for c in accepted if c.transfer_syntax == syntax), None)

    def echo(self) -> Response:
        """Do a C-ECHO (PS3.7 9.1.5).

        Raises:
            RadmeshError: as `request`; STATION_REFUSED if the peer did not accept the Verification SOP Class.
        """
        context = self.context_of(VERIFICATION_SOP_CLASS)
        if context is None:
            raise RadmeshError("STATION_REFUSED", "the station does not accept the Verification SOP Class")
        return self.request(context, Command.C_ECHO, VERIFICATION_SOP_CLASS)[0]

    def store(
        self,
        context: AcceptedContext,
        sop_instance_uid: str,
        pieces: Iterable[Buffer],
        *,
        originator: tuple[str, int] | None = None,
    ) -> Response:
        """Do a C-STORE (PS3.7 9.1.1) and return its response.

        Args:
            context: an accepted one; its abstract syntax is the SOP class.
            sop_instance_uid: of the object.
            pieces: its data set in the transfer syntax of the context. When they raise in its middle, so does this, and
                the association is at its end.
            originator: of a C-MOVE: the AE title that asked for it, and the Message ID of its request.

        Raises:
            RadmeshError: STATION_ABORTED, STATION_SILENT.
        """
        elements = {int(Element.PRIORITY): us(0)}
        if originator is not None:
            elements[Element.MOVE_ORIGINATOR_AE_TITLE] = originator[0].encode("ascii", "replace")[:16]
            elements[Element.MOVE_ORIGINATOR_MESSAGE_ID] = us(originator[1])
        return self._operate(
            context, Command.C_STORE, context.abstract_syntax, sop_instance_uid, pieces, elements, requested=False
        )[0]

    def request(
        self,
        context: AcceptedContext,
        command_field: int,
        sop_class_uid: str,
        sop_instance_uid: str = "",
        *,
        data_set: bytes = b"",
        elements: Mapping[int, bytes] = MappingProxyType({}),
        requested: bool = False,
    ) -> tuple[Response, bytes]:
        """Do any other operation that has one response; return it with its data set, 1 MiB at most.

        Raises:
            RadmeshError: STATION_ABORTED, STATION_SILENT.
        """
        pieces = (data_set,) if data_set else None
        return self._operate(
            context, command_field, sop_class_uid, sop_instance_uid, pieces, elements, requested=requested
        )

    def release(self) -> None:
        """Release the association (PS3.8 9.3.6); a peer that does not answer is aborted. Never raises."""
        if not self.established:
            self.abort()
            return
        self._machine.handle(Event.EVT11)
        until = time.monotonic() + min(self._target.connect_seconds, self._target.response_seconds)
        try:
            while self._machine.state is not State.STA1 and not self._broken:
                # A response that nobody waits for any more may still be on its way.
                self._handle(self._next(until))
        except RadmeshError:
            pass
        self.abort()

    @property
    def established(self) -> bool:
        """Whether it can be used."""
        return self._machine.state is State.STA6 and not self._broken

    def abort(self) -> None:
        """Abort the association if it is open, and close the connection. Never raises."""
        if self._machine.state not in (State.STA1, State.STA13) and not self._broken:
            self._machine.handle(Event.EVT15)
        self.close_transport()

    # What the state machine acts on

    def open_transport(self) -> None:
        """Nothing to do: `_open` connects."""

    def send(self, pdu: bytes) -> None:
        """Send a PDU of association control."""
        try:
            self._wire.send([pdu], int(self._target.connect_seconds * 1000))
        except (OSError, AttributeError):
            self._broken = True

    def close_transport(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        self._broken = True

    def start_artim(self) -> None:
        """Nothing to do: after its last PDU this side closes the connection itself."""

    def stop_artim(self) -> None:
        """Nothing to do."""

    def indicate(self, indication: Indication, subject: object) -> None:
        """Note what the peer said last."""
        if indication in (Indication.ASSOCIATE_CONFIRM_ACCEPT, Indication.ASSOCIATE_CONFIRM_REJECT):
            self._said = subject
        elif indication is Indication.RELEASE:
            self._said = "the station released the association"

    # The loop

    def _open(self, request: bytes) -> None:
        until = time.monotonic() + self._target.connect_seconds
        self._machine.handle(Event.EVT1, request)
        self._socket = self._connect(until)
        if self._target.tls is not None:
            self._socket = self._target.tls.tunnel(
                self._socket, self._target.host, self._target.connect_seconds, self._target.pdu_seconds, self._between
            )
        self._wire = dul.Connection(
            self._socket.fileno(),
            max_pdu=self._target.max_pdu,
            chunk_size=65_536,
            tcp=self._socket.family != socket.AF_UNIX,
        )
        self._machine.handle(Event.EVT2)
        until = time.monotonic() + self._target.connect_seconds
        while self._machine.state is State.STA5:
            self._handle(self._next(until))
        if isinstance(self._said, AssociateReject):
            said = self._said
            raise RadmeshError(
                "STATION_REFUSED",
                f"the station rejects the association: result {said.result}, source {said.source}, "
                f"reason {said.reason} of PS3.8 table 9-21",
            )
        if not isinstance(self._said, AssociateAccept):
            raise self._aborted()
        self._agree(self._said)

    def _connect(self, until: float) -> socket.socket:
        where = f"{self._target.host} port {self._target.port}"
        try:
            found = socket.getaddrinfo(self._target.host, self._target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise RadmeshError("STATION_UNREACHABLE", f"the name of {where} is not known") from None
        code = errno.ETIMEDOUT
        for family, kind, protocol, _, address in found:
            connection = socket.socket(family, kind, protocol)
            try:
                connection.setblocking(False)  # noqa: FBT003 - the standard library has no name for it
                code = connection.connect_ex(address)
                poll = select.poll()
                poll.register(connection, select.POLLOUT)
                while code == errno.EINPROGRESS and time.monotonic() < until:
                    self._between()
                    if poll.poll(_TURN * 1000):
                        code = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                        break
                if code == 0:
                    return connection
            except BaseException:
                connection.close()
                raise
            connection.close()
        code = errno.ETIMEDOUT if code == errno.EINPROGRESS else code
        raise RadmeshError("STATION_UNREACHABLE", f"cannot connect to {where} ({os.strerror(code).lower()})")

    def _agree(self, accept: AssociateAccept) -> None:
        if 0 < accept.user.max_length < _LEAST_PDU:
            self._invalid(AbortReason.INVALID_PARAMETER_VALUE)
            raise RadmeshError("STATION_ABORTED", "the station takes no PDU that could carry a message")
        self._peer_max_pdu = accept.user.max_length
        accepted = {}
        for reply in accept.contexts:
            proposed = self._proposed.get(reply.context_id)
            if reply.result is ContextResult.ACCEPTANCE and proposed is not None:
                if reply.transfer_syntax not in proposed.transfer_syntaxes:
                    continue  # what was not offered is not spoken
                accepted[reply.context_id] = AcceptedContext(
                    reply.context_id, proposed.abstract_syntax, reply.transfer_syntax
                )
        self.contexts = MappingProxyType(accepted)

    def _operate(
        self,
        context: AcceptedContext,
        command_field: int,
        sop_class_uid: str,
        sop_instance_uid: str,
        pieces: Iterable[Buffer] | None,
        elements: Mapping[int, bytes],
        *,
        requested: bool,
    ) -> tuple[Response, bytes]:
        if not self.established:
            raise self._aborted()
        self._message_id = self._message_id % 0xFFFF + 1
        command = encode_request(
            command_field,
            self._message_id,
            sop_class_uid,
            sop_instance_uid,
            has_data_set=pieces is not None,
            requested=requested,
            elements=elements,
        )
        timeout = int(self._target.pdu_seconds * 1000)
        whole = False
        try:
            if pieces is None:
                self._wire.send_message(context.context_id, command, None, self._peer_max_pdu, timeout)
            else:
                send_object(
                    self._wire,
                    context.context_id,
                    command,
                    in_pieces(pieces),
                    self._peer_max_pdu,
                    timeout,
                    self._between,
                )
            whole = True
        except TimeoutError:
            raise RadmeshError("STATION_SILENT", "the station does not read what it is sent") from None
        except ConnectionError:
            raise self._aborted() from None
        finally:
            if not whole:
                self.abort()
        return self._response(command_field)

    def _response(self, command_field: int) -> tuple[Response, bytes]:
        until = time.monotonic() + self._target.response_seconds
        while True:
            event = self._next(until)
            if event[0] == dul.COMMAND and is_response(event[2]):
                break
            self._handle(event)
            if not self.established:
                raise self._aborted()
        try:
            response = parse_response(event[2], has_data_set=event[3])
        except CommandError as error:
            self._invalid(AbortReason.INVALID_PARAMETER_VALUE)
            raise RadmeshError("STATION_ABORTED", f"the station's response cannot be read: {error}") from None
        data, last = bytearray(), not event[3]
        while not last:
            piece = self._next(until)
            if piece[0] != dul.DATA:
                self._handle(piece)
                raise self._aborted()
            last = piece[3]
            if len(data) + len(piece[2]) > _MOST_ANSWER:
                self.abort()
                raise RadmeshError("STATION_ABORTED", "the station's response is longer than 1 MiB")
            data += piece[2]
        if response.command_field != command_field or response.message_id != self._message_id:
            self.abort()
            raise RadmeshError("STATION_ABORTED", "the station responds to what it was not asked")
        return response, bytes(data)

    def _next(self, until: float) -> tuple[Any, ...]:
        """Return the wire's next event; if there is none in time, the association is aborted: STATION_SILENT."""
        while True:
            try:
                self._between()
            except BaseException:
                self.abort()
                raise
            if self._broken:
                return (dul.CLOSED, False)
            left = min(_TURN, until - time.monotonic())
            event: tuple[Any, ...] = self._wire.receive(int(max(0.0, left) * 1000), int(max(0.0, left) * 1000))
            if event[0] != dul.TIMEOUT:
                return event
            if time.monotonic() >= until:
                self.abort()
                raise RadmeshError("STATION_SILENT", "the station does not answer in time")

    def _handle(self, event: tuple[Any, ...]) -> None:
        kind = event[0]
        if kind == dul.CLOSED:
            self._machine.handle(Event.EVT17)
            self._broken = True
        elif kind == dul.INVALID:
            self._invalid(AbortReason(event[1]))
        elif kind in (dul.COMMAND, dul.DATA):
            if self._machine.state is State.STA6:
                # A request of the peer's, who has no role to make one, or data without a command.
                self._invalid(AbortReason.UNEXPECTED_PDU)
            else:
                self._machine.handle(Event.EVT10, event)
        elif kind == dul.PDU:
            self._pdu(event[1], event[2])

    def _pdu(self, kind: int, body: bytes) -> None:
        try:
            event, parse = _PDU_EVENTS[PduType(kind)]
            self._machine.handle(event, parse(body))
        except PduError as error:
            self._invalid(error.reason)
            return
        if self._machine.state in (State.STA8, State.STA9):
            self._machine.handle(Event.EVT14)

    def _invalid(self, reason: AbortReason) -> None:
        self._machine.handle(Event.EVT19, reason)
        self.close_transport()

    def _aborted(self) -> RadmeshError:
        self.abort()
        said = self._said if isinstance(self._said, str) else "the station ended the association"
        return RadmeshError("STATION_ABORTED", said)
