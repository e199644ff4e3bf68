"""Data sets of N-ACTION, N-CREATE, N-SET, N-EVENT-REPORT that are none: each gets a status, the association lives."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from station_support import Edge

from radmesh.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, VERIFICATION_SOP_CLASS
from radmesh_gateway_proxy.dimse import Command, Element, us
from radmesh_gateway_proxy.pdus import ProposedContext, RoleSelection
from radmesh_gateway_proxy.requestor import Requestor, Target

COMMITMENT, PROCEDURE_STEP = "1.2.840.10008.1.20.1", "1.2.840.10008.3.1.2.3.3"
WELL_KNOWN = "1.2.840.10008.1.20.1.1"
# Operation: SOP class, SOP instance, whether that is what is requested, other elements, and what it may answer.
OPERATIONS: Final[dict[str, tuple[int, str, str, bool, dict[int, bytes], frozenset[int]]]] = {
    "action": (
        Command.N_ACTION, COMMITMENT, WELL_KNOWN, True, {int(Element.ACTION_TYPE_ID): us(1)},
        frozenset((0x0115, 0x0213)),
    ),
    "report": (
        Command.N_EVENT_REPORT, COMMITMENT, WELL_KNOWN, False, {int(Element.EVENT_TYPE_ID): us(1)},
        frozenset((0x0115, 0x0213)),
    ),
    "create": (
        Command.N_CREATE, PROCEDURE_STEP, "2.25.99", False, {}, frozenset((0x0106, 0x0110, 0x0120, 0x0213))
    ),
    # Nothing is changed, for there is no such step.
    "set": (Command.N_SET, PROCEDURE_STEP, "2.25.99", True, {}, frozenset((0x0106, 0x0110, 0x0112, 0x0213))),
}  # fmt: skip


@contextmanager
def association(edge: Edge) -> Iterator[Requestor]:
    target = Target("127.0.0.1", edge.port, "RADMESH", "HOSTILE")
    classes = (COMMITMENT, PROCEDURE_STEP, VERIFICATION_SOP_CLASS)
    contexts = [ProposedContext(2 * n + 1, uid, (EXPLICIT_VR_LITTLE_ENDIAN,)) for n, uid in enumerate(classes)]
    with Requestor(target, contexts, roles=[RoleSelection(COMMITMENT, scu=True, scp=True)]) as requestor:
        yield requestor


def asked(requestor: Requestor, operation: str, data: bytes) -> int:
    command, sop_class, instance, requested, elements, _ = OPERATIONS[operation]
    context = requestor.context_of(sop_class)
    assert context is not None
    response, _ = requestor.request(
        context, command, sop_class, instance, data_set=data, elements=elements, requested=requested
    )
    return response.status


def element(tag: int, vr: bytes, value: bytes) -> bytes:
    head = tag.to_bytes(4, "little")
    head = head[2:] + head[:2] + vr
    if vr in (b"SQ", b"UN", b"OB"):
        return head + b"\0\0" + len(value).to_bytes(4, "little") + value
    return head + len(value).to_bytes(2, "little") + value


def item(content: bytes) -> bytes:
    return b"\xfe\xff\x00\xe0" + len(content).to_bytes(4, "little") + content


def nested(depth: int) -> bytes:
    """Sequences within sequences, of undefined length."""
    return b"\x08\x00\x99\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * depth


# What looks like the real thing, in pieces that may be cut, doubled, and put in any order.
UIDS = st.sampled_from((b"", b"1.2.3\0", b"1.02.3", b"x" * 64, b"1" * 66, b"1.2\\1.3"))
ELEMENTS = st.one_of(
    st.builds(lambda uid: element(0x00081195, b"UI", uid), UIDS),
    st.builds(
        lambda uid, twin: element(
            0x00081199, b"SQ", item(element(0x00081150, b"UI", uid) + element(0x00081155, b"UI", twin))
        ),
        UIDS.filter(lambda uid: uid != b"1.2.3\0"),
        UIDS,
    ),
    st.builds(
        lambda status: element(0x00400252, b"CS", status), st.sampled_from((b"", b"COMPLETED ", b"DONE", b"\xff\xfe"))
    ),
    st.builds(
        lambda uid: element(0x00400270, b"SQ", item(element(0x0020000D, b"UI", uid))), st.sampled_from((b"", b"x."))
    ),
    st.builds(nested, st.sampled_from((1, 7, 5000))),
    st.binary(max_size=40),
)
DATA_SETS = st.builds(
    lambda parts, cut: b"".join(parts)[: cut or None],
    st.lists(ELEMENTS, max_size=5),
    st.integers(0, 60),
).filter(bool)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_no_data_set_gets_a_status_and_the_association_lives(edge: Edge, operation: str) -> None:
    with association(edge) as requestor:

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(DATA_SETS)
        def hostile(data: bytes) -> None:
            assert asked(requestor, operation, data) in OPERATIONS[operation][-1]
            assert requestor.established

        hostile()
        assert requestor.echo().status == 0


def test_nothing_is_asked(edge: Edge) -> None:
    with association(edge) as requestor:
        assert asked(requestor, "action", b"") == 0x0115
        assert asked(requestor, "action", element(0x00081195, b"UI", b"1.2.3\0")) == 0x0115
        assert asked(requestor, "report", b"") == 0x0115
        assert asked(requestor, "create", b"") == 0x0120
        assert asked(requestor, "set", b"") == 0x0112
        assert requestor.echo().status == 0


def test_who_says_too_much_is_told(edge: Edge) -> None:
    """A data set beyond the bound is read to its end, and not kept."""
    long = element(0x00081195, b"UI", b"1.2.3\0") + element(0x00091001, b"UN", bytes(5 << 20))
    with association(edge) as requestor:
        for operation in OPERATIONS:
            assert asked(requestor, operation, long) == 0x0213
        assert requestor.echo().status == 0


def test_other_operations_are_not_known(edge: Edge) -> None:
    with association(edge) as requestor:
        for sop_class, command in ((COMMITMENT, Command.N_SET), (PROCEDURE_STEP, Command.N_ACTION)):
            context: Any = requestor.context_of(sop_class)
            response, _ = requestor.request(context, command, sop_class, WELL_KNOWN, requested=True)
            assert response.status == 0x0211
