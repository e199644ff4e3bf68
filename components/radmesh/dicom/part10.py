"""DICOM files (PS3.10 7): what stands before a data set in a file, and finding the data set in one."""

import struct
from typing import BinaryIO

from radmesh.dicom import uids
from radmesh.dicom.uids import clean_uid
from radmesh.runtime.errors import RadmeshError

_LONG = (b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR", b"OD", b"OF", b"OL", b"OV", b"SV", b"UV")
_MAX_META = 1024 * 1024


def _element(number: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr in (b"SH", b"AE") else b"\0"
    head = struct.pack("<HH2s", 0x0002, number, vr)
    length = struct.pack("<HI", 0, len(value)) if vr in _LONG else struct.pack("<H", len(value))
    return head + length + value


def preamble_and_meta(
    sop_class_uid: str, sop_instance_uid: str, transfer_syntax_uid: str, source_ae_title: str = ""
) -> bytes:
    """Return what stands before the data set in a file: preamble, prefix and group 0002 (PS3.10 7.1)."""
    elements = [
        _element(0x0001, b"OB", b"\0\1"),
        _element(0x0002, b"UI", sop_class_uid.encode()),
        _element(0x0003, b"UI", sop_instance_uid.encode()),
        _element(0x0010, b"UI", transfer_syntax_uid.encode()),
        _element(0x0012, b"UI", uids.IMPLEMENTATION_CLASS_UID.encode()),
        _element(0x0013, b"SH", uids.IMPLEMENTATION_VERSION_NAME.encode()),
    ]
    if source_ae_title:
        elements.append(_element(0x0016, b"AE", source_ae_title.encode("ascii", "replace")[:16]))
    body = b"".join(elements)
    return bytes(128) + b"DICM" + _element(0x0000, b"UL", struct.pack("<I", len(body))) + body


def seek_data_set(file: BinaryIO) -> str:
    """Set `file` to the first byte of its data set; return the data set's transfer syntax.

    Bears what real files have: no preamble, no or a wrong group length, no meta information at all (the transfer
    syntax is then seen from the first element).

    Raises:
        RadmeshError: FILE_NOT_DICOM.
    """
    head = file.read(132)
    start = 132 if head[128:] == b"DICM" else 0
    file.seek(start)
    if start == 0 and head[:4] == b"DICM":
        start = 4
        file.seek(4)
    meta = file.read(_MAX_META)
    position, syntax = 0, ""
    while meta[position : position + 2] == b"\x02\x00" and position + 8 <= len(meta):
        number, vr = struct.unpack_from("<H2s", meta, position + 2)
        if vr in _LONG:
            if position + 12 > len(meta):
                raise RadmeshError("FILE_NOT_DICOM", "the file's meta information is cut")
            length, value = struct.unpack_from("<I", meta, position + 8)[0], position + 12
        elif vr.isalpha() and vr.isupper():
            length, value = struct.unpack_from("<H", meta, position + 6)[0], position + 8
        else:
            # Group 0002 in Implicit VR, which no standard ever allowed and some writers wrote.
            length, value = struct.unpack_from("<I", meta, position + 4)[0], position + 8
        if length > len(meta) - value:
            raise RadmeshError("FILE_NOT_DICOM", "the file's meta information is cut or too long")
        if number == 0x0010:
            syntax = clean_uid(meta[value : value + length])
        position = value + length
    first = meta[position : position + 8]
    if not uids.is_valid_uid(syntax):
        syntax = _guess(first)
    if not start and not position and not _looks_like_a_data_set(first):
        raise RadmeshError("FILE_NOT_DICOM", "this is not a DICOM file: it has neither the prefix DICM nor a data set")
    file.seek(start + position)
    return syntax


def _guess(first: bytes) -> str:
    """Return the transfer syntax that a data set with this first element has, if it is not compressed."""
    explicit = len(first) == 8 and first[4:6].isalpha() and first[4:6].isupper()
    if len(first) == 8 and first[0] == 0 and first[1] in (0x08, 0x02, 0x04):
        return uids.EXPLICIT_VR_BIG_ENDIAN
    return uids.EXPLICIT_VR_LITTLE_ENDIAN if explicit else uids.IMPLICIT_VR_LITTLE_ENDIAN


def _looks_like_a_data_set(first: bytes) -> bool:
    """Whether eight bytes may begin a data set without a file around it: an element of group 0008, or near it."""
    if len(first) < 8:
        return False
    if first[0] == 0 and first[1] in (0x08, 0x04):
        return True
    group, _, length = struct.unpack("<HHI", first)
    explicit = first[4:6].isalpha() and first[4:6].isupper()
    return group in (0x0004, 0x0008, 0x0010) and (explicit or length < 65536)
