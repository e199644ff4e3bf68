"""Negotiation: which contexts are taken, in which transfer syntax, and why others are not."""

import pytest
from pydicom.uid import UID_dictionary

from radmesh.dicom.uids import VERIFICATION_SOP_CLASS
from radmesh_gateway_proxy import pdus
from radmesh_gateway_proxy.negotiation import (
    Agreement,
    Negotiator,
    Policy,
    negotiate,
)
from radmesh_gateway_proxy.pdus import (
    AssociateReject,
    AssociateRequest,
    ContextResult,
    ExtendedNegotiation,
    PduError,
    ProposedContext,
    RoleSelection,
    UserIdentity,
    UserInformation,
)

CT = "1.2.840.10008.5.1.4.1.1.2"
MR, US = "1.2.840.10008.5.1.4.1.1.4", "1.2.840.10008.5.1.4.1.1.6.1"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
EXPLICIT = "1.2.840.10008.1.2.1"
IMPLICIT = "1.2.840.10008.1.2"
JPEG = "1.2.840.10008.1.2.4.50"
POLICY = Policy(
    {uid for uid, row in UID_dictionary.items() if row[1] == "SOP Class" and "Storage" in row[0]},
    {uid for uid, row in UID_dictionary.items() if row[1] == "Transfer Syntax"},
)


def request(*contexts: ProposedContext, called: str = "RADMESH", **user: object) -> AssociateRequest:
    return AssociateRequest(called, "CT1", contexts, UserInformation(16384, **user))  # type: ignore[arg-type]


def agreed(asked: AssociateRequest, policy: Policy = POLICY) -> tuple[Agreement, pdus.AssociateAccept]:
    agreement = negotiate(asked, policy)
    assert isinstance(agreement, Agreement)
    return agreement, pdus.parse_associate_accept(agreement.accept[6:])


def test_the_senders_first_choice_is_taken() -> None:
    agreement, accept = agreed(
        request(ProposedContext(1, CT, ("1.2.3", JPEG, EXPLICIT)), ProposedContext(3, CT, (IMPLICIT, JPEG)))
    )
    assert agreement.contexts[1].transfer_syntax == JPEG
    assert agreement.contexts[3].transfer_syntax == IMPLICIT
    assert [c.result for c in accept.contexts] == [ContextResult.ACCEPTANCE] * 2


def test_why_contexts_are_refused() -> None:
    agreement, accept = agreed(
        request(
            ProposedContext(1, VERIFICATION_SOP_CLASS, (IMPLICIT,)),
            ProposedContext(3, FIND, (IMPLICIT,)),
            ProposedContext(5, CT, ("1.2.3.4",)),
            ProposedContext(7, "1.2.840.10008.5.1.4.1.1.999", (IMPLICIT,)),
            ProposedContext(9, CT, ()),
        )
    )
    assert [c.result for c in accept.contexts] == [
        ContextResult.ACCEPTANCE,
        ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED,
        ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED,
        ContextResult.ABSTRACT_SYNTAX_NOT_SUPPORTED,
        ContextResult.TRANSFER_SYNTAXES_NOT_SUPPORTED,
    ]
    assert set(agreement.contexts) == {1}


def test_private_classes_come_by_configuration() -> None:
    private = "1.3.12.2.1107.5.9.1"
    asked = request(ProposedContext(1, private, (EXPLICIT,)))
    assert not agreed(asked)[0].contexts
    policy = Policy({*POLICY.storage_sop_classes, private}, POLICY.transfer_syntaxes)
    assert agreed(asked, policy)[0].contexts[1].abstract_syntax == private


def test_called_ae_only_when_required() -> None:
    asked = request(ProposedContext(1, CT, (EXPLICIT,)), called="SOMEONE")
    assert isinstance(negotiate(asked, POLICY), Agreement)
    strict = Policy(POLICY.storage_sop_classes, POLICY.transfer_syntaxes, require_called_ae=True)
    assert negotiate(asked, strict) == AssociateReject(1, 1, 7)


def test_another_application_context_is_rejected() -> None:
    asked = AssociateRequest("RADMESH", "CT1", (), UserInformation(), application_context_name="1.2.3")
    assert negotiate(asked, POLICY) == AssociateReject(1, 1, 2)


def test_roles_window_and_extended_negotiation_are_answered() -> None:
    served = {FIND: (EXPLICIT,), GET: (IMPLICIT, EXPLICIT)}
    policy = Policy(POLICY.storage_sop_classes, POLICY.transfer_syntaxes, served)
    agreement, accept = agreed(
        request(
            ProposedContext(1, CT, (EXPLICIT,)),
            ProposedContext(3, MR, (EXPLICIT,)),
            ProposedContext(5, FIND, (IMPLICIT,)),
            ProposedContext(7, GET, (EXPLICIT, IMPLICIT)),
            ProposedContext(9, US, (EXPLICIT,)),
            roles=(
                *(RoleSelection(CT, True, True), RoleSelection(MR, False, True), RoleSelection(US, False, False)),
                *(RoleSelection(FIND, False, True), RoleSelection(GET, True, True)),
            ),
            async_window=(0, 0),
            extended=(ExtendedNegotiation(CT, b"\2\0\0\0\0\0"), ExtendedNegotiation(FIND, b"\1")),
        ),
        policy,
    )
    assert accept.user.roles == (
        *(RoleSelection(CT, True, True), RoleSelection(MR, False, True), RoleSelection(GET, True, False)),
    )
    assert agreement.scp_sop_classes == {CT, MR}
    assert {c.context_id: c.result for c in accept.contexts} == {
        1: ContextResult.ACCEPTANCE,
        3: ContextResult.ACCEPTANCE,
        5: ContextResult.USER_REJECTION,
        7: ContextResult.ACCEPTANCE,
        9: ContextResult.USER_REJECTION,
    }
    assert agreement.contexts[7].transfer_syntax == EXPLICIT
    assert accept.user.async_window == (8, 1)
    assert agreement.operations == 8
    assert accept.user.extended == (ExtendedNegotiation(CT, b"\2\0\3\0\0\0"),)
    assert agreement.peer_max_pdu == 16384


def test_same_bytes_same_answer_but_no_secret_is_kept() -> None:
    negotiator = Negotiator(POLICY)
    body = pdus.encode_associate_request(request(ProposedContext(1, CT, (EXPLICIT,))))[6:]
    assert negotiator.answer(body)[1] is negotiator.answer(body)[1]
    secret = pdus.encode_associate_request(
        request(ProposedContext(1, CT, (EXPLICIT,)), user_identity=UserIdentity(2, False, b"a", b"b"))
    )[6:]
    assert negotiator.answer(secret)[1] is not negotiator.answer(secret)[1]
    with pytest.raises(PduError):
        negotiator.answer(b"")


def test_what_is_kept_is_bounded() -> None:
    negotiator = Negotiator(POLICY)
    for number in range(400):
        contexts = tuple(ProposedContext(2 * i + 1, CT, (EXPLICIT,) * 3) for i in range(50))
        asked = AssociateRequest("RADMESH", f"CT{number}", contexts, UserInformation())
        negotiator.answer(pdus.encode_associate_request(asked)[6:])
    assert negotiator._kept_bytes <= 1 << 20
    assert negotiator._kept_bytes == sum(entry[2] for entry in negotiator._kept.values())


def test_128_contexts_are_answered_the_same_again() -> None:
    syntaxes = sorted(POLICY.transfer_syntaxes)[:30]
    classes = sorted(POLICY.storage_sop_classes)
    contexts = tuple(ProposedContext(2 * i + 1, classes[i % len(classes)], tuple(syntaxes)) for i in range(128))
    bodies = [
        pdus.encode_associate_request(AssociateRequest("RADMESH", f"CT{i}", contexts, UserInformation()))[6:]
        for i in range(5)
    ]
    negotiator = Negotiator(POLICY)
    for body in bodies:
        assert negotiator.answer(body) == negotiator.answer(body)


@pytest.mark.parametrize(("asked", "answered"), [(None, None), ((1, 1), (1, 1)), ((3, 0), (3, 1)), ((9, 9), (8, 1))])
def test_a_window_is_no_wider_than_either_side_wants(
    asked: tuple[int, int] | None, answered: tuple[int, int] | None
) -> None:
    agreement, accept = agreed(request(ProposedContext(1, CT, (EXPLICIT,)), async_window=asked))
    assert accept.user.async_window == answered
    assert agreement.operations == (answered or (1, 1))[0]
