"""Corrected values written into a fetched file (PS3.3 C.12.1.1.9: Original Attributes Sequence)."""

from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from radmesh.dicom import part10
from radmesh.dicom.overlay import Corrected, Correction

_CHUNK = 1 << 20


def apply(path: Path, corrections: Sequence[Correction]) -> tuple[str, ...]:
    """Write corrected values into the DICOM file at `path`; return the keywords that changed, sorted.

    What was there before goes into the Original Attributes Sequence (0400,0561). A value that the object's character
    set cannot carry makes it ISO_IR 192. A file in which nothing changes is not touched.

    Raises:
        RadmeshError: CORRECTION_NOT_APPLIED if the data set cannot be rewritten, or a keyword is not known.
        OSError: the file cannot be written.
    """
    corrected = path.with_name(f"{path.name}.corrected")
    try:
        with path.open("rb") as file:
            syntax = part10.seek_data_set(file)
            start = file.tell()
            data_set = Corrected(iter(lambda: file.read(_CHUNK), b""), syntax, corrections)
            if not data_set.changed:
                return ()
            with corrected.open("wb") as out:
                out.write(_beginning(path, start))
                out.writelines(data_set)
        corrected.replace(path)
    finally:
        corrected.unlink(missing_ok=True)
    return data_set.changed


def _beginning(path: Path, size: int) -> bytes:
    file: BinaryIO
    with path.open("rb") as file:
        return file.read(size)
