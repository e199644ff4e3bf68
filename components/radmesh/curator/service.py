"""The gRPC edge: parse, call, answer."""

from collections.abc import Callable, Iterator
from typing import Final

from radmesh.api.curator.v1 import curator_pb2 as pb
from radmesh.curator.messages import frame_message, ranges_of, rendition_message
from radmesh.curator.webcache import WebCache
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import Call, MethodCodec
from radmesh.transfer.codec import Bulk, encode
from radmesh_native.crc32c import crc32c

CODECS: Final = {name: MethodCodec(response_serializer=encode) for name in ("ReadFrames", "ReadSeriesMetadata")}
# Frames in one message of a manifest: an instance that has more goes on in the next.
_FRAMES_MOST: Final = 8192


class WebCacheService:
    """curator.v1.WebCacheService.

    Args:
        cache: what is served.
        store_id: its name.
        heal: is called with a study of which something is damaged.
        doubt: is called with a study that was asked for and is not here.
        wipe: drops a study, or all; returns how many, and their bytes.
    """

    def __init__(
        self,
        cache: WebCache,
        store_id: str,
        heal: Callable[[str], None],
        doubt: Callable[[str], None],
        wipe: Callable[[str], tuple[int, int]],
    ) -> None:
        self._cache = cache
        self._store_id = store_id
        self._heal = heal
        self._doubt = doubt
        self._wipe = wipe

    def GetManifest(self, request: pb.GetManifestRequest, _call: Call) -> Iterator[pb.GetManifestResponse]:
        """Yield the frames of a study's instances."""
        try:
            answer = pb.GetManifestResponse()
            frames = 0
            for rendition, each in self._cache.manifest(request.study_instance_uid, request.series_instance_uid):
                message = rendition_message(rendition, self._store_id)
                instance = answer.instances.add(rendition=message)
                for frame in each:
                    if frames >= _FRAMES_MOST:
                        yield answer
                        answer, frames = pb.GetManifestResponse(), 0
                        instance = answer.instances.add(rendition=message)
                    instance.frames.append(frame_message(frame))
                    frames += 1
                # An instance without frames has a place in it too.
                frames += 4
            if answer.instances:
                yield answer
        except RadmeshError as error:
            raise self._told(request.study_instance_uid, error) from error

    def ReadFrames(self, request: pb.ReadFramesRequest, _call: Call) -> Iterator[Bulk[pb.ReadFramesResponse]]:
        """Yield the bytes of frames."""
        wanted = ranges_of(request.ranges)
        try:
            for piece in self._cache.read(request.study_instance_uid, wanted):
                fields = pb.ReadFramesResponse(
                    index=piece.index, offset=piece.offset, crc32c=piece.check, last=piece.last
                )
                if piece.frame is not None:
                    fields.size = piece.frame.size
                    fields.transfer_syntax_uid = piece.served_syntax
                    fields.resolution_offsets.extend(piece.frame.offsets)
                yield Bulk(fields, piece.data)
        except RadmeshError as error:
            raise self._told(request.study_instance_uid, error) from error

    def ReadSeriesMetadata(
        self, request: pb.ReadSeriesMetadataRequest, _call: Call
    ) -> Iterator[Bulk[pb.ReadSeriesMetadataResponse]]:
        """Yield the metadata of a series."""
        try:
            tag, count, parts = self._cache.series_metadata(request.study_instance_uid, request.series_instance_uid)
        except RadmeshError as error:
            raise self._told(request.study_instance_uid, error) from error
        for number, part in enumerate(parts):
            fields = pb.ReadSeriesMetadataResponse(crc32c=crc32c(part))
            if not number:
                fields.tag, fields.instance_count = tag, count
            yield Bulk(fields, part)

    def Wipe(self, request: pb.WipeRequest, _call: Call) -> pb.WipeResponse:
        """Drop pictures, and have them made again."""
        studies, size = self._wipe(request.study_instance_uid)
        return pb.WipeResponse(studies=studies, bytes=size)

    def _told(self, study_instance_uid: str, error: RadmeshError) -> RadmeshError:
        """What is damaged is not here, until it is made again."""
        if error.reason == "RENDITION_NOT_FOUND":
            self._doubt(study_instance_uid)
        if error.reason != "RENDITION_DAMAGED":
            return error
        self._heal(study_instance_uid)
        return RadmeshError("RENDITION_NOT_FOUND", error.message, metadata=error.metadata)
