"""The metadata of a series, with the demographics that are shown: DICOM JSON (PS3.18 F.2), made of what Curators said.

A Curator describes what a modality sent, of everything that it has. Here what the viewer may not see is left out, and
corrected values are laid over; an answer is kept for as long as its study looks the same.
"""

import gzip
import hashlib
import json
import re
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.application_server import dicom_json
from radmesh.application_server.pictures import METADATA_MOST, Pictures, SeriesPictures
from radmesh.runtime.errors import RadmeshError
from radmesh_native.crc32c import crc32c

TEXT_MOST: Final = 256 << 20
"""Bytes of a series' metadata in JSON."""
_KEPT_BYTES: Final = 64 << 20
_MOST: Final = 4096
_SECONDS: Final = 60.0
_PAGE: Final = 500
_LEVEL: Final = 5
_SOP_INSTANCE_UID: Final = "00080018"
_SEPARATOR: Final = re.compile(r"\s*([\[,]?)\s*")


@dataclass(frozen=True, slots=True)
class Correction:
    """A corrected value that is in force."""

    keyword: str
    tag: str
    vr: str
    value: str
    source: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Look:
    """How large an instance is, and how it wants to be shown: VOI window and modality transformation (PS3.3 C.11)."""

    rows: int = 0
    columns: int = 0
    photometric_interpretation: str = ""
    center: float | None = None
    width: float | None = None
    slope: float = 1.0
    intercept: float = 0.0


@dataclass(frozen=True, slots=True)
class SeriesMetadata:
    """A gzipped JSON array with an object for each instance, by Instance Number.

    Attributes:
        tag: hexadecimal digest of the text.
        spans: where in the text the object of each SOP Instance UID is: (first byte, byte behind the last).
        looks: how each wants to be shown.
    """

    tag: str
    data: bytes = field(repr=False)
    spans: Mapping[str, tuple[int, int]] = field(repr=False)
    looks: Mapping[str, Look] = field(repr=False)

    def text(self) -> bytes:
        """Return the JSON."""
        return gzip.decompress(self.data)


class Metadata:
    """Makes and keeps the metadata of series. Thread-safe; calls block.

    Args:
        pictures: the web caches.
        studies: calls of database.v1.StudyService.
    """

    def __init__(self, pictures: Pictures, studies: Any) -> None:
        self._pictures = pictures
        self._studies = studies
        self._lock = threading.Lock()
        # One large series at a time takes memory for its text.
        self._making = threading.Semaphore(2)
        self._kept: OrderedDict[tuple[str, str, bool], tuple[tuple[object, ...], SeriesMetadata]] = OrderedDict()
        self._bytes = 0

    def series(
        self, study: database_pb2.Study, series_instance_uid: str, *, held: bool, after: float = 0.0
    ) -> SeriesMetadata:
        """Return the metadata of what is curated of a series, as far as the viewer may see it.

        Args:
            study: as the viewer sees it now.
            series_instance_uid: a series of it.
            held: whether the viewer sees what is held.
            after: as of Pictures.series.

        Raises:
            RadmeshError: PICTURES_PENDING: nothing is; RENDITION_NOT_FOUND, PEER_UNAVAILABLE, MESSAGE_TOO_LARGE …
        """
        found = self._pictures.series(study, series_instance_uid, held=held, after=after)
        key = (study.study_instance_uid, series_instance_uid, held)
        look = (study.version, found.order, found.stores)
        if (kept := self._get(key, look)) is not None:
            return kept
        with self._making:
            if (kept := self._get(key, look)) is not None:
                return kept
            made = self._make(found, self.corrections(study))
        with self._lock:
            if (before := self._kept.pop(key, None)) is not None:
                self._bytes -= len(before[1].data)
            self._kept[key] = (look, made)
            self._bytes += len(made.data)
            while self._bytes > _KEPT_BYTES or len(self._kept) > _MOST:
                self._bytes -= len(self._kept.popitem(last=False)[1][1].data)
        return made

    def _get(self, key: tuple[str, str, bool], look: tuple[object, ...]) -> SeriesMetadata | None:
        with self._lock:
            kept = self._kept.get(key)
            if kept is None or kept[0] != look:
                return None
            self._kept.move_to_end(key)
            return kept[1]

    def corrections(self, study: database_pb2.Study) -> tuple[Correction, ...]:
        """Return the corrections of a study that are in force, by keyword."""
        if not study.corrected:
            return ()
        from radmesh.dicom import header, overlay  # noqa: PLC0415 - brings pydicom

        request = database_pb2.ListCorrectionsRequest(study_instance_uid=study.study_instance_uid, page_size=_PAGE)
        found: list[Correction] = []
        while True:
            page = self._studies.ListCorrections(request)
            found += [
                Correction(
                    c.keyword,
                    f"{header.TAGS[c.keyword]:08X}",
                    overlay.VRS[c.keyword],
                    c.value,
                    c.source,
                    c.time.ToDatetime(UTC),
                )
                for c in page.corrections
                if c.in_force and c.keyword in overlay.VRS
            ]
            if not page.next_page_token:
                return tuple(sorted(found, key=lambda correction: correction.keyword))
            request.page_token = page.next_page_token

    def _make(self, found: SeriesPictures, corrections: Sequence[Correction]) -> SeriesMetadata:
        if not found.order:
            if found.silent:
                raise RadmeshError("PEER_UNAVAILABLE", "the Curator that has the series does not answer: try again")
            raise RadmeshError(
                "PICTURES_PENDING", "the series is not curated yet: try again", metadata={"retry_after_ms": "2000"}
            )
        seen = frozenset(found.order)
        described: dict[str, bytes] = {}
        looks: dict[str, Look] = {}
        failure: RadmeshError | None = None
        for store in found.stores:
            try:
                text = self._read(store, found)
                for uid, instance, source in _instances(text):
                    if uid not in seen or uid in described:
                        continue
                    looks[uid] = _look(instance)
                    # What nothing is changed in is passed on as it was written.
                    made = dicom_json.corrected(instance, corrections) if corrections else instance
                    described[uid] = (source if made == instance else _dump(made)).encode("utf-8", "replace")
            except RadmeshError as error:
                failure = error
        if failure is not None and not described:
            raise failure
        spans: dict[str, tuple[int, int]] = {}
        position = 1
        for uid in found.order:
            if uid in described:
                spans[uid] = (position, position + len(described[uid]))
                position = spans[uid][1] + 1
        whole = b"[" + b",".join(described[uid] for uid in spans) + b"]"
        return SeriesMetadata(
            hashlib.sha256(whole).hexdigest()[:32], gzip.compress(whole, _LEVEL, mtime=0), spans, looks
        )

    def _read(self, store: str, found: SeriesPictures) -> str:
        """Return the JSON text that a web cache has of a series."""
        request = curator_pb2.ReadSeriesMetadataRequest(
            study_instance_uid=found.study_instance_uid, series_instance_uid=found.series_instance_uid
        )
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        came, text = 0, bytearray()
        for message in self._pictures.client(store).ReadSeriesMetadata(request, timeout=_SECONDS):
            if crc32c(message.data) != message.fields.crc32c:
                raise RadmeshError("CHUNK_CORRUPT", "a piece of the metadata does not fit: its CRC-32C differs")
            came += len(message.data)
            try:
                text += inflater.decompress(message.data, TEXT_MOST + 1 - len(text))
            except zlib.error:
                raise RadmeshError("CHUNK_CORRUPT", "the metadata cannot be inflated") from None
            if came > METADATA_MOST or len(text) > TEXT_MOST or inflater.unconsumed_tail:
                raise RadmeshError("MESSAGE_TOO_LARGE", f"the series has more than {TEXT_MOST >> 20} MiB of metadata")
        if not inflater.eof:
            raise RadmeshError("CHUNK_CORRUPT", "the metadata ends early")
        return text.decode("utf-8", "replace")


def _instances(text: str) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield (SOP Instance UID, description, its text) of a JSON array: one at a time, so that others run meanwhile.

    Raises:
        RadmeshError: CHUNK_CORRUPT.
    """
    decoder = json.JSONDecoder()
    position = _following(text, 0, "[")
    try:
        while text[position] != "]":
            instance, end = decoder.raw_decode(text, position)
            yield str(instance[_SOP_INSTANCE_UID]["Value"][0]), instance, text[position:end]
            position = _following(text, end, ",")
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        raise RadmeshError("CHUNK_CORRUPT", "the metadata is no DICOM JSON") from None


def _following(text: str, position: int, separator: str) -> int:
    """Return where what stands behind a separator begins."""
    found = _SEPARATOR.match(text, position)
    if found is None or found.group(1) not in (separator, ""):
        raise RadmeshError("CHUNK_CORRUPT", "the metadata is no DICOM JSON")
    return found.end()


def _dump(instance: Mapping[str, Any]) -> str:
    return json.dumps(instance, ensure_ascii=False, separators=(",", ":"))


def _look(instance: Mapping[str, Any]) -> Look:
    center, width = _number(instance, "00281050"), _number(instance, "00281051")
    return Look(
        int(_number(instance, "00280010") or 0),
        int(_number(instance, "00280011") or 0),
        str(_first(instance, "00280004") or ""),
        center,
        width,
        _number(instance, "00281053") or 1.0,
        _number(instance, "00281052") or 0.0,
    )


def _first(instance: Mapping[str, Any], tag: str) -> Any:
    values = instance.get(tag, {}).get("Value")
    return values[0] if values else None


def _number(instance: Mapping[str, Any], tag: str) -> float | None:
    value = _first(instance, tag)
    return float(value) if isinstance(value, int | float) else None
