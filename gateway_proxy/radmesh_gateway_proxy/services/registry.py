"""The table of services: what is negotiated, dispatched, checked and stated comes from here, and only from here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from radmesh.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from radmesh_gateway_proxy.dimse import Command, Outcome
from radmesh_gateway_proxy.services.exchange import Exchange

UNCOMPRESSED: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

Handler = Callable[[Exchange], Outcome]


@dataclass(frozen=True, slots=True)
class Service:
    """An operation on SOP classes, of which this side is SCP.

    Attributes:
        name: what the conformance statement calls it.
        command: the operation.
        sop_classes: names by SOP Class UID (PS3.6 table A-1); each is an abstract syntax.
        grant: what a station needs for it (radmesh.dicom.stations.GRANTS).
        handler: answers; it returns the last response, and may raise RefusalError or RadmeshError.
        transfer_syntaxes: of its presentation contexts.
        stores: whether the peer takes objects on the same association, and asks for the SCP role of storage classes.
        extended: of the requestor's service class application information, the answer (PS3.7 D.3.3.5); None = none.
    """

    name: str
    command: Command
    sop_classes: Mapping[str, str]
    grant: str
    handler: Handler
    transfer_syntaxes: tuple[str, ...] = UNCOMPRESSED
    stores: bool = False
    extended: Callable[[bytes], bytes] | None = None


@cache
def services() -> tuple[Service, ...]:
    """Return all services."""
    # Handlers know what is told here.
    from radmesh_gateway_proxy.services import asking, commitment, find, procedure_step, retrieve, step_retrieval  # noqa: PLC0415

    return (
        Service("Query", Command.C_FIND, find.QUERY_SOP_CLASSES, "query", find.find, extended=find.extended),
        Service("Modality Worklist", Command.C_FIND, find.WORKLIST_SOP_CLASSES, "worklist", find.find_worklist),
        Service("Retrieve", Command.C_MOVE, retrieve.MOVE_SOP_CLASSES, "retrieve", retrieve.move),
        Service("Retrieve", Command.C_GET, retrieve.GET_SOP_CLASSES, "retrieve", retrieve.get, stores=True),
        Service("Storage Commitment", Command.N_ACTION, commitment.COMMITMENT_SOP_CLASSES, "commit", commitment.commit),
        Service(
            "Storage Commitment, reports",
            Command.N_EVENT_REPORT,
            commitment.COMMITMENT_SOP_CLASSES,
            "",
            asking.reported,
        ),
        *(
            Service("Performed Procedure Step", command, procedure_step.PROCEDURE_STEP_SOP_CLASSES, "mpps", handler)
            for command, handler in ((Command.N_CREATE, procedure_step.create), (Command.N_SET, procedure_step.change))
        ),
        Service(
            "Performed Procedure Step Retrieve",
            Command.N_GET,
            step_retrieval.RETRIEVE_SOP_CLASSES,
            "mpps",
            step_retrieval.get,
        ),
    )


@cache
def by_operation() -> Mapping[tuple[int, str], Service]:
    """Return the services by command field and abstract syntax."""
    return MappingProxyType({(s.command, uid): s for s in services() for uid in s.sop_classes})


@cache
def abstract_syntaxes() -> Mapping[str, tuple[str, ...]]:
    """Return the transfer syntaxes of each abstract syntax that is no storage class."""
    return MappingProxyType({uid: s.transfer_syntaxes for s in services() for uid in s.sop_classes})


@cache
def extended() -> Mapping[str, Callable[[bytes], bytes]]:
    """Return who answers extended negotiation, by SOP class."""
    return MappingProxyType({uid: s.extended for s in services() if s.extended for uid in s.sop_classes})


@cache
def reported() -> frozenset[str]:
    """Return the SOP classes of which a peer may be SCP, to send us reports."""
    return frozenset(uid for s in services() if s.command == Command.N_EVENT_REPORT for uid in s.sop_classes)
