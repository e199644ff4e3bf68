"""Makes what is served of one instance out of its data set, while that streams by."""

import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from radmesh.curator.worker import metadata
from radmesh.curator.worker.frames import BrokenError, Frames, encapsulated, native
from radmesh.curator.worker.samples import Samples, UnusableError, is_lossy, of_encoded, of_native
from radmesh.curator.worker.table import (
    FRAME_MOST,
    HTJ2K_RPCL,
    SEQUENTIAL_JPEG,
    Decision,
    Image,
    State,
    decide,
)
from radmesh.dicom import uids
from radmesh.dicom.elements import (
    DOUBLE_PIXELS,
    EXTENDED_OFFSETS,
    FLOAT_PIXELS,
    PIXELS,
    UNDEFINED,
    Elements,
    EndedError,
    Source,
    UndecidableError,
    inflate,
)
from radmesh.dicom.header import new_scanner
from radmesh_native import htj2k

# A record of the web cache, and a message of what is served.
CHUNK: Final = 1_048_560
# What stands before the pixels; binary values longer than any palette are no part of it.
_HEAD_MOST: Final = 128 << 20
_VALUE_MOST: Final = 256 << 10
_OFFSETS_MOST: Final = 16 << 20
_LONG: Final = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UN", b"UT", b"UC", b"UR", b""))


@dataclass(frozen=True, slots=True)
class Wish:
    """How an instance is made for another time, after what was seen the time before; as it is: by the table.

    `state`: ORIGINAL with reason and frame, or PASSED. `bits`: depth of all frames, where one needs it.
    """

    state: int = 0
    reason: str = ""
    frame: int = 0
    bits: int = 0


@dataclass(frozen=True, slots=True)
class Begin:
    """What is next is the frame of this number, from 1."""

    frame: int


@dataclass(frozen=True, slots=True)
class End:
    """The frame is complete; `offsets` as radmesh_native.htj2k.Encoded has them, none: no prefix is a picture."""

    offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Metadata:
    """Some of the JSON object, at most a chunk."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """The instance is complete; `facts` are fields of database.v1.Rendition."""

    facts: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Again:
    """Nothing of what came is to be kept: the instance is to be made as `wish` says."""

    wish: Wish


Message = Begin | bytes | End | Metadata | Done | Again


class _AgainError(Exception):
    def __init__(self, wish: Wish) -> None:
        super().__init__()
        self.wish = wish


class _Opened:
    """A data set whose pixel data is next: `tag`, `vr` and `length` of its element; `tag` None: there is none."""

    def __init__(self, pieces: Iterable[bytes], uid: str) -> None:
        syntax = self.syntax = uids.transfer_syntax(uid)
        iterator = iter(inflate(pieces) if syntax.deflated else pieces)
        scanner = new_scanner(syntax)
        held = []
        for piece in iterator:
            held.append(piece)
            if scanner.feed(bytes(piece)):
                break
        scanner.finish()

        def again() -> Iterator[bytes]:
            while held:
                yield held.pop(0)
            yield from iterator

        implicit = syntax.implicit != ("VR_DECLARED_OTHER" in scanner.remarks)
        self.source = _Source(again())
        self.elements = Elements(self.source, syntax, implicit=implicit)
        self.tag: int | None = None
        self.vr, self.length, self.extended = b"", 0, b""
        self.ds = _parse(self._read_head(), implicit=implicit, big_endian=syntax.big_endian)

    def _read_head(self) -> bytes:
        source, elements = self.source, self.elements
        try:
            while True:
                tag, vr, length = elements.next()
                if tag in (PIXELS, FLOAT_PIXELS, DOUBLE_PIXELS):
                    self.tag, self.vr, self.length = tag, vr, length
                    break
                if tag > PIXELS and tag >> 16 != 0xFFFE:
                    break
                if length == UNDEFINED:
                    elements.skip_sequence(implicit=elements.implicit or vr == b"UN")
                elif tag == EXTENDED_OFFSETS and length <= _OFFSETS_MOST:
                    self.extended = source.read(length)
                    source.take_back()
                elif length > _VALUE_MOST and vr in _LONG and (vr or not _may_be_sequence(tag)):
                    source.take_back()
                    source.count(length)
                else:
                    source.skip(length)
                source.settle()
        except EndedError:
            pass  # what is whole counts
        return source.release()


class _Source(Source):
    """Keeps what is read and skipped, until `release`; `settle` after each element, `take_back` of one left out."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__(chunks)
        self._kept: bytearray | None = bytearray()
        self._settled = 0

    def read(self, size: int) -> bytes:
        data = super().read(size)
        if self._kept is not None:
            self._kept += data
        return data

    def skip(self, size: int) -> None:
        if self._kept is None:
            super().skip(size)
            return
        if len(self._kept) + size > _HEAD_MOST:
            raise UndecidableError
        for piece in self.pieces(size):
            self._kept += piece
            size -= len(piece)
        if size:
            raise EndedError

    def settle(self) -> None:
        assert self._kept is not None
        self._settled = len(self._kept)

    def take_back(self) -> None:
        assert self._kept is not None
        del self._kept[self._settled :]

    def release(self) -> bytes:
        self.take_back()
        kept, self._kept = self._kept, None
        return bytes(kept or b"")


def _may_be_sequence(tag: int) -> bool:
    from pydicom.datadict import dictionary_VR  # noqa: PLC0415

    try:
        return bool(dictionary_VR(tag) == "SQ")
    except KeyError:
        return False


def _parse(head: bytes, *, implicit: bool, big_endian: bool) -> Any:
    from pydicom.filereader import read_dataset  # noqa: PLC0415

    try:
        return read_dataset(io.BytesIO(head), implicit, not big_endian)
    except MemoryError:
        raise
    except Exception as error:
        raise UndecidableError from error


def make(pieces: Iterable[bytes], identity: metadata.Identity, uid: str, wish: Wish) -> Iterator[Message]:
    """Yield what is served of an instance, in the order in which it is kept.

    Args:
        pieces: its data set, in order; the rest of it is not read where nothing more is needed.
        identity: what the instance is known as.
        uid: its transfer syntax.
        wish: how it is made.

    Raises:
        Exception: what `pieces` raises.
    """
    try:
        opened = _Opened(pieces, uid)
    except UndecidableError:
        yield Metadata(identity.document())
        yield Done(_facts(Decision(State.NONE, "DATA_SET_UNREADABLE"), uid))
        return
    yield from _Instance(opened, identity, wish).make()


def _facts(decision: Decision, uid: str, frame: int = 0) -> dict[str, Any]:
    return {
        "state": int(decision.state),
        "reason": decision.reason,
        "frame": frame,
        "number_of_frames": 0,
        "transfer_syntax_uid": "" if decision.state is State.NONE else uid,
        "photometric_interpretation": "",
        "derived": False,
    }


class _Instance:
    def __init__(self, opened: _Opened, identity: metadata.Identity, wish: Wish) -> None:
        self._opened = opened
        self._uid = opened.syntax.uid
        self._image = Image.of(opened.ds)
        self._identity = identity
        self._wish = wish
        self._decision = decide(self._image, opened.syntax, identity.sop_class_uid, opened.tag)
        self._frame = 0
        if wish.state and self._decision.state is not State.NONE:
            self._decision = Decision(State(wish.state), wish.reason)
            self._frame = wish.frame
        self._count = 0
        self._depths: set[int] = set()
        self._derived = False
        self._rgb = False

    def make(self) -> Iterator[Message]:
        if self._decision.state is not State.NONE:
            try:
                for pieces in self._frames():
                    self._count += 1
                    yield Begin(self._count)
                    yield from self._make_frame(pieces)
                self._agree()
            except BrokenError as error:
                self._decision, self._frame = Decision(State.NONE, error.reason), error.frame
            except _AgainError as error:
                yield Again(error.wish)
                return
        facts = self._facts()
        document = metadata.describe(self._opened.ds, self._identity, facts)
        for start in range(0, len(document), CHUNK):
            yield Metadata(document[start : start + CHUNK])
        yield Done({name: facts[name] for name in _facts(self._decision, "")})

    def _frames(self) -> Frames:
        opened = self._opened
        assert opened.tag is not None
        if opened.syntax.encapsulated != (opened.length == UNDEFINED):
            raise BrokenError("FRAGMENTS_BROKEN", 1)
        if opened.syntax.encapsulated:
            return encapsulated(opened.elements, self._image, self._uid, opened.extended)
        swap = 1
        if opened.syntax.big_endian:
            allocated = {FLOAT_PIXELS: 32, DOUBLE_PIXELS: 64}.get(opened.tag, self._image.allocated)
            # Bytes in words of 16 bits are swapped too (PS3.5 A.3).
            swap = max(allocated // 8, 2 if opened.vr == b"OW" else 1)
        return native(opened.source, opened.length, self._image, opened.tag, swap=swap)

    def _make_frame(self, pieces: Iterator[bytes]) -> Iterator[Message]:
        if self._decision.state is not State.CODED:
            yield from self._keep(pieces)
            return
        data = bytearray()
        for piece in pieces:
            data += piece
            if len(data) > FRAME_MOST:
                raise _AgainError(Wish(State.ORIGINAL, "FRAME_TOO_LARGE", self._count))
        frame = bytes(data)
        del data
        if self._opened.syntax.encapsulated and is_lossy(frame, self._uid):
            if self._count > 1:
                raise _AgainError(Wish(State.PASSED))
            self._decision = Decision(State.PASSED)
            yield from self._keep(iter((frame,)))
            return
        try:
            encoded = self._encode(frame)
        except UnusableError as error:
            reason = error.reason
        except MemoryError:
            reason = "FRAME_TOO_LARGE"
        else:
            for start in range(0, len(encoded.codestream), CHUNK):
                yield encoded.codestream[start : start + CHUNK]
            yield End(encoded.resolution_offsets)
            return
        if self._count > 1:
            raise _AgainError(Wish(State.ORIGINAL, reason, self._count))
        self._decision, self._frame = Decision(State.ORIGINAL, reason), 1
        yield from self._keep(iter((frame,)))

    def _encode(self, frame: bytes) -> htj2k.Encoded:
        ds, image, bits = self._opened.ds, self._image, self._wish.bits
        samples: Samples = (
            of_encoded(frame, image, self._uid, ds, bits)
            if self._opened.syntax.encapsulated
            else of_native(frame, image, ds, bits)
        )
        try:
            encoded = htj2k.encode(samples.frame, bits_stored=samples.bits)
        except ValueError as error:
            raise UnusableError("PIXELS_UNUSUAL") from error
        self._depths.add(samples.bits)
        self._derived |= samples.derived
        self._rgb = samples.frame.ndim == 3
        return encoded

    def _keep(self, pieces: Iterator[bytes]) -> Iterator[Message]:
        """The frame as it is, in whole chunks."""
        held = bytearray()
        first = True
        for piece in pieces:
            held += piece
            if first and len(held) > 1:
                self._look(bytes(held[:2]))
                first = False
            while len(held) >= CHUNK:
                yield bytes(held[:CHUNK])
                del held[:CHUNK]
        if first:
            self._look(bytes(held))
        if held:
            yield bytes(held)
        yield End(())

    def _look(self, begins: bytes) -> None:
        """What is passed through is not decoded; that it is nothing like a JPEG is seen all the same."""
        if self._decision.state is State.PASSED and self._uid in SEQUENTIAL_JPEG and begins != b"\xff\xd8":
            raise _AgainError(Wish(State.ORIGINAL, "FRAME_UNDECODABLE", self._count))

    def _agree(self) -> None:
        """All frames have the same depth, which the metadata says once."""
        if len(self._depths) > 1:
            raise _AgainError(replace(self._wish, bits=max(self._depths)))

    def _facts(self) -> dict[str, Any]:
        decision, image = self._decision, self._image
        facts = _facts(decision, self._uid, self._frame)
        if decision.state is State.NONE:
            return facts
        facts |= {"number_of_frames": self._count, "photometric_interpretation": image.photometric}
        if decision.state is not State.CODED:
            if not self._opened.syntax.encapsulated:
                facts["transfer_syntax_uid"] = uids.EXPLICIT_VR_LITTLE_ENDIAN
            return facts
        return facts | {
            "transfer_syntax_uid": HTJ2K_RPCL,
            "photometric_interpretation": "YBR_RCT" if self._rgb else image.photometric or "MONOCHROME2",
            "derived": self._derived,
            "bits": max(self._depths),
            "signed": image.signed and not self._rgb,
            "samples": 3 if self._rgb else 1,
        }
