"""Corrected values written into a fetched file (PS3.3 C.12.1.1.9: Original Attributes Sequence)."""

import codecs
import io
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, Final

from pydicom import dcmread, dcmwrite
from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset, FileDataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from radmesh.client.model import Correction
from radmesh.runtime.errors import RadmeshError

_VRS: Final = {
    "PatientID": "LO",
    "IssuerOfPatientID": "LO",
    "PatientName": "PN",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "AccessionNumber": "SH",
    "StudyDescription": "LO",
    "ReferringPhysicianName": "PN",
}
_UTF_8: Final = "ISO_IR 192"
_UNDEFINED: Final = 0xFFFFFFFF


def apply(path: Path, corrections: Sequence[Correction], now: datetime | None = None) -> tuple[str, ...]:
    """Write corrected values into the DICOM file at `path`; return the keywords that changed, sorted.

    What was there before goes into the Original Attributes Sequence (0400,0561). A value that the object's character
    set cannot carry makes it ISO_IR 192. Pixel data, and all behind it, are copied as they are; a file in which
    nothing changes is not touched.

    Raises:
        RadmeshError: CORRECTION_NOT_APPLIED if the data set cannot be rewritten, or a keyword is not known.
        OSError: the file cannot be written.
    """
    corrected = path.with_name(f"{path.name}.corrected")
    try:
        with path.open("rb") as file, corrected.open("wb") as out:
            head = dcmread(file, stop_before_pixels=True)
            _check_end(head, file)
            changed = _correct(head, corrections, now or datetime.now(UTC))
            if not changed:
                return ()
            syntax = head.file_meta.TransferSyntaxUID
            if syntax == DeflatedExplicitVRLittleEndian:
                whole = dcmread(path)
                _correct(whole, corrections, now or datetime.now(UTC))
                dcmwrite(out, whole)
            else:
                # Where the reader stopped: the first byte of what is copied.
                rest = file.tell()
                _copy_head(file, out)
                _write(out, head, syntax)
                file.seek(rest)
                shutil.copyfileobj(file, out, 1 << 20)
        corrected.replace(path)
    except (OSError, RadmeshError):
        raise
    except Exception as error:
        # Whatever pydicom makes of bytes that are no valid data set.
        raise RadmeshError(
            "CORRECTION_NOT_APPLIED", f"the data set cannot be rewritten ({type(error).__name__}): use --as-stored"
        ) from error
    finally:
        corrected.unlink(missing_ok=True)
    return changed


def _check_end(head: FileDataset, file: BinaryIO) -> None:
    """Refuse a data set that ends within an element: pydicom leaves that element out without a word."""
    last = head.get_item(max(head.keys())) if head else None
    if isinstance(last, RawDataElement) and head.file_meta.TransferSyntaxUID != DeflatedExplicitVRLittleEndian:
        whole = last.length == _UNDEFINED or last.value_tell + last.length == file.tell()
    else:
        whole = last is not None
    if not whole:
        raise RadmeshError("CORRECTION_NOT_APPLIED", "the data set ends within an element: use --as-stored")


def _correct(dataset: FileDataset, corrections: Sequence[Correction], now: datetime) -> tuple[str, ...]:
    """Set corrected values in `dataset`, and note what was there before; return the keywords that changed."""
    unknown = sorted({c.keyword for c in corrections} - _VRS.keys())
    if unknown:
        raise RadmeshError(
            "CORRECTION_NOT_APPLIED", f"this version cannot write {', '.join(unknown)}: use --as-stored, or a newer one"
        )
    changing = [c for c in corrections if str(dataset.get(c.keyword) or "").rstrip() != c.value.rstrip()]
    if not changing:
        return ()
    if not all(_carries(dataset, c.value) for c in changing):
        # Every text of the data set is decoded by the old character set before it is written in the new one.
        dataset.decode()
        dataset.SpecificCharacterSet = _UTF_8
    history = list(dataset.get("OriginalAttributesSequence") or [])
    by_origin = sorted(changing, key=lambda c: (c.source, c.keyword))
    for source, group in groupby(by_origin, key=lambda c: c.source):
        before = Dataset()
        for correction in group:
            # An element that was not there was not modified: it was empty (C.12.1.1.9.2).
            old = dataset.get(tag_for_keyword(correction.keyword))
            before.add_new(correction.keyword, _VRS[correction.keyword], old.value if old is not None else None)
            dataset.add(DataElement(correction.keyword, _VRS[correction.keyword], correction.value))
        item = Dataset()
        item.SourceOfPreviousValues = ""
        item.AttributeModificationDateTime = now.astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")
        item.ModifyingSystem = f"radmesh {source}"[:64]
        item.ReasonForTheAttributeModification = "CORRECT"
        item.ModifiedAttributesSequence = [before]
        history.append(item)
    dataset.OriginalAttributesSequence = history
    return tuple(sorted(c.keyword for c in changing))


def _carries(dataset: Dataset, value: str) -> bool:
    """Whether the data set's character set has every character of `value`.

    Of code extensions, of the default repertoire (which pydicom takes for Latin-1) and of ISO_IR 13 (for Shift JIS)
    only ASCII is asked.
    """
    if value.isascii():
        return True
    charset = dataset.get("SpecificCharacterSet") or "ISO_IR 6"
    encodings = convert_encodings(charset)
    if len(encodings) != 1 or charset in ("ISO_IR 6", "ISO_IR 13"):
        return False
    try:
        codecs.encode(value, encodings[0], "strict")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _copy_head(file: BinaryIO, out: BinaryIO) -> None:
    """Copy preamble, prefix and group 0002, which the cluster wrote with a group length (PS3.10 7.1)."""
    file.seek(0)
    start = file.read(144)
    out.write(start)
    out.write(file.read(int.from_bytes(start[140:144], "little")))


def _write(out: BinaryIO, dataset: Dataset, syntax: UID) -> None:
    """Write `dataset` without a preamble or group 0002."""
    buffer = io.BytesIO()
    sink = DicomFileLike(buffer)
    sink.is_little_endian = syntax.is_little_endian
    sink.is_implicit_VR = syntax.is_implicit_VR
    write_dataset(sink, dataset)
    out.write(buffer.getvalue())
