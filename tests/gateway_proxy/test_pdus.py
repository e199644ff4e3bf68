"""Association PDUs: against pynetdicom's encoding, and against whatever a stranger may send."""

import contextlib
import struct

import pytest
from depth import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from pynetdicom import pdu as theirs
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)
from pynetdicom.presentation import build_context

from radmesh_gateway_proxy import pdus
from radmesh_gateway_proxy.pdus import (
    AssociateAccept,
    AssociateReject,
    AssociateRequest,
    CommonExtendedNegotiation,
    ContextReply,
    ContextResult,
    ExtendedNegotiation,
    PduError,
    ProposedContext,
    RoleSelection,
    UserIdentity,
    UserInformation,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
MR = "1.2.840.10008.5.1.4.1.1.4"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"

REQUEST = AssociateRequest(
    "RADMESH",
    "CT_ROOM_1",
    (ProposedContext(1, CT, (EXPLICIT, IMPLICIT)), ProposedContext(3, MR, (IMPLICIT,))),
    UserInformation(
        max_length=16382,
        implementation_class_uid="1.2.3.4",
        implementation_version_name="SCANNER_1",
        async_window=(5, 2),
        roles=(RoleSelection(CT, scu=True, scp=False),),
        extended=(ExtendedNegotiation(CT, b"\2\0\3\0\1\0"),),
        common_extended=(CommonExtendedNegotiation(MR, "1.2.840.10008.4.2", ("1.2.840.10008.5.1.4.1.1.88.22",)),),
        user_identity=UserIdentity(2, response_requested=True, primary=b"name", secondary=b"secret"),
    ),
)


def their_request() -> bytes:
    """The same request, built and encoded by pynetdicom."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "CT_ROOM_1", "RADMESH"
    contexts = [build_context(CT, [EXPLICIT, IMPLICIT]), build_context(MR, [IMPLICIT])]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    length, uid, version = (
        MaximumLengthNotification(),
        ImplementationClassUIDNotification(),
        ImplementationVersionNameNotification(),
    )
    length.maximum_length_received = 16382
    uid.implementation_class_uid = "1.2.3.4"
    version.implementation_version_name = "SCANNER_1"
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked, window.maximum_number_operations_performed = 5, 2
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = CT, True, False
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = CT, b"\2\0\3\0\1\0"
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid, common.service_class_uid = MR, "1.2.840.10008.4.2"
    common.related_general_sop_class_identification = ["1.2.840.10008.5.1.4.1.1.88.22"]
    identity = UserIdentityNegotiation()
    identity.user_identity_type, identity.positive_response_requested = 2, True
    identity.primary_field, identity.secondary_field = b"name", b"secret"
    primitive.user_information = [length, uid, version, window, role, extended, common, identity]
    pdu = theirs.A_ASSOCIATE_RQ()
    pdu.from_primitive(primitive)
    return bytes(pdu.encode())


def test_what_pynetdicom_encodes_is_parsed() -> None:
    assert pdus.parse_associate_request(their_request()[6:]) == REQUEST


def test_what_we_encode_is_read_by_pynetdicom() -> None:
    ours = pdus.encode_associate_request(REQUEST)
    assert pdus.parse_associate_request(ours[6:]) == REQUEST
    pdu = theirs.A_ASSOCIATE_RQ()
    pdu.decode(ours)
    again = bytes(pdu.encode())
    assert pdus.parse_associate_request(again[6:]) == REQUEST
    assert len(ours) == len(their_request())


def test_accept_is_read_by_pynetdicom() -> None:
    accept = AssociateAccept(
        "RADMESH",
        "CT_ROOM_1",
        (
            ContextReply(1, ContextResult.ACCEPTANCE, EXPLICIT),
            ContextReply(3, ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED, IMPLICIT),
        ),
        UserInformation(131072, "1.2.3", "RADMESH", async_window=(1, 1), roles=(RoleSelection(CT, True, False),)),
    )
    encoded = pdus.encode_associate_accept(accept)
    pdu = theirs.A_ASSOCIATE_AC()
    pdu.decode(encoded)
    primitive = pdu.to_primitive()
    assert [(c.context_id, c.result) for c in primitive.presentation_context_definition_results_list] == [
        (1, 0),
        (3, 3),
    ]
    assert primitive.maximum_length_received == 131072
    assert pdus.parse_associate_accept(encoded[6:]) == accept
    assert pdus.parse_associate_accept(bytes(pdu.encode())[6:]) == accept


def test_the_small_ones_are_golden() -> None:
    assert bytes.fromhex("05 00 00000004 00000000") == pdus.RELEASE_REQUEST
    assert bytes.fromhex("06 00 00000004 00000000") == pdus.RELEASE_REPLY
    # result 2: transient; source 3: presentation related; reason 2: local limit exceeded
    assert pdus.encode_associate_reject(pdus.REJECT_LOCAL_LIMIT) == bytes.fromhex("03 00 00000004 00 02 03 02")
    assert pdus.encode_abort(pdus.Abort(2, 6)) == bytes.fromhex("07 00 00000004 0000 02 06")
    assert pdus.parse_associate_reject(b"\0\1\1\7") == AssociateReject(1, 1, 7)
    assert pdus.parse_abort(b"\0\0\2\1") == pdus.Abort(2, 1)


def test_padding_and_case_of_real_senders_is_tolerated() -> None:
    body = bytearray(pdus.encode_associate_request(REQUEST)[6:])
    body[4:20] = b"RADMESH\0\0\0\0\0\0\0\0\0"
    body[20:36] = b"  CT_ROOM_1     "
    parsed = pdus.parse_associate_request(body)
    assert (parsed.called_ae_title, parsed.calling_ae_title) == ("RADMESH", "CT_ROOM_1")
    padded = AssociateRequest("A", "B", (ProposedContext(1, CT + "\0", (EXPLICIT + "\0",)),), UserInformation())
    (context,) = pdus.parse_associate_request(pdus.encode_associate_request(padded)[6:]).contexts
    assert context == ProposedContext(1, CT, (EXPLICIT,))


def test_unknown_items_are_skipped() -> None:
    body = pdus.encode_associate_request(REQUEST)[6:]
    unknown = struct.pack(">BxH", 0x99, 3) + b"abc"
    assert pdus.parse_associate_request(body + unknown) == REQUEST


def test_ae_titles_cannot_break_a_log_line() -> None:
    body = bytearray(pdus.encode_associate_request(REQUEST)[6:])
    body[20:36] = b"EVIL\n\x1b[31m\xff\xfe    "[:16].ljust(16)
    assert pdus.parse_associate_request(body).calling_ae_title == "EVIL??[31m??"


@pytest.mark.parametrize(
    "context",
    [
        ProposedContext(2, CT, (EXPLICIT,)),  # even
        ProposedContext(1, CT, ("1." * 40,)),  # too long
    ],
)
def test_bad_contexts_are_named(context: ProposedContext) -> None:
    encoded = pdus.encode_associate_request(AssociateRequest("A", "B", (context,), UserInformation()))
    with pytest.raises(PduError):
        pdus.parse_associate_request(encoded[6:])


def test_a_context_id_twice_is_an_error() -> None:
    contexts = (ProposedContext(1, CT, (EXPLICIT,)), ProposedContext(1, MR, (EXPLICIT,)))
    with pytest.raises(PduError, match="twice"):
        pdus.parse_associate_request(
            pdus.encode_associate_request(AssociateRequest("A", "B", contexts, UserInformation()))[6:]
        )


def test_secrets_are_not_in_the_repr() -> None:
    assert "secret" not in repr(REQUEST)


@settings(max_examples=examples(400))
@given(data=st.binary(max_size=400))
def test_any_bytes_give_a_pdu_or_a_pdu_error(data: bytes) -> None:
    for parse in (
        pdus.parse_associate_request,
        pdus.parse_associate_accept,
        pdus.parse_associate_reject,
        pdus.parse_abort,
        pdus.parse_user_information,
    ):
        with contextlib.suppress(PduError):
            parse(data)


@settings(max_examples=examples(600))
@given(data=st.data())
def test_a_damaged_request_gives_a_pdu_or_a_pdu_error(data: st.DataObject) -> None:
    body = bytearray(pdus.encode_associate_request(REQUEST)[6:])
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    for damaged in (body, body[:cut]):
        with contextlib.suppress(PduError):
            pdus.parse_associate_request(damaged)
