"""HTJ2K: our encoder and decoder beside imagecodecs (OpenJPH) as it is, frame by frame, on one core.

Each codec runs in a process of its own, on the same core, in rounds, so that a noisy neighbour meets both. MB/s are of
samples as they lie in memory, by the fastest of a frame's repeats; before anything is timed, what was decoded is
compared with what was encoded. Frames are those of the benchmark's sets and of files that come with pydicom.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import sets

# Real ones, uncompressed, of pydicom and pydicom-data; of several frames the first.
FILES = {
    "CT": ("693_UNCI.dcm", "CT_small.dcm"),
    "MR": ("MR2_UNCI.dcm", "MR-SIEMENS-DICOM-WithOverlays.dcm", "emri_small.dcm", "MR_small.dcm"),
    "CR": ("RG1_UNCI.dcm", "RG3_UNCI.dcm"),
    "US RGB": ("US1_UNCI.dcm", "examples_rgb_color.dcm"),
}
# Made: groups of the benchmark's sets, and how many frames of each.
MADE = {"ct": 4, "small": 8, "large": 1}

Encode = Callable[[np.ndarray, int], bytes]
Decode = Callable[[bytes], np.ndarray]


def frames() -> Iterator[tuple[str, np.ndarray, int]]:
    """(group, frame, bits stored) of everything that is coded; all samples are within the bits."""
    from pydicom import dcmread
    from pydicom.data import get_testdata_file

    for group, names in FILES.items():
        for name in names:
            path = get_testdata_file(name, download=False)
            if path is None:
                print(f"codec: there is no {name}: pydicom-data brings it", file=sys.stderr)
                continue
            ds = dcmread(path)
            frame = ds.pixel_array
            frame = frame[0] if frame.ndim == 3 + (ds.SamplesPerPixel > 1) else frame
            yield group, np.ascontiguousarray(frame), bits_of(frame, ds.BitsStored)
    for group, count in MADE.items():
        for _, _, _, frame, bits in islice(sets.frames(group), count):
            yield f"made {group}", frame, bits


def bits_of(frame: np.ndarray, stored: int) -> int:
    low, high = (-(1 << stored - 1), 1 << stored - 1) if frame.dtype.kind == "i" else (0, 1 << stored)
    return stored if low <= int(frame.min()) and int(frame.max()) < high else 8 * frame.itemsize


def radmesh() -> tuple[Encode, Decode]:
    from radmesh_native import htj2k

    return (lambda frame, bits: htj2k.encode(frame, bits_stored=bits).codestream), htj2k.decode


def imagecodecs() -> tuple[Encode, Decode]:
    """RPCL, reversible, a tile-part a resolution with TLM: what 1.2.840.10008.1.2.4.202 asks for (PS3.5 10.18)."""
    import imagecodecs as codecs

    def encode(frame: np.ndarray, _bits: int) -> bytes:
        levels = max(1, ((max(frame.shape[:2]) - 1) // 64).bit_length())
        return bytes(
            codecs.htj2k_encode(frame, resolutions=levels, reversible=True, tlm=True, tilepart=1, rgb=frame.ndim == 3)
        )

    return encode, lambda stream: np.asarray(codecs.htj2k_decode(stream))


CODECS: dict[str, Callable[[], tuple[Encode, Decode]]] = {"radmesh": radmesh, "imagecodecs": imagecodecs}


def fastest(call: Callable[[], object], budget: float) -> float:
    times: list[float] = []
    until = time.perf_counter() + budget
    while len(times) < 3 or (time.perf_counter() < until and len(times) < 500):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def work(name: str, budget: float) -> None:
    """Measure one codec; print a line of JSON."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    encode, decode = CODECS[name]()
    rows = []
    for group, frame, bits in frames():
        stream = encode(frame, bits)
        back = decode(stream)
        if back.shape != frame.shape and back.ndim == 3:
            back = back.transpose(1, 2, 0)
        if not np.array_equal(back, frame):
            raise SystemExit(f"{name}: a frame of {group} did not come back as it was")
        rows.append(
            {
                "group": group,
                "bytes": frame.nbytes,
                "coded": len(stream),
                "encode": fastest(lambda f=frame, b=bits: encode(f, b), budget),
                "decode": fastest(lambda s=stream: decode(s), budget),
            }
        )
    print(json.dumps(rows))


def measure(rounds: int, budget: float) -> dict[str, list[dict[str, Any]]]:
    """Rows of every codec, a frame each, with the fastest of all rounds."""
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for name in CODECS:
            command = [sys.executable, __file__, "--work", name, "--budget", str(budget)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows = json.loads(done.stdout)
            for row, before in zip(rows, found.get(name, rows), strict=True):
                row |= {what: min(row[what], before[what]) for what in ("encode", "decode")}
            found[name] = rows
    return found


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """MB/s and ratio of each group, ours beside the other's, and ours ÷ the other's."""
    ours, other = found["radmesh"], found["imagecodecs"]
    columns = ("encode MB/s: radmesh", "imagecodecs", "÷", "decode MB/s: radmesh", "imagecodecs", "÷")
    lines = [
        "| " + " | ".join(("frames", *columns, "ratio: radmesh", "imagecodecs")) + " |",
        "| --- |" + " ---: |" * 8,
    ]
    for group in [*dict.fromkeys(row["group"] for row in ours), "all"]:
        mine, its = ([r for r in rows if group in (r["group"], "all")] for rows in (ours, other))

        def rate(rows: list[dict[str, Any]], what: str) -> float:
            return sum(r["bytes"] for r in rows) / sum(r[what] for r in rows) / 1e6

        cells = []
        for what in ("encode", "decode"):
            a, b = rate(mine, what), rate(its, what)
            cells += [f"{a:.0f}", f"{b:.0f}", f"{a / b:.2f}"]
        cells += [f"{sum(r['bytes'] for r in rows) / sum(r['coded'] for r in rows):.3f}" for rows in (mine, its)]
        lines.append(f"| {group} ({len(mine)}) | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.1, help="seconds for a frame's repeats")
    parser.add_argument("--work", choices=CODECS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        return work(arguments.work, arguments.budget)
    found = measure(arguments.rounds, arguments.budget)
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    (out / "codec.json").write_text(json.dumps(found, indent=1))
    print(f"\nHTJ2K lossless, one core, {len(found['radmesh'])} frames, each decoded exactly\n\n{table(found)}")
    return None


if __name__ == "__main__":
    main()
