"""Curators with a database and an archive, as they are wired, in one process; their workers are real processes."""

from pathlib import Path
from typing import Any

import numpy as np
from cluster_support import image
from component_mesh import Components, Item
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from transfer_support import object_header
from waiting import wait_for

from radmesh.api.curator.v1 import curator_pb2
from radmesh.api.database.v1 import database_pb2
from radmesh.curator import config, module
from radmesh.dicom import uids
from radmesh.dicom.admission import AdmissionKey
from radmesh.dicom.header import QueryableHeader, new_scanner
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.rpc import MethodCodec
from radmesh.transfer.codec import decoder
from radmesh_native import htj2k

CODECS = {
    "ReadFrames": MethodCodec(response_deserializer=decoder(curator_pb2.ReadFramesResponse)),
    "ReadSeriesMetadata": MethodCodec(response_deserializer=decoder(curator_pb2.ReadSeriesMetadataResponse)),
}
CODED, PASSED, ORIGINAL, NONE = 1, 2, 3, 4

# A worker as it is, but that frames which begin with a word do something to their process.
FAULTS = """
import os, signal, time
from radmesh.curator.worker import instance, process
usual = instance.of_native
def of_native(frame, *rest):
    word = bytes(frame[:8])
    if word == b"segfault": os.kill(os.getpid(), signal.SIGSEGV)
    if word == b"exit-now": os._exit(9)
    if word == b"forever!":
        while True: pass
    if word == b"sleeping": time.sleep(1000)
    if word == b"eats-all":
        return bytearray(1 << 27), bytearray(3 << 30)
    if word == b"raising!": raise LookupError("nobody expects it")
    return usual(frame, *rest)
instance.of_native = of_native
process.CPU_SECONDS = 2
process.main()
"""


def encode(ds: Any, syntax: str = uids.EXPLICIT_VR_LITTLE_ENDIAN) -> bytes:
    """The bytes of a data set."""
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = (
        syntax != uids.EXPLICIT_VR_BIG_ENDIAN,
        syntax == "1.2.840.10008.1.2",
    )
    ds = ds.copy()
    write_dataset(buffer, ds)
    return bytes(buffer.getvalue())


def unreadable(data: bytes) -> bytes:
    """A data set with a sequence in an item that has not the room for it: those who skip the item see nothing of it."""
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    item, end = b"\xfe\xff\x00\xe0" + len(sequence).to_bytes(4, "little"), b"\xfe\xff\xdd\xe0\0\0\0\0"
    at = data.index(b"\x10\x00\x10\x00PN")
    return data[:at] + sequence + item + sequence + end + data[at:]


def header_of(data: bytes, syntax: str) -> bytes:
    """The queryable header, as the gateway proxy scans it."""
    scanner = new_scanner(uids.transfer_syntax(syntax))
    for start in range(0, len(data), 1 << 20):
        if scanner.feed(data[start : start + (1 << 20)]):
            break
    scanner.finish()
    return bytes(scanner.header())


def item_of(data: bytes, syntax: str = uids.EXPLICIT_VR_LITTLE_ENDIAN, station: str = "CT1") -> Item:
    """An object to be sent, of its data set."""
    blob = header_of(data, syntax)
    header = QueryableHeader.parse(blob)
    key = AdmissionKey.of(station, header)
    made = object_header(header.text("StudyInstanceUID"), header.text("SOPInstanceUID"), key)
    values = {field: getattr(made, field) for field in made.__dataclass_fields__}
    values |= {
        "series_instance_uid": header.text("SeriesInstanceUID"),
        "sop_class_uid": header.text("SOPClassUID"),
        "transfer_syntax_uid": syntax,
    }
    return Item(type(made)(**values), key, blob, data)


def ct(study: int, number: int, pixels: Any = None, **values: Any) -> Item:
    """CT image `number` of a study; `pixels` (rows, columns) of uint16 with 12 bits."""
    if pixels is None:
        pixels = pixels_of(study, number)
    rows, columns = pixels.shape[-2:]
    ds = image(study, Rows=rows, Columns=columns, PixelData=pixels.astype("<u2").tobytes(), **values)
    ds.SOPInstanceUID = f"2.25.77.{study}.1.{number}"
    ds.InstanceNumber = str(number)
    return item_of(encode(ds))


def pixels_of(study: int, number: int, size: int = 64) -> Any:
    """Pixels that only this image has."""
    rng = np.random.default_rng(study * 100_000 + number)
    slope = np.add.outer(np.arange(size), np.arange(size)) * 8
    return (slope + rng.integers(0, 64, (size, size))).astype(np.uint16) & 0xFFF


class Cluster(Components):
    """Components, and Curators."""

    def __init__(self, folder: Path, transport: str = "unix") -> None:
        super().__init__(folder, transport)
        for number in range(2):
            self.mesh.addresses[f"curator-{number}"] = self.mesh.listen(f"curator-{number}")

    def curator(self, number: int = 0, **settings: Any) -> Any:
        instance = f"curator-{number}"
        context = self.contexts[instance] = self.mesh.context(instance)
        values = {"threads": 1, "reserve": 0, "quiet": 0.0, "busy_pause": 0.0, "sweep": 1.0, **settings}
        made = module.module(config.Section(**values), context)
        made.start()
        self.running[instance] = made
        return made

    def web_cache(self, number: int = 0) -> Any:
        return self.client("application-server", curator_pb2, "WebCacheService", f"curator-{number}", codecs=CODECS)

    def curation(self, caller: str = "application-server") -> Any:
        return self.client(caller, database_pb2, "CurationService", "database-server")

    def renditions(self, study: str) -> list[Any]:
        request = database_pb2.FindRenditionsRequest(study_instance_uid=study, include_held=True, page_size=5000)
        try:
            return list(self.curation().FindRenditions(request).renditions)
        except RadmeshError as error:
            if error.reason != "STUDY_NOT_FOUND" and not error.transient:
                raise
            return []  # not known yet, or the database was started a moment ago

    def curated(self, study: str, count: int, seconds: float = 30.0) -> dict[str, Any]:
        """Renditions by SOP Instance UID, as soon as so many instances have one."""

        def found() -> dict[str, Any]:
            made = {r.identity.sop_instance_uid: r for r in self.renditions(study) if r.target}
            return made if len(made) >= count else {}

        return wait_for(found, seconds)

    def jobs(self) -> list[Any]:
        service = self.client("application-server", database_pb2, "JobService", "database-server")
        return list(service.ListJobs(database_pb2.ListJobsRequest(kind="curate", page_size=1000)).jobs)

    def job_ended(self, study: str, seconds: float = 30.0) -> Any:
        """The newest job of a study, when it has ended."""

        def ended() -> Any:
            mine = [job for job in self.jobs() if job.key == study]
            return mine[0] if mine and mine[0].state in (3, 4) else None

        return wait_for(ended, seconds)

    def frame(self, study: str, sop: str, frame: int = 1, number: int = 0, **part: Any) -> tuple[Any, bytes]:
        """The first message of a frame's, and its bytes."""
        request = curator_pb2.ReadFramesRequest(
            study_instance_uid=study,
            ranges=[curator_pb2.FrameRange(sop_instance_uid=sop, frame=frame, **part)],
        )
        messages = list(self.web_cache(number).ReadFrames(request, timeout=60.0))
        assert [m.fields.last for m in messages] == [False] * (len(messages) - 1) + [True]
        return messages[0].fields, b"".join(bytes(m.data) for m in messages)

    def metadata(self, study: str, series: str, number: int = 0) -> tuple[Any, bytes]:
        request = curator_pb2.ReadSeriesMetadataRequest(study_instance_uid=study, series_instance_uid=series)
        messages = list(self.web_cache(number).ReadSeriesMetadata(request, timeout=60.0))
        return messages[0].fields, b"".join(bytes(m.data) for m in messages)


def study_of(number: int) -> str:
    return f"2.25.77.{number}"


def check(cluster: Cluster, study: int, *numbers: int, curator: int = 0) -> None:
    """These images of a study are served as they are."""
    for number in numbers:
        _, stream = cluster.frame(study_of(study), f"{study_of(study)}.1.{number}", number=curator)
        assert np.array_equal(htj2k.decode(stream, max_samples=64 * 64), pixels_of(study, number))


def files(cluster: Cluster, number: int = 0) -> list[Path]:
    """The files of a web cache."""
    return sorted((cluster.mesh.folder / f"curator-{number}" / "webcache").glob("*.study"))
