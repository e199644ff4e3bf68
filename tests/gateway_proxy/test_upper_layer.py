"""Every state with every event (13 x 19), against PS3.8 table 9-10 written out a second time, event by event.

The table below is copied cell by cell from the standard's own layout (a row per event, a column per state), while the
code builds its table from rules: a slip in one does not hide in the other.
"""

import socket

import pytest

from radmesh_gateway_proxy.pdus import (
    RELEASE_REPLY,
    RELEASE_REQUEST,
    Abort,
    AbortReason,
    AbortSource,
    AssociateRequest,
    UserInformation,
)
from radmesh_gateway_proxy.upper_layer import TRANSITIONS, Event, Indication, Machine, State, UnexpectedEventError

#  event   Sta1 ... a column per state ... Sta13
TABLE_9_10 = """
   1    AE-1/4   -         -        -       -        -        -         -        -        -        -        -        -
   2    -        -         -        AE-2/5  -        -        -         -        -        -        -        -        -
   3    -        AA-1/13   AA-8/13  -       AE-3/6   AA-8/13  AA-8/13   AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-6/13
   4    -        AA-1/13   AA-8/13  -       AE-4/1   AA-8/13  AA-8/13   AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-6/13
   5    AE-5/2   -         -        -       -        -        -         -        -        -        -        -        -
   6    -        AE-6/3    AA-8/13  -       AA-8/13  AA-8/13  AA-8/13   AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-7/13
   7    -        -         AE-7/6   -       -        -        -         -        -        -        -        -        -
   8    -        -         AE-8/13  -       -        -        -         -        -        -        -        -        -
   9    -        -         -        -       -        DT-1/6   -         AR-7/8   -        -        -        -        -
  10    -        AA-1/13   AA-8/13  -       AA-8/13  DT-2/6   AR-6/7    AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-6/13
  11    -        -         -        -       -        AR-1/7   -         -        -        -        -        -        -
  12    -        AA-1/13   AA-8/13  -       AA-8/13  AR-2/8   AR-8/9+10 AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-6/13
  13    -        AA-1/13   AA-8/13  -       AA-8/13  AA-8/13  AR-3/1    AA-8/13  AA-8/13  AR-10/12 AR-3/1   AA-8/13  AA-6/13
  14    -        -         -        -       -        -        -         AR-4/13  AR-9/11  -        -        AR-4/13  -
  15    -        -         AA-1/13  AA-2/1  AA-1/13  AA-1/13  AA-1/13   AA-1/13  AA-1/13  AA-1/13  AA-1/13  AA-1/13  -
  16    -        AA-2/1    AA-3/1   -       AA-3/1   AA-3/1   AA-3/1    AA-3/1   AA-3/1   AA-3/1   AA-3/1   AA-3/1   AA-2/1
  17    -        AA-5/1    AA-4/1   AA-4/1  AA-4/1   AA-4/1   AA-4/1    AA-4/1   AA-4/1   AA-4/1   AA-4/1   AA-4/1   AR-5/1
  18    -        AA-2/1    -        -       -        -        -         -        -        -        -        -        AA-2/1
  19    -        AA-1/13   AA-8/13  -       AA-8/13  AA-8/13  AA-8/13   AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-8/13  AA-7/13
"""  # noqa: E501 - the standard's own layout

USER_ABORT = bytes.fromhex("0700 00000004 0000 00 00")  # source 0: service user, PS3.8 table 9-26
ASSOCIATE = AssociateRequest("RADMESH", "CT1", (), UserInformation(16384))
PRIMITIVE = b"\x04\x00\x00\x00\x00\x00"  # stands for the encoded PDU of Evt1, 7, 8 and 9


def provider_abort(event: int) -> bytes:
    """Source 2; reason 1 for an unrecognized PDU, 2 for an unexpected one (PS3.8 table 9-26)."""
    return bytes.fromhex("0700 00000004 0000 02") + (b"\1" if event == 19 else b"\2")


# What each action does, PS3.8 tables 9-6 to 9-9: bytes on the wire, then the rest in order.
def expected(action: str, event: int) -> tuple[bytes, list[str]]:
    abort = provider_abort(event)
    return {
        "AE-1": (b"", ["open"]),
        "AE-2": (PRIMITIVE, []),
        "AE-3": (b"", ["ASSOCIATE_CONFIRM_ACCEPT"]),
        "AE-4": (b"", ["ASSOCIATE_CONFIRM_REJECT", "close"]),
        "AE-5": (b"", ["artim+"]),
        "AE-6": (b"", ["artim-", "ASSOCIATE"]),
        "AE-7": (PRIMITIVE, []),
        "AE-8": (PRIMITIVE, ["artim+"]),
        "DT-1": (PRIMITIVE, []),
        "DT-2": (b"", ["P_DATA"]),
        "AR-1": (RELEASE_REQUEST, []),
        "AR-2": (b"", ["RELEASE"]),
        "AR-3": (b"", ["RELEASE_CONFIRM", "close"]),
        "AR-4": (RELEASE_REPLY, ["artim+"]),
        "AR-5": (b"", ["artim-"]),
        "AR-6": (b"", ["P_DATA"]),
        "AR-7": (PRIMITIVE, []),
        "AR-8": (b"", ["RELEASE"]),
        "AR-9": (RELEASE_REPLY, []),
        "AR-10": (b"", ["RELEASE_CONFIRM"]),
        "AA-1": (USER_ABORT, ["artim+"]),
        "AA-2": (b"", ["artim-", "close"]),
        "AA-3": (b"", ["ABORT", "close"]),
        "AA-4": (b"", ["P_ABORT"]),
        "AA-5": (b"", ["artim-"]),
        "AA-6": (b"", []),
        "AA-7": (abort, []),
        "AA-8": (abort, ["P_ABORT", "artim+"]),
    }[action]


class SocketEffects:
    """Effects over a real connection; the order of all others is written down."""

    def __init__(self) -> None:
        self.ours, self.peer = socket.socketpair()
        self.log: list[str] = []

    def open_transport(self) -> None:
        self.log.append("open")

    def send(self, pdu: bytes) -> None:
        self.ours.sendall(pdu)

    def close_transport(self) -> None:
        self.log.append("close")
        self.ours.shutdown(socket.SHUT_RDWR)

    def start_artim(self) -> None:
        self.log.append("artim+")

    def stop_artim(self) -> None:
        self.log.append("artim-")

    def indicate(self, indication: Indication, subject: object) -> None:
        self.log.append(indication.name)

    def on_the_wire(self) -> bytes:
        if "close" not in self.log:
            self.ours.shutdown(socket.SHUT_WR)
        received = b""
        while piece := self.peer.recv(4096):
            received += piece
        self.ours.close()
        self.peer.close()
        return received


def cells() -> dict[tuple[int, int], tuple[str, tuple[int, ...]] | None]:
    parsed: dict[tuple[int, int], tuple[str, tuple[int, ...]] | None] = {}
    for line in TABLE_9_10.strip().splitlines():
        event, *row = line.split()
        assert len(row) == 13
        for state, cell in enumerate(row, 1):
            action, _, following = cell.partition("/")
            parsed[state, int(event)] = (action, tuple(map(int, following.split("+")))) if following else None
    return parsed


CELLS = cells()


def subject_of(event: int) -> object:
    if event in (1, 7, 8, 9):
        return PRIMITIVE
    return {6: ASSOCIATE, 16: Abort(AbortSource.SERVICE_USER, 0), 19: AbortReason.UNRECOGNIZED_PDU}.get(event)


def machine_in(state: int, *, requestor: bool = False) -> tuple[Machine, SocketEffects]:
    effects = SocketEffects()
    machine = Machine(effects, requestor=requestor, state=State(state))
    if state == 4:  # by the only way there is, since AE-2 sends what AE-1 was given
        machine.state = State.STA1
        machine.handle(Event.EVT1, PRIMITIVE)
        effects.log.clear()
    return machine, effects


@pytest.mark.parametrize("requestor", [False, True], ids=["acceptor", "requestor"])
@pytest.mark.parametrize("event", range(1, 20))
@pytest.mark.parametrize("state", range(1, 14))
def test_every_state_with_every_event(state: int, event: int, requestor: bool) -> None:
    machine, effects = machine_in(state, requestor=requestor)
    cell = CELLS[state, event]
    if cell is None:
        with pytest.raises(UnexpectedEventError):
            machine.handle(Event(event), subject_of(event))
        assert machine.state == state
        assert effects.on_the_wire() == b""
        assert effects.log == []
        return
    action, following = cell
    machine.handle(Event(event), subject_of(event))
    wire, log = expected(action, event)
    assert TRANSITIONS[State(state), Event(event)][0] == action
    assert effects.log == log
    assert effects.on_the_wire() == wire
    assert machine.state == (following[0] if requestor or len(following) == 1 else following[1])


def test_the_table_has_no_cell_more() -> None:
    assert len(CELLS) == 13 * 19
    assert {(int(s), int(e)) for s, e in TRANSITIONS} == {key for key, cell in CELLS.items() if cell}


def test_ae_6_rejects_another_protocol_version() -> None:
    machine, effects = machine_in(2)
    machine.handle(Event.EVT6, AssociateRequest("A", "B", (), UserInformation(), protocol_version=2))
    assert machine.state is State.STA13
    assert effects.log == ["artim-", "artim+"]
    assert effects.on_the_wire() == bytes.fromhex("0300 00000004 00 01 02 02")  # permanent, ACSE, version


def test_aa_3_tells_a_user_abort_from_a_provider_abort() -> None:
    machine, effects = machine_in(6)
    machine.handle(Event.EVT16, Abort(AbortSource.SERVICE_PROVIDER, AbortReason.UNEXPECTED_PDU))
    assert effects.log == ["P_ABORT", "close"]
    effects.on_the_wire()
