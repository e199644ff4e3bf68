"""The conformance statement says what is negotiated: no more, no less."""

import re

from pydicom.uid import UID_dictionary

from radmesh_gateway_proxy.conformance import document
from radmesh_gateway_proxy.negotiation import Agreement, Policy, negotiate
from radmesh_gateway_proxy.pdus import AssociateRequest, ProposedContext, UserInformation
from radmesh_gateway_proxy.services.registry import abstract_syntaxes, extended
from radmesh_gateway_proxy.sop_classes import storage_sop_classes, transfer_syntaxes

IMPLICIT = "1.2.840.10008.1.2"
POLICY = Policy(storage_sop_classes(), transfer_syntaxes(), abstract_syntaxes(), extended())


def part(title: str) -> set[str]:
    """UIDs in the tables of one part of the document."""
    text = document().partition(f"## {title}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"\| ([12]\.[\d.]+) \|", text))


def accepted(abstract_syntax: str, transfer_syntax: str) -> bool:
    context = ProposedContext(1, abstract_syntax, (transfer_syntax,))
    agreement = negotiate(AssociateRequest("RADMESH", "CT1", (context,), UserInformation()), POLICY)
    assert isinstance(agreement, Agreement)
    return bool(agreement.contexts)


def test_the_abstract_syntaxes_are_those_that_are_accepted() -> None:
    stated = part("Services, as SCP") | part("Storage SOP classes")
    known = {uid for uid, (_, kind, *_) in UID_dictionary.items() if kind in ("SOP Class", "Meta SOP Class")}
    assert {uid for uid in known | stated if accepted(uid, IMPLICIT)} == stated


def test_the_transfer_syntaxes_are_those_that_are_accepted() -> None:
    stated = part("Transfer syntaxes of stored objects")
    known = {uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax"}
    ct = "1.2.840.10008.5.1.4.1.1.2"
    assert {uid for uid in known | stated if accepted(ct, uid)} == stated
    query = "1.2.840.10008.5.1.4.1.2.2.1"
    assert {uid for uid in known if accepted(query, uid)} == set(abstract_syntaxes()[query])
