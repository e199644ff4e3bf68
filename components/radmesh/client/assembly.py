"""DICOM files (PS3.10 7) made of the web cache's frames and their metadata: objects as a remote viewer gets them."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

from pydicom.charset import convert_encodings
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset

from radmesh.client import model
from radmesh.client.dicom_json import data_set
from radmesh.dicom import part10
from radmesh.runtime.errors import RadmeshError

_PIXEL_DATA: Final = 0x7FE00010
_GROUP_2: Final = 0x00030000
# PS3.5 A.4: Pixel Data of undefined length, an empty Basic Offset Table, an item a frame, the delimiter.
_BEGIN: Final = bytes.fromhex("e07f1000 4f420000 ffffffff feff00e0 00000000")
_ITEM: Final = bytes.fromhex("feff00e0")
_END: Final = bytes.fromhex("feffdde0 00000000")


def write(path: Path, described: dict[str, Any], picture: model.Picture, frames: Iterable[bytes]) -> tuple[str, ...]:
    """Write an instance to `path`, which appears when it is whole; return the tags ("GGGGEEEE") that it lacks, sorted.

    Args:
        path: of the file.
        described: DICOM JSON of the instance, as it is served.
        picture: of the instance: CODED or PASSED.
        frames: of the picture, each whole, in order.

    Raises:
        RadmeshError: FILE_NOT_WRITTEN, and what `frames` raises.
    """
    head, missing = _head(described, picture)
    partial = path.with_name(f".{path.name}.part")
    try:
        with partial.open("wb") as file:
            file.write(head)
            _write_frames(file, frames)
        partial.replace(path)
    except OSError as error:
        raise RadmeshError("FILE_NOT_WRITTEN", f"cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return tuple(sorted(missing))


def _write_frames(file: BinaryIO, frames: Iterable[bytes]) -> None:
    file.write(_BEGIN)
    for frame in frames:
        odd = len(frame) % 2
        file.write(_ITEM + struct.pack("<I", len(frame) + odd))
        file.write(frame)
        file.write(b"\0" * odd)
    file.write(_END)


def _head(described: dict[str, Any], picture: model.Picture) -> tuple[bytes, list[str]]:
    """Return all that stands before the pixel data, and the tags of what could not be written."""
    ds, missing = data_set(described)
    encodings = convert_encodings(ds.get("SpecificCharacterSet") or "ISO_IR 192")
    head = part10.preamble_and_meta(
        sop_class_uid=str(ds.get("SOPClassUID", "")),
        sop_instance_uid=picture.sop_instance_uid,
        transfer_syntax_uid=picture.transfer_syntax_uid,
    )
    for tag in sorted(ds.keys()):
        # What stands behind pixel data are padding and signatures, which are of the object as it was stored.
        if not _GROUP_2 <= tag < _PIXEL_DATA:
            continue
        buffer = io.BytesIO()
        sink = DicomFileLike(buffer)
        sink.is_little_endian, sink.is_implicit_VR = True, False
        one = Dataset()
        try:
            one[tag] = ds[tag]
            write_dataset(sink, one, encodings)
        except Exception:  # noqa: BLE001 - whatever pydicom makes of a value that its VR does not allow
            missing.append(f"{int(tag):08X}")
        else:
            head += buffer.getvalue()
    return head, missing
