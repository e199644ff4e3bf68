"""C-FIND beside Orthanc's, in one run, on tmpfs: by Patient ID, and lists (bench/README.md).

Both are filled over DICOM with the same studies, one small object each, ten a patient, and asked by the same sender.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))

import raw_dicom
import servers

CR = "1.2.840.10008.5.1.4.1.1.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MARKS = (
    ("by Patient ID, p50 ÷ Orthanc", "p50_ms", 0.33, False),
    ("list, rows/s ÷ Orthanc", "rows_s", 2.0, True),
)
_FIRST_MS = 15.0
# Seconds of CPU within three: less is what a server does that has nothing to do.
_IDLE = 0.9


def study(number: int, patients: int) -> tuple[str, bytes]:
    """SOP Instance UID and data set of a study's only object."""
    patient = number % patients
    date = f"{2023 + number // 12 % 2}{1 + number % 12:02d}{1 + number * 7 % 28:02d}"
    root = f"2.25.77{number:012d}"
    us = raw_dicom.us
    return f"{root}3", raw_dicom.explicit(
        (0x00080005, "CS", b"ISO_IR 100"),
        (0x00080016, "UI", CR.encode()),
        (0x00080018, "UI", f"{root}3".encode()),
        (0x00080020, "DA", date.encode()),
        (0x00080030, "TM", b"101500"),
        (0x00080050, "SH", f"ACC{number:08d}".encode()),
        (0x00080060, "CS", b"CR"),
        (0x00081030, "LO", b"Chest PA"),
        (0x00100010, "PN", f"Name{patient:06d}^First".encode()),
        (0x00100020, "LO", f"PAT{patient:06d}".encode()),
        (0x00100030, "DA", b"19600101"),
        (0x0020000D, "UI", f"{root}1".encode()),
        (0x0020000E, "UI", f"{root}2".encode()),
        (0x00200013, "IS", b"1"),
        (0x00280002, "US", us(1)),
        (0x00280004, "CS", b"MONOCHROME2"),
        (0x00280010, "US", us(16)),
        (0x00280011, "US", us(16)),
        (0x00280100, "US", us(16)),
        (0x00280101, "US", us(12)),
        (0x00280102, "US", us(11)),
        (0x00280103, "US", us(0)),
        (0x7FE00010, "OW", bytes(512)),
    )


def fill(arguments: tuple[int, str, int, int, int]) -> int:
    """Store every `step`th study; return how many were not taken."""
    port, called, count, first, step = arguments
    refused = 0
    with raw_dicom.Client(port, [(1, CR, [raw_dicom.EXPLICIT])], called=called) as client:
        for number in range(first, count, step):
            uid, data = study(number, max(1, count // 10))
            refused += client.store(data, uid, sop_class=CR, message_id=1 + number % 65535).status != 0
        client.release()
    return refused


def ask(client: raw_dicom.Client, number: int, **keys: str) -> tuple[float, float, int]:
    """Return seconds, seconds to the first row, and rows of a query at study level."""
    tags = {"date": (0x00080020, "DA"), "patient_id": (0x00100020, "LO")}
    also = ((0x00080050, "SH"), (0x00081030, "LO"), (0x00100010, "PN"), (0x0020000D, "UI"))
    elements = [(0x00080052, "CS", b"STUDY"), *((tag, vr, b"") for tag, vr in also)]
    elements += [(*tags[name], keys.get(name, "").encode()) for name in tags]
    us = raw_dicom.us
    command = {0x0002: FIND.encode(), 0x0100: us(0x20), 0x0110: us(number), 0x0700: us(0), 0x0800: us(1)}
    framed = raw_dicom.message(1, raw_dicom.command(command), raw_dicom.explicit(*sorted(elements)))
    began, first, rows = time.perf_counter(), 0.0, 0
    client.send(framed)
    while client.response().status in (0xFF00, 0xFF01):
        client.pdu()
        rows += 1
        first = first or time.perf_counter() - began
    return time.perf_counter() - began, first, rows


def measure(server: servers.Running, count: int, queries: int) -> dict[str, Any]:
    """Return what a server's answers take."""
    with raw_dicom.Client(server.port, [(1, FIND, [raw_dicom.EXPLICIT])], called=server.ae_title) as client:
        ask(client, 1, patient_id="PAT000000")
        patients = max(1, count // 10)
        ids = [ask(client, n + 2, patient_id=f"PAT{n * 7919 % patients:06d}") for n in range(queries)]
        seconds, first, rows = ask(client, 1, date="20230101-20241231")
        client.release()
    if rows != count or {found for _, _, found in ids} - {count // patients, count // patients + 1}:
        sys.exit(f"bench: {server.name} finds {rows} of {count} studies")
    return {
        "p50_ms": statistics.median(taken for taken, _, _ in ids) * 1e3,
        "rows_s": rows / seconds,
        "first_ms": first * 1e3,
    }


def settle(server: servers.Running, seconds: float = 900.0) -> None:
    """Wait until a server has done what the studies gave it to do: copies, pictures."""
    until = time.monotonic() + seconds
    before = servers.cpu_seconds(server.pid)
    while time.monotonic() < until:
        time.sleep(3)
        now = servers.cpu_seconds(server.pid)
        if now - before < _IDLE:
            return
        before = now


def median(rounds: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {name: round(statistics.median(one[name] for one in rounds), 2) for name in rounds[0]}


def main() -> int:
    """Run, print a table, and write bench/out/queries.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=20_000)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--at", type=Path, default=Path("/dev/shm/radmesh-bench-queries"))
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {}
    with ExitStack() as stack:
        running = [
            stack.enter_context(servers.radmesh(options.at / "radmesh")),
            stack.enter_context(servers.peer("orthanc", options.at / "orthanc", tuned=True)),
        ]
        for server in running:
            work = [(server.port, server.ae_title, options.studies, first, 4) for first in range(4)]
            with multiprocessing.get_context("spawn").Pool(4) as pool:
                if refused := sum(pool.map(fill, work)):
                    sys.exit(f"bench: {server.name} refused {refused} objects")
        for server in running:
            settle(server)
        rounds: dict[str, list[dict[str, Any]]] = {server.name: [] for server in running}
        for _ in range(options.rounds):
            for server in running:
                rounds[server.name].append(measure(server, options.studies, options.queries))
        figures = {name: median(found) for name, found in rounds.items()}
    for name, found in figures.items():
        print(
            f"{name:10} p50 {found['p50_ms']:8.2f} ms  {found['rows_s']:9.0f} rows/s  first {found['first_ms']:7.1f} ms"
        )
    ours, theirs = figures["radmesh"], figures["orthanc"]
    for what, name, mark, more in MARKS:
        ratio = ours[name] / theirs[name]
        good = ratio >= mark if more else ratio <= mark
        print(f"{what}: {ratio:.2f} ({'at least' if more else 'at most'} {mark}){'' if good else '  MISSED'}")
    missed = "" if ours["first_ms"] <= _FIRST_MS else "  MISSED"
    print(f"first row: {ours['first_ms']:.1f} ms (at most {_FIRST_MS}){missed}")
    out = Path(__file__).with_name("out")
    out.mkdir(exist_ok=True)
    (out / "queries.json").write_text(json.dumps({"studies": options.studies, **figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
