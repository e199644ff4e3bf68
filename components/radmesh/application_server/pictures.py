"""The pictures that the web caches have: which there are, and their frames, from memory where they were read lately.

Frames are fetched one stream a series: whoever asks for a frame will want those behind it. What a web cache said of its
pictures is believed for as long as the study looks the same; one that fails is passed over for another that has them.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import MethodCodec
from radmesh.transfer.codec import Buffer, Bulk, decoder
from radmesh_native.crc32c import crc32c

Answer = TypeVar("Answer")
WEB_CACHE: Final = curator_pb2.DESCRIPTOR.services_by_name["WebCacheService"]
_CODECS: Final = {
    "ReadFrames": MethodCodec(response_deserializer=decoder(curator_pb2.ReadFramesResponse)),
    "ReadSeriesMetadata": MethodCodec(response_deserializer=decoder(curator_pb2.ReadSeriesMetadataResponse)),
}
LARGE: Final = 32 << 20
"""Bytes of a frame that is passed on piece by piece, and not kept."""
METADATA_MOST: Final = 64 << 20
"""Bytes of a series' compressed metadata."""
_AHEAD_BYTES: Final = 16 << 20
_AHEAD_FRAMES: Final = 512
_STREAMS: Final = 8
_READERS: Final = 32
_STREAM_SECONDS: Final = 60.0
_UNARY_SECONDS: Final = 10.0
_TRIES: Final = 3
# How long what was said of a series is believed, though its study looks the same; and a web cache that failed is last.
_BELIEVED_SECONDS: Final = 60.0
# How often a study is asked for of the Curators: they know already, unless they dropped it.
_WANTED_SECONDS: Final = 10.0
_MOST_WANTED: Final = 1000
_SUSPECT_SECONDS: Final = 5.0
_MOST_SERIES: Final = 256
_MOST_FRAMES: Final = 200_000
_PAGE: Final = 5000
_NONE: Final = database_pb2.RENDITION_STATE_NONE
# What a web cache says that has not, or not any more, what it was thought to have: it is asked again what it has.
_ANEW: Final = frozenset(("RENDITION_NOT_FOUND", "RENDITION_DAMAGED", "RANGE_INVALID"))


@dataclass(frozen=True, slots=True)
class FrameSize:
    """Bytes of a frame, and of its prefixes that are smaller pictures, lowest resolution first."""

    size: int
    resolution_offsets: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Picture:
    """The frames of an instance in one web cache, which is at `rendition.target`."""

    rendition: database_pb2.Rendition
    frames: tuple[FrameSize, ...]

    def key(self, number: int) -> tuple[object, ...]:
        """Return what tells frame `number` (from 1) from all others, and from other encodings of itself."""
        identity, frame = self.rendition.identity, self.frames[number - 1]
        syntax = self.rendition.transfer_syntax_uid
        return identity.sop_instance_uid, identity.sha256, syntax, number, frame.size, frame.resolution_offsets


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame: the bytes of `whole` from `start` to `end`. What is around it makes it what is asked for most often."""

    whole: bytes
    start: int
    end: int
    transfer_syntax_uid: str
    resolution_offsets: tuple[int, ...]

    @property
    def data(self) -> memoryview:
        """The frame."""
        return memoryview(self.whole)[self.start : self.end]

    @property
    def size(self) -> int:
        """Bytes of the frame."""
        return self.end - self.start


@dataclass(frozen=True, slots=True)
class SeriesPictures:
    """What living web caches have of a series, as far as the viewer may see it.

    Attributes:
        order: SOP Instance UIDs of what is curated, by Instance Number.
        pictures: of each that has frames, best first.
        without: renditions of those that have none (state NONE).
        silent: those that only web caches have that do not answer.
        stores: gRPC targets of the web caches.
    """

    study_instance_uid: str
    series_instance_uid: str
    order: tuple[str, ...]
    pictures: Mapping[str, tuple[Picture, ...]]
    without: Mapping[str, database_pb2.Rendition]
    silent: frozenset[str]
    stores: tuple[str, ...]
    time: float = field(compare=False)

    def has(self, sop_instance_uid: str) -> bool:
        """Whether the instance is curated: it has pictures, or cannot have any."""
        return sop_instance_uid in self.pictures or sop_instance_uid in self.without

    def find(self, sop_instance_uid: str, number: int, suspects: Iterable[str] = ()) -> Picture:
        """Return the pictures of an instance that has frame `number`, from 1.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND; PEER_UNAVAILABLE; PICTURES_PENDING: it has none yet, if there is such
                an instance at all.
        """
        found = self.pictures.get(sop_instance_uid)
        if not found:
            raise self._missing(sop_instance_uid)
        picture = next((picture for picture in found if picture.rendition.target not in suspects), found[0])
        if not 1 <= number <= len(picture.frames):
            raise RadmeshError("RENDITION_NOT_FOUND", f"the instance has frames 1 to {len(picture.frames)}")
        return picture

    def _missing(self, sop_instance_uid: str) -> RadmeshError:
        if (none := self.without.get(sop_instance_uid)) is not None:
            where = f" of frame {none.frame}" if none.frame else ""
            return RadmeshError("RENDITION_NOT_FOUND", f"there are no pictures, because{where}: {none.reason}")
        if sop_instance_uid in self.silent:
            return RadmeshError("PEER_UNAVAILABLE", "the Curator that has the pictures does not answer: try again")
        return RadmeshError(
            "PICTURES_PENDING", "the pictures are not made yet: try again", metadata={"retry_after_ms": "2000"}
        )


class FrameCache:
    """Frames that were read lately, at most `most` bytes of them. Thread-safe."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._frames: OrderedDict[tuple[object, ...], Frame] = OrderedDict()
        self.bytes = 0

    def get(self, key: tuple[object, ...]) -> Frame | None:
        """Return a frame that is here."""
        with self._lock:
            frame = self._frames.get(key)
            if frame is not None:
                self._frames.move_to_end(key)
            return frame

    def put(self, key: tuple[object, ...], frame: Frame) -> None:
        """Keep a frame; those that were read longest ago give way."""
        with self._lock:
            if (before := self._frames.pop(key, None)) is not None:
                self.bytes -= len(before.whole)
            self._frames[key] = frame
            self.bytes += len(frame.whole)
            while self.bytes > self._most and self._frames:
                self.bytes -= len(self._frames.popitem(last=False)[1].whole)

    def __contains__(self, key: tuple[object, ...]) -> bool:
        return key in self._frames


class Pictures:
    """Reads web caches. Thread-safe.

    Args:
        context: of the component.
        curations: calls of database.v1.CurationService.
        most_bytes: of frames kept in memory.
        around: what stands before and behind frame `number` of a picture in the form in which it is kept.
        want: has the pictures of a study made: a web cache that is nearly full drops what nobody reads, and makes
            it again for who does.
    """

    def __init__(
        self,
        context: Context,
        curations: Any,
        most_bytes: int,
        around: Callable[[Picture, int], tuple[bytes, bytes]] = lambda _picture, _number: (b"", b""),
        want: Callable[[str], object] = lambda _study_instance_uid: None,
    ) -> None:
        self._context = context
        self._log = context.log
        self._curations = curations
        self._around = around
        self._want = want
        self._wanted: OrderedDict[str, float] = OrderedDict()
        self._ahead = min(_AHEAD_BYTES, most_bytes // 8)
        self.cache = FrameCache(most_bytes)
        self._lock = threading.Lock()
        self._series: OrderedDict[tuple[str, str, bool], tuple[tuple[int, ...], SeriesPictures]] = OrderedDict()
        self._frames = 0
        self._loading: dict[tuple[str, str, bool], threading.Lock] = {}
        self._coming: dict[tuple[object, ...], Future[Frame]] = {}
        self._suspects: dict[str, float] = {}
        self._pool = ThreadPoolExecutor(_STREAMS, thread_name_prefix="frames")
        # A web cache that stands still must not take the threads that everything else needs.
        self.readers = ThreadPoolExecutor(_READERS, thread_name_prefix="pictures")
        """Where calls of this object may wait."""

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.readers.shutdown(wait=False, cancel_futures=True)

    def client(self, target: str) -> Any:
        """Return the calls of a web cache."""
        return self._context.client(WEB_CACHE, target, codecs=_CODECS)

    # -- which there are

    def known(self, study: database_pb2.Study, series_instance_uid: str, *, held: bool) -> SeriesPictures | None:
        """Return what is believed of a series without asking; None: ask."""
        found = self._series.get((study.study_instance_uid, series_instance_uid, held))
        if found is None or found[0] != _look(study) or time.monotonic() - found[1].time > _BELIEVED_SECONDS:
            return None
        return found[1]

    def series(
        self, study: database_pb2.Study, series_instance_uid: str, *, held: bool, after: float = 0.0
    ) -> SeriesPictures:
        """Return what there is of a series, asked for later than `after` (time.monotonic()).

        Args:
            study: as the viewer sees it now.
            series_instance_uid: a series of it.
            held: whether the viewer sees what is held.
            after: 0: what is believed will do.

        Raises:
            RadmeshError: STUDY_NOT_FOUND; the database does not answer.
        """
        key = (study.study_instance_uid, series_instance_uid, held)
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        try:
            # Many ask at once for the frames of a series; one asks the web caches what there is.
            with loading:
                found = self.known(study, series_instance_uid, held=held)
                if found is not None and found.time > after:
                    return found
                fresh = self._load(study.study_instance_uid, series_instance_uid, held=held)
                if study.curated_count < study.instance_count:
                    self._have_made(study.study_instance_uid)
                self._keep(key, _look(study), fresh)
                return fresh
        finally:
            with self._lock:
                if not loading.locked():
                    self._loading.pop(key, None)

    def _have_made(self, study_instance_uid: str) -> None:
        """Have the pictures of a study made, if nobody was asked to lately."""
        now = time.monotonic()
        with self._lock:
            if now < self._wanted.get(study_instance_uid, 0.0):
                return
            self._wanted[study_instance_uid] = now + _WANTED_SECONDS
            self._wanted.move_to_end(study_instance_uid)
            while len(self._wanted) > _MOST_WANTED:
                self._wanted.popitem(last=False)
        try:
            self._want(study_instance_uid)
        except RadmeshError as error:
            self._log.info("pictures could not be asked for", reason=error.reason)

    def _keep(self, key: tuple[str, str, bool], look: tuple[int, ...], fresh: SeriesPictures) -> None:
        with self._lock:
            before = self._series.pop(key, None)
            self._frames += _count(fresh) - (_count(before[1]) if before else 0)
            self._series[key] = (look, fresh)
            while len(self._series) > 1 and (len(self._series) > _MOST_SERIES or self._frames > _MOST_FRAMES):
                self._frames -= _count(self._series.popitem(last=False)[1][1])

    def _load(self, study_instance_uid: str, series_instance_uid: str, *, held: bool) -> SeriesPictures:
        now = time.monotonic()
        renditions = list(self.renditions(study_instance_uid, series_instance_uid, held=held))
        stores = tuple(dict.fromkeys(rendition.target for rendition in renditions if rendition.target))
        manifests = {store: self._manifest(store, study_instance_uid, series_instance_uid) for store in stores}
        order = list(dict.fromkeys(rendition.identity.sop_instance_uid for rendition in renditions))
        pictures: dict[str, list[Picture]] = {}
        without: dict[str, database_pb2.Rendition] = {}
        for rendition in renditions:
            identity = rendition.identity
            if not rendition.target:
                continue
            if rendition.state == _NONE:
                without.setdefault(identity.sop_instance_uid, rendition)
                continue
            frames = manifests[rendition.target].get((identity.sop_instance_uid, identity.sha256))
            if frames:
                pictures.setdefault(identity.sop_instance_uid, []).append(Picture(rendition, tuple(frames)))
        return SeriesPictures(
            study_instance_uid,
            series_instance_uid,
            tuple(uid for uid in order if uid in pictures or uid in without),
            {uid: tuple(found) for uid, found in pictures.items()},
            {uid: rendition for uid, rendition in without.items() if uid not in pictures},
            frozenset(order) - pictures.keys() - without.keys(),
            stores,
            now,
        )

    def renditions(
        self, study_instance_uid: str, series_instance_uid: str = "", sop_instance_uid: str = "", *, held: bool
    ) -> Iterator[database_pb2.Rendition]:
        """Yield what the database knows of the pictures of a study.

        Raises:
            RadmeshError: STUDY_NOT_FOUND; the database does not answer.
        """
        request = database_pb2.FindRenditionsRequest(
            study_instance_uid=study_instance_uid,
            series_instance_uid=series_instance_uid,
            sop_instance_uid=sop_instance_uid,
            include_held=held,
            page_size=_PAGE,
        )
        while True:
            page = self._curations.FindRenditions(request)
            yield from page.renditions
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def _manifest(self, store: str, study: str, series: str) -> dict[tuple[str, bytes], list[FrameSize]]:
        request = curator_pb2.GetManifestRequest(study_instance_uid=study, series_instance_uid=series)
        found: dict[tuple[str, bytes], list[FrameSize]] = {}
        try:
            for message in self.client(store).GetManifest(request, timeout=_STREAM_SECONDS):
                for instance in message.instances:
                    identity = instance.rendition.identity
                    frames = found.setdefault((identity.sop_instance_uid, identity.sha256), [])
                    frames.extend(FrameSize(frame.size, tuple(frame.resolution_offsets)) for frame in instance.frames)
        except RadmeshError as error:
            # It lives, as far as the database knows, and does not answer, or has dropped the study: others may have it.
            self._suspect(store, error)
            return {}
        return found

    def locate(self, study: database_pb2.Study, sop_instance_uid: str, *, held: bool) -> str:
        """Return the Series Instance UID of an instance that web caches know.

        Raises:
            RadmeshError: PICTURES_PENDING.
        """
        with self._lock:
            for (uid, series, eyes), (_, found) in reversed(self._series.items()):
                if uid == study.study_instance_uid and eyes == held and found.has(sop_instance_uid):
                    return series
        for rendition in self.renditions(study.study_instance_uid, sop_instance_uid=sop_instance_uid, held=held):
            return rendition.series_instance_uid
        self._have_made(study.study_instance_uid)
        raise RadmeshError("PICTURES_PENDING", "the pictures are not made yet, or there is no such instance")

    # -- frames

    def frame(
        self, study: database_pb2.Study, series_instance_uid: str, sop_instance_uid: str, number: int, *, held: bool
    ) -> Frame:
        """Return frame `number`, from 1, of at most LARGE bytes.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, PICTURES_PENDING, PEER_UNAVAILABLE, PEER_TIMEOUT, MESSAGE_TOO_LARGE.
        """

        def read(found: SeriesPictures, picture: Picture) -> Frame:
            if picture.frames[number - 1].size > LARGE:
                raise RadmeshError("MESSAGE_TOO_LARGE", f"the frame has more than {LARGE >> 20} MiB: ask for ranges")
            try:
                return self._request(found, picture, sop_instance_uid, number).result(_STREAM_SECONDS)
            except TimeoutError:
                raise RadmeshError("PEER_TIMEOUT", "the Curator sends no frames") from None

        return self._with_picture(study, series_instance_uid, sop_instance_uid, number, held=held, do=read)

    def part(
        self,
        study: database_pb2.Study,
        series_instance_uid: str,
        sop_instance_uid: str,
        number: int,
        part: Callable[[Picture], tuple[int, int]],
        *,
        held: bool,
    ) -> tuple[Picture, Buffer]:
        """Return some bytes of a frame, and of which picture; `part` says (offset, length) of it. Nothing is kept.

        Raises:
            RadmeshError: as `frame`.
        """

        def read(_: SeriesPictures, picture: Picture) -> tuple[Picture, Buffer]:
            offset, length = part(picture)
            if length > LARGE:
                raise RadmeshError("MESSAGE_TOO_LARGE", f"at most {LARGE >> 20} MiB at once")
            kept = self.cache.get(picture.key(number))
            if kept is not None:
                return picture, kept.data[offset : offset + length]
            return picture, b"".join(self.stream(picture, number, offset, length))

        return self._with_picture(study, series_instance_uid, sop_instance_uid, number, held=held, do=read)

    def stream(self, picture: Picture, number: int, offset: int, length: int) -> Iterator[Buffer]:
        """Yield `length` bytes of a frame, from `offset`; of exactly this encoding of it, or not at all.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, PEER_UNAVAILABLE …
        """
        if not length:
            return
        study = picture.rendition.study_instance_uid
        wanted = _Wanted(picture, number)
        calls = self.client(picture.rendition.target).ReadFrames(
            curator_pb2.ReadFramesRequest(study_instance_uid=study, ranges=[wanted.range(offset, length)]),
            timeout=_STREAM_SECONDS,
        )
        try:
            for _, data, _ in _pieces(calls, [wanted], offset, length):
                yield data
        except RadmeshError as error:
            self._suspect(picture.rendition.target, error)
            raise
        finally:
            calls.cancel()

    def _with_picture(
        self,
        study: database_pb2.Study,
        series_instance_uid: str,
        sop_instance_uid: str,
        number: int,
        *,
        held: bool,
        do: Callable[[SeriesPictures, Picture], Answer],
    ) -> Answer:
        """Do something with a picture of the instance, and if it fails with that of another web cache."""
        after = 0.0
        failure: RadmeshError | None = None
        for _ in range(_TRIES):
            found = self.series(study, series_instance_uid, held=held, after=after)
            suspects = self.suspects()
            picture = found.find(sop_instance_uid, number, suspects)
            if failure is not None and picture.rendition.target in suspects:
                break
            try:
                return do(found, picture)
            except RadmeshError as error:
                failure = error
                if error.reason not in _ANEW:
                    if not error.transient and error.reason not in ("CHUNK_CORRUPT", "CANCELLED"):
                        raise
                    self._suspect(picture.rendition.target, error)
                after = time.monotonic()
        assert failure is not None
        raise failure

    def _suspect(self, target: str, error: RadmeshError) -> None:
        if error.reason in _ANEW:
            return
        with self._lock:
            self._suspects[target] = time.monotonic() + _SUSPECT_SECONDS
        self._log.info("web cache passed over", target=target, reason=error.reason)

    def suspects(self) -> Sequence[str]:
        """Return the web caches that failed lately; they come last."""
        if not self._suspects:
            return ()
        now = time.monotonic()
        with self._lock:
            for target in [target for target, until in self._suspects.items() if until < now]:
                del self._suspects[target]
            return tuple(self._suspects)

    def _request(self, found: SeriesPictures, picture: Picture, sop_instance_uid: str, number: int) -> Future[Frame]:
        """Return the future of a frame; if it is not on its way, set it on its way, and those behind it."""
        key = picture.key(number)
        if (kept := self.cache.get(key)) is not None:
            ready: Future[Frame] = Future()
            ready.set_result(kept)
            return ready
        with self._lock:
            if (coming := self._coming.get(key)) is not None:
                return coming
            wanted = [_Wanted(picture, number)]
            room = self._ahead - picture.frames[number - 1].size
            for following in _following(found, picture, sop_instance_uid, number):
                size = following.size.size
                if len(wanted) >= _AHEAD_FRAMES or size > room:
                    break
                if following.key not in self._coming and following.key not in self.cache:
                    wanted.append(following)
                    room -= size
            for one in wanted:
                self._coming[one.key] = one.future
        try:
            self._pool.submit(self._fill, picture.rendition.target, found.study_instance_uid, wanted)
        except RuntimeError:
            self._give_up(wanted, RadmeshError("DRAINING", "this server is being stopped"))
        return wanted[0].future

    def _fill(self, target: str, study: str, wanted: list["_Wanted"]) -> None:
        """Read frames over one stream; each is given out when it is whole."""
        calls: Any = None
        try:
            calls = self.client(target).ReadFrames(
                curator_pb2.ReadFramesRequest(study_instance_uid=study, ranges=[one.range() for one in wanted]),
                timeout=_STREAM_SECONDS,
            )
            parts: list[Buffer] = []
            for one, data, last in _pieces(calls, wanted):
                parts.append(data)
                if last:
                    before, behind = self._around(one.picture, one.number)
                    whole = b"".join((before, *parts, behind))
                    syntax, offsets = one.picture.rendition.transfer_syntax_uid, one.size.resolution_offsets
                    frame = Frame(whole, len(before), len(whole) - len(behind), syntax, offsets)
                    parts.clear()
                    self.cache.put(one.key, frame)
                    with self._lock:
                        self._coming.pop(one.key, None)
                    one.future.set_result(frame)
        except RadmeshError as error:
            self._give_up(wanted, error)
        except Exception as error:
            self._log.exception("frames cannot be read", error)
            self._give_up(wanted, RadmeshError("INTERNAL", "the frames cannot be read"))
            raise
        finally:
            if calls is not None:
                calls.cancel()
            self._give_up(wanted, RadmeshError("PEER_UNAVAILABLE", "the Curator ended the stream early"))

    def _give_up(self, wanted: Iterable["_Wanted"], error: RadmeshError) -> None:
        """Tell the error to all who wait for what has not come."""
        for one in wanted:
            if not one.future.done():
                with self._lock:
                    self._coming.pop(one.key, None)
                with suppress(Exception):
                    one.future.set_exception(error)


class _Wanted:
    """A frame that is asked for."""

    __slots__ = ("future", "key", "number", "picture", "size")

    def __init__(self, picture: Picture, number: int) -> None:
        self.picture = picture
        self.number = number
        self.size = picture.frames[number - 1]
        self.key = picture.key(number)
        self.future: Future[Frame] = Future()

    def range(self, offset: int = 0, length: int = 0) -> curator_pb2.FrameRange:
        identity = self.picture.rendition.identity
        return curator_pb2.FrameRange(
            sop_instance_uid=identity.sop_instance_uid,
            sha256=identity.sha256,
            frame=self.number,
            offset=offset,
            length=length,
        )


def _pieces(
    messages: Iterator[Bulk[Any]], wanted: Sequence[_Wanted], offset: int = 0, length: int = 0
) -> Iterator[tuple[_Wanted, Buffer, bool]]:
    """Yield (frame, data, whether that is its last) of a stream; what does not fit what was asked for ends it.

    Raises:
        RadmeshError: CHUNK_CORRUPT, RENDITION_NOT_FOUND (it has been made anew), PEER_UNAVAILABLE, …
    """
    index, at = 0, offset
    for message in messages:
        fields, data = message.fields, message.data
        if index >= len(wanted) or fields.index != index:
            raise RadmeshError("CHUNK_CORRUPT", "the Curator sent what was not asked for")
        one = wanted[index]
        if at == offset and (
            fields.size != one.size.size
            or fields.transfer_syntax_uid != one.picture.rendition.transfer_syntax_uid
            or tuple(fields.resolution_offsets) != one.size.resolution_offsets
        ):
            raise RadmeshError("RENDITION_NOT_FOUND", "the pictures have been made anew")
        end = offset + length if length else one.size.size
        if fields.offset != at or at + len(data) > end or crc32c(data) != fields.crc32c:
            raise RadmeshError("CHUNK_CORRUPT", "a piece of a frame does not fit: offset or CRC-32C differ")
        at += len(data)
        if fields.last != (at == end):
            raise RadmeshError("CHUNK_CORRUPT", "a frame has another length than its Curator said")
        yield one, data, fields.last
        if fields.last:
            index, at = index + 1, offset
    if index < len(wanted):
        raise RadmeshError("PEER_UNAVAILABLE", "the Curator ended the stream early")


def _following(found: SeriesPictures, picture: Picture, sop_instance_uid: str, number: int) -> Iterator[_Wanted]:
    """Yield what stands behind a frame in its series, as far as the same web cache has it."""
    for following in range(number + 1, len(picture.frames) + 1):
        yield _Wanted(picture, following)
    target = picture.rendition.target
    start = found.order.index(sop_instance_uid) + 1
    for uid in found.order[start:]:
        other = next((p for p in found.pictures.get(uid, ()) if p.rendition.target == target), None)
        for following in range(1, len(other.frames) + 1 if other else 1):
            assert other is not None
            yield _Wanted(other, following)


def _look(study: database_pb2.Study) -> tuple[int, ...]:
    """Return what changes when a study, or the pictures of it, do."""
    return study.version, study.instance_count, study.curated_count


def _count(found: SeriesPictures) -> int:
    return sum(len(picture.frames) for pictures in found.pictures.values() for picture in pictures)
