"""`make bench`: frames, metadata and searches over DICOMweb, of radmesh and of Orthanc, in one run, as ratios.

Both servers run as shipped and hold the same CT series; wrk, a process of its own with 8 connections, asks them in
turn, in rounds. radmesh answers with HTJ2K code streams, Orthanc with what it has: uncompressed frames, which it
compresses anew each time for who accepts gzip, as browsers do. Before the clock starts every frame of both is compared
with the pixels that were sent.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parents[1] / "tests" / "support")]

import numpy as np
import servers
import sets
from pydicom import dcmread
from pydicom.data import get_testdata_file

COUNT = 40
CONNECTIONS = 8
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
FRAME = "multipart/related; type=application/octet-stream; transfer-syntax=*"
LIST, PEER_LIST = "/api/v1/studies?limit=50", "/studies?expand&since=0&limit=50"
"""What each server's own page asks for."""
WANTED = 10.0
"""Frames/s of radmesh, as multiples of Orthanc's."""

SCRIPT = """
local paths, n = {%s}, 0
request = function() n = n %% #paths + 1; return wrk.format("GET", paths[n]) end
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('\\nRESULT {"requests": %%d, "bytes": %%d, "us": %%d, "failed": %%d, "p50_us": %%d}\\n',
    summary.requests, summary.bytes, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50)))
end
"""


@dataclass(frozen=True)
class Web:
    """A DICOMweb service."""

    name: str
    url: str
    pid: int
    headers: dict[str, str] = field(default_factory=dict)

    def get(self, path: str, accept: str) -> tuple[str, bytes]:
        request = urllib.request.Request(f"{self.url}{path}", headers={"Accept": accept, **self.headers})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.headers["Content-Type"], answer.read()


def make(folder: Path) -> list[Path]:
    """The CT series: pixels as hard to compress as a real one's."""
    rng = np.random.default_rng(651)
    source = dcmread(get_testdata_file("CT_small.dcm", download=False)).pixel_array.astype(float)
    base = sets.enlarge(source, 512, 512)
    paths = []
    for number in range(COUNT):
        pixels = np.roll(base, number % 37, axis=0) + rng.normal(0, 12, base.shape)
        path = folder / f"{number:04d}.dcm"
        sets.data_set("CT", 0, number, pixels.clip(0, 4095), 12).save_as(path, enforce_file_format=True)
        paths.append(path)
    return paths


@contextlib.contextmanager
def radmesh(data: Path, files: list[Path]) -> Iterator[Web]:
    with servers.radmesh(data, extra=("--http-port", "0")) as running:
        from radmesh.client import Cluster

        with Cluster.local(data) as cluster:
            list(cluster.store(files))
        root = json.loads((data / "ready.json").read_bytes())["urls"]["http"]
        password = (data / "admin-password").read_text().strip()
        body = json.dumps({"user": "admin", "password": password, "token": True}).encode()
        request = urllib.request.Request(f"{root}/api/v1/session", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            token = json.load(answer)["token"]
        web = Web("radmesh", f"{root}/dicom-web", running.pid, {"Authorization": f"Bearer {token}"})
        study = sets.uid("bench", "CT", 0)
        request = urllib.request.Request(f"{root}/api/v1/studies/{study}?instances=false", headers=web.headers)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with urllib.request.urlopen(request, timeout=30) as answer:
                if json.load(answer)["study"].get("curated_count") == COUNT:
                    break
            time.sleep(0.2)
        else:
            sys.exit("bench: the Curator does not get ready")
        yield web


@contextlib.contextmanager
def orthanc(data: Path, files: list[Path]) -> Iterator[Web]:
    data.mkdir(parents=True)
    port, dicom = servers.free_port(), servers.free_port()
    configuration = {
        "StorageDirectory": str(data),
        "IndexDirectory": str(data),
        "DicomPort": dicom,
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (data / "orthanc.json").write_text(json.dumps(configuration))
    command = [shutil.which("Orthanc") or "Orthanc", str(data / "orthanc.json")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        servers.wait_for_port(port, process)
        for path in files:
            request = urllib.request.Request(f"http://127.0.0.1:{port}/instances", path.read_bytes())
            urllib.request.urlopen(request, timeout=30).close()
        yield Web("orthanc", f"http://127.0.0.1:{port}/dicom-web", process.pid)
    finally:
        servers.stop(process)


def part_of(content_type: str, body: bytes) -> bytes:
    """The only part of a multipart answer."""
    match = re.search(r'boundary="?([^";]+)', content_type)
    assert match is not None
    return body.split(b"\r\n\r\n", 1)[1].rsplit(f"\r\n--{match[1]}".encode(), 1)[0]


def check(web: Web, paths: list[str], files: list[Path]) -> None:
    """Every frame is that of its file."""
    from radmesh_native import htj2k

    for path, file in zip(paths, files, strict=True):
        frame = part_of(*web.get(path, FRAME))
        expected = dcmread(file).pixel_array
        found = htj2k.decode(frame) if frame[:2] == b"\xff\x4f" else np.frombuffer(frame, "<u2").reshape(expected.shape)
        if not np.array_equal(found, expected):
            sys.exit(f"bench: {web.name} answers with another frame than {file.name}")


def within(paths: list[str]) -> dict[str, list[str]]:
    """Paths under /dicom-web, the same at both servers."""
    return {name: [f"/dicom-web{path}" for path in paths] for name in ("radmesh", "orthanc")}


def load(web: Web, paths: list[str], accept: str, seconds: int, folder: Path, *, zipped: bool) -> dict[str, float]:
    script = folder / "wrk.lua"
    # wrk takes the host from its argument, and the whole path from here.
    script.write_text(SCRIPT % ", ".join(f'"{path}"' for path in paths))
    headers = {"Accept": accept, **({"Accept-Encoding": "gzip"} if zipped else {}), **web.headers}
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script)]
    for name, value in headers.items():
        command += ["-H", f"{name}: {value}"]
    cpu = servers.cpu_seconds(web.pid)
    done = subprocess.run([*command, web.url], capture_output=True, text=True, timeout=seconds + 60, check=False)
    found = re.search(r"RESULT (\{.*\})", done.stdout)
    if found is None:
        sys.exit(f"bench: wrk fails: {done.stdout}{done.stderr}")
    figures = json.loads(found[1])
    span = figures["us"] / 1e6
    return {
        "requests_s": figures["requests"] / span,
        "mb_s": figures["bytes"] / span / 1e6,
        "p50_ms": figures["p50_us"] / 1e3,
        "cpu_ms": (servers.cpu_seconds(web.pid) - cpu) * 1e3 / max(1, figures["requests"]),
        "failed": figures["failed"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=4, help="of each load")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    arguments = parser.parse_args()
    if subprocess.run([Path(__file__).parents[1] / "tools/partners", "--bench"], check=False).returncode != 0:
        sys.exit("bench: the peers are not here")
    shm = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(dir=shm if shm.is_dir() else None, prefix="radmesh-bench-"))
    study, series = sets.uid("bench", "CT", 0), sets.uid("bench", "CT", 0, "series")
    base = f"/studies/{study}/series/{series}"
    frames = [f"{base}/instances/{sets.uid('bench', 'CT', 0, number)}/frames/1" for number in range(COUNT)]
    json_type = "application/dicom+json"
    search = "/studies?PatientID=BENCHCT00000"
    # The same result, asked for by so many other questions: who has the same at the same time shares an answer.
    others = [f"{search}&StudyDate=-2099{month:02}{day:02}" for month in range(1, 13) for day in (1, 8, 15, 22)]
    # Name, paths, Accept, whether gzip is accepted.
    loads = (
        ("frames", within(frames), FRAME, False),
        ("frames, as browsers", within(frames), FRAME, True),
        ("series metadata", within([f"{base}/metadata"]), json_type, True),
        ("search: instances", within([f"{base}/instances"]), json_type, True),
        ("search: studies", within([search]), json_type, True),
        ("search: each another", within(others), json_type, True),
        ("list of studies", {"radmesh": [LIST], "orthanc": [PEER_LIST]}, "application/json", True),
    )
    rows: list[dict[str, Any]] = []
    try:
        files = make(scratch)
        with radmesh(scratch / "radmesh", files) as ours, orthanc(scratch / "orthanc", files) as theirs:
            for web in (ours, theirs):
                check(web, frames, files)
            for number in range(arguments.rounds):
                print(f"round {number + 1} of {arguments.rounds}", flush=True)
                for name, paths, accept, zipped in loads:
                    for web in (ours, theirs):
                        result = load(web, paths[web.name], accept, arguments.seconds, scratch, zipped=zipped)
                        rows.append({"load": name, "server": web.name, **result})
                        print(
                            f"  {name:22}{web.name:10}{result['requests_s']:9.0f}/s{result['mb_s']:9.1f} MB/s"
                            f"{result['p50_ms']:9.2f} ms{result['cpu_ms']:9.2f} CPU ms{result['failed']:6.0f} failed",
                            flush=True,
                        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    arguments.out.mkdir(exist_ok=True)
    (arguments.out / "dicomweb.json").write_text(json.dumps(rows, indent=1))
    report(rows, [name for name, *_ in loads])


def report(rows: list[dict[str, Any]], loads: list[str]) -> None:
    """Medians, radmesh divided by Orthanc; and the same for a second of CPU, which a busy machine changes less."""
    busy, _, _ = os.getloadavg()
    print(f"\nmedian requests/s, and radmesh ÷ Orthanc (load average {busy:.1f} on {os.cpu_count()} cores)")
    for name in loads:
        of = {
            (server, figure): statistics.median(
                row[figure] for row in rows if (row["load"], row["server"]) == (name, server)
            )
            for server in ("radmesh", "orthanc")
            for figure in ("requests_s", "cpu_ms")
        }
        ours, theirs = of["radmesh", "requests_s"], of["orthanc", "requests_s"]
        cpu = of["orthanc", "cpu_ms"] / max(of["radmesh", "cpu_ms"], 1e-9)
        wanted = f"   wanted: ≥ {WANTED:.0f}" if name == "frames" else ""
        print(
            f"  {name:22}radmesh {ours:7.0f}   orthanc {theirs:7.0f}   ÷ {ours / theirs:6.1f}"
            f"   for a second of CPU ÷ {cpu:6.1f}{wanted}"
        )


if __name__ == "__main__":
    main()
