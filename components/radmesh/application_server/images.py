"""Pictures for remote clients, at the gRPC door: application.v1.ImageService."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from radmesh.api.application.v1 import application_pb2 as pb
from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server.audit import Audit
from radmesh.application_server.changes import StudyWatches
from radmesh.application_server.grants import ReadGrants
from radmesh.application_server.metadata import Metadata
from radmesh.application_server.pictures import LARGE, WEB_CACHE, FrameSize, Pictures
from radmesh.application_server.ris import may_reconcile
from radmesh.application_server.sessions import SessionCache
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call, MethodCodec, roles_of
from radmesh.runtime.security import component_of
from radmesh.transfer.codec import Buffer, Bulk, encode
from radmesh_native.crc32c import crc32c

CODECS: Final = {
    "ReadFrames": MethodCodec(response_serializer=encode),
    "ReadSeriesMetadata": MethodCodec(response_serializer=encode),
}
"""Codecs of the service's bulk methods."""
_SERVICE: Final = pb.DESCRIPTOR.services_by_name["ImageService"].methods_by_name
_READERS: Final = roles_of(_SERVICE["ReadFrames"])
_CHUNK: Final = 1_048_560
_MOST_RANGES: Final = 4096
# A message of a manifest has 1 MiB at most; a rendition has less than 1 KiB, a frame less than 80 bytes.
_MANIFEST_ITEMS: Final = 8000
_RENDITION_ITEMS: Final = 12
# What may be seen of a study is asked again after this, within a call too.
_KEEP_SECONDS: Final = 2.5
_WIPE_SECONDS: Final = 60.0


def curators_of(context: Context) -> Mapping[str, Any]:
    """Return the calls of every Curator that has an address, by instance name."""
    targets = {target: name for name, target in sorted(context.addresses.items()) if component_of(name) == "curator"}
    return {name: context.client(WEB_CACHE, target) for target, name in targets.items()}


class ImageService:
    """application.v1.ImageService."""

    def __init__(
        self,
        *,
        pictures: Pictures,
        metadata: Metadata,
        queries: Any,
        curators: Mapping[str, Any],
        audit: Audit,
        sessions: SessionCache,
        grants: ReadGrants,
        watches: StudyWatches,
    ) -> None:
        """Wire.

        Args:
            pictures: the web caches, with the frame cache of both doors.
            metadata: of series.
            queries: calls of database.v1.QueryService.
            curators: calls of curator.v1.WebCacheService, by instance name.
            audit: where accesses are written.
            sessions: who may still read.
            grants: GetReadGrant.
            watches: WatchStudies.
        """
        self._pictures = pictures
        self._metadata = metadata
        self._queries = queries
        self._curators = curators
        self._audit = audit
        self._sessions = sessions
        self.GetReadGrant = grants.GetReadGrant
        self.WatchStudies = watches.WatchStudies

    def _study(self, study_instance_uid: str, call: Call) -> tuple[database_pb2.StudyDetail, bool]:
        """Return a study as the caller may see it, and whether what is held is seen; audited."""
        assert call.person is not None
        held = may_reconcile(call.person)
        request = database_pb2.GetStudyRequest(study_instance_uid=study_instance_uid, include_held=held)
        return self._audit.seen("STUDY_READ", call, study_instance_uid, lambda: self._queries.GetStudy(request)), held

    def GetManifest(
        self, request: curator_pb2.GetManifestRequest, call: Call
    ) -> Iterator[curator_pb2.GetManifestResponse]:
        """List frames, with their sizes."""
        detail, held = self._study(request.study_instance_uid, call)
        wanted = [request.series_instance_uid] if request.series_instance_uid else _series(detail)
        page, items = curator_pb2.GetManifestResponse(), 0
        for series in wanted:
            found = self._pictures.series(detail.study, series, held=held)
            for uid in found.order:
                best = found.pictures.get(uid)
                rendition = best[0].rendition if best else found.without[uid]
                frames = best[0].frames if best else ()
                for start in range(0, max(1, len(frames)), _MANIFEST_ITEMS):
                    some = frames[start : start + _MANIFEST_ITEMS]
                    if items + len(some) + _RENDITION_ITEMS > _MANIFEST_ITEMS + _RENDITION_ITEMS:
                        yield page
                        page, items = curator_pb2.GetManifestResponse(), 0
                    page.instances.add(rendition=rendition, frames=[_frame(frame) for frame in some])
                    items += len(some) + _RENDITION_ITEMS
        if page.instances:
            yield page

    def ReadFrames(
        self, request: curator_pb2.ReadFramesRequest, call: Call
    ) -> Iterator[Bulk[curator_pb2.ReadFramesResponse]]:
        """Stream frames, or parts of them."""
        if not 1 <= len(request.ranges) <= _MOST_RANGES:
            raise RadmeshError("FIELD_INVALID", f"ranges: 1 to {_MOST_RANGES}", metadata={"field": "ranges"})
        assert call.person is not None
        detail, held = self._study(request.study_instance_uid, call)
        permit = self._sessions.permit(call.person, _READERS)
        looked = time.monotonic()
        for index, wanted in enumerate(request.ranges):
            permit.check()
            if time.monotonic() - looked > _KEEP_SECONDS:
                detail, held = self._study(request.study_instance_uid, call)
                looked = time.monotonic()
            try:
                yield from self._read(index, wanted, detail.study, held=held, check=permit.check)
            except RadmeshError as error:
                error.metadata.setdefault("index", str(index))
                raise

    def _read(
        self,
        index: int,
        wanted: curator_pb2.FrameRange,
        study: database_pb2.Study,
        *,
        held: bool,
        check: Callable[[], None],
    ) -> Iterator[Bulk[curator_pb2.ReadFramesResponse]]:
        uid, number = wanted.sop_instance_uid, wanted.frame
        series = self._locate(study, uid, held=held)
        picture = self._pictures.series(study, series, held=held).find(uid, number)
        if wanted.sha256 not in (b"", picture.rendition.identity.sha256):
            raise RadmeshError("RENDITION_NOT_FOUND", "the instance has another content now")
        size = picture.frames[number - 1].size
        if wanted.offset > size or (wanted.offset == size and size):
            raise RadmeshError("RANGE_INVALID", f"the frame has {size} bytes")
        if size <= LARGE:
            frame = self._pictures.frame(study, series, uid, number, held=held)
            # Another web cache may have it otherwise encoded.
            size, syntax, offsets = frame.size, frame.transfer_syntax_uid, frame.resolution_offsets
            end = min(size, wanted.offset + wanted.length) if wanted.length else size
            pieces: Iterator[Buffer] = _cut(frame.data, wanted.offset, end)
        else:
            syntax, offsets = picture.rendition.transfer_syntax_uid, picture.frames[number - 1].resolution_offsets
            end = min(size, wanted.offset + wanted.length) if wanted.length else size
            pieces = self._pictures.stream(picture, number, wanted.offset, end - wanted.offset)
        fields = curator_pb2.ReadFramesResponse(
            index=index, offset=wanted.offset, size=size, transfer_syntax_uid=syntax, resolution_offsets=offsets
        )
        at = wanted.offset
        for data in pieces:
            check()
            at += len(data)
            fields.crc32c, fields.last = crc32c(data), at == end
            yield Bulk(fields, data)
            fields = curator_pb2.ReadFramesResponse(index=index, offset=at)

    def _locate(self, study: database_pb2.Study, sop_instance_uid: str, *, held: bool) -> str:
        """Return the series of an instance.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND: there is no such instance; PICTURES_PENDING: there is, and no picture.
        """
        try:
            return self._pictures.locate(study, sop_instance_uid, held=held)
        except RadmeshError as error:
            if error.reason != "PICTURES_PENDING":
                raise
            request = database_pb2.FindInstancesRequest(
                study_instance_uid=study.study_instance_uid, sop_instance_uid=sop_instance_uid, include_held=held
            )
            if self._queries.FindInstances(request).instances:
                raise
        raise RadmeshError("RENDITION_NOT_FOUND", "the study has no such instance")

    def ReadSeriesMetadata(
        self, request: curator_pb2.ReadSeriesMetadataRequest, call: Call
    ) -> Iterator[Bulk[curator_pb2.ReadSeriesMetadataResponse]]:
        """Stream the metadata of a series."""
        detail, held = self._study(request.study_instance_uid, call)
        if request.series_instance_uid not in _series(detail):
            raise RadmeshError("RENDITION_NOT_FOUND", "the study has no such series")
        made = self._metadata.series(detail.study, request.series_instance_uid, held=held)
        fields = curator_pb2.ReadSeriesMetadataResponse(tag=made.tag, instance_count=len(made.spans))
        for data in _cut(made.data, 0, len(made.data)):
            fields.crc32c = crc32c(data)
            yield Bulk(fields, data)
            fields = curator_pb2.ReadSeriesMetadataResponse()

    def WipeWebCache(self, request: curator_pb2.WipeRequest, call: Call) -> curator_pb2.WipeResponse:
        """Wipe every web cache; one that does not answer is told of after the others were wiped."""
        self._audit.record("WEB_CACHE_WIPE", call, object_id=request.study_instance_uid)
        answer = curator_pb2.WipeResponse()
        failures: dict[str, RadmeshError] = {}
        for name, curator in self._curators.items():
            try:
                wiped = curator.Wipe(request, timeout=_WIPE_SECONDS)
            except RadmeshError as error:
                failures[name] = error
                continue
            answer.studies += wiped.studies
            answer.bytes += wiped.bytes
        for name, failure in failures.items():
            raise RadmeshError(
                failure.reason, f"{name}: {failure.message}; the others are wiped", metadata=failure.metadata
            )
        return answer


def _series(detail: database_pb2.StudyDetail) -> list[str]:
    return [series.series_instance_uid for series in detail.series]


def _frame(frame: FrameSize) -> curator_pb2.Frame:
    return curator_pb2.Frame(size=frame.size, resolution_offsets=frame.resolution_offsets)


def _cut(data: Buffer, start: int, end: int) -> Iterator[Buffer]:
    """Yield pieces that fit into a message; of nothing one that is empty."""
    view = memoryview(data)
    for at in range(start, max(end, start + 1), _CHUNK):
        yield view[at : min(end, at + _CHUNK)]
