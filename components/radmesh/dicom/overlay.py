"""Corrected values written into a data set (PS3.3 C.12.1.1.9: Original Attributes Sequence), as it streams by.

What a modality sent is kept as it came; whoever fetches an object gets what is shown of it, and what was there before.
The elements that change are replaced in the bytes of the header, the Original Attributes Sequence (0400,0561) is added
or gets an item more, and every other byte is copied. Where that cannot be (the object's character set cannot carry a
corrected value, or the elements are out of order) the header is read and written anew: up to (0400,0561) or, for
another character set, up to the pixel data.
"""

import codecs
import io
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, Protocol, cast

from pydicom.charset import convert_encodings
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import Dataset
from pydicom.filebase import DicomFileLike
from pydicom.filereader import read_dataset
from pydicom.filewriter import write_dataset

from radmesh.dicom.uids import TransferSyntax, transfer_syntax
from radmesh.runtime.errors import RadmeshError
from radmesh_native import splice

VRS: Final = {
    "PatientID": "LO",
    "IssuerOfPatientID": "LO",
    "PatientName": "PN",
    "PatientBirthDate": "DA",
    "PatientSex": "CS",
    "AccessionNumber": "SH",
    "StudyDescription": "LO",
    "ReferringPhysicianName": "PN",
}
"""What may be corrected: docs/reference/overlay.md."""
ORIGINALS: Final = 0x04000561
HEAD_MOST: Final = 64 << 20
"""Bytes of a data set that are kept in memory so that it can be corrected."""
_CHARSET: Final = 0x00080005
_TAGS: Final = {keyword: int(cast("int", tag_for_keyword(keyword))) for keyword in VRS}
_SPLICED: Final = (_CHARSET, *_TAGS.values(), ORIGINALS)
_GROUP_LENGTHS: Final = (0x00080000, 0x00100000, 0x04000000)
# Bytes that are read to find the elements in, at first; and of a value, whose length has 16 bits in Explicit VR.
_FIRST_LOOK: Final = 32 << 10
_MOST_VALUE: Final = 0xFFFE
_PIXELS: Final = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_UTF_8: Final = "ISO_IR 192"
_UNDEFINED: Final = 0xFFFFFFFF
_CHUNK: Final = 1 << 20

Buffer = bytes | bytearray | memoryview


class Correction(Protocol):
    """A corrected value: DICOM keyword, what is shown, who says so ("ris:main", "user:jo"), and since when."""

    @property
    def keyword(self) -> str: ...  # noqa: D102 - said above

    @property
    def value(self) -> str: ...  # noqa: D102

    @property
    def source(self) -> str: ...  # noqa: D102

    @property
    def time(self) -> datetime: ...  # noqa: D102


class Corrected:
    """A data set with corrected values; iterate it for its bytes.

    Attributes:
        changed: keywords whose values changed, sorted; empty: the bytes are those that came.
        recoded: whether the data set is in another character set than it was (ISO_IR 192), since its own cannot carry a
            corrected value.
        grown: by how many bytes the data set becomes longer (shorter: negative); None where that shows at the end only.
    """

    def __init__(self, pieces: Iterable[Buffer], syntax_uid: str, corrections: Sequence[Correction]) -> None:
        """Read as much of the data set (`pieces`, without preamble and group 0002) as has to be known.

        Raises:
            RadmeshError: CORRECTION_NOT_APPLIED if the data set cannot be rewritten, or a keyword is not known.
        """
        syntax = transfer_syntax(syntax_uid)
        came = _Replay(pieces)
        source = _Replay(_inflated(came.pieces())) if syntax.deflated else came
        try:
            head, self.changed, self.recoded = _head(source, syntax, corrections)
        except RadmeshError:
            raise
        except Exception as error:
            if came.failure is not None:
                raise came.failure from None
            # Whatever pydicom makes of bytes that are no valid data set.
            raise _refused(f"the data set cannot be rewritten ({type(error).__name__})") from error
        self.grown: int | None = 0
        if not self.changed:
            came.seek(0)
            self._pieces: Iterator[Buffer] = came.rest()
        elif syntax.deflated:
            self.grown = None
            came.release()
            self._pieces = _deflated(_joined(head, source.rest()))
        else:
            self.grown = len(head) - source.tell()
            self._pieces = _joined(head, source.rest())

    def __iter__(self) -> Iterator[Buffer]:
        return self._pieces


def _refused(why: str) -> RadmeshError:
    return RadmeshError("CORRECTION_NOT_APPLIED", f"{why}: fetch it as it was stored")


class _Replay:
    """A file of pieces that come one by one: what was read of it can be read again."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        self._coming = iter(pieces)
        self._kept = io.BytesIO()
        self._size = 0
        self._keeping = True
        self.failure: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        position = self._kept.tell()
        while size < 0 or self._size < position + size:
            try:
                piece = next(self._coming, None)
            except Exception as error:
                self.failure = error
                raise
            if piece is None:
                break
            if self._size + len(piece) > HEAD_MOST:
                raise _refused(f"it has more than {HEAD_MOST >> 20} MiB before its pixel data")
            self._kept.seek(self._size)
            self._size += self._kept.write(piece)
            self._kept.seek(position)
        return self._kept.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._kept.seek(offset, whence)

    def tell(self) -> int:
        return self._kept.tell()

    def rest(self) -> Iterator[Buffer]:
        """Yield all from here on, once."""
        kept = self._kept.read()
        self._kept = io.BytesIO()
        if kept:
            yield kept
        yield from self._coming

    def release(self) -> None:
        """Keep nothing of what is read from now on by `pieces`."""
        self._keeping = False

    def pieces(self) -> Iterator[Buffer]:
        """Yield all from here on; until `release`, it can be read again."""
        while self._keeping:
            if not (piece := self.read(_CHUNK)):
                return
            yield piece
        yield from self.rest()


def _head(
    source: _Replay, syntax: TransferSyntax, corrections: Sequence[Correction]
) -> tuple[bytes, tuple[str, ...], bool]:
    """Return the corrected beginning of a data set, what changed, and whether the character set did.

    `source` then stands at what follows.
    """
    stopped = False

    def until(end: Callable[[int], bool]) -> Dataset:
        nonlocal stopped
        stopped = False

        def stop(tag: int, _vr: object, _length: int) -> bool:
            nonlocal stopped
            stopped = end(int(tag))
            return stopped

        source.seek(0)
        return read_dataset(cast("Any", source), syntax.implicit, not syntax.big_endian, stop_when=stop)

    made = _spliced(source, syntax, corrections)
    if made is not None:
        return *made, False
    dataset = until(lambda tag: tag > ORIGINALS)
    if not stopped:
        _check_end(dataset, source)
    changing = _changing(dataset, corrections)
    if not changing:
        return b"", (), False
    recoded = not all(_carries(dataset, correction.value) for correction in changing)
    if recoded:
        dataset = until(lambda tag: tag in _PIXELS)
        if not stopped:
            _check_end(dataset, source)
        # Every text of the data set is decoded by the old character set before it is written in the new one.
        dataset.decode()
        dataset.SpecificCharacterSet = _UTF_8
    _correct(dataset, changing)
    buffer = io.BytesIO()
    sink = DicomFileLike(buffer)
    sink.is_little_endian, sink.is_implicit_VR = not syntax.big_endian, syntax.implicit
    write_dataset(sink, dataset)
    return buffer.getvalue(), tuple(sorted(correction.keyword for correction in changing)), recoded


def _spliced(
    source: _Replay, syntax: TransferSyntax, corrections: Sequence[Correction]
) -> tuple[bytes, tuple[str, ...]] | None:
    """As `_head`, but replaces bytes alone; None if more has to be known than where the elements are."""
    if any(correction.keyword not in VRS for correction in corrections):
        return None
    size = _FIRST_LOOK
    while True:
        source.seek(0)
        data = source.read(size)
        try:
            state, end, found = splice.locate(
                data, (*_SPLICED, *_GROUP_LENGTHS), implicit=syntax.implicit, big_endian=syntax.big_endian
            )
        except ValueError:
            return None
        whole = len(data) < size
        if state == splice.FOUND or (state == splice.ENDED and whole):
            break
        if whole:
            return None  # cut, which whoever reads it says better
        size *= 4
    head = _Splice(data[:end], syntax, found)
    changing = head.changing(corrections)
    if changing is None:
        return None
    if not changing:
        return b"", ()
    made = head.corrected(changing)
    source.seek(end)
    return None if made is None else (made, tuple(sorted(correction.keyword for correction in changing)))


class _Splice:
    """The head of a data set as bytes, and where the elements are that may change."""

    def __init__(self, data: bytes, syntax: TransferSyntax, found: Mapping[int, tuple[int, int, int, bool]]) -> None:
        self._data = data
        self._found = found
        self._implicit = syntax.implicit
        self._order = ">" if syntax.big_endian else "<"
        charset = self._value(_CHARSET).decode("latin-1").strip("\0 ")
        # Of code extensions, and of the default repertoire, only ASCII is known.
        single = "" if "\\" in charset or charset in ("", "ISO_IR 6", "ISO_IR 13") else charset
        self._encoding = convert_encodings(single)[0] if single else "ascii"

    def _value(self, tag: int) -> bytes:
        _, value, end, _ = self._found[tag]
        return self._data[value:end]

    def changing(self, corrections: Sequence[Correction]) -> list[Correction] | None:
        """Return the corrections that are not what is there; None if that cannot be told, or not be written."""
        changing = []
        for correction in corrections:
            try:
                new = correction.value.rstrip().encode(self._encoding)
                old = self._value(_TAGS[correction.keyword]).rstrip(b"\0 ").decode(self._encoding)
            except (UnicodeError, LookupError):
                return None
            if "\\" in old or not correction.source.isascii() or len(new) > _MOST_VALUE:
                return None
            if old != correction.value.rstrip():
                changing.append(correction)
        return changing

    def corrected(self, changing: Sequence[Correction]) -> bytes | None:
        """Return the head with corrected values, and with what was there before; None if there is no room for that."""
        items = []
        for source, group in groupby(sorted(changing, key=lambda c: (c.source, c.keyword)), key=lambda c: c.source):
            of_source = list(group)
            before = b"".join(
                self._element(tag, VRS[keyword], self._value(tag))
                for tag, keyword in sorted((_TAGS[c.keyword], c.keyword) for c in of_source)
            )
            items.append(
                self._item(
                    self._element(0x04000550, "SQ", self._item(before))
                    + self._element(0x04000562, "DT", modification_time(of_source).encode())
                    + self._element(0x04000563, "LO", modifying_system(source).encode())
                    + self._element(0x04000564, "LO", b"")
                    + self._element(0x04000565, "CS", b"CORRECT")
                )
            )
        replacing = {
            _TAGS[c.keyword]: self._element(_TAGS[c.keyword], VRS[c.keyword], c.value.rstrip().encode(self._encoding))
            for c in changing
        }
        replacing[ORIGINALS] = self._with_history(b"".join(items))
        return self._joined(replacing)

    def _with_history(self, items: bytes) -> bytes:
        start, value, end, undefined = self._found[ORIGINALS]
        if undefined:
            # Before the delimiter, which is its last eight bytes.
            return self._data[start : end - 8] + items + self._data[end - 8 : end]
        return self._element(ORIGINALS, "SQ", self._data[value:end] + items)

    def _joined(self, replacing: dict[int, bytes]) -> bytes | None:
        grown: dict[int, int] = {}
        for tag, element in replacing.items():
            start, _, end, _ = self._found[tag]
            grown[tag >> 16] = grown.get(tag >> 16, 0) + len(element) - (end - start)
        for tag in _GROUP_LENGTHS:
            # Retired (PS3.5 7.2), and true where they are.
            if grown.get(tag >> 16) and len(self._value(tag)) == 4:
                length = struct.unpack(self._order + "I", self._value(tag))[0] + grown[tag >> 16]
                if not 0 <= length <= _UNDEFINED:
                    return None
                replacing[tag] = self._element(tag, "UL", struct.pack(self._order + "I", length))
        parts, at = [], 0
        for tag, element in sorted(replacing.items()):
            start, _, end, _ = self._found[tag]
            parts += [self._data[at:start], element]
            at = end
        return b"".join((*parts, self._data[at:]))

    def _element(self, tag: int, vr: str, value: bytes) -> bytes:
        value += b" " * (len(value) % 2)
        head = struct.pack(self._order + "HH", tag >> 16, tag & 0xFFFF)
        if self._implicit:
            return head + struct.pack(self._order + "I", len(value)) + value
        if vr == "SQ":
            return head + b"SQ\0\0" + struct.pack(self._order + "I", len(value)) + value
        return head + vr.encode() + struct.pack(self._order + "H", len(value)) + value

    def _item(self, content: bytes) -> bytes:
        return struct.pack(self._order + "HHI", 0xFFFE, 0xE000, len(content)) + content


def _check_end(dataset: Dataset, source: _Replay) -> None:
    """Refuse a data set that ends within an element: pydicom leaves that element out without a word."""
    last = dataset.get_item(max(dataset.keys())) if dataset else None
    if isinstance(last, RawDataElement):
        whole = last.length == _UNDEFINED or last.value_tell + last.length == source.tell()
    else:
        whole = last is not None
    if not whole:
        raise _refused("the data set ends within an element")


def _changing(dataset: Dataset, corrections: Sequence[Correction]) -> list[Correction]:
    unknown = sorted({correction.keyword for correction in corrections} - VRS.keys())
    if unknown:
        raise _refused(f"this version cannot write {', '.join(unknown)}")
    return [c for c in corrections if str(dataset.get(c.keyword) or "").rstrip() != c.value.rstrip()]


def _correct(dataset: Dataset, changing: Sequence[Correction]) -> None:
    """Set corrected values in `dataset`, and note what was there before."""
    history = list(dataset.get("OriginalAttributesSequence") or [])
    for source, group in groupby(sorted(changing, key=lambda c: (c.source, c.keyword)), key=lambda c: c.source):
        corrections = list(group)
        before = Dataset()
        for correction in corrections:
            # An element that was not there was not modified: it was empty (C.12.1.1.9.2).
            old = dataset.get(tag_for_keyword(correction.keyword))
            before.add_new(correction.keyword, VRS[correction.keyword], old.value if old is not None else None)
            dataset.add(DataElement(correction.keyword, VRS[correction.keyword], correction.value))
        item = Dataset()
        item.SourceOfPreviousValues = ""
        item.AttributeModificationDateTime = modification_time(corrections)
        item.ModifyingSystem = modifying_system(source)
        item.ReasonForTheAttributeModification = "CORRECT"
        item.ModifiedAttributesSequence = [before]
        history.append(item)
    dataset.OriginalAttributesSequence = history


def modification_time(corrections: Iterable[Correction]) -> str:
    """Return Attribute Modification DateTime (0400,0562): the same whenever the object is fetched."""
    return max(correction.time for correction in corrections).astimezone(UTC).strftime("%Y%m%d%H%M%S.%f+0000")


def modifying_system(source: str) -> str:
    """Return Modifying System (0400,0563)."""
    return f"radmesh {source}"[:64]


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


def _joined(head: bytes, rest: Iterator[Buffer]) -> Iterator[Buffer]:
    yield head
    yield from rest


def _inflated(pieces: Iterator[Buffer]) -> Iterator[bytes]:
    """Inflate a deflated data set (PS3.5 A.5), at most a chunk at a time."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for piece in pieces:
            data: Buffer = piece
            while data and not inflater.eof:
                if made := inflater.decompress(data, _CHUNK):
                    yield made
                data = inflater.unconsumed_tail
        if made := inflater.flush():
            yield made
    except zlib.error:
        raise _refused("the data set cannot be inflated") from None


def _deflated(pieces: Iterator[Buffer]) -> Iterator[bytes]:
    deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    for piece in pieces:
        if made := deflater.compress(piece):
            yield made
    made = deflater.flush()
    # The data set has an even length.
    yield made + b"\0" * (len(made) % 2)
