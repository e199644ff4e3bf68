"""A whole cluster under `radmesh up` on free ports, and the `radmesh` command run against it."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from radmesh.api.database.v1 import database_pb2
from radmesh.client import Cluster
from radmesh.mesh import cli
from radmesh.runtime.clock import SystemClock
from radmesh.runtime.context import Context
from radmesh.runtime.errors import RadmeshError
from radmesh.runtime.lifecycle import Status
from radmesh.runtime.logs import Logger
from radmesh.runtime.metrics import Metrics
from radmesh.runtime.security import Credentials

FREE_PORTS = {f"RADMESH_{name}_PORT": "0" for name in ("DICOM", "DICOM_TLS", "GRPC", "HTTP", "HL7")}
COMMAND = [sys.executable, "-P", "-m", "radmesh.mesh"]


def environment(**changes: str) -> dict[str, str]:
    return {**{k: v for k, v in os.environ.items() if not k.startswith("RADMESH_")}, **changes}


@dataclass(frozen=True)
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def reason(self) -> str:
        return str(self.json["error"]["reason"])


def run(*arguments: object, **variables: str) -> Answer:
    """Run `radmesh` in this process, which spares its start."""
    out, err = io.StringIO(), io.StringIO()
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(environment(**{k: v for k, v in before.items() if k != "RADMESH_DATA"}) | variables)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main([str(a) for a in arguments])
            except SystemExit as error:
                code = int(error.code or 0)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return Answer(code, out.getvalue(), err.getvalue())


class RealCluster:
    """`radmesh up`, its data, and commands to it."""

    def __init__(self, data: Path, *arguments: str) -> None:
        self.data = data
        self.process = subprocess.Popen(
            [*COMMAND, "up", "--data", str(data), *arguments],
            env=environment(**FREE_PORTS), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        until = time.monotonic() + 180
        while not (data / "ready.json").exists():
            if self.process.poll() is not None or time.monotonic() > until:
                self.process.kill()
                raise AssertionError(f"not ready: {self.process.communicate()[0]}")
            time.sleep(0.02)
        self.ready: Mapping[str, Any] = json.loads((data / "ready.json").read_bytes())
        self._contexts: list[Context] = []

    def run(self, *arguments: object, **variables: str) -> Answer:
        return run(*arguments, "--data", self.data, **variables)

    def command(self, *arguments: object, **variables: str) -> Answer:
        """Run `radmesh` as a process of its own."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)],
            env=environment(RADMESH_DATA=str(self.data), **variables),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    def client(self, user: str = "admin", password: str | None = None) -> Cluster:
        return Cluster.local(self.data, user=user, password=password)

    @property
    def target(self) -> str:
        return str(self.ready["urls"]["grpc"]).partition("://")[2]

    def inside(self, service: str) -> Any:
        """Calls of a service of the Database Server, made as the Application Server makes them."""
        if not self._contexts:
            instance = "application-server"
            self._contexts.append(
                Context(
                    component=instance,
                    instance=instance,
                    data=self.data / instance,
                    clock=SystemClock(),
                    log=Logger(instance, instance, io.StringIO()),
                    metrics=Metrics(),
                    status=Status(SystemClock()),
                    credentials=Credentials(self.data / "credentials", instance),
                    listen="",
                    addresses={"database-server": f"unix:{self.data}/run/database-server.sock"},
                )
            )
        return self._contexts[0].client(database_pb2.DESCRIPTOR.services_by_name[service], "database-server")

    def correct(self, study: str, **values: str) -> None:
        """Lay corrections over a study; an empty value takes one away."""
        self.inside("StudyService").SetCorrection(
            database_pb2.SetCorrectionRequest(study_instance_uid=study, values=values, source="user:test", actor="test")
        )

    def close(self) -> None:
        for context in self._contexts:
            context.channels.close()
        self.process.terminate()
        try:
            self.process.communicate(timeout=120)
        finally:
            self.process.kill()


@contextlib.contextmanager
def refused(reason: str) -> Iterator[None]:
    """What is within raises the reason."""
    try:
        yield
    except RadmeshError as error:
        assert error.reason == reason, error
    else:
        raise AssertionError(f"nothing raised {reason}")


def image(number: int, **values: Any) -> FileDataset:
    """A small CT image; `number` makes its study and instance, `values` are set over it (None = not there)."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    ds = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    ds.SOPClassUID = CTImageStorage
    ds.StudyInstanceUID = f"2.25.77.{number}"
    ds.SeriesInstanceUID = f"2.25.77.{number}.1"
    ds.SOPInstanceUID = f"2.25.77.{number}.1.1"
    ds.PatientID, ds.PatientName, ds.Modality = f"P{number}", "Doe^John", "CT"
    ds.StudyDate, ds.StudyTime = "20260102", "030405"
    ds.Rows = ds.Columns = 16
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.SamplesPerPixel, ds.PixelRepresentation = 16, 12, 11, 1, 0
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.PixelData = np.arange(256, dtype="<u2").tobytes()
    for keyword, value in values.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def save(folder: Path, number: int, **values: Any) -> Path:
    """Write `image` to a file."""
    ds = image(number, **values)
    path = folder / f"{ds.SOPInstanceUID}.dcm"
    ds.save_as(path, enforce_file_format=True)
    return path


def data_set(path: Path) -> bytes:
    """The bytes of a file behind its meta information."""
    from radmesh.dicom import part10

    with path.open("rb") as file:
        part10.seek_data_set(file)
        return file.read()


def samples() -> list[Path]:
    """Every DICOM file that comes with pydicom."""
    root = Path(pydicom.__file__).parent / "data"
    return [path for folder in ("test_files", "charset_files") for path in sorted((root / folder).rglob("*.dcm"))]
