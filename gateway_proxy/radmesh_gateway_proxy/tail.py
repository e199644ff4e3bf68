"""Follows the elements behind the head of a data set (PS3.5 section 7), to tell whether it ends inside one of them.

Only headers are read, a few an object; values are stepped over however long they are. Nothing is kept but the bytes of
a header that is cut by the end of a chunk.
"""

import struct
from typing import Final

_LONG: Final = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT: Final = frozenset(
    (
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH"),
        *(b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    )
)
_UNDEFINED: Final = 0xFFFFFFFF
_DELIMITERS: Final = (0xE00D, 0xE0DD)
_DEEPEST: Final = 64
_LONGEST_HEADER: Final = 12


class Tail:
    """A walk over the elements of a data set, chunk by chunk.

    Attributes:
        remark: what made it lose its way, such as "BAD_VR 7FE0,0010"; empty if nothing did.
        last_tag: of the last element of the data set itself that was seen.
        elements: how many were seen, at all levels.
    """

    def __init__(self, *, implicit: bool, big_endian: bool, position: int) -> None:
        self.remark = ""
        self.elements = 0
        self._order = ">" if big_endian else "<"
        self._at = 0  # end of what was fed
        self._next = position  # where the next header begins
        self._held = b""  # bytes from there on, if its header is cut
        self.last_tag = 0
        self._open = [implicit]  # whether each open level has implicit VR; the first is the data set itself

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the data set."""
        start = self._at
        self._at += len(chunk)
        while self._next < self._at and not self.remark:
            offset = self._next - start
            head = chunk[offset : offset + _LONGEST_HEADER] if offset >= 0 else self._held + chunk[:_LONGEST_HEADER]
            self._held = b""
            length = self._element(head)
            if length == 0:
                self._held = head
                return
            self.elements += 1
            self._next += length

    def ends_inside(self) -> int | None:
        """Return the tag of the element that the end of the data set cuts, or None if it cuts none."""
        if self.remark or (self._next == self._at and len(self._open) == 1):
            return None
        if self._held and not any(self._held) and len(self._held) % 2 == 0 and len(self._open) == 1:
            return None  # a few zeros of padding: no group begins with so many
        return self.last_tag

    def _element(self, head: bytes) -> int:
        """Return the bytes to the next header; 0 if this one is cut."""
        if len(head) < 8:
            return 0
        group, element = struct.unpack_from(self._order + "HH", head)
        vr, item = head[4:6], group == 0xFFFE
        size, length = self._length(head, vr, without_vr=item or self._open[-1])
        if len(self._open) == 1:
            self.last_tag = group << 16 | element
        if item and element in _DELIMITERS:
            if len(self._open) > 1:
                self._open.pop()
            return size
        if length != _UNDEFINED:
            return size + length
        if len(self._open) > _DEEPEST:
            self.remark = f"DATA_SET_UNREADABLE {self.last_tag >> 16:04X},{self.last_tag & 0xFFFF:04X}"
        # UN of undefined length holds Implicit VR (PS3.5 section 6.2.2 note 2).
        self._open.append(self._open[-1] or (vr == b"UN" and not item))
        return size

    def _length(self, head: bytes, vr: bytes, *, without_vr: bool) -> tuple[int, int]:
        """Return the lengths of header and value; of the header 0 if it is cut."""
        if without_vr:
            return 8, struct.unpack_from(self._order + "I", head, 4)[0]
        if vr in _SHORT:
            return 8, struct.unpack_from(self._order + "H", head, 6)[0]
        if vr not in _LONG:
            group, element = struct.unpack_from(self._order + "HH", head)
            self.remark = f"BAD_VR {group:04X},{element:04X}"
            return 8, 0
        if len(head) < _LONGEST_HEADER:
            return 0, 0
        return _LONGEST_HEADER, struct.unpack_from(self._order + "I", head, 8)[0]
