"""What the fuzzer feeds (tools/fuzz.py; tests/native/test_fuzz.py in small): native code that takes bytes of others.

A target takes an input and returns whether it was taken (True) or refused by name (False). Anything else is a finding:
an exception of another kind, an answer that depends on the path, on how the bytes were cut or on what lay in memory,
and whatever AddressSanitizer sees. The first bytes of an input are options; the rest is what a peer or file would have.
"""

import contextlib
import random
import socket
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from radmesh_native import _htj2k_decoder, _htj2k_encoder, bulk, crc32c, dul, header, htj2k, splice

CORPUS: Final = Path(__file__).resolve().parents[1] / "native" / "corpus"
PATHS: Final = ("portable", "sse41", "avx2", "avx512")
MOST_SAMPLES: Final = 1 << 14


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the inputs of a target are like.

    Attributes:
        longest: bytes of an input.
        share: of the time of all.
        words: what they are made of, for who changes them.
    """

    longest: int
    share: float
    words: tuple[bytes, ...] = ()


# Code streams -------------------------------------------------------------------------------------------------------


def _decode(codestream: memoryview, reduce: int, path: str, first: "np.ndarray[Any, Any] | str | None") -> Any:
    """The frame, or the text of the fault; where another path decoded it, into memory with something in it."""
    _htj2k_decoder.use_path(path)
    out = (
        None if first is None or isinstance(first, str) else np.full_like(first, -1 if first.dtype.kind == "i" else 255)
    )
    try:
        return htj2k.decode(codestream, reduce=reduce, max_samples=MOST_SAMPLES, out=out)
    except htj2k.CodestreamError as error:
        return str(error)


class _Decoding:
    """Every path reads the same of a code stream, whatever the work space has in it."""

    def __init__(self) -> None:
        self._dirt = b""

    def __call__(self, data: memoryview) -> bool:
        if not data:
            return False
        if not self._dirt:
            # Work spaces that are larger than any input needs: all are decoded in what the one before left there.
            for side in range(1000, 1032, 8):
                htj2k.decode(htj2k.encode(np.zeros((side, side), np.uint16), bits_stored=16).codestream)
            noise = np.random.default_rng(1).integers(0, 1 << 16, (64, 64), dtype=np.uint16)
            self._dirt = htj2k.encode(noise, bits_stored=16, levels=0).codestream
        first = _decode(data[1:], data[0] % 8, PATHS[0], None)
        if not isinstance(first, str):
            htj2k.decode(self._dirt)
        for path in PATHS[1:3]:
            answer = _decode(data[1:], data[0] % 8, path, first)
            if isinstance(first, str) or isinstance(answer, str):
                assert isinstance(answer, str), f"{path} decodes what portable refuses: {first}"
                assert answer == first, f"{path} says another fault than portable: {answer}; {first}"
            else:
                assert np.array_equal(answer, first), f"{path} decodes other samples than portable"
        return not isinstance(first, str)


def _frame(data: memoryview) -> tuple["np.ndarray[Any, Any]", int, int | None]:
    """A frame, its bits stored and levels, by ten bytes of options and content of any length."""
    rows, columns, flags, bits, levels, kind = struct.unpack_from("<HHBBBB", data)
    colour, signed, wide, wild, large = (flags >> n & 1 for n in range(5))
    bits = 1 + bits % 16
    rows = 1 + rows % 1024
    # Whole blocks, or many frames.
    columns = 1 + columns % max(1, (4096 if large else 400) // rows)
    content = np.frombuffer(data[8:], np.uint8)
    if len(content) == 0:
        content = np.zeros(1, np.uint8)
    count = rows * columns * (3 if colour else 1)
    values = np.resize(content, 2 * count).view("<u2").astype(np.int64)
    if kind % 4 == 1:
        values = values.astype(np.int8).cumsum()
    elif kind % 4 == 2:
        values *= np.resize(content, count) > 240
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if not wild:
        values = values & high if kind & 4 else values % (high - low + 1) + low
    dtype = np.dtype(f"{'i' if signed else 'u'}{2 if wide or bits > 8 else 1}")
    shape = (rows, columns, 3) if colour else (rows, columns)
    return values.astype(dtype).reshape(shape), bits, None if levels % 34 == 33 else levels % 34


def encode(data: memoryview) -> bool:
    """Every path writes the same of a frame, which is decoded to it, and its lower resolutions from prefixes."""
    if len(data) < 8:
        return False
    frame, bits, levels = _frame(data)
    first: htj2k.Encoded | str | None = None
    for path in PATHS:
        _htj2k_encoder.use_path(path)
        try:
            answer: htj2k.Encoded | str = htj2k.encode(frame, bits_stored=bits, levels=levels)
        except ValueError as error:
            answer = str(error)
        assert first in {None, answer}, f"{path} writes other bytes than portable"
        first = answer
    info = np.iinfo(frame.dtype)
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if info.min else (0, (1 << bits) - 1)
    within = bool(frame.min() >= low and frame.max() <= high)
    assert isinstance(first, htj2k.Encoded) == within, f"what is outside of {bits} bits: {first}"
    if not isinstance(first, htj2k.Encoded):
        return False
    offsets, stream = first.resolution_offsets, first.codestream
    for path in PATHS[:3]:
        _htj2k_decoder.use_path(path)
        assert np.array_equal(htj2k.decode(stream), frame), f"not the frame: {path}"
    reduce = data[7] % len(offsets)
    lower = htj2k.decode(stream[: offsets[-1 - reduce]], reduce=reduce)
    assert np.array_equal(lower, htj2k.decode(stream, reduce=reduce)), "a prefix is another picture"
    room = np.zeros(len(stream), np.uint8)
    assert htj2k.encode_into(frame, room.data, bits_stored=bits, levels=levels) == offsets
    assert room.tobytes() == stream
    with contextlib.suppress(ValueError):
        htj2k.encode_into(frame, room.data[:-1], bits_stored=bits, levels=levels)
        raise AssertionError("there was no room")
    return True


# Data sets ----------------------------------------------------------------------------------------------------------

TAGS: Final = header.Tags(
    {
        0x00080005: b"CS",
        0x00080016: b"UI",
        0x00080018: b"UI",
        0x00080020: b"DA",
        0x00080050: b"SH",
        0x00081115: b"SQ",
        0x00100010: b"PN",
        0x00100020: b"LO",
        0x00101010: b"AS",
        0x00101030: b"DS",
        0x0020000D: b"UI",
        0x00200013: b"IS",
        0x00280008: b"IS",
        0x00280010: b"US",
        0x00280034: b"IS",
        0x00281201: b"OW",
        0x00281052: b"DS",
        0x00281101: b"US",
    }
)
FEW: Final = header.Tags({0x00080018: b"UI", 0x00100010: b"PN", 0x00280010: b"US"})


def _scanned(encoding: int, limit: int, pieces: Iterator[bytes]) -> tuple[Any, ...]:
    scanner = header.Scanner(encoding, TAGS, limit=limit)
    for piece in pieces:
        if scanner.feed(piece):
            break
    scanner.finish()
    found = scanner.header()
    elements = header.split_header(found)
    assert list(elements) == sorted(elements)
    assert b"".join(_element(*one) for one in elements.items()) == found
    assert set(header.split_header(FEW.of(found))) == elements.keys() & {0x00080018, 0x00100010, 0x00280010}
    values = [scanner.value(tag) for tag in (0x00080018, 0x00081115, 0x00100010, 0x00280010)]
    return scanner.error, scanner.remarks, scanner.position, found, values


def _element(tag: int, element: tuple[bytes, bytes]) -> bytes:
    vr, value = element
    long = vr in {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
    length = struct.pack("<xxI" if long else "<H", len(value))
    return struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr + length + value


def _cut(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def scan(data: memoryview) -> bool:
    """A data set is scanned to the same, however it comes in."""
    if len(data) < 3:
        return False
    encoding, limit, size = data[0] % 3, 1 << (4 + data[1] % 19), 1 + data[2]
    whole = bytes(data[3:])
    answer = _scanned(encoding, limit, iter([whole]))
    if len(whole) < limit:
        assert _scanned(encoding, limit, _cut(whole, size)) == answer, "the cuts tell"
    return answer[0] is None


def split(data: memoryview) -> bool:
    """A queryable header of anybody's is taken apart, or refused."""
    try:
        elements = header.split_header(bytes(data))
    except ValueError:
        elements = None
    try:
        few = FEW.of(bytes(data))
    except ValueError:
        few = None
    assert (elements is None) == (few is None)
    if elements is None or few is None:
        return False
    assert header.split_header(few) == {k: v for k, v in elements.items() if k in {0x00080018, 0x00100010, 0x00280010}}
    return True


def locate(data: memoryview) -> bool:
    """Elements are found where they are; without their bytes they are found nowhere, and all others are as before."""
    if len(data) < 5:
        return False
    implicit, big = bool(data[0] & 1), bool(data[0] & 2)
    tags = sorted({0x00080018, 0x00100010, 0x00100020, 0x00080016, int.from_bytes(data[1:5])})
    body = data[5:]
    try:
        state, offset, places = splice.locate(body, tags, implicit=implicit, big_endian=big)
    except ValueError:
        return False
    assert 0 <= offset <= len(body)
    kept, at = b"", 0
    for tag in tags:
        start, value, end, undefined = places[tag]
        assert at <= start <= value <= end <= len(body)
        if end > start:
            group, element = struct.unpack_from(">HH" if big else "<HH", body, start)
            assert group << 16 | element == tag
            assert value - start in {8, 12}
        else:
            assert not undefined
        kept += bytes(body[at:start])
        at = end
    if state != splice.CUT:
        again, there, without = splice.locate(kept + bytes(body[at:]), tags, implicit=implicit, big_endian=big)
        assert (again, there) == (state, offset - (len(body) - len(kept) - len(body) + at))
        assert all(start == end for start, _, end, _ in without.values())
    return state != splice.CUT


# Messages -----------------------------------------------------------------------------------------------------------


def _events(options: tuple[dict[str, int], int], data: bytes, size: int) -> list[tuple[Any, ...]]:
    """What a peer's bytes say, written in pieces; neighbouring data of one data set is one event."""
    events: list[tuple[Any, ...]] = []
    begun: list[bytes] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        connection = dul.Connection(ours.fileno(), tcp=False, **options[0], chunk_size=options[1])
        pieces = [*_cut(data, size), b""]
        for piece in pieces:
            theirs.sendall(piece) if piece else theirs.close()
            while True:
                event = connection.receive(0, 0)
                if event[0] == dul.DATA:
                    assert len(event[2]) <= options[1]
                    begun.append(event[2])
                    if not event[3]:
                        continue
                    event = (dul.DATA, event[1], b"".join(begun))
                    begun.clear()
                if event[0] == dul.TIMEOUT:
                    break
                if event[0] == dul.INVALID:
                    assert connection.receive(0, 0) == event
                    return [*events, event]
                if event[0] == dul.CLOSED:
                    return [*events, event]
                events.append(event)
    raise AssertionError("the end was not seen")


def receive(data: memoryview) -> bool:
    """A stream of PDUs says the same, however it comes in and is handed out; memory is what was allowed."""
    if len(data) < 3:
        return False
    settings = {
        "max_pdu": (0, 4096, 131_072)[data[0] % 3],
        "max_command": (64, 5000, 65_536)[data[0] // 3 % 3],
        "max_body": (100, 1 << 20)[data[0] // 9 % 2],
    }
    body = bytes(data[3:])
    events = _events((settings, 1_048_560), body, 1 << 16)
    assert _events((settings, 1 + data[1]), body, 1 + 4 * data[2]) == events, "the cuts tell"
    return events[-1] == (dul.CLOSED, True)


def command(data: memoryview) -> bool:
    """A command set is taken apart; put together again it says the same."""
    try:
        elements = dul.parse_command(bytes(data))
    except ValueError:
        return False
    elements.pop(0, None)
    try:
        again = dul.parse_command(dul.encode_command(elements))
    except ValueError:
        # Longer than what is sent.
        return True
    assert again.pop(0) == (len(dul.encode_command(elements)) - 12).to_bytes(4, "little")
    assert list(again) == sorted(elements)
    assert all(again[k][: len(v)] == v and len(again[k]) == len(v) + len(v) % 2 for k, v in elements.items())
    return True


def message(data: memoryview) -> bool:
    """A bulk message is split without a copy, and joined again; what is refused is left to protobuf."""
    found = bulk.split(data)
    if found is None:
        return False
    prefix, body = found
    assert data[: len(prefix)] == prefix
    assert data[len(data) - len(body) :] == body
    again = bulk.join(prefix, body)
    assert again == (prefix if len(body) == 0 else bulk.lead(prefix, len(body)) + bytes(body))
    assert bulk.split(again) == (prefix, bytes(body))
    return True


def _crc(data: bytes | memoryview) -> int:
    """Bit by bit, as RFC 3720 has it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def checksum(data: memoryview) -> bool:
    """A checksum of any bytes at any address is theirs, and that of two parts theirs together."""
    at = data[0] * len(data) // 256 if data else 0
    first, second = crc32c.crc32c(data[:at]), crc32c.crc32c(data[at:])
    assert crc32c.combine(first, second, len(data) - at) == crc32c.crc32c(data)
    assert crc32c.crc32c(data[at:], first) == crc32c.crc32c(data)
    if len(data) < 200:
        assert crc32c.crc32c(data) == _crc(data)
    return True


_MARKERS = tuple(
    b"\xff" + bytes([low])
    for low in (0x4F, 0x50, 0x51, 0x52, 0x53, 0x55, 0x5C, 0x5D, 0x5E, 0x64, 0x90, 0x91, 0x92, 0x93, 0xD9, 0x7F, 0x8F)
)
_DELIMITERS = (b"\xfe\xff\x00\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\xdd\xe0", b"\xff\xff\xff\xff", b"\0\0\0\0")
_VRS = tuple(
    vr.to_bytes(2)
    for vr in struct.unpack(">34H", b"AEASATCSDADSDTFDFLISLOLTOBODOFOLOVOWPNSHSLSQSSSTSVTMUCUIULUNURUSUTUV")
)
_ELEMENTS = tuple(
    struct.pack(order, tag >> 16, tag & 0xFFFF)
    for order in ("<HH", ">HH")
    for tag in (
        0x00080005,
        0x00080016,
        0x00080018,
        0x00081115,
        0x00100010,
        0x00100020,
        0x0020000D,
        0x00280010,
        0x00281201,
    )
)

TARGETS: Final[dict[str, Callable[[memoryview], bool]]] = {
    "decode": _Decoding(),
    "encode": encode,
    "scan": scan,
    "split": split,
    "locate": locate,
    "receive": receive,
    "command": command,
    "message": message,
    "checksum": checksum,
}

# That of block is tests/native/fuzz/block.c.
INPUTS: Final = {
    "decode": Inputs(4096, 0.4, (*_MARKERS, b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\x0e", b"\x40\1")),
    "block": Inputs(2048, 0.14),
    "encode": Inputs(512, 0.15, (b"\xff\xff", b"\0\x80", b"\xff\x7f")),
    "scan": Inputs(2048, 0.1, (*_DELIMITERS, *_VRS, *_ELEMENTS, b"\xe0\x7f\x10\0")),
    "split": Inputs(512, 0.03, (*_VRS, *_ELEMENTS)),
    "locate": Inputs(1024, 0.05, (*_DELIMITERS, *_VRS, *_ELEMENTS)),
    "receive": Inputs(6144, 0.08, (b"\4\0\0\0", b"\1\0\0\0", b"\1\3", b"\1\2", b"\0\0\0\x08", b"\xff\xff\xff\xf9")),
    "command": Inputs(512, 0.02, (b"\0\0\0\x08\2\0\0\0", b"\0\0\0\x01\2\0\0\0", b"\1\1")),
    "message": Inputs(512, 0.02, (b"\x7a", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\1")),
    "checksum": Inputs(4096, 0.01),
}


def corpus(name: str) -> list[bytes]:
    """The inputs of a target that are kept."""
    with zipfile.ZipFile(CORPUS / f"{name}.zip") as kept:
        return [kept.read(one) for one in sorted(kept.namelist())]


def changed(chance: random.Random, inputs: list[bytes], like: Inputs) -> bytes:
    """An input that is near to those that are kept: bytes changed, lost, put in, or taken from another."""
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.randint(1, 5)):
        at = chance.randint(0, len(data))
        what = chance.randrange(6)
        if what == 0:
            data[at : at + 1] = bytes([chance.randrange(256)])
        elif what == 1 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        elif what == 2:
            del data[at : at + chance.randint(1, 16)]
        elif what == 3:
            data[at:at] = chance.randbytes(chance.randint(1, 8))
        elif what == 4 and like.words:
            word = chance.choice(like.words)
            data[at : at + (len(word) if chance.random() < 0.5 else 0)] = word
        elif what == 5:
            other = chance.choice(inputs)
            start = chance.randint(0, len(other))
            data[at : at + chance.randint(0, 32)] = other[start : start + chance.randint(0, 32)]
    return bytes(data[: like.longest])
