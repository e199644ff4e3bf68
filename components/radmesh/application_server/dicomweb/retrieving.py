"""WADO-RS: instances as they were stored, with what is shown of them laid over; metadata; frames; thumbnails."""

import asyncio
import functools
import hashlib
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.dicomweb import answers, thumbnails
from radmesh.application_server.dicomweb.answers import PRIVATE, Representation
from radmesh.application_server.dicomweb.forms import Form, form_of, overlaps
from radmesh.application_server.dicomweb.multipart import Envelope
from radmesh.application_server.dicomweb.negotiation import (
    DICOM,
    MediaRange,
    Offer,
    choose,
    parse_accept,
)
from radmesh.application_server.dicomweb.ranges import has
from radmesh.application_server.dicomweb.searching import JSON_OFFERS
from radmesh.application_server.http.app import Door, Receive, Send, call_of, header, parameter_problem
from radmesh.application_server.http.routes import PERSONS, Route, Scope
from radmesh.application_server.metadata import Correction, Look, Metadata, SeriesMetadata
from radmesh.application_server.objects import copies
from radmesh.application_server.pictures import LARGE, Frame, Picture, Pictures, SeriesPictures
from radmesh.application_server.ris import may_reconcile
from radmesh.dicom import part10
from radmesh.dicom.uids import is_valid_uid
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call, Person
from radmesh.transfer.codec import Buffer
from radmesh.transfer.reader import read_object

Answer = TypeVar("Answer")
ACTION: Final = "STUDY_READ"
_WAIT_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 0.25
_MOST_FRAMES: Final = 4096
_LONGEST_LIST: Final = 32_768
_LONGEST_ACCEPT: Final = 2048
_UID_LENGTH: Final = 64
# A long answer looks so often whether it may go on.
_CHECK_SECONDS: Final = 2.5
_INSTANCES_PAGE: Final = 1000
_HTJ2K: Final = "1.2.840.10008.1.2.4.202"
_JPEG_BASELINE: Final = "1.2.840.10008.1.2.4.50"
_THUMBNAILS_BYTES: Final = 16 << 20
_ATTEMPTS: Final = 3
# Frames that were sent lately, and how long path and Accept header may be.
_REMEMBERED, _REMEMBERED_LENGTH = 4096, 1024


def routes(door: Door, pictures: Pictures, metadata: Metadata) -> Sequence[Route]:
    """Return the resources of PS3.18 table 10.4.1-1 that are served."""
    wado = Wado(door, pictures, metadata)
    study = "/dicom-web/studies/{study}"
    series, instance = f"{study}/series/{{series}}", f"{study}/series/{{series}}/instances/{{instance}}"
    frames = f"{instance}/frames/{{frames}}"
    table: tuple[tuple[str, Callable[..., Any], str], ...] = (
        (study, wado.instances, "WADO-RS: the instances of a study, as they were stored, with corrected values."),
        (series, wado.instances, "WADO-RS: the instances of a series."),
        (instance, wado.instances, "WADO-RS: an instance."),
        (f"{study}/metadata", wado.metadata, "WADO-RS: DICOM JSON of a study, describing the frames that are served."),
        (f"{series}/metadata", wado.metadata, "WADO-RS: DICOM JSON of a series."),
        (f"{instance}/metadata", wado.metadata, "WADO-RS: DICOM JSON of an instance."),
        (frames, wado.frames, "WADO-RS: frames of an instance, with Range and entity tags."),
        (f"{study}/thumbnail", wado.thumbnail, "WADO-RS: a small picture of a study, JPEG or PNG."),
        (f"{series}/thumbnail", wado.thumbnail, "WADO-RS: a small picture of a series."),
        (f"{instance}/thumbnail", wado.thumbnail, "WADO-RS: a small picture of an instance."),
        (f"{frames}/thumbnail", wado.thumbnail, "WADO-RS: a small picture of a frame."),
    )
    return tuple(Route("GET", path, PERSONS, handler, doc, raw=True) for path, handler, doc in table)


@functools.lru_cache(8192)
def _is_uid(text: str) -> bool:
    return is_valid_uid(text)


def _checked_uid(names: Mapping[str, str], name: str) -> None:
    # What is remembered is short.
    if name in names and (len(names[name]) > _UID_LENGTH or not _is_uid(names[name])):
        raise parameter_problem(name, "no UID (PS3.5 9.1)")


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks for, and with whose eyes."""

    call: Call
    detail: database_pb2.StudyDetail
    held: bool
    study: str
    series: str = ""
    instance: str = ""

    @property
    def expected(self) -> Mapping[str, int]:
        """Instances of each series, by Series Instance UID, as far as the caller sees them."""
        return {series.series_instance_uid: series.instance_count for series in self.detail.series}


@dataclass(frozen=True, slots=True)
class _Sent:
    """A frame that was sent: who asks for it again is answered without looking at everything again."""

    asked: _Asked
    found: SeriesPictures
    frame: tuple[object, ...]
    form: Form


class Wado:
    """The resources, as ASGI applications: the door has let the caller in."""

    def __init__(self, door: Door, pictures: Pictures, metadata: Metadata) -> None:
        self._door = door
        self._pictures = pictures
        self._metadata = metadata
        self._queries: Any = door.stubs["QueryService"]
        # Decoding takes a core, and memory for the frame.
        self._decoding = asyncio.Semaphore(2)
        self._sent: OrderedDict[tuple[Any, ...], _Sent] = OrderedDict()
        self._thumbnails: OrderedDict[tuple[object, ...], bytes] = OrderedDict()
        self._thumbnail_bytes = 0

    async def _read(self, function: Callable[..., Answer], *arguments: Any, **named: Any) -> Answer:
        """Call what waits for a web cache, in a thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pictures.readers, functools.partial(function, *arguments, **named))

    async def _asked(self, scope: Scope) -> _Asked:
        """Return what is asked for; the study is one that the caller may see, and that is audited.

        Raises:
            RadmeshError: FIELD_INVALID, STUDY_NOT_FOUND, SERIES_NOT_FOUND.
        """
        names = scope["path_params"]
        for name in ("study", "series", "instance"):
            _checked_uid(names, name)
        call = call_of(scope)
        person = _person(call)
        detail = await self._door.study(call, names["study"], ACTION)
        series = names.get("series", "")
        if series and all(one.series_instance_uid != series for one in detail.series):
            detail = await self._door.study(call, names["study"], ACTION, fresh=True)
            if all(one.series_instance_uid != series for one in detail.series):
                raise RadmeshError("SERIES_NOT_FOUND", "the study has no such series")
        return _Asked(call, detail, may_reconcile(person), names["study"], series, names.get("instance", ""))

    async def _look(self, asked: _Asked, series: str, enough: Callable[[SeriesPictures], bool]) -> SeriesPictures:
        """Return the pictures of a series; if there are not enough, wait for more for a moment."""
        found = self._pictures.known(asked.detail.study, series, held=asked.held)
        if found is not None and enough(found):
            return found
        until = time.monotonic() + _WAIT_SECONDS
        while True:
            found = await self._read(
                self._pictures.series,
                asked.detail.study,
                series,
                held=asked.held,
                after=time.monotonic() if found is not None else 0.0,
            )
            if enough(found) or time.monotonic() > until:
                return found
            await asyncio.sleep(_LOOK_SECONDS)

    async def _pictures_of(self, asked: _Asked) -> SeriesPictures:
        """Return the pictures of the series of the instance that is asked for, which exists.

        Raises:
            RadmeshError: INSTANCE_NOT_FOUND.
        """
        known = self._pictures.known(asked.detail.study, asked.series, held=asked.held)
        if known is not None and known.has(asked.instance):
            return known
        found = await self._look(asked, asked.series, lambda _: True)
        if not found.has(asked.instance):
            await self._door.run(lambda: next(self._instances(asked)))
            found = await self._look(asked, asked.series, lambda series: series.has(asked.instance))
        return found

    def _instances(self, asked: _Asked) -> Iterator[database_pb2.Instance]:
        """Yield the instances that are asked for.

        Raises:
            RadmeshError: INSTANCE_NOT_FOUND: there is none.
        """
        request = database_pb2.FindInstancesRequest(
            study_instance_uid=asked.study,
            series_instance_uid=asked.series,
            sop_instance_uid=asked.instance,
            include_held=asked.held,
            page_size=_INSTANCES_PAGE,
        )
        some = False
        while True:
            page = self._queries.FindInstances(request)
            for instance in page.instances:
                some = True
                yield instance
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if not some:
            raise RadmeshError("INSTANCE_NOT_FOUND", "there is no such instance in the series")

    # -- frames -------------------------------------------------------------------------------------------------------

    async def frames(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer with frames: from memory, most of the time."""
        call = call_of(scope)
        key = (scope["path"], "" if scope["query_string"] else header(scope, b"accept"), may_reconcile(_person(call)))
        if await self._send_again(key, call, scope, send):
            return
        asked = await self._asked(scope)
        numbers = _numbers(scope["path_params"]["frames"])
        found = await self._pictures_of(asked)
        for _ in range(_ATTEMPTS):
            suspects = self._pictures.suspects()
            for number in numbers:
                picture = found.find(asked.instance, number, suspects)
            form = form_of(picture, numbers, _accept_text(scope))
            representation = Representation(scope, form.content_type, form.tag, form.size)
            if await self._send_frames(asked, picture, form, representation, send):
                if form.kept and not scope["query_string"] and sum(map(len, key[:2])) < _REMEMBERED_LENGTH:
                    self._remember(key, _Sent(asked, found, picture.key(numbers[0]), form))
                return
            # What was made anew meanwhile, or is in another web cache now, is another representation.
            found = await self._read(
                self._pictures.series, asked.detail.study, asked.series, held=asked.held, after=time.monotonic()
            )
        raise RadmeshError("PEER_UNAVAILABLE", "the pictures are being made anew: try again")

    async def _send_again(self, key: tuple[Any, ...], call: Call, scope: Scope, send: Send) -> bool:
        """Send a frame that was sent before, if the caller may see it, and all is as it was then."""
        sent = self._sent.get(key)
        if sent is None:
            return False
        study, held = sent.asked.study, sent.asked.held
        detail = await self._door.study(call, study, ACTION)
        if detail is not sent.asked.detail or self._pictures.suspects():
            return False
        if self._pictures.known(detail.study, sent.asked.series, held=held) is not sent.found:
            return False
        frame = self._pictures.cache.get(sent.frame)
        if frame is None or frame.size > LARGE:
            return False
        form, whole = sent.form, frame.whole
        representation = Representation(scope, form.content_type, form.tag, form.size)
        start, end = representation.start, representation.end
        await answers.begin(send, representation.status, representation.headers)
        await answers.end(send, whole if end - start == len(whole) else memoryview(whole)[start:end])
        return True

    def _remember(self, key: tuple[Any, ...], sent: "_Sent") -> None:
        self._sent[key] = sent
        while len(self._sent) > _REMEMBERED:
            self._sent.popitem(last=False)

    async def _send_frames(
        self, asked: _Asked, picture: Picture, form: Form, representation: Representation, send: Send
    ) -> bool:
        """Send what is asked for of a form; return False, before anything is sent, if it is not there any more."""
        if form.kept and representation.status != 304:
            number = next(segment for segment in form.segments if isinstance(segment, int))
            if picture.frames[number - 1].size <= LARGE:
                frame = await self._frame(asked, picture, number)
                if frame is None:
                    return False
                await answers.begin(send, representation.status, representation.headers)
                whole, start, end = frame.whole, representation.start, representation.end
                await answers.end(send, whole if end - start == len(whole) else memoryview(whole)[start:end])
                return True
        plan = list(overlaps(form, picture, representation.start, representation.end))
        first = next((segment for segment, _, _ in plan if isinstance(segment, int)), 0)
        if first and picture.frames[first - 1].size <= LARGE and await self._frame(asked, picture, first) is None:
            return False
        await answers.begin(send, representation.status, representation.headers)
        permission, checked = self._permission(asked), time.monotonic()
        for segment, start, end in plan:
            if time.monotonic() - checked > _CHECK_SECONDS:
                await self._door.run(permission.check)
                checked = time.monotonic()
            if isinstance(segment, bytes):
                await answers.go_on(send, segment[start:end])
            elif picture.frames[segment - 1].size > LARGE:
                await self._send_large(self._pictures.stream(picture, segment, start, end - start), send)
            else:
                frame = await self._frame(asked, picture, segment)
                if frame is None:
                    raise RadmeshError("PEER_UNAVAILABLE", "the pictures were made anew meanwhile")
                await answers.go_on(send, frame.data[start:end])
        await answers.end(send)
        return True

    async def _frame(self, asked: _Asked, picture: Picture, number: int) -> Frame | None:
        """Return a frame of exactly this picture; None: there is another one now."""
        if (kept := self._pictures.cache.get(picture.key(number))) is not None:
            return kept
        frame = await self._read(
            self._pictures.frame, asked.detail.study, asked.series, asked.instance, number, held=asked.held
        )
        known = picture.frames[number - 1]
        same = (frame.size, frame.resolution_offsets) == (known.size, known.resolution_offsets)
        return frame if same and frame.transfer_syntax_uid == picture.rendition.transfer_syntax_uid else None

    async def _send_large(self, pieces: Iterator[Buffer], send: Send) -> None:
        """Send a frame that is not kept, piece by piece."""
        try:
            while (piece := await self._read(next, pieces, None)) is not None:
                await answers.go_on(send, piece)
        finally:
            await self._read(getattr(pieces, "close"))  # noqa: B009 - of a generator

    # -- thumbnails ---------------------------------------------------------------------------------------------------

    async def thumbnail(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Answer with a small picture, made from the beginning of a code stream."""
        asked = await self._asked(scope)
        box = thumbnails.viewport(_parameter(scope, "viewport"))
        numbers = _numbers(scope["path_params"].get("frames", "1"))
        if len(numbers) > 1:
            raise parameter_problem("frames", "a thumbnail is of one frame")
        found, instance = await self._representative(asked)
        picture = found.find(instance, numbers[0], self._pictures.suspects())
        # Of several frames that in the middle shows most.
        number = numbers[0] if "frames" in scope["path_params"] else (len(picture.frames) + 1) // 2
        syntax = picture.rendition.transfer_syntax_uid
        types = thumbnails.TYPES if syntax == _HTJ2K else (thumbnails.JPEG,) if syntax == _JPEG_BASELINE else ()
        if not types:
            raise RadmeshError("RENDITION_NOT_FOUND", "there are no thumbnails of frames that are served as they came")
        kind = choose(_accept(scope), [Offer(kind) for kind in types]).type
        key = (picture.key(number), box, kind, asked.detail.study.version)
        data = self._thumbnails.get(key)
        if data is None:
            data = await self._make_thumbnail(asked, found.series_instance_uid, instance, number, box, kind)
            self._keep_thumbnail(key, data)
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        representation = Representation(scope, kind, tag, len(data), ranges=False)
        await answers.begin(send, representation.status, representation.headers)
        await answers.end(send, data if representation.status == 200 else b"")

    async def _representative(self, asked: _Asked) -> tuple[SeriesPictures, str]:
        """Return an instance that stands for what is asked for, and the pictures of its series.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, PICTURES_PENDING.
        """
        if asked.instance:
            return await self._pictures_of(asked), asked.instance
        pending = False
        for series in [asked.series] if asked.series else asked.expected:
            found = await self._look(asked, series, lambda found: bool(found.order) or not asked.series)
            shown = [uid for uid in found.order if uid in found.pictures]
            coded = [u for u in shown if found.pictures[u][0].rendition.transfer_syntax_uid == _HTJ2K] or shown
            if coded:
                return found, coded[len(coded) // 2]
            pending = pending or len(found.order) < asked.expected.get(series, 0)
        if pending:
            raise RadmeshError("PICTURES_PENDING", "the pictures are not made yet: try again")
        raise RadmeshError("RENDITION_NOT_FOUND", "there are no pictures")

    async def _make_thumbnail(
        self, asked: _Asked, series: str, instance: str, number: int, box: tuple[int, int], kind: str
    ) -> bytes:
        def make() -> bytes:
            study = asked.detail.study
            look = self._metadata.series(study, series, held=asked.held).looks.get(instance, Look())
            reduce = 0

            def beginning(picture: Picture) -> tuple[int, int]:
                nonlocal reduce
                frame = picture.frames[number - 1]
                levels = len(frame.resolution_offsets) - 1
                if picture.rendition.transfer_syntax_uid != _HTJ2K or levels < 1:
                    reduce = 0
                    return 0, frame.size
                reduce = thumbnails.reduction(look, levels, box)
                return 0, frame.resolution_offsets[levels - reduce]

            picture, data = self._pictures.part(study, series, instance, number, beginning, held=asked.held)
            if picture.rendition.transfer_syntax_uid != _HTJ2K:
                return bytes(data)
            return thumbnails.thumbnail(data, reduce, look, box, kind)

        async with self._decoding:
            return await self._read(make)

    def _keep_thumbnail(self, key: tuple[object, ...], data: bytes) -> None:
        self._thumbnail_bytes += len(data) - len(self._thumbnails.pop(key, b""))
        self._thumbnails[key] = data
        while self._thumbnail_bytes > _THUMBNAILS_BYTES:
            self._thumbnail_bytes -= len(self._thumbnails.popitem(last=False)[1])

    # -- metadata -----------------------------------------------------------------------------------------------------

    async def metadata(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with DICOM JSON; what is not curated yet is told of by a Warning."""
        asked = await self._asked(scope)
        kind = choose(_accept(scope), JSON_OFFERS).type
        if asked.instance:
            await self._pictures_of(asked)
        wanted = [asked.series] if asked.series else list(asked.expected)
        if not asked.series:
            await self._study_metadata(asked, wanted, kind, scope, receive, send)
            return
        expected = asked.expected[asked.series]
        await self._look(asked, asked.series, lambda found: bool(asked.instance) or len(found.order) >= expected)
        made: SeriesMetadata = await self._read(
            self._metadata.series, asked.detail.study, asked.series, held=asked.held
        )
        if asked.instance:
            span = made.spans.get(asked.instance)
            if span is None:
                raise RadmeshError("RENDITION_NOT_FOUND", "the instance cannot be described: its data set is damaged")
            text = await self._door.run(made.text)
            body, zipped = b"[" + text[span[0] : span[1]] + b"]", False
        else:
            zipped = _takes_gzip(scope)
            body = made.data if zipped else await self._door.run(made.text)
        tag = f'"{made.tag}{"-gzip" if zipped else ""}"'
        representation = Representation(scope, kind, tag, len(body), ranges=False)
        if zipped and representation.status == 200:
            representation.headers.append((b"content-encoding", b"gzip"))
        if not asked.instance and len(made.spans) < expected:
            representation.headers.append(_warning(f"{expected - len(made.spans)} instances are not curated yet."))
        await answers.begin(send, representation.status, representation.headers)
        await answers.end(send, body if representation.status == 200 else b"")

    async def _study_metadata(
        self, asked: _Asked, wanted: Sequence[str], kind: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        missing = 0
        for series in wanted:
            found = await self._look(asked, series, lambda found: bool(found.order))
            missing += max(0, asked.expected[series] - len(found.order))

        def texts() -> Iterator[Buffer]:
            begun = False
            for series in wanted:
                try:
                    text = self._metadata.series(asked.detail.study, series, held=asked.held).text()
                except RadmeshError as error:
                    if error.reason != "PICTURES_PENDING":
                        raise
                    continue
                if len(text) > 2:
                    yield b"," if begun else b"["
                    yield memoryview(text)[1:-1]
                    begun = True
            if not begun:
                raise RadmeshError(
                    "PICTURES_PENDING", "the study is not curated yet: try again", metadata={"retry_after_ms": "2000"}
                )
            yield b"]"

        zipped = _takes_gzip(scope)
        headers = [(b"content-type", kind.encode("ascii")), (b"vary", b"accept, accept-encoding"), PRIVATE]
        headers += [(b"content-encoding", b"gzip")] if zipped else []
        headers += [_warning(f"{missing} instances are not curated yet.")] if missing else []
        await answers.stream(
            self._door,
            receive,
            send,
            200,
            headers,
            _gzipped(texts()) if zipped else texts(),
            self._permission(asked).check,
        )

    def _permission(self, asked: _Asked) -> "_Permission":
        return _Permission(self._door, self._queries, asked)

    # -- instances ----------------------------------------------------------------------------------------------------

    async def instances(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with instances: the data sets as they were stored, what is shown of them laid over."""
        asked = await self._asked(scope)
        accept = _accept(scope)
        corrections = await self._door.run(self._metadata.corrections, asked.detail.study)
        if asked.instance:
            await self._instance(asked, accept, corrections, scope, receive, send)
            return
        instances = self._instances(asked)
        if any(media.parameters.get("transfer-syntax", "*") != "*" for media in accept):
            # Every one must be acceptable before the first is sent.
            every: list[database_pb2.Instance] = await self._door.run(list, instances)
            for syntax in dict.fromkeys(instance.identity.transfer_syntax_uid for instance in every):
                choose(accept, [Offer(DICOM, syntax, multipart=True)])
            instances = iter(every)
        else:
            choose(accept, [Offer(DICOM, multipart=True)])
        envelope = Envelope.of(DICOM, asked.study, asked.series, asked.detail.study.version)
        permission = self._permission(asked)

        def parts() -> Iterator[Buffer]:
            first = True
            for instance in instances:
                permission.instance = instance.identity.sop_instance_uid
                syntax = instance.identity.transfer_syntax_uid
                yield envelope.head(Offer(DICOM, syntax).content_type, first=first)
                _, pieces = self._file(instance, corrections)
                yield from pieces
                first = False
            yield envelope.tail

        headers = [(b"content-type", envelope.content_type.encode("latin-1"))]
        await answers.stream(self._door, receive, send, 200, headers, parts(), permission.check)

    async def _instance(
        self,
        asked: _Asked,
        accept: Sequence[MediaRange],
        corrections: Sequence[Correction],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        instance = await self._door.run(lambda: next(self._instances(asked)))
        syntax = instance.identity.transfer_syntax_uid
        offer = choose(accept, [Offer(DICOM, syntax, multipart=True), Offer(DICOM, syntax)])
        identity = (instance.identity.sop_instance_uid, instance.identity.sha256.hex(), corrections, offer)
        digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:32]
        if has(header(scope, b"if-none-match"), f'"{digest}"'):
            await answers.begin(send, 304, Representation(scope, "", f'"{digest}"', 0).headers)
            await answers.end(send)
            return
        size, pieces = await self._door.run(self._file, instance, corrections)
        kind, before, behind = offer.content_type, b"", b""
        if offer.multipart:
            envelope = Envelope.of(DICOM, digest)
            kind, before, behind = envelope.content_type, envelope.head(kind, first=True), envelope.tail
        headers = [
            (b"content-type", kind.encode("latin-1")),
            (b"etag", f'"{digest}"'.encode("ascii")),
            (b"vary", b"accept"),
            PRIVATE,
        ]
        if size is not None:
            headers.append((b"content-length", str(size + len(before) + len(behind)).encode("ascii")))

        def parts() -> Iterator[Buffer]:
            if before:
                yield before
            yield from pieces
            if behind:
                yield behind

        await answers.stream(self._door, receive, send, 200, headers, parts(), self._permission(asked).check)

    def _file(
        self, instance: database_pb2.Instance, corrections: Sequence[Correction]
    ) -> tuple[int | None, Iterator[Buffer]]:
        """Open an instance as a DICOM file; return its size, if that is known, and its bytes.

        Raises:
            RadmeshError: OBJECT_NOT_FOUND, OBJECT_CORRUPT, PEER_UNAVAILABLE, CORRECTION_NOT_APPLIED.
        """
        meta = part10.preamble_and_meta(
            sop_class_uid=instance.sop_class_uid,
            sop_instance_uid=instance.identity.sop_instance_uid,
            transfer_syntax_uid=instance.identity.transfer_syntax_uid,
            source_ae_title=instance.calling_ae_title,
        )
        reader = read_object(copies(self._door.context, instance))
        size: int | None = len(meta) + instance.length
        data_set: Any = reader
        if corrections:
            from radmesh.dicom.overlay import Corrected  # noqa: PLC0415 - brings pydicom

            try:
                data_set = Corrected(reader, instance.identity.transfer_syntax_uid, corrections)
            except BaseException:
                reader.close()
                raise
            size = None if data_set.grown is None else len(meta) + instance.length + data_set.grown

        def pieces() -> Iterator[Buffer]:
            with reader:
                yield meta
                yield from data_set

        return size, pieces()


class _Permission:
    """Whether a long answer may go on: its session, the person's role, and the right to see what is sent.

    Attributes:
        instance: what is sent now; "" = the study.
    """

    def __init__(self, door: Door, queries: Any, asked: _Asked) -> None:
        assert asked.call.person is not None
        self._permit = door.sessions.permit(asked.call.person, PERSONS)
        self._queries = queries
        self._asked = asked
        self._looked = time.monotonic()
        self.instance = asked.instance

    def check(self) -> None:
        """Return if it may go on; costs nothing most of the time. May block.

        Raises:
            RadmeshError: SESSION_EXPIRED, ROLE_REFUSED; STUDY_NOT_FOUND, INSTANCE_NOT_FOUND: it is held now.
        """
        self._permit.check()
        if time.monotonic() - self._looked < _CHECK_SECONDS:
            return
        request = database_pb2.FindInstancesRequest(
            study_instance_uid=self._asked.study,
            sop_instance_uid=self.instance,
            include_held=self._asked.held,
            page_size=1,
        )
        try:
            seen = self._queries.FindInstances(request).instances
        except RadmeshError as error:
            # While the database is silent nothing can have been held.
            if not error.transient:
                raise
        else:
            if not seen:
                raise RadmeshError("INSTANCE_NOT_FOUND", "there is no such instance any more")
        self._looked = time.monotonic()


def _person(call: Call) -> Person:
    assert call.person is not None
    return call.person


def _numbers(text: str) -> tuple[int, ...]:
    """Return the frames of a list such as "1,2,3".

    Raises:
        RadmeshError: FIELD_INVALID.
    """
    parts = text.split(",") if len(text) <= _LONGEST_LIST else []
    if not 1 <= len(parts) <= _MOST_FRAMES or not all(p.isascii() and p.isdecimal() and len(p) < 10 for p in parts):
        raise parameter_problem("frames", f"1 to {_MOST_FRAMES} numbers from 1, separated by commas")
    numbers = tuple(map(int, parts))
    if 0 in numbers:
        raise parameter_problem("frames", "frames are counted from 1")
    return numbers


def _parameter(scope: Scope, name: str) -> str:
    """Return a parameter of the query; the first, if it is there twice."""
    query = scope["query_string"]
    if not query:
        return ""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, max_num_fields=50)
    except ValueError:
        raise parameter_problem("query", "at most 50 parameters, percent-encoded UTF-8") from None
    return next((value for key, value in pairs if key.lower() == name), "")


def _accept_text(scope: Scope) -> str:
    """Return what the client accepts: the parameter goes before the header (PS3.18 8.3.3.1)."""
    return (_parameter(scope, "accept") or header(scope, b"accept"))[:_LONGEST_ACCEPT]


def _accept(scope: Scope) -> tuple[MediaRange, ...]:
    return parse_accept(_accept_text(scope))


def _takes_gzip(scope: Scope) -> bool:
    for part in header(scope, b"accept-encoding").split(","):
        name, _, weight = part.partition(";")
        if name.strip().lower() in ("gzip", "*"):
            return weight.replace(" ", "").rstrip("0") not in ("q=", "q=0.")
    return False


def _gzipped(pieces: Iterator[Buffer]) -> Iterator[Buffer]:
    deflater = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    for piece in pieces:
        if made := deflater.compress(piece):
            yield made
    yield deflater.flush()


def _warning(text: str) -> tuple[bytes, bytes]:
    return b"warning", f"299 /dicom-web: {text}".encode("latin-1")
