"""Walks a data set that streams by, element by element (PS3.5 7), without holding it."""

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

from radmesh.dicom.uids import TransferSyntax

UNDEFINED: Final = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
EXTENDED_OFFSETS, EXTENDED_LENGTHS = 0x7FE00001, 0x7FE00002
FLOAT_PIXELS, DOUBLE_PIXELS, PIXELS = 0x7FE00008, 0x7FE00009, 0x7FE00010
# VRs with a length of 16 bits, of 32 bits (PS3.5 7.1.2).
SHORT_FORM: Final = frozenset(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG_FORM: Final = frozenset(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())

_INFLATED_MOST: Final = 16 << 30
_PIECE: Final = 1 << 20
_DEPTH_MOST: Final = 64


class EndedError(Exception):
    """The bytes are at an end."""


class UndecidableError(Exception):
    """It cannot be seen what is there."""


class Source:
    """Bytes that stream by."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._chunk = b""
        self._at = 0
        self.position = 0

    def _more(self) -> bool:
        while self._at == len(self._chunk):
            try:
                self._chunk = next(self._chunks)
            except StopIteration:
                return False
            self._at = 0
        return True

    def pieces(self, size: int) -> Iterator[bytes]:
        """Up to `size` bytes, fewer where they end."""
        while size and self._more():
            piece = self._chunk[self._at : self._at + size]
            self._at += len(piece)
            self.position += len(piece)
            size -= len(piece)
            yield piece

    def read(self, size: int) -> bytes:
        """Exactly so many, which are few.

        Raises:
            EndedError: there are fewer.
        """
        if len(self._chunk) - self._at >= size:
            data = self._chunk[self._at : self._at + size]
            self._at += size
            self.position += size
            return data
        data = b"".join(self.pieces(size))
        if len(data) < size:
            raise EndedError
        return data

    def count(self, size: int) -> int:
        """Pass over `size` bytes; return how many there were."""
        passed = 0
        while passed < size and self._more():
            step = min(size - passed, len(self._chunk) - self._at)
            self._at += step
            passed += step
        self.position += passed
        return passed

    @property
    def ended(self) -> bool:
        """Whether there is nothing more."""
        return not self._more()

    def skip(self, size: int) -> None:
        """Pass over exactly so many.

        Raises:
            EndedError: there are fewer.
        """
        if self.count(size) < size:
            raise EndedError


def inflate(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield what deflated chunks hold; what is broken ends there.

    Raises:
        UndecidableError: it is more than anybody has.
    """
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    most = _INFLATED_MOST
    try:
        for chunk in chunks:
            rest = chunk
            while rest and not inflater.eof:
                piece = inflater.decompress(rest, _PIECE)
                rest = inflater.unconsumed_tail
                most -= len(piece)
                if most < 0:
                    raise UndecidableError
                if piece:
                    yield piece
        while not inflater.eof and (piece := inflater.decompress(inflater.unconsumed_tail, _PIECE)):
            yield piece
    except zlib.error:
        return  # as if the bytes ended here


class Elements:
    """Heads of elements, read from a source.

    `implicit` is whether the data set is in Implicit VR: what it is, not what its transfer syntax says. `guessed` is
    set where an element was not written as the rest is: what follows may be led astray.
    """

    def __init__(self, source: Source, syntax: TransferSyntax, *, implicit: bool) -> None:
        self.source = source
        self.implicit = implicit
        self.order = ">" if syntax.big_endian else "<"
        self.guessed = False

    def next(self, *, implicit: bool | None = None) -> tuple[int, bytes, int]:
        """Read an element's tag, VR (empty: implicit) and length; the value is next.

        Raises:
            EndedError: there is none.
        """
        head = self.source.read(8)
        group, number, length = struct.unpack(self.order + "HHI", head)
        tag = group << 16 | number
        vr = head[4:6]
        if (self.implicit if implicit is None else implicit) or group == 0xFFFE:
            # Explicit VR in a sequence that must have none leads astray.
            self.guessed |= group != 0xFFFE and (vr in SHORT_FORM or vr in LONG_FORM)
            return tag, b"", length
        if vr in SHORT_FORM:
            return tag, vr, struct.unpack(self.order + "H", head[6:])[0]
        if vr in LONG_FORM:
            return tag, vr, struct.unpack(self.order + "I", self.source.read(4))[0]
        # Who leaves out the VR writes the implicit form.
        self.guessed = True
        return tag, b"UN", length

    def skip_sequence(self, *, implicit: bool) -> None:
        """Pass over a sequence of undefined length, whose head was read.

        Raises:
            EndedError: the bytes end inside.
            UndecidableError: it is none, or too deep.
        """
        # What is open: (whether it is an item, whether what is in it has implicit VR).
        open_: list[tuple[bool, bool]] = [(False, implicit)]
        while open_:
            in_item, inner = open_[-1]
            tag, vr, length = self.next(implicit=inner)
            if tag == (ITEM_END if in_item else SEQUENCE_END):
                open_.pop()
            elif not in_item and tag != ITEM:
                raise UndecidableError
            elif length != UNDEFINED:
                self.source.skip(length)
            elif len(open_) == _DEPTH_MOST:
                raise UndecidableError
            else:
                open_.append((tag == ITEM and not in_item, inner or vr == b"UN"))
