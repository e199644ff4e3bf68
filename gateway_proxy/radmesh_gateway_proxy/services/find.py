"""C-FIND SCP: Patient Root, Study Root and the Modality Worklist (PS3.4 C.4.1, K.4.1).

The database matches and encodes; here keys are read, and rows framed.
"""

import time
from collections.abc import Callable, Iterable
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from radmesh.api.database.v1 import dicom_query_pb2 as pb
from radmesh.dicom.identifier import IDENTIFIER_MOST, QUERY_RETRIEVE_LEVEL, Identifier, Key, read_identifier
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.dimse import SUCCESS, Outcome, Status
from radmesh_gateway_proxy.services.exchange import Exchange, outcome_of

PATIENT_ROOT: Final = "1.2.840.10008.5.1.4.1.2.1.1"
STUDY_ROOT: Final = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_STUDY_ONLY: Final = "1.2.840.10008.5.1.4.1.2.3.1"
MODALITY_WORKLIST: Final = "1.2.840.10008.5.1.4.31"
QUERY_SOP_CLASSES: Final = MappingProxyType(
    {
        PATIENT_ROOT: "Patient Root Query/Retrieve Information Model - FIND",
        STUDY_ROOT: "Study Root Query/Retrieve Information Model - FIND",
        PATIENT_STUDY_ONLY: "Patient/Study Only Query/Retrieve Information Model - FIND (Retired)",
    }
)
WORKLIST_SOP_CLASSES: Final = MappingProxyType({MODALITY_WORKLIST: "Modality Worklist Information Model - FIND"})
_MODELS: Final = {
    PATIENT_ROOT: pb.QUERY_MODEL_PATIENT_ROOT,
    STUDY_ROOT: pb.QUERY_MODEL_STUDY_ROOT,
    PATIENT_STUDY_ONLY: pb.QUERY_MODEL_PATIENT_STUDY_ONLY,
}
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["DicomQueryService"]
# Of C-FIND's extended negotiation, those that are agreed on.
_OPTIONS: Final = 3
# A search over everything may take its time; the database is heard from all the while.
_SECONDS: Final = 600.0
# How long, and how often, a database that has no room for one more query is asked again.
_PATIENCE: Final = 10.0
_PAUSE: Final = 0.05


def extended(asked: bytes) -> bytes:
    """Return what is agreed on of C-FIND's options (PS3.4 C.5.1.1).

    Relational queries, combined matching of dates and times, fuzzy semantic matching of names; time zones are not
    adjusted.
    """
    return bytes(int(number < _OPTIONS and option == 1) for number, option in enumerate(asked[:5]))


def find(exchange: Exchange) -> Outcome:
    """Answer a query of patients, studies, series or images."""
    identifier = _identifier(exchange)
    uid = exchange.context.abstract_syntax
    options = next((e.information for e in exchange.agreement.request.user.extended if e.sop_class_uid == uid), b"")
    relational, combined, fuzzy = (*extended(options), 0, 0, 0)[:_OPTIONS]
    request = pb.FindRequest(
        model=_MODELS[uid],
        level=identifier.value(QUERY_RETRIEVE_LEVEL),
        keys=_keys(identifier.keys),
        encoding=_encoding(exchange, identifier),
        viewer_station=exchange.peer.calling_ae_title,
        retrieve_ae_title=exchange.mesh.config.ae_title,
        relational=bool(relational),
        combined_date_time=bool(combined),
        fuzzy_names=bool(fuzzy),
        limit=exchange.mesh.config.find_limit,
    )
    return _answered(exchange, partial(_client(exchange).Find, request, timeout=_SECONDS))


def find_worklist(exchange: Exchange) -> Outcome:
    """Answer a query of the Modality Worklist."""
    identifier = _identifier(exchange)
    request = pb.FindWorklistRequest(
        keys=_keys(identifier.keys),
        encoding=_encoding(exchange, identifier),
        limit=exchange.mesh.config.find_limit,
    )
    return _answered(exchange, partial(_client(exchange).FindWorklist, request, timeout=_SECONDS))


def _client(exchange: Exchange) -> Any:
    return exchange.mesh.context.client(_SERVICE, "database-server")


def _implicit(exchange: Exchange) -> bool:
    return exchange.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN


def _identifier(exchange: Exchange) -> Identifier:
    data = exchange.identifier(IDENTIFIER_MOST)
    if not data:
        raise RadmeshError("IDENTIFIER_INVALID", "identifier: there is none")
    return read_identifier(data, implicit=_implicit(exchange))


def _encoding(exchange: Exchange, identifier: Identifier) -> pb.RowEncoding:
    station = exchange.mesh.station(exchange.peer.calling_ae_title, exchange.peer.address)
    preferred = station.character_set if station is not None else ""
    return pb.RowEncoding(implicit_vr=_implicit(exchange), character_set=preferred or identifier.character_set)


def _keys(keys: Iterable[Key]) -> list[pb.QueryKey]:
    return [pb.QueryKey(tag=key.tag, vr=key.vr, value=key.value, items=_keys(key.items)) for key in keys]


def _answered(exchange: Exchange, ask: Callable[[], Any]) -> Outcome:
    """Ask, and ask again while the database has no room for one more query."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return _sent_on(exchange, ask())
        except RadmeshError as error:
            # It says so before the first row.
            if error.reason == "TOO_MANY_CALLS" and time.monotonic() < until:
                if exchange.cancelled():
                    return Outcome(Status.CANCELLED)
                time.sleep(_PAUSE)
                continue
            tag = int(error.metadata.get("tag", "0"), 16)
            return outcome_of(error, (tag >> 16, tag & 0xFFFF) if tag else None)


def _sent_on(exchange: Exchange, answers: Any) -> Outcome:
    """Send the rows on as they come, until the peer has had enough."""
    limited = False
    try:
        for answer in answers:
            if exchange.cancelled():
                return Outcome(Status.CANCELLED)
            status = Status.PENDING_WITHOUT_OPTIONAL_KEYS if answer.keys_unsupported else Status.PENDING
            exchange.respond_many(answer.identifiers, status)
            limited = answer.limited
    finally:
        answers.cancel()
    if limited:
        most = exchange.mesh.config.find_limit
        return Outcome(Status.OUT_OF_RESOURCES, f"FIND_LIMITED: more than {most} matches: narrow the query")
    return SUCCESS
