"""One association, on one thread: reads, lets the state machine decide, answers (PS3.8 section 9, PS3.7 section 9.3).

The thread blocks in native/ with the GIL released, so an idle association costs nothing; every wait has an end.
"""

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from radmesh.dicom.uids import VERIFICATION_SOP_CLASS
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.dimse import (
    SUCCESS,
    Command,
    CommandError,
    Element,
    Outcome,
    Request,
    Response,
    Status,
    encode_response,
    is_response,
    parse_request,
    parse_response,
)
from radmesh_gateway_proxy.negotiation import (
    AcceptedContext,
    Agreement,
    Negotiator,
)
from radmesh_gateway_proxy.pdus import (
    REJECT_CALLING_AE_TITLE,
    REJECT_LOCAL_LIMIT,
    REJECT_TEMPORARY_CONGESTION,
    AbortReason,
    AssociateReject,
    AssociateRequest,
    PduError,
    PduType,
    encode_associate_reject,
    parse_abort,
    parse_associate_accept,
    parse_associate_reject,
    parse_release,
)
from radmesh_gateway_proxy.sending import in_pieces, send_object
from radmesh_gateway_proxy.services.exchange import (
    Buffer,
    Exchange,
    InterruptedExchangeError,
    Mesh,
    Peer,
    RefusalError,
    outcome_of,
)
from radmesh_gateway_proxy.services.registry import by_operation
from radmesh_gateway_proxy.tally import Tally
from radmesh_gateway_proxy.upper_layer import Event, Indication, Machine, State
from radmesh_native import dul

STORE_GRANT: Final = "store"
# A peer that is between messages, and has been so for this long, is idle enough to be ended when the process drains.
_QUIET_SECONDS = 0.5

# Of objects that were taken, and are not answered.
_MOST_UNANSWERED: Final = 16 << 20
# One PDU's worth: a piece is hashed while the next one comes in.
_CHUNK: Final = 131_066
_PDU_EVENTS: Final[Mapping[PduType, tuple[Event, Callable[[bytes], object]]]] = {
    PduType.ASSOCIATE_AC: (Event.EVT3, parse_associate_accept),
    PduType.ASSOCIATE_RJ: (Event.EVT4, parse_associate_reject),
    PduType.RELEASE_RQ: (Event.EVT12, parse_release),
    PduType.RELEASE_RP: (Event.EVT13, parse_release),
    PduType.ABORT: (Event.EVT16, parse_abort),
}


class Underway(Protocol):
    """An object that was taken as a whole."""

    def outcome(self) -> Outcome:
        """Return what became of it; waits for that. Never raises."""


class Store(Protocol):
    """Takes the objects of one association; `intake.Intake` is the one that stores."""

    def store(self, request: Request, context: AcceptedContext, chunks: Iterator[bytes]) -> Underway | Outcome:
        """Take one object. What is left of the chunks is dropped; an exception of theirs passes through."""

    def wait_registered(self, seconds: float) -> None:
        """Wait until what was stored can be found, for so long at most. Never raises."""

    def close(self) -> None:
        """Give up what is open."""


@dataclass(frozen=True, slots=True)
class _Unanswered:
    """A C-STORE request whose object was taken, `size` bytes of it, since `started`."""

    context_id: int
    request: Request
    result: Underway | Outcome
    size: int
    started: float


class Drain(Protocol):
    """Whether and until when the process drains."""

    @property
    def wake_fd(self) -> int:
        """Descriptor that is readable from the moment the process drains."""

    @property
    def until(self) -> float | None:
        """When the process ends, by time.monotonic(); None while it does not drain."""


class Edge(Mesh, Protocol):
    """What the associations of a process share."""

    negotiator: Negotiator
    tally: Tally

    @property
    def draining(self) -> Drain:
        """Whether the process drains."""

    def grants(self, calling_ae_title: str, address: str, certificate: str = "") -> Collection[str] | None:
        """Return what a station may do; None if it may not even connect.

        `certificate` is the SHA-256 of the one that it showed, in hexadecimal digits; empty = none.
        """

    def store(self, peer: Peer) -> Store:
        """Return what takes the objects of one association."""

    def refused(self, peer: Peer, reason: str) -> None:
        """Write to the audit that a station was refused; returns at once."""


class Association:
    """One accepted connection, from its first byte to its last; over TLS it is the plain end of a tunnel."""

    def __init__(self, connection: socket.socket, address: str, edge: Edge, certificate: str = "") -> None:
        self._socket = connection
        self._address = address
        self._certificate = certificate
        self._edge = edge
        self._config = edge.config
        self._log = edge.log
        self._wire = dul.Connection(
            connection.fileno(),
            max_pdu=edge.config.max_pdu,
            chunk_size=_CHUNK,
            wake_fd=edge.draining.wake_fd,
            tcp=connection.family != socket.AF_UNIX,
        )
        self._machine = Machine(self, requestor=False)
        self._artim_until = 0.0
        self._broken = False
        self._readable = True
        self._in_message = False
        self._agreement: Agreement | None = None
        self._grants: Collection[str] = ()
        self._running: Request | None = None
        self._cancelled = False
        self._early: tuple[Any, ...] | None = None
        self._unanswered: deque[_Unanswered] = deque()
        self._unanswered_bytes = 0
        self._message_id = 0
        self._awaited: dict[int, Callable[[Response], None]] = {}
        self._peer = Peer("", "", address)
        self._store: Store | None = None
        self._counted = False
        self._outcome = "lost"
        self._objects = 0
        self._data_bytes = 0
        self._started = time.monotonic()

    @property
    def established(self) -> bool:
        """Whether it got past negotiation, and is not over."""
        return self._counted

    def run(self) -> None:
        """Serve until the connection is closed."""
        try:
            self._machine.handle(Event.EVT5)
            while self._machine.state is not State.STA1:
                self._step()
        except Exception as error:  # noqa: BLE001 - one association must not end the others
            self._outcome = "aborted"
            self._log.exception("association failed", error, address=self._address)
        finally:
            self._finish()

    def cut(self) -> None:
        """Close the connection from another thread; `run` then returns."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is closed already

    def _finish(self) -> None:
        if self._store is not None:
            self._store.close()
        self._socket.close()
        # It knows this object: both, and their buffers, would stay until a collection.
        del self._machine
        if self._counted:
            self._counted = False
            self._edge.tally.dissociate()
        if self._agreement is None and self._outcome == "lost":
            return  # a probe: it never asked for an association
        self._edge.tally.ended(self._outcome)
        self._log.info(
            "association ended",
            calling_ae_title=self._peer.calling_ae_title,
            called_ae_title=self._peer.called_ae_title,
            address=self._address,
            outcome=self._outcome,
            objects=self._objects,
            bytes=self._wire.bytes_received,
            seconds=round(time.monotonic() - self._started, 3),
        )

    # What the state machine acts on

    def open_transport(self) -> None:
        """Not for the acceptor's role."""
        raise NotImplementedError

    def send(self, pdu: bytes) -> None:
        """Send a PDU of association control."""
        try:
            self._wire.send([pdu], int(self._config.pdu_timeout * 1000))
        except OSError:
            self._broken = True

    def close_transport(self) -> None:
        """Nothing to do: Sta1 ends `run`, and that closes."""

    def start_artim(self) -> None:
        """Start the timer."""
        self._artim_until = time.monotonic() + self._config.artim_timeout

    def stop_artim(self) -> None:
        """Stop the timer."""
        self._artim_until = 0.0

    def indicate(self, indication: Indication, subject: object) -> None:
        """Note an abort; of the rest the state after the event tells, and the loop goes on from there."""
        if indication is Indication.ABORT or (indication is Indication.P_ABORT and subject is not None):
            self._outcome = "aborted"

    # The loop

    def _step(self) -> None:
        if self._broken:
            self._machine.handle(Event.EVT17)
            return
        if self._machine.state is State.STA13:
            self._await_close()
        else:
            self._dispatch(self._receive())

    def _receive(self) -> tuple[Any, ...]:
        """Return the wire's next event; of a process that drains, WOKEN only when the association is to end.

        What is under way is answered as soon as the peer has nothing more to say at once, within a data set too.
        """
        while self._unanswered and self._early is None:
            event = self._wire.receive(0, 0)
            if event[0] == dul.WOKEN:
                self._settle_all()
            elif event[0] != dul.TIMEOUT:
                return event
            else:
                self._settle()
        if self._early is not None:
            event, self._early = self._early, None
            return event
        idle = self._config.idle_timeout
        whole = self._config.pdu_timeout
        if self._artim_until:
            idle = whole = max(0.0, self._artim_until - time.monotonic())
        while True:
            event = self._wire.receive(int(idle * 1000), int(whole * 1000))
            if event[0] != dul.WOKEN:
                return event
            left = (self._edge.draining.until or 0.0) - time.monotonic()
            pause = left if self._in_message else min(left, _QUIET_SECONDS)
            if self._machine.state is State.STA2 or pause <= 0 or not _readable(self._socket, pause):
                return event

    def _await_close(self) -> None:
        """Sta13: what still comes is read and ignored, so that the peer gets to see our last PDU, until it closes."""
        left = self._artim_until - time.monotonic()
        if left <= 0 or self._edge.draining.until is not None:
            self._machine.handle(Event.EVT18)
        elif self._readable:
            event = self._wire.receive(int(left * 1000), int(left * 1000))
            if event[0] != dul.WOKEN:
                self._dispatch(event)
        else:
            # After an invalid PDU nobody knows where the next one begins.
            self._socket.settimeout(left)
            try:
                closed = not self._socket.recv(65536)
            except TimeoutError:
                return
            except OSError:
                closed = True
            if closed:
                self._machine.handle(Event.EVT17)

    def _dispatch(self, event: tuple[Any, ...]) -> None:
        kind = event[0]
        if kind != dul.COMMAND:
            self._settle_all()
        established = self._machine.state is State.STA6
        if kind == dul.COMMAND and established:
            self._message(event[1], event[2], has_data_set=event[3])
        elif kind in (dul.COMMAND, dul.DATA):
            self._machine.handle(Event.EVT10)
        elif kind == dul.PDU:
            self._pdu(event[1], event[2])
        elif kind == dul.CLOSED:
            self._machine.handle(Event.EVT17)
        elif kind == dul.INVALID:
            self._readable = False
            self._invalid(AbortReason(event[1]), event[2])
        elif established:
            # Idle for too long, or stuck within a PDU, or this process ends.
            self._abort("timeout" if kind == dul.TIMEOUT else "aborted")
        else:
            self._machine.handle(Event.EVT18 if self._machine.state in (State.STA2, State.STA13) else Event.EVT15)

    def _pdu(self, kind: int, body: bytes) -> None:
        try:
            if kind == PduType.ASSOCIATE_RQ:
                self._associate(body)
                return
            event, parse = _PDU_EVENTS[PduType(kind)]
            self._machine.handle(event, parse(body))
        except PduError as error:
            self._invalid(error.reason, str(error))
            return
        if self._machine.state is State.STA8:
            self._release()

    def _invalid(self, reason: AbortReason, text: str) -> None:
        self._log.warning("invalid PDU", address=self._address, state=int(self._machine.state), text=text)
        self._machine.handle(Event.EVT19, reason)
        self._outcome = "aborted"

    def _abort(self, outcome: str) -> None:
        self._outcome = outcome
        self._machine.handle(Event.EVT15)

    # Association control

    def _associate(self, body: bytes) -> None:
        if self._machine.state is not State.STA2:
            self._machine.handle(Event.EVT6)
            return
        request, answer = self._edge.negotiator.answer(body)
        self._peer = Peer(request.calling_ae_title, request.called_ae_title, self._address)
        if self._machine.handle(Event.EVT6, request) is not State.STA3:
            self._outcome = "refused"
            return
        rejection = self._admitted(request, answer)
        if rejection is not None:
            self._outcome = "refused"
            self._machine.handle(Event.EVT8, encode_associate_reject(rejection))
        else:
            assert isinstance(answer, Agreement)
            self._agreement = answer
            self._machine.handle(Event.EVT7, answer.accept)

    def _admitted(self, request: AssociateRequest, answer: Agreement | AssociateReject) -> AssociateReject | None:
        grants = self._edge.grants(request.calling_ae_title, self._address, self._certificate)
        if grants is None:
            self._edge.refused(self._peer, "STATION_UNKNOWN")
            return REJECT_CALLING_AE_TITLE
        if isinstance(answer, AssociateReject):
            return answer
        if self._edge.draining.until is not None:
            return REJECT_TEMPORARY_CONGESTION
        if not self._edge.tally.associate():
            return REJECT_LOCAL_LIMIT
        self._counted = True
        self._grants = grants
        return None

    def _release(self) -> None:
        if self._store is not None:
            self._store.wait_registered(self._config.release_wait)
        self._outcome = "released"
        self._machine.handle(Event.EVT14)

    # Messages

    def _message(self, context_id: int, command: bytes, *, has_data_set: bool) -> None:
        assert self._agreement is not None
        context = self._agreement.contexts.get(context_id)
        if context is None:
            self._settle_all()
            self._invalid(AbortReason.INVALID_PARAMETER_VALUE, "the presentation context was not accepted")
            return
        if self._awaited and is_response(command):
            self._answered(command, has_data_set=has_data_set)
            return
        try:
            request = parse_request(command, has_data_set=has_data_set)
        except CommandError as error:
            self._settle_all()
            self._log.warning("unusable command set", address=self._address, text=str(error))
            self._abort("aborted")
            return
        if request.command_field != Command.C_STORE:
            self._settle_all()
        chunks = self._data = self._chunks() if has_data_set else iter(())
        self._running, self._cancelled = request, False
        started, before = time.monotonic(), self._data_bytes
        self._in_message = True
        try:
            outcome = self._answer(request, context, chunks)
            for _ in chunks:  # what an operation that failed has left of its data set
                continue
        except InterruptedExchangeError as interruption:
            self._in_message = False
            self._dispatch(interruption.event)
            return
        self._in_message = False
        if request.command_field == Command.C_STORE:
            size = self._data_bytes - before
            self._unanswered.append(_Unanswered(context_id, request, outcome, size, started))
            self._unanswered_bytes += size
            most = self._agreement.operations if self._agreement.operations > 1 else 0
            while len(self._unanswered) > most or self._unanswered_bytes > _MOST_UNANSWERED:
                self._settle()
            return
        if outcome is not None:
            self._edge.tally.responded(request.name, outcome.status)
        if outcome is not None:
            self._respond(context_id, request, outcome)
            if outcome.then is not None and self._machine.state is State.STA6 and not self._broken:
                self._follow_up(outcome.then)

    def _settle(self) -> None:
        """Answer the oldest C-STORE request that is not answered."""
        one = self._unanswered.popleft()
        self._unanswered_bytes -= one.size
        outcome = one.result if isinstance(one.result, Outcome) else one.result.outcome()
        self._objects += outcome.status == Status.SUCCESS
        self._edge.tally.stored(outcome.status, one.size, time.monotonic() - one.started)
        if self._early is not None:
            return  # the peer is gone
        try:
            self.send_response(one.context_id, encode_response(one.request, outcome), b"")
        except InterruptedExchangeError as interruption:
            # Told where it can be handled: there may be a data set on its way.
            self._early = interruption.event

    def _settle_all(self) -> None:
        while self._unanswered:
            self._settle()

    def _follow_up(self, then: Callable[[], None]) -> None:
        try:
            then()
        except InterruptedExchangeError as interruption:
            self._dispatch(interruption.event)
        except RadmeshError as error:
            self._log.warning("what follows a request failed", reason=error.reason, text=error.message)

    def _answered(self, command: bytes, *, has_data_set: bool) -> None:
        """Hand the response to a request of ours to who made it."""
        try:
            response = parse_response(command, has_data_set=has_data_set)
            answered = self._awaited.pop(response.message_id, None)
            if answered is None:
                raise CommandError("a response came to a request that was not made")
            for _ in self._chunks() if has_data_set else ():
                continue
        except CommandError as error:
            self._log.warning("unusable command set", address=self._address, text=str(error))
            self._abort("aborted")
        except InterruptedExchangeError as interruption:
            self._dispatch(interruption.event)
        else:
            self._follow_up(lambda: answered(response))

    def _answer(self, request: Request, context: AcceptedContext, chunks: Iterator[bytes]) -> Any:
        if request.command_field == Command.C_STORE:
            return self._c_store(request, context, chunks)
        if request.command_field == Command.C_ECHO:
            return self._c_echo(request, context)
        if request.command_field == Command.C_CANCEL:
            return None  # nothing runs that could be cancelled, and a C-CANCEL has no response
        return self._serve(request, context)

    def _serve(self, request: Request, context: AcceptedContext) -> Outcome:
        assert self._agreement is not None
        service = by_operation().get((request.command_field, context.abstract_syntax))
        if service is None:
            return Outcome(Status.UNRECOGNIZED_OPERATION, "this operation is not served", (0x0000, 0x0100))
        if request.affected_sop_class_uid != context.abstract_syntax:
            return Outcome(Status.SOP_CLASS_NOT_SUPPORTED, "the SOP class is not that of the context", (0x0000, 0x0002))
        if service.grant and service.grant not in self._grants:
            self._edge.refused(self._peer, "GRANT_MISSING")
            return Outcome(Status.NOT_AUTHORIZED, f"GRANT_MISSING: the station needs the grant {service.grant}")
        if self._store is not None:
            # What it has just sent it finds.
            self._store.wait_registered(self._config.release_wait)
        exchange = Exchange(self, self._peer, request, context, self._agreement, self._grants, self._edge)
        started = time.monotonic()
        try:
            outcome = service.handler(exchange)
        except RefusalError as refusal:
            outcome = refusal.outcome
        except RadmeshError as error:
            self._log.warning("request failed", service=service.name, reason=error.reason, text=error.message)
            outcome = outcome_of(error)
        self._log.info(
            "request answered",
            service=service.name,
            calling_ae_title=self._peer.calling_ae_title,
            status=f"0x{outcome.status:04X}",
            seconds=round(time.monotonic() - started, 3),
        )
        return outcome

    def _c_echo(self, request: Request, context: AcceptedContext) -> Outcome:
        if VERIFICATION_SOP_CLASS not in (request.affected_sop_class_uid, context.abstract_syntax):
            return Outcome(Status.SOP_CLASS_NOT_SUPPORTED, "C-ECHO is of the Verification SOP Class", (0x0000, 0x0002))
        return SUCCESS

    def _c_store(self, request: Request, context: AcceptedContext, chunks: Iterator[bytes]) -> Underway | Outcome:
        if STORE_GRANT not in self._grants:
            return Outcome(Status.NOT_AUTHORIZED, "GRANT_MISSING: the station may not store")
        if self._store is None:
            self._store = self._edge.store(self._peer)
        return self._store.store(request, context, chunks)

    def _chunks(self) -> Iterator[bytes]:
        """Yield the data set that follows a command.

        Raises:
            InterruptedExchangeError: the connection or the peer's next PDU ended it.
        """
        while True:
            event = self._receive()
            if event[0] != dul.DATA:
                raise InterruptedExchangeError(event)
            if event[2]:
                self._data_bytes += len(event[2])
                yield event[2]
            if event[3]:
                return

    def _respond(self, context_id: int, request: Request, outcome: Outcome) -> None:
        try:
            self.send_response(context_id, encode_response(request, outcome), outcome.identifier)
        except InterruptedExchangeError as interruption:
            self._dispatch(interruption.event)

    # What an exchange does (services.exchange.Line)

    def chunks(self) -> Iterator[bytes]:
        """Yield the data set that follows the request, once."""
        return self._data

    def send_response(self, context_id: int, command: bytes, identifier: bytes) -> None:
        """Send one response."""
        with self._sending() as (peer_max_pdu, timeout):
            self._wire.send_message(context_id, command, identifier or None, peer_max_pdu, timeout)

    def send_rows(self, context_id: int, command: bytes, rows: Sequence[Buffer]) -> None:
        """Send a message for each row: the same command set, and the row as its data set."""
        with self._sending() as (peer_max_pdu, timeout):
            self._wire.send_rows(context_id, command, rows, peer_max_pdu, timeout)

    @contextmanager
    def _sending(self) -> Iterator[tuple[int, int]]:
        assert self._agreement is not None
        assert self._machine.state is State.STA6  # DT-1
        try:
            yield self._agreement.peer_max_pdu, int(self._config.pdu_timeout * 1000)
        except TimeoutError:
            self._outcome = "timeout"
        except OSError:
            pass
        else:
            return
        raise InterruptedExchangeError((dul.CLOSED, False))

    def cancelled(self) -> bool:
        """Whether a C-CANCEL for the request came; what else came is kept for later, and then nothing more is read."""
        while not self._cancelled and self._early is None:
            event = self._wire.receive(0, 0)
            if event[0] == dul.TIMEOUT:
                break
            self._note(event)
        until = self._edge.draining.until
        if until is not None and time.monotonic() > until:
            raise InterruptedExchangeError((dul.WOKEN,))
        return self._cancelled

    def _note(self, event: tuple[Any, ...]) -> None:
        """Take note of what comes while a request is being answered."""
        assert self._running is not None
        if event[0] != dul.COMMAND:
            raise InterruptedExchangeError(event)
        if not event[3]:
            with suppress(CommandError):
                request = parse_request(event[2], has_data_set=False)
                if request.command_field == Command.C_CANCEL:
                    self._cancelled |= request.number(Element.MESSAGE_ID_RESPONDED_TO) == self._running.message_id
                    return
        self._early = event

    def store(self, context_id: int, command: bytes, pieces: Iterable[Buffer]) -> Response:
        """Send a C-STORE request on this association, and return its response."""
        if self._early is not None:
            # The response would come behind a request that nobody reads before this one is answered.
            raise InterruptedExchangeError((dul.INVALID, AbortReason.UNEXPECTED_PDU, "a request amid a C-GET"))
        with self._sending() as (peer_max_pdu, timeout):
            send_object(self._wire, context_id, command, in_pieces(pieces), peer_max_pdu, timeout)
        while True:
            event = self._receive()
            if event[0] == dul.COMMAND and is_response(event[2]):
                break
            self._note(event)
            if self._early is not None:
                raise InterruptedExchangeError((dul.INVALID, AbortReason.UNEXPECTED_PDU, "a request amid a C-GET"))
        if event[3]:
            for _ in self._chunks():
                continue
        try:
            return parse_response(event[2], has_data_set=event[3])
        except CommandError as error:
            raise InterruptedExchangeError((dul.INVALID, AbortReason.INVALID_PARAMETER_VALUE, str(error))) from None

    def ask(
        self, context_id: int, command: Callable[[int], bytes], data: bytes, answered: Callable[[Response], None]
    ) -> None:
        """Send a request of ours, and go on; `answered` is called when its response comes, if ever."""
        number = self.next_message_id()
        self.send_response(context_id, command(number), data)
        self._awaited[number] = answered

    def next_message_id(self) -> int:
        """Return the Message ID of a request of ours on this association."""
        self._message_id = self._message_id % 0xFFFF + 1
        return self._message_id


def _readable(connection: socket.socket, seconds: float) -> bool:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(int(seconds * 1000)))
