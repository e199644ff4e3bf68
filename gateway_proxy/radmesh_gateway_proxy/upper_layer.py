"""The DICOM upper layer state machine (PS3.8 section 9.2), as the table that the standard prints.

The machine decides; `Effects` acts: it owns the socket, the ARTIM timer and the user of the service. The table holds
both roles. In data transfer the loop in native/ does DT-2 for a whole run of P-DATA-TF PDUs and the machine stays in
Sta6, so the machine costs nothing per fragment.
"""

from collections.abc import Mapping
from enum import IntEnum
from typing import Final, Protocol

from radmesh_gateway_proxy.pdus import (
    REJECT_PROTOCOL_VERSION,
    RELEASE_REPLY,
    RELEASE_REQUEST,
    Abort,
    AbortReason,
    AbortSource,
    AssociateRequest,
    encode_abort,
    encode_associate_reject,
)


class State(IntEnum):
    """States, PS3.8 tables 9-1 to 9-5."""

    STA1 = 1  # idle
    STA2 = 2  # transport connection open, awaiting A-ASSOCIATE-RQ PDU
    STA3 = 3  # awaiting local A-ASSOCIATE response primitive
    STA4 = 4  # awaiting transport connection opening to complete
    STA5 = 5  # awaiting A-ASSOCIATE-AC or A-ASSOCIATE-RJ PDU
    STA6 = 6  # association established and ready for data transfer
    STA7 = 7  # awaiting A-RELEASE-RP PDU
    STA8 = 8  # awaiting local A-RELEASE response primitive
    STA9 = 9  # release collision, requestor side: awaiting A-RELEASE response primitive
    STA10 = 10  # release collision, acceptor side: awaiting A-RELEASE-RP PDU
    STA11 = 11  # release collision, requestor side: awaiting A-RELEASE-RP PDU
    STA12 = 12  # release collision, acceptor side: awaiting A-RELEASE response primitive
    STA13 = 13  # awaiting transport connection close indication


class Event(IntEnum):
    """Events, PS3.8 section 9.2.2."""

    EVT1 = 1  # A-ASSOCIATE request primitive
    EVT2 = 2  # transport connection confirmation
    EVT3 = 3  # A-ASSOCIATE-AC PDU
    EVT4 = 4  # A-ASSOCIATE-RJ PDU
    EVT5 = 5  # transport connection indication
    EVT6 = 6  # A-ASSOCIATE-RQ PDU
    EVT7 = 7  # A-ASSOCIATE response primitive, accept
    EVT8 = 8  # A-ASSOCIATE response primitive, reject
    EVT9 = 9  # P-DATA request primitive
    EVT10 = 10  # P-DATA-TF PDU
    EVT11 = 11  # A-RELEASE request primitive
    EVT12 = 12  # A-RELEASE-RQ PDU
    EVT13 = 13  # A-RELEASE-RP PDU
    EVT14 = 14  # A-RELEASE response primitive
    EVT15 = 15  # A-ABORT request primitive
    EVT16 = 16  # A-ABORT PDU
    EVT17 = 17  # transport connection closed
    EVT18 = 18  # ARTIM timer expired
    EVT19 = 19  # unrecognized or invalid PDU


class Indication(IntEnum):
    """What the machine tells the user of the service."""

    ASSOCIATE = 1
    ASSOCIATE_CONFIRM_ACCEPT = 2
    ASSOCIATE_CONFIRM_REJECT = 3
    P_DATA = 4
    RELEASE = 5
    RELEASE_CONFIRM = 6
    ABORT = 7
    P_ABORT = 8


class Effects(Protocol):
    """What actions act on. A method returns at once, or when its bytes are with the kernel."""

    def open_transport(self) -> None:
        """Begin to open the transport connection; Evt2 or Evt17 says how it went."""

    def send(self, pdu: bytes) -> None:
        """Send a whole PDU. A connection that is gone is no error here: Evt17 follows."""

    def close_transport(self) -> None:
        """Close the transport connection."""

    def start_artim(self) -> None:
        """Start the ARTIM timer, or start it again if it runs."""

    def stop_artim(self) -> None:
        """Stop the ARTIM timer if it runs."""

    def indicate(self, indication: Indication, subject: object) -> None:
        """Issue an indication or confirmation primitive; subject is the PDU that caused it, if one did."""


class UnexpectedEventError(Exception):
    """A local primitive in a state where the table has no entry: a defect of the caller; nothing was done."""

    def __init__(self, state: State, event: Event) -> None:
        super().__init__(f"Evt{event} has no entry in Sta{state}")
        self.state = state
        self.event = event


def _table() -> dict[tuple[State, Event], tuple[str, State]]:
    """PS3.8 table 9-10. AE-6 and AR-8 choose between two states; the table names the first."""
    rows: dict[int, dict[int, tuple[str, int]]] = {event: {} for event in range(1, 20)}
    established = range(6, 13)  # Sta6 to Sta12 answer most events alike
    for event in (3, 4, 6, 10, 12, 13, 19):  # a PDU of whatever kind
        rows[event] = {2: ("AA-1", 13), 3: ("AA-8", 13), 5: ("AA-8", 13), 13: ("AA-6", 13)}
        rows[event] |= dict.fromkeys(established, ("AA-8", 13))
    rows[1] = {1: ("AE-1", 4)}
    rows[2] = {4: ("AE-2", 5)}
    rows[3][5] = ("AE-3", 6)
    rows[4][5] = ("AE-4", 1)
    rows[5] = {1: ("AE-5", 2)}
    rows[6] |= {2: ("AE-6", 3), 13: ("AA-7", 13)}
    rows[7] = {3: ("AE-7", 6)}
    rows[8] = {3: ("AE-8", 13)}
    rows[9] = {6: ("DT-1", 6), 8: ("AR-7", 8)}
    rows[10] |= {6: ("DT-2", 6), 7: ("AR-6", 7)}
    rows[11] = {6: ("AR-1", 7)}
    rows[12] |= {6: ("AR-2", 8), 7: ("AR-8", 9)}
    rows[13] |= {7: ("AR-3", 1), 10: ("AR-10", 12), 11: ("AR-3", 1)}
    rows[14] = {8: ("AR-4", 13), 9: ("AR-9", 11), 12: ("AR-4", 13)}
    rows[15] = {3: ("AA-1", 13), 4: ("AA-2", 1), 5: ("AA-1", 13)} | dict.fromkeys(established, ("AA-1", 13))
    rows[16] = {2: ("AA-2", 1), 3: ("AA-3", 1), 5: ("AA-3", 1), 13: ("AA-2", 1)}
    rows[16] |= dict.fromkeys(established, ("AA-3", 1))
    rows[17] = {2: ("AA-5", 1), 3: ("AA-4", 1), 4: ("AA-4", 1), 5: ("AA-4", 1), 13: ("AR-5", 1)}
    rows[17] |= dict.fromkeys(established, ("AA-4", 1))
    rows[18] = {2: ("AA-2", 1), 13: ("AA-2", 1)}
    rows[19][13] = ("AA-7", 13)
    return {
        (State(state), Event(event)): (action, State(following))
        for event, row in rows.items()
        for state, (action, following) in row.items()
    }


TRANSITIONS: Final[Mapping[tuple[State, Event], tuple[str, State]]] = _table()


class Machine:
    """One association's state.

    Attributes:
        state: where it is now.
        requestor: whether this side asked for the association; decides release collisions.
    """

    def __init__(self, effects: Effects, *, requestor: bool, state: State = State.STA1) -> None:
        self.state = state
        self.requestor = requestor
        self._effects = effects

    def handle(self, event: Event, subject: object = None) -> State:
        """Do what the table says for this event and return the new state.

        Args:
            event: what happened.
            subject: what it happened with. Evt3, 4, 6, 10, 12, 13, 16: the parsed PDU. Evt1, 7, 8, 9: the encoded PDU
                to send. Evt19: an `AbortReason`, or None.

        Raises:
            UnexpectedEventError: if the table has no entry.
        """
        entry = TRANSITIONS.get((self.state, event))
        if entry is None:
            raise UnexpectedEventError(self.state, event)
        action, following = entry
        chosen = _ACTIONS[action](self, event, subject)
        self.state = chosen or following
        return self.state

    # Association establishment, PS3.8 table 9-6

    def _ae_1(self, _event: Event, subject: object) -> None:
        self._request = subject
        self._effects.open_transport()

    def _ae_2(self, _event: Event, _subject: object) -> None:
        self._send(self._request)

    def _ae_3(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.ASSOCIATE_CONFIRM_ACCEPT, subject)

    def _ae_4(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.ASSOCIATE_CONFIRM_REJECT, subject)
        self._effects.close_transport()

    def _ae_5(self, _event: Event, _subject: object) -> None:
        # The transport connection response is accept(2) itself.
        self._effects.start_artim()

    def _ae_6(self, _event: Event, subject: object) -> State | None:
        self._effects.stop_artim()
        if isinstance(subject, AssociateRequest) and not subject.protocol_version & 1:
            self._effects.send(encode_associate_reject(REJECT_PROTOCOL_VERSION))
            self._effects.start_artim()
            return State.STA13
        self._effects.indicate(Indication.ASSOCIATE, subject)
        return None

    def _ae_7(self, _event: Event, subject: object) -> None:
        self._send(subject)

    def _ae_8(self, _event: Event, subject: object) -> None:
        self._send(subject)
        self._effects.start_artim()

    # Data transfer, table 9-7

    def _dt_1(self, _event: Event, subject: object) -> None:
        self._send(subject)

    def _dt_2(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.P_DATA, subject)

    # Association release, table 9-8

    def _ar_1(self, _event: Event, _subject: object) -> None:
        self._effects.send(RELEASE_REQUEST)

    def _ar_2(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.RELEASE, subject)

    def _ar_3(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.RELEASE_CONFIRM, subject)
        self._effects.close_transport()

    def _ar_4(self, _event: Event, _subject: object) -> None:
        self._effects.send(RELEASE_REPLY)
        self._effects.start_artim()

    def _ar_5(self, _event: Event, _subject: object) -> None:
        self._effects.stop_artim()

    def _ar_6(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.P_DATA, subject)

    def _ar_7(self, _event: Event, subject: object) -> None:
        self._send(subject)

    def _ar_8(self, _event: Event, subject: object) -> State:
        self._effects.indicate(Indication.RELEASE, subject)
        return State.STA9 if self.requestor else State.STA10

    def _ar_9(self, _event: Event, _subject: object) -> None:
        self._effects.send(RELEASE_REPLY)

    def _ar_10(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.RELEASE_CONFIRM, subject)

    # Association abort, table 9-9

    def _aa_1(self, _event: Event, _subject: object) -> None:
        # The reason means nothing when the source is the service user.
        self._effects.send(encode_abort(Abort(AbortSource.SERVICE_USER, 0)))
        self._effects.start_artim()

    def _aa_2(self, _event: Event, _subject: object) -> None:
        self._effects.stop_artim()
        self._effects.close_transport()

    def _aa_3(self, _event: Event, subject: object) -> None:
        by_user = isinstance(subject, Abort) and subject.source == AbortSource.SERVICE_USER
        self._effects.indicate(Indication.ABORT if by_user else Indication.P_ABORT, subject)
        self._effects.close_transport()

    def _aa_4(self, _event: Event, subject: object) -> None:
        self._effects.indicate(Indication.P_ABORT, subject)

    def _aa_5(self, _event: Event, _subject: object) -> None:
        self._effects.stop_artim()

    def _aa_6(self, _event: Event, _subject: object) -> None:
        """Ignore the PDU."""

    def _aa_7(self, event: Event, subject: object) -> None:
        self._effects.send(encode_abort(Abort(AbortSource.SERVICE_PROVIDER, _reason(event, subject))))

    def _aa_8(self, event: Event, subject: object) -> None:
        abort = Abort(AbortSource.SERVICE_PROVIDER, _reason(event, subject))
        self._effects.send(encode_abort(abort))
        self._effects.indicate(Indication.P_ABORT, abort)
        self._effects.start_artim()

    _request: object = None

    def _send(self, pdu: object) -> None:
        assert isinstance(pdu, bytes), "the primitive carries its encoded PDU"
        self._effects.send(pdu)


def _reason(event: Event, subject: object) -> AbortReason:
    if event is not Event.EVT19:
        return AbortReason.UNEXPECTED_PDU
    return subject if isinstance(subject, AbortReason) else AbortReason.UNRECOGNIZED_PDU


_ACTIONS = {
    f"{kind}-{number}": getattr(Machine, f"_{kind.lower()}_{number}")
    for kind, count in (("AE", 8), ("DT", 2), ("AR", 10), ("AA", 8))
    for number in range(1, count + 1)
}
