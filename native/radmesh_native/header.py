"""The head of a data set, scanned as it comes in (PS3.5 7).

    scanner = Scanner(EXPLICIT, {0x00100020: b"LO", …})
    while not scanner.feed(chunk): …       # True once everything up to group 0028 was seen
    scanner.finish()                       # the data set ended
    scanner.value(0x00100020)              # bytes as received, or None
    scanner.header()                       # all that was found, in Explicit VR Little Endian
    scanner.error                          # None, or (reason, "GGGG,EEEE", offset): the scan ended there
    scanner.remarks                        # what was odd and did not matter
    scanner.position                       # offset of the first element that was not read

Top-level elements only; sequences are walked over, 64 deep at most and without recursion. At most `limit` bytes are
kept. The oddities of real files are borne: elements without a VR, a VR of nobody, Implicit VR where Explicit was
declared and the reverse, within items too, tags out of order or twice (the first counts). The header leaves out values
of more than 16,384 bytes, and what would make it longer than 262,144. `split_header(header)` takes a header apart;
`Tags({tag: VR}).of(header)` is the header with these elements alone. Both raise ValueError for what is no header.
`Scanner` takes such `Tags` too: whoever scans many data sets makes them once.

Remarks: BAD_VR tag, ORDER tag, VALUE_TOO_LONG tag, VR_DECLARED_OTHER; 32 at most.
"""

from typing import Final

from radmesh_native._header import Scanner, Tags, split_header

IMPLICIT: Final = 0
EXPLICIT: Final = 1
BIG_ENDIAN: Final = 2

__all__ = ["BIG_ENDIAN", "EXPLICIT", "IMPLICIT", "Scanner", "Tags", "split_header"]
