"""Modality Performed Procedure Step Retrieve, SCP (PS3.4 F.8): what modalities have said of a step, joined."""

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Final

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from radmesh.api.database.v1 import procedure_step_pb2 as pb
from radmesh.dicom.uids import IMPLICIT_VR_LITTLE_ENDIAN
from radmesh.runtime.errors import RadmeshError
from radmesh_gateway_proxy.dimse import Element, Outcome, Status
from radmesh_gateway_proxy.services.exchange import Exchange

RETRIEVE_SOP_CLASSES: Final = {"1.2.840.10008.3.1.2.3.4": "Modality Performed Procedure Step Retrieve"}
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["ProcedureStepService"]
_BYTES_MOST: Final = 16 << 20
_ATTRIBUTES_MISSING: Final = 0x0107
_CHARACTER_SET: Final = 0x00080005
STATUSES: Final = (
    (Status.SUCCESS, "the attributes that were asked for, or all"),
    (_ATTRIBUTES_MISSING, "some of those that were asked for are not there"),
    (Status.PROCESSING_FAILURE, "what the modality said cannot be joined"),
    (Status.NO_SUCH_OBJECT_INSTANCE, "there is no step of that SOP Instance UID"),
    (Status.RESOURCE_LIMITATION, "it cannot be had now, or has more than 16 MiB"),
)


def get(exchange: Exchange) -> Outcome:
    """Answer an N-GET."""
    try:
        messages = list(_messages(exchange))
    except RadmeshError as error:
        if error.reason == "PROCEDURE_STEP_NOT_FOUND":
            tag = 0, int(Element.REQUESTED_SOP_INSTANCE_UID)
            return Outcome(Status.NO_SUCH_OBJECT_INSTANCE, error.message[:64], tag)
        exchange.log.warning("procedure step not read", reason=error.reason, text=error.message)
        return Outcome(Status.RESOURCE_LIMITATION, f"{error.reason}: {error.message}"[:64])
    wanted = exchange.request.elements.get(int(Element.ATTRIBUTE_IDENTIFIER_LIST), b"")
    pairs = struct.iter_unpack("<HH", wanted[: len(wanted) // 4 * 4])
    tags = frozenset(group << 16 | element for group, element in pairs)
    try:
        joined = _joined(messages)
        missing = tags.difference(map(int, joined.keys()))
        if tags:
            # The character set goes with the text.
            chosen = Dataset()
            chosen.update({tag: joined[tag] for tag in (*tags, _CHARACTER_SET) if tag in joined})
            joined = chosen
        data = _written(joined, implicit=exchange.context.transfer_syntax == IMPLICIT_VR_LITTLE_ENDIAN)
    except Exception as error:  # noqa: BLE001 - whatever a modality has said ends as a status
        exchange.log.warning("procedure step not joined", error=type(error).__name__)
        return Outcome(Status.PROCESSING_FAILURE, "what the modality said cannot be joined")
    return Outcome(_ATTRIBUTES_MISSING if missing else Status.SUCCESS, identifier=data)


def _messages(exchange: Exchange) -> Iterator[tuple[bytes, bool]]:
    """Yield the data sets of a step, and whether each is in Implicit VR.

    Raises:
        RadmeshError: PROCEDURE_STEP_NOT_FOUND, MESSAGE_TOO_LARGE, or of the Database Server.
    """
    database = exchange.mesh.context.client(_SERVICE, "database-server")
    uid = exchange.request.affected_sop_instance_uid[:64]
    number, count, size = 1, 1, 0
    while number <= count:
        message = database.GetProcedureStepMessage(
            pb.GetProcedureStepMessageRequest(sop_instance_uid=uid, number=number)
        )
        size += len(message.data_set)
        if size > _BYTES_MOST:
            raise RadmeshError("MESSAGE_TOO_LARGE", f"the step has more than {_BYTES_MOST} bytes")
        yield message.data_set, message.transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
        number, count = number + 1, message.count


def _joined(messages: list[tuple[bytes, bool]]) -> Dataset:
    """Return the attributes as they are after the last message, in UTF-8: each message may be in a set of its own."""
    joined = Dataset()
    for data, implicit in messages:
        said = read_dataset(BytesIO(data), is_implicit_VR=implicit, is_little_endian=True)
        said.decode()
        joined.update(said)
    if _CHARACTER_SET in joined:
        joined.SpecificCharacterSet = "ISO_IR 192"
    return joined


def _written(attributes: Dataset, *, implicit: bool) -> bytes:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, implicit
    write_dataset(file, attributes)
    return bytes(file.getvalue())
