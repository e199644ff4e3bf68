"""DICOM files (PS3.10 7) made of the web cache's frames and their metadata: objects as a remote viewer gets them."""

import io
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final

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


def write(path: Path, described: dict[str, Any], picture: model.Picture, frames: Iterable[bytes]) -> None:
    """Write an instance to `path`; the file appears when it is whole.

    Args:
        path: of the file.
        described: DICOM JSON of the instance, as it is served.
        picture: of the instance: CODED or PASSED.
        frames: of the picture, each whole, in order.

    Raises:
        RadmeshError: FILE_NOT_WRITTEN, FILE_NOT_DICOM, and what `frames` raises.
    """
    head = _head(described, picture)
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


def _write_frames(file: BinaryIO, frames: Iterable[bytes]) -> None:
    file.write(_BEGIN)
    for frame in frames:
        odd = len(frame) % 2
        file.write(_ITEM + struct.pack("<I", len(frame) + odd))
        file.write(frame)
        file.write(b"\0" * odd)
    file.write(_END)


def _head(described: dict[str, Any], picture: model.Picture) -> bytes:
    """Return all that stands before the pixel data."""
    try:
        ds = data_set(described)
        kept = Dataset()
        # What stands behind pixel data are padding and signatures, which are of the object as it was stored.
        kept.update({tag: ds[tag] for tag in sorted(ds.keys()) if _GROUP_2 <= tag < _PIXEL_DATA})
        buffer = io.BytesIO()
        sink = DicomFileLike(buffer)
        sink.is_little_endian, sink.is_implicit_VR = True, False
        write_dataset(sink, kept)
    except Exception as error:
        # Whatever pydicom makes of values that no VR allows.
        raise RadmeshError("FILE_NOT_DICOM", f"the metadata make no data set ({type(error).__name__})") from error
    meta = part10.preamble_and_meta(
        sop_class_uid=str(ds.get("SOPClassUID", "")),
        sop_instance_uid=picture.sop_instance_uid,
        transfer_syntax_uid=picture.transfer_syntax_uid,
    )
    return meta + buffer.getvalue()
