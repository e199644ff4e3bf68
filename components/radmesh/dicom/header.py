"""The queryable header: which elements the database gets, and what they say in Unicode.

The gateway proxy scans them out of the data set as it streams by; they travel in Explicit VR Little Endian, values
untouched, so that nothing is decoded where it would cost, or be guessed twice.
"""

import codecs
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from radmesh.dicom.uids import TransferSyntax, clean_uid
from radmesh_native import header as native

# (tag, VR, keyword), by level. PS3.6 chapter 6.
PATIENT: Final = (
    (0x00100010, "PN", "PatientName"),
    (0x00100020, "LO", "PatientID"),
    (0x00100021, "LO", "IssuerOfPatientID"),
    (0x00100030, "DA", "PatientBirthDate"),
    (0x00100032, "TM", "PatientBirthTime"),
    (0x00100040, "CS", "PatientSex"),
    (0x00101010, "AS", "PatientAge"),
    (0x00101020, "DS", "PatientSize"),
    (0x00101030, "DS", "PatientWeight"),
    (0x00102160, "SH", "EthnicGroup"),
    (0x00104000, "LT", "PatientComments"),
)
STUDY: Final = (
    (0x00080020, "DA", "StudyDate"),
    (0x00080030, "TM", "StudyTime"),
    (0x00080050, "SH", "AccessionNumber"),
    (0x00080090, "PN", "ReferringPhysicianName"),
    (0x00081030, "LO", "StudyDescription"),
    (0x00081048, "PN", "PhysiciansOfRecord"),
    (0x00081060, "PN", "NameOfPhysiciansReadingStudy"),
    (0x00081080, "LO", "AdmittingDiagnosesDescription"),
    (0x0020000D, "UI", "StudyInstanceUID"),
    (0x00200010, "SH", "StudyID"),
)
SERIES: Final = (
    (0x00080021, "DA", "SeriesDate"),
    (0x00080031, "TM", "SeriesTime"),
    (0x00080060, "CS", "Modality"),
    (0x00080070, "LO", "Manufacturer"),
    (0x00080080, "LO", "InstitutionName"),
    (0x00081010, "SH", "StationName"),
    (0x0008103E, "LO", "SeriesDescription"),
    (0x00081040, "LO", "InstitutionalDepartmentName"),
    (0x00081050, "PN", "PerformingPhysicianName"),
    (0x00081070, "PN", "OperatorsName"),
    (0x00081090, "LO", "ManufacturerModelName"),
    (0x00180015, "CS", "BodyPartExamined"),
    (0x00181000, "LO", "DeviceSerialNumber"),
    (0x00181020, "LO", "SoftwareVersions"),
    (0x00181030, "LO", "ProtocolName"),
    (0x00185100, "CS", "PatientPosition"),
    (0x0020000E, "UI", "SeriesInstanceUID"),
    (0x00200011, "IS", "SeriesNumber"),
    (0x00200052, "UI", "FrameOfReferenceUID"),
    (0x00200060, "CS", "Laterality"),
)
INSTANCE: Final = (
    (0x00080005, "CS", "SpecificCharacterSet"),
    (0x00080008, "CS", "ImageType"),
    (0x00080016, "UI", "SOPClassUID"),
    (0x00080018, "UI", "SOPInstanceUID"),
    (0x00080022, "DA", "AcquisitionDate"),
    (0x00080023, "DA", "ContentDate"),
    (0x0008002A, "DT", "AcquisitionDateTime"),
    (0x00080032, "TM", "AcquisitionTime"),
    (0x00080033, "TM", "ContentTime"),
    (0x00200012, "IS", "AcquisitionNumber"),
    (0x00200013, "IS", "InstanceNumber"),
    (0x00280002, "US", "SamplesPerPixel"),
    (0x00280004, "CS", "PhotometricInterpretation"),
    (0x00280006, "US", "PlanarConfiguration"),
    (0x00280008, "IS", "NumberOfFrames"),
    (0x00280010, "US", "Rows"),
    (0x00280011, "US", "Columns"),
    (0x00280100, "US", "BitsAllocated"),
    (0x00280101, "US", "BitsStored"),
    (0x00280102, "US", "HighBit"),
    (0x00280103, "US", "PixelRepresentation"),
    (0x00281050, "DS", "WindowCenter"),
    (0x00281051, "DS", "WindowWidth"),
    (0x00281052, "DS", "RescaleIntercept"),
    (0x00281053, "DS", "RescaleSlope"),
)
LEVELS: Final = {"patient": PATIENT, "study": STUDY, "series": SERIES, "instance": INSTANCE}
WANTED: Final[dict[int, bytes]] = {tag: vr.encode() for level in LEVELS.values() for tag, vr, _ in level}
TAGS: Final[dict[str, int]] = {keyword: tag for level in LEVELS.values() for tag, _, keyword in level}

_SCANNED: Final = native.Tags(WANTED)

# At most this much is looked at before a data set's UIDs must have been seen.
SCAN_LIMIT: Final = 4 * 1024 * 1024

# VRs whose text depends on Specific Character Set (PS3.5 6.1.2.2).
_TEXT: Final = frozenset((b"LO", b"LT", b"PN", b"SH", b"ST", b"UC", b"UT"))


def new_scanner(syntax: TransferSyntax, also: Mapping[int, bytes] | None = None) -> native.Scanner:
    """Return a scanner for a data set of this encoding; a deflated one is fed what was inflated.

    `also` are elements that are wanted besides: {tag: VR}.
    """
    encoding = native.IMPLICIT if syntax.implicit else native.BIG_ENDIAN if syntax.big_endian else native.EXPLICIT
    return native.Scanner(encoding, {**WANTED, **also} if also else _SCANNED, limit=SCAN_LIMIT)


def tags(*keywords: str) -> native.Tags:
    """Return what takes these elements out of queryable headers: `tags("PatientID").of(header)` has no other."""
    return native.Tags({TAGS[keyword]: WANTED[TAGS[keyword]] for keyword in keywords})


@lru_cache(256)
def _encodings(character_set: bytes) -> tuple[tuple[str, ...], str]:
    """Return Python's names of a Specific Character Set (PS3.3 C.12.1.1.2), and the first term that nobody knows."""
    import warnings  # noqa: PLC0415 - pydicom's tables are needed for text beyond ASCII only

    from pydicom.charset import convert_encodings, python_encoding  # noqa: PLC0415

    terms = [term.strip() for term in character_set.decode("ascii", "replace").strip("\0 ").split("\\")]
    # pydicom takes the name of any codec of Python for a term: one gives lone surrogates, which nothing can keep,
    # another raises whatever it is fed.
    known = {codecs.lookup(name).name for name in python_encoding.values()}
    unknown = ""
    for term in filter(None, terms):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                # A second term keeps pydicom from taking what stands alone for something like it.
                if any(codecs.lookup(name).name not in known for name in convert_encodings([term])):
                    unknown = unknown or term
            except (LookupError, UserWarning, ValueError):
                unknown = unknown or term
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            encodings = tuple(name for name in convert_encodings(terms) if codecs.lookup(name).name in known)
        except (LookupError, ValueError):
            encodings = ()
        return encodings or ("utf-8",), unknown


# What pydicom leaves where ISO 2022 IR 58 is designated (PS3.3 table C.12-4): nothing of the text.
_LEFT_OVER: Final = "\x1b$)A"
# In which no text that means something is UTF-8 by chance.
_LATIN: Final = frozenset((b"", b"ISO_IR 6", b"ISO 2022 IR 6", b"ISO_IR 100", b"ISO 2022 IR 100"))


def decode_text(raw: bytes, character_set: bytes, *, vr: bytes = b"LO") -> str:
    """Return text in Unicode. Never fails: a wrongly declared set is read as UTF-8 if it is that, else as Latin-1."""
    return _decode(raw, character_set, vr)[0]


def _decode(raw: bytes, character_set: bytes, vr: bytes) -> tuple[str, bool]:
    """Return text in Unicode, and whether the declared set was right."""
    raw = raw.rstrip(b"\0 ")
    if raw.isascii() and b"\x1b" not in raw:
        return raw.decode("ascii").strip(" "), True
    import warnings  # noqa: PLC0415

    from pydicom.charset import decode_bytes  # noqa: PLC0415
    from pydicom.valuerep import PN_DELIMS, TEXT_VR_DELIMS  # noqa: PLC0415

    encodings, unknown = _encodings(character_set)
    if (unknown or character_set.strip(b"\0 ") in _LATIN) and b"\x1b" not in raw:
        try:
            return raw.decode().strip("\0 "), False
        except UnicodeDecodeError:
            pass
    with warnings.catch_warnings():
        # pydicom warns and replaces where the set does not fit: that is what must be seen here.
        warnings.simplefilter("error")
        try:
            text = decode_bytes(raw, encodings, PN_DELIMS if vr == b"PN" else TEXT_VR_DELIMS).replace(_LEFT_OVER, "")
            if "\ufffd" not in text and "\x1b" not in text:
                return text.strip("\0 "), not unknown and bool(character_set.strip(b"\0 "))
        except (LookupError, UnicodeError, UserWarning, ValueError):
            pass
    for guess in ("utf-8", *encodings[:1], "latin-1"):
        try:
            return raw.decode(guess).replace("\x1b", "").strip("\0 "), False
        except (LookupError, UnicodeError):
            continue
    return raw.decode("latin-1").strip("\0 "), False


@dataclass(frozen=True, slots=True)
class QueryableHeader:
    """A queryable header, taken apart: {tag: (VR, bytes as received)}."""

    elements: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    @classmethod
    def parse(cls, header: bytes) -> "QueryableHeader":
        """Take a header apart.

        Raises:
            ValueError: it is none.
        """
        return cls(native.split_header(header))

    def raw(self, keyword: str) -> bytes:
        """Return an element's bytes; empty if absent."""
        return self.elements.get(TAGS[keyword], (b"", b""))[1]

    def text(self, keyword: str) -> str:
        """Return an element's text in Unicode, all its values, without padding; empty if absent."""
        vr, raw = self.elements.get(TAGS[keyword], (b"", b""))
        if not raw:
            return ""
        if vr == b"UI":
            return clean_uid(raw)
        if vr in _TEXT or vr == b"UN":
            return decode_text(raw, self.raw("SpecificCharacterSet"), vr=WANTED[TAGS[keyword]])
        return raw.decode("latin-1").strip("\0 ")

    def character_set_remarks(self) -> list[str]:
        """Return what is odd about the declared character set: "CHARACTER_SET_UNKNOWN …", "CHARACTER_SET_WRONG …"."""
        declared = self.raw("SpecificCharacterSet")
        remarks = []
        if declared and (unknown := _encodings(declared)[1]):
            remarks.append(f"CHARACTER_SET_UNKNOWN {''.join(c if c.isprintable() else '?' for c in unknown)[:32]}")
        name = self.raw("PatientName")
        if not name.isascii() and not _decode(name, declared, b"PN")[1]:
            remarks.append("CHARACTER_SET_WRONG 0010,0010")
        return remarks

    def number(self, keyword: str) -> int:
        """Return an element's first value as a whole number; 0 if absent or none."""
        vr, raw = self.elements.get(TAGS[keyword], (b"", b""))
        if vr in (b"US", b"UL", b"SS", b"SL"):
            return int.from_bytes(raw[: 2 if vr[1:] == b"S" else 4], "little")
        try:
            return int(float(raw.split(b"\\", 1)[0].strip(b"\0 ")))
        except (OverflowError, ValueError):
            return 0


_CHARACTERS: Final = tags("SpecificCharacterSet", "PatientName")


def character_set_remarks(header: bytes) -> tuple[str, ...]:
    """Return the remarks on a queryable header's bytes; those on what the objects of a study share are made once.

    Raises:
        ValueError: it is none.
    """
    return _character_set_remarks(_CHARACTERS.of(header))


@lru_cache(512)
def _character_set_remarks(header: bytes) -> tuple[str, ...]:
    return tuple(QueryableHeader.parse(header).character_set_remarks())


def document() -> str:
    """Return docs/reference/header.md."""
    lines = [
        "# The queryable header",
        "",
        "Made by `make docs` from `radmesh.dicom.header`. These elements travel with each object's commit, in Explicit",
        "VR Little Endian, values as received (those longer than 16,384 bytes are left out, with a remark).",
    ]
    for level, rows in LEVELS.items():
        lines += ["", f"## {level.capitalize()}", "", "| tag | VR | keyword |", "| --- | --- | --- |"]
        lines += [f"| ({tag >> 16:04X},{tag & 0xFFFF:04X}) | {vr} | {keyword} |" for tag, vr, keyword in rows]
    return "\n".join(lines) + "\n"
