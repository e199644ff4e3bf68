"""Modality Performed Procedure Step, SCP (PS3.4 F.7): N-CREATE and N-SET, durable before they are answered."""

import uuid
from typing import Any, Final

from radmesh.api.database.v1 import procedure_step_pb2 as pb
from radmesh.dicom.identifier import Identifier, read_data_set
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN, is_valid_uid
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.dimse import Element, Outcome, Status, us
from radmesh_gateway_proxy.services.exchange import Exchange, RefusalError

PROCEDURE_STEP_SOP_CLASSES: Final = {"1.2.840.10008.3.1.2.3.3": "Modality Performed Procedure Step"}
_STATUS: Final = 0x00400252
_SCHEDULED_STEPS: Final = 0x00400270
_STUDY_INSTANCE_UID: Final = 0x0020000D
_IN_PROGRESS: Final = "IN PROGRESS"
_STATUSES: Final = (_IN_PROGRESS, "COMPLETED", "DISCONTINUED")
MAY_NO_LONGER_BE_UPDATED: Final = 0xA710  # Error ID, PS3.4 table F.7.2-2
_BYTES_MOST: Final = 3 << 20
_ELEMENTS_MOST: Final = 200_000
STATUSES: Final = (
    (Status.INVALID_ATTRIBUTE_VALUE, "a status or a Study Instance UID is none, or a step does not begin IN PROGRESS"),
    (Status.PROCESSING_FAILURE, "the attributes cannot be read; of a step that has ended with Error ID 0xA710"),
    (Status.DUPLICATE_SOP_INSTANCE, "N-CREATE: there is a step of that SOP Instance UID"),
    (Status.NO_SUCH_OBJECT_INSTANCE, "N-SET: there is none"),
    (Status.INVALID_OBJECT_INSTANCE, "N-CREATE: the SOP Instance UID is none"),
    (Status.MISSING_ATTRIBUTE, "the status, or the Scheduled Step Attributes Sequence, is missing"),
    (Status.RESOURCE_LIMITATION, "it cannot be kept now, or has more than 3 MiB: send it again"),
)
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["ProcedureStepService"]
_REFUSED: Final = {
    "PROCEDURE_STEP_EXISTS": Status.DUPLICATE_SOP_INSTANCE,
    "PROCEDURE_STEP_NOT_FOUND": Status.NO_SUCH_OBJECT_INSTANCE,
}


def create(exchange: Exchange) -> Outcome:
    """Answer an N-CREATE."""
    data, attributes = _attributes(exchange)
    status = attributes.value(_STATUS)
    if not status:
        raise _refusal(Status.MISSING_ATTRIBUTE, "there is no Performed Procedure Step Status", _STATUS)
    if status != _IN_PROGRESS:
        raise _refusal(Status.INVALID_ATTRIBUTE_VALUE, "a procedure step begins IN PROGRESS", _STATUS)
    items = next((key.items for key in attributes.keys if key.tag == _SCHEDULED_STEPS), ())
    studies = [Identifier(item.items).value(_STUDY_INSTANCE_UID) for item in items]
    if not studies:
        raise _refusal(Status.MISSING_ATTRIBUTE, "there is no Scheduled Step Attributes Sequence", _SCHEDULED_STEPS)
    if not all(map(is_valid_uid, studies)):
        raise _refusal(Status.INVALID_ATTRIBUTE_VALUE, "an item has no Study Instance UID", _STUDY_INSTANCE_UID)
    uid = exchange.request.affected_sop_instance_uid
    if uid and not is_valid_uid(uid):
        return Outcome(Status.INVALID_OBJECT_INSTANCE, "the SOP Instance UID is none", (0, 0x1000))
    # Who names none is told which it is (PS3.7 10.1.5.1.4).
    uid = uid or f"2.25.{uuid.uuid4().int}"
    message = pb.CreateProcedureStepRequest(
        sop_instance_uid=uid,
        station=exchange.peer.calling_ae_title,
        study_instance_uids=studies,
        data_set=data,
        transfer_syntax_uid=exchange.context.transfer_syntax,
        request_id=uuid.uuid4().bytes,
    )
    refused = _refused(exchange, lambda database: database.CreateProcedureStep(message))
    return refused or Outcome(Status.SUCCESS, elements={int(Element.AFFECTED_SOP_INSTANCE_UID): uid.encode("ascii")})


def change(exchange: Exchange) -> Outcome:
    """Answer an N-SET."""
    data, attributes = _attributes(exchange)
    status = attributes.value(_STATUS)
    if status not in ("", *_STATUSES):
        raise _refusal(Status.INVALID_ATTRIBUTE_VALUE, "the status is none of PS3.3 C.4.14", _STATUS)
    message = pb.ChangeProcedureStepRequest(
        sop_instance_uid=exchange.request.affected_sop_instance_uid[:64],
        station=exchange.peer.calling_ae_title,
        status=status,
        data_set=data,
        transfer_syntax_uid=exchange.context.transfer_syntax,
        request_id=uuid.uuid4().bytes,
    )
    return _refused(exchange, lambda database: database.ChangeProcedureStep(message)) or Outcome(Status.SUCCESS)


def _attributes(exchange: Exchange) -> tuple[bytes, Identifier]:
    data = exchange.identifier(_BYTES_MOST, too_long=Status.RESOURCE_LIMITATION)
    implicit = exchange.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN
    try:
        return data, read_data_set(data, implicit=implicit, most=_BYTES_MOST, keys_most=_ELEMENTS_MOST)
    except RadmeshError as error:
        raise RefusalError(Outcome(Status.PROCESSING_FAILURE, error.message[:64])) from None


def _refused(exchange: Exchange, call: Any) -> Outcome | None:
    """Make a call; return what it was refused with, if it was."""
    try:
        call(exchange.mesh.context.client(_SERVICE, "database-server"))
    except RadmeshError as error:
        transient = error.definition.transient
        status = _REFUSED.get(error.reason, Status.RESOURCE_LIMITATION if transient else Status.PROCESSING_FAILURE)
        ended = error.reason == "PROCEDURE_STEP_ENDED"
        elements = {int(Element.ERROR_ID): us(MAY_NO_LONGER_BE_UPDATED)} if ended else {}
        exchange.log.warning("procedure step refused", reason=error.reason, text=error.message)
        return Outcome(status, f"{error.reason}: {error.message}"[:64], elements=elements)
    return None


def _refusal(status: int, comment: str, tag: int) -> RefusalError:
    return RefusalError(Outcome(status, comment, (tag >> 16, tag & 0xFFFF)))
