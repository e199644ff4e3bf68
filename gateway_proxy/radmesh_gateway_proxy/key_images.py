"""What Key Object Selection documents refer to (PS3.3 A.35.4)."""

from collections.abc import Iterable
from typing import Final

from radmesh.dicom.identifier import Identifier, read_data_set
from radmesh.dicom.uids import EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN
from radmesh.runtime.errors import RadmeshError
from radmesh.transfer.reader import ObjectRead
from radmesh_gateway_proxy.objects import Item

KEY_OBJECTS: Final = "1.2.840.10008.5.1.4.1.1.88.59"
"""Key Object Selection Document Storage."""
# Current Requested Procedure Evidence Sequence: study, series, instance (PS3.3 C.17.2).
_EVIDENCE: Final = 0x0040A375
_SERIES: Final = 0x00081115
_INSTANCES: Final = 0x00081199
_SOP_INSTANCE_UID: Final = 0x00081155
_BYTES_MOST: Final = 16 << 20
_ELEMENTS_MOST: Final = 200_000


def referenced(documents: Iterable[Item]) -> set[str]:
    """Return the SOP Instance UIDs that documents refer to.

    Raises:
        RadmeshError: one cannot be read.
    """
    found: set[str] = set()
    for document in documents:
        if document.length > _BYTES_MOST:
            raise RadmeshError("MESSAGE_TOO_LARGE", "a Key Object Selection document has more than 16 MiB")
        if document.transfer_syntax_uid not in (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN):
            raise RadmeshError("TRANSCODING_FAILED", "a Key Object Selection document is in an unusual transfer syntax")
        implicit = document.transfer_syntax_uid == IMPLICIT_VR_LITTLE_ENDIAN
        if not document.locations:
            raise RadmeshError("PEER_UNAVAILABLE", "no store that has the document answers: try again")
        with ObjectRead(document.locations) as reading:
            data = b"".join(reading)
        content = read_data_set(data, implicit=implicit, most=_BYTES_MOST, keys_most=_ELEMENTS_MOST)
        for study in _items(content, _EVIDENCE):
            for series in _items(study, _SERIES):
                found.update(item.value(_SOP_INSTANCE_UID) for item in _items(series, _INSTANCES))
    return found - {""}


def _items(within: Identifier, tag: int) -> list[Identifier]:
    return [Identifier(item.items) for key in within.keys if key.tag == tag for item in key.items]
