"""Pictures: from the web cache through the door, a prefix where that is enough, or from the objects themselves."""

import json
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from radmesh.api.application.v1 import application_pb2, application_pb2_grpc
from radmesh.api.curator.v1 import curator_pb2
from radmesh.client import convert, model
from radmesh.client.patience import RETRY_SECONDS, may_repeat
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import from_rpc_error
from radmesh_native.crc32c import crc32c

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_RANGES_MOST: Final = 4096
# A whole-study manifest or series in one stream; cut ones go on.
_CALL_SECONDS: Final = 3600.0
_UNARY_SECONDS: Final = 30.0
_METADATA_MOST: Final = 1 << 30
_WIPE_SECONDS: Final = 120.0


@dataclass(frozen=True, slots=True)
class FrameData:
    """Bytes of a frame, from its first on; `number` is from 1."""

    picture: model.Picture
    number: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Frame:
    """A decoded frame.

    `pixels` is (rows, columns) or, of RGB, (rows, columns, 3): stored values, before any Modality or VOI LUT; palettes
    and YBR are made RGB. `number` is from 1; `received` counts the bytes that it took.
    """

    series_instance_uid: str
    sop_instance_uid: str
    number: int
    pixels: "npt.NDArray[np.generic]"
    received: int


def prefix(frame: model.FrameSize, reduce: int) -> tuple[int, int]:
    """Return how many bytes of a frame are needed, and what is left to reduce by while they are decoded.

    Where no prefix is a picture, all is needed, and nothing is reduced.
    """
    offsets = frame.resolution_offsets
    if not offsets:
        return frame.size, 0
    reduce = min(reduce, len(offsets) - 1)
    return offsets[len(offsets) - 1 - reduce], reduce


class ImageCalls:
    """The part of `Cluster` that shows pictures."""

    _images: application_pb2_grpc.ImageServiceStub
    _metadata: tuple[tuple[str, str], ...]
    _remote: bool

    def _unary(self, method: Any, request: Any, timeout: float = _UNARY_SECONDS) -> Any:
        raise NotImplementedError

    def _check_open(self) -> None:
        raise NotImplementedError

    if TYPE_CHECKING:

        def instances(  # noqa: D102
            self,
            study_instance_uid: str,
            *,
            series_instance_uid: str = "",
            sop_instance_uid: str = "",
            variants: bool = False,
        ) -> Iterator[model.Instance]: ...

        def fetch(  # noqa: D102
            self,
            study_instance_uid: str,
            instance: model.Instance,
            path: Path,
            *,
            corrections: Sequence[model.Correction] = (),
            received: Callable[[int], object] | None = None,
        ) -> tuple[str, ...]: ...

    # -- what there is ------------------------------------------------------------------------------------------------

    def manifest(self, study_instance_uid: str, *, series_instance_uid: str = "") -> list[model.Picture]:
        """Return what the web cache has of a study, or of one series of it; instances that it has not made are missing.

        Raises:
            RadmeshError: STUDY_NOT_FOUND.
        """
        request = curator_pb2.GetManifestRequest(
            study_instance_uid=study_instance_uid, series_instance_uid=series_instance_uid
        )
        found: dict[tuple[str, bytes], tuple[Any, list[Any]]] = {}
        for answer in self._whole(self._images.GetManifest, request):
            for part in answer.instances:
                identity = part.rendition.identity
                # Of an instance with very many frames there are several parts.
                of_instance = found.setdefault((identity.sop_instance_uid, identity.sha256), (part.rendition, []))
                of_instance[1].extend(part.frames)
        return [convert.picture(rendition, frames) for rendition, frames in found.values()]

    def series_metadata(self, study_instance_uid: str, series_instance_uid: str) -> list[dict[str, Any]]:
        """Return the DICOM JSON (PS3.18 F.2) of a series, of each instance one; it describes the frames as served.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, RENDITION_NOT_FOUND, OBJECT_CORRUPT.
        """
        request = curator_pb2.ReadSeriesMetadataRequest(
            study_instance_uid=study_instance_uid, series_instance_uid=series_instance_uid
        )
        parts = self._whole(self._images.ReadSeriesMetadata, request)
        if any(part.crc32c != crc32c(part.data) for part in parts):
            raise RadmeshError("OBJECT_CORRUPT", "the metadata were changed on their way: ask again")
        inflate, text = zlib.decompressobj(16 + zlib.MAX_WBITS), bytearray()
        try:
            for part in parts:
                # One more than is allowed: 0 would be no bound.
                text += inflate.decompress(part.data, _METADATA_MOST + 1 - len(text))
                if len(text) > _METADATA_MOST:
                    break
            answer = json.loads(text) if inflate.eof and len(text) <= _METADATA_MOST else None
        except (zlib.error, ValueError):
            answer = None
        if not isinstance(answer, list):
            raise RadmeshError("OBJECT_CORRUPT", "the metadata of the series cannot be read: ask again")
        return answer

    def wipe_web_cache(self, study_instance_uid: str = "") -> tuple[int, int]:
        """Drop the pictures of a study, or of all, and have them made again; return how many studies, and bytes.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, ROLE_REFUSED.
        """
        request = curator_pb2.WipeRequest(study_instance_uid=study_instance_uid)
        answer = self._unary(self._images.WipeWebCache, request, timeout=_WIPE_SECONDS)
        return answer.studies, answer.bytes

    def watch(self) -> Iterator[tuple[str, ...]]:
        """Yield the UIDs of studies whose status, demographics, pictures or report changed, for as long as it is read.

        An empty tuple comes first, and wherever changes may have been missed: whoever shows studies reads them then.

        Raises:
            RadmeshError: SESSION_EXPIRED, ROLE_REFUSED, PEER_UNAVAILABLE.
        """
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            first = True
            try:
                for answer in self._images.WatchStudies(application_pb2.WatchStudiesRequest(), metadata=self._metadata):
                    deadline = time.monotonic() + RETRY_SECONDS
                    if first or answer.study_instance_uids:
                        yield tuple(answer.study_instance_uids)
                    first = False
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if failure.reason != "RESYNC" and not may_repeat(failure, deadline):
                    raise failure from None

    # -- frames -------------------------------------------------------------------------------------------------------

    def frame_data(
        self, study_instance_uid: str, wanted: Iterable[tuple[model.Picture, int]], *, reduce: int = 0
    ) -> Iterator[FrameData]:
        """Yield frames as the web cache has them, in the order asked for; goes on where it was cut.

        Args:
            study_instance_uid: the study.
            wanted: pictures of its manifest, each with the number of a frame, from 1.
            reduce: levels of the wavelet that are not needed; of frames that have prefixes only those are read.

        Raises:
            RadmeshError: RENDITION_NOT_FOUND, RANGE_INVALID, OBJECT_CORRUPT, PEER_UNAVAILABLE.
        """
        waiting = [
            (picture, number, prefix(picture.frames[number - 1], reduce)[0], picture.frames[number - 1].size)
            for picture, number in wanted
        ]
        deadline = time.monotonic() + RETRY_SECONDS
        while waiting:
            batch, done = waiting[:_RANGES_MOST], 0
            try:
                for data in self._batch(study_instance_uid, batch):
                    picture, number, _, _ = batch[done]
                    done += 1
                    deadline = time.monotonic() + RETRY_SECONDS
                    yield FrameData(picture, number, data)
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if not may_repeat(failure, deadline):
                    raise failure from None
            del waiting[:done]

    def _batch(self, study_instance_uid: str, batch: Sequence[tuple[model.Picture, int, int, int]]) -> Iterator[bytes]:
        """Yield the bytes of each range, whole and checked."""
        request = curator_pb2.ReadFramesRequest(
            study_instance_uid=study_instance_uid,
            ranges=[
                curator_pb2.FrameRange(
                    sop_instance_uid=picture.sop_instance_uid,
                    sha256=bytes.fromhex(picture.sha256),
                    frame=number,
                    length=length if length < size else 0,
                )
                for picture, number, length, size in batch
            ],
        )
        index, data = 0, bytearray()
        for answer in self._images.ReadFrames(request, metadata=self._metadata, timeout=_CALL_SECONDS):
            self._check_open()
            if index >= len(batch):
                break
            _, _, length, size = batch[index]
            begins = not data
            data += answer.data
            if (
                (answer.index, answer.offset) != (index, len(data) - len(answer.data))
                or answer.crc32c != crc32c(answer.data)
                or len(data) > length
                or (begins and answer.size != size)
                or (answer.last and len(data) != length)
            ):
                raise RadmeshError("OBJECT_CORRUPT", "a frame was changed on its way: ask again")
            if answer.last:
                yield bytes(data)
                index, data = index + 1, bytearray()
        if index != len(batch):
            raise RadmeshError("OBJECT_CORRUPT", "the cluster sent other frames than were asked for: ask again")

    def frames(
        self,
        study_instance_uid: str,
        *,
        series_instance_uid: str = "",
        sop_instance_uid: str = "",
        reduce: int = 0,
    ) -> Iterator[Frame]:
        """Yield the frames of a study, of a series, or of an instance, decoded; instances without pixels have none.

        A local client takes them from the objects themselves, a remote one from the web cache; the pixels are the
        same. `reduce` halves rows and columns so many times, rounded up: that much less of the web cache's pictures is
        read, by a local client too. What is no HTJ2K comes as it is.

        Raises:
            RadmeshError: STUDY_NOT_FOUND, INSTANCE_NOT_FOUND, FRAME_UNDECODABLE, and as `read` and `frame_data`.
        """
        if reduce < 0:
            raise RadmeshError("FIELD_INVALID", "reduce: 0 or more", metadata={"field": "reduce"})
        if self._remote or reduce:
            return self._pictured(study_instance_uid, series_instance_uid, sop_instance_uid, reduce)
        return self._stored(study_instance_uid, series_instance_uid, sop_instance_uid)

    def _stored(self, study: str, series: str, sop: str) -> Iterator[Frame]:
        from radmesh.client import pixels  # noqa: PLC0415 - brings pydicom

        found = False
        with tempfile.TemporaryDirectory(prefix="radmesh-") as folder:
            path = Path(folder) / "object.dcm"
            for instance in self.instances(study, series_instance_uid=series, sop_instance_uid=sop):
                found = True
                self.fetch(study, instance, path)
                for number, frame in enumerate(pixels.of_file(path), 1):
                    received = instance.length if number == 1 else 0
                    yield Frame(instance.series_instance_uid, instance.sop_instance_uid, number, frame, received)
        _exists(found=found, sop=sop)

    def _pictured(self, study: str, series: str, sop: str, reduce: int) -> Iterator[Frame]:
        from radmesh_native import htj2k  # noqa: PLC0415 - brings numpy

        pictures = [
            picture
            for picture in self.manifest(study, series_instance_uid=series)
            if not sop or picture.sop_instance_uid == sop
        ]
        _exists(found=bool(pictures), sop=sop)
        described = _Described(self, study)
        wanted = ((picture, number) for picture in pictures for number in range(1, len(picture.frames) + 1))
        for frame in self.frame_data(study, wanted, reduce=reduce):
            picture, number = frame.picture, frame.number
            if picture.state == "CODED":
                left = prefix(picture.frames[number - 1], reduce)[1]
                try:
                    pixels = htj2k.decode(frame.data, reduce=left)
                except ValueError as error:
                    raise _undecodable(picture, number) from error
            else:
                pixels = described.decode(frame)
            yield Frame(picture.series_instance_uid, picture.sop_instance_uid, number, pixels, len(frame.data))

    def _whole(self, method: Any, request: Any) -> list[Any]:
        """Return all answers of a stream; one that is cut is begun again."""
        deadline = time.monotonic() + RETRY_SECONDS
        while True:
            try:
                return list(method(request, metadata=self._metadata, timeout=_CALL_SECONDS))
            except grpc.RpcError as error:
                failure = from_rpc_error(error)
                if not may_repeat(failure, deadline):
                    raise failure from None


class _Described:
    """Decodes frames that were passed through as they came, by the metadata of their series; one series is kept."""

    def __init__(self, calls: ImageCalls, study: str) -> None:
        self._calls, self._study = calls, study
        self._series = ""
        self._instances: dict[str, dict[str, Any]] = {}

    def decode(self, frame: FrameData) -> "npt.NDArray[np.generic]":
        from radmesh.client import pixels  # noqa: PLC0415 - brings pydicom

        picture = frame.picture
        if picture.series_instance_uid != self._series:
            found = self._calls.series_metadata(self._study, picture.series_instance_uid)
            self._instances = {item.get("00080018", {}).get("Value", [""])[0]: item for item in found}
            self._series = picture.series_instance_uid
        described = self._instances.get(picture.sop_instance_uid)
        if described is None:
            raise RadmeshError("RENDITION_NOT_FOUND", "the web cache does not describe the instance yet: ask again")
        try:
            return pixels.of_frame(described, frame.data, picture.transfer_syntax_uid)
        except RadmeshError as error:
            raise _undecodable(picture, frame.number) from error


def _undecodable(picture: model.Picture, number: int) -> RadmeshError:
    return RadmeshError(
        "FRAME_UNDECODABLE",
        f"frame {number} of {picture.sop_instance_uid} ({picture.transfer_syntax_uid}) cannot be decoded here",
    )


def _exists(*, found: bool, sop: str) -> None:
    if sop and not found:
        raise RadmeshError("INSTANCE_NOT_FOUND", "the study has no such instance, or the web cache has not made it yet")
