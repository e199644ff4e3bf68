"""Orthanc as a station, by its REST API."""

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from station_support import free_ports, present


class Orthanc:
    """A running Orthanc."""

    def __init__(self, folder: Path, dicom_port: int, radmesh_port: int) -> None:
        folder.mkdir()
        http_port = free_ports()["PLAIN"]
        self.url = f"http://127.0.0.1:{http_port}"
        self.folder = folder
        configuration = {
            "Name": "station",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [],
            "HttpPort": http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": "ORTHANC",
            "DicomPort": dicom_port,
            "DicomModalities": {"radmesh": ["RADMESH", "127.0.0.1", radmesh_port]},
            "KeepAlive": True,
        }
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self.process = subprocess.Popen(
            [present("Orthanc"), str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def ask(self, path: str, body: Any = None) -> Any:
        """GET, or POST what is given (JSON, or bytes as they are); return the answer."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}{path}", data), timeout=60) as answer:
            return json.loads(answer.read() or b"null")

    def files(self) -> Iterator[Path]:
        """Every instance it has, written to a file each."""
        for instance in self.ask("/instances"):
            with urllib.request.urlopen(f"{self.url}/instances/{instance}/file", timeout=60) as answer:
                path = self.folder / f"{instance}.dcm"
                path.write_bytes(answer.read())
                yield path

    def forget(self) -> None:
        """Delete all it has."""
        for patient in self.ask("/patients"):
            with urllib.request.urlopen(urllib.request.Request(f"{self.url}/patients/{patient}", method="DELETE")):
                pass

    def is_up(self) -> bool:
        """Whether it answers."""
        with suppress(OSError, urllib.error.URLError):
            return bool(self.ask("/system"))
        return False

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(30)
