"""HTJ2K: our encoder and decoder beside imagecodecs (OpenJPH) and ojph as they are, frame by frame, and the marks.

Each codec runs in a process of its own, on the same core, in rounds, so that a noisy neighbour meets all of them. MB/s
are of samples as they lie in memory, by the fastest of a frame's repeats; before anything is timed, what was decoded is
compared with what was encoded. Frames are those of the benchmark's sets and of files that come with pydicom, or those
of a folder: index.json, a list of {"name", "group", "bits_stored"}, and name.npz with the array "frame" of each.

ojph wants Python 3.12: CODEC_PYTHON_OJPH names an interpreter that has it and numpy. What is not there is not measured.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

# Real ones, uncompressed, of pydicom and pydicom-data; of several frames the first.
FILES = {
    "CT": ("693_UNCI.dcm", "CT_small.dcm"),
    "MR": ("MR2_UNCI.dcm", "MR-SIEMENS-DICOM-WithOverlays.dcm", "emri_small.dcm", "MR_small.dcm"),
    "CR": ("RG1_UNCI.dcm", "RG3_UNCI.dcm"),
    "US RGB": ("US1_UNCI.dcm", "examples_rgb_color.dcm"),
}
# Made: groups of the benchmark's sets, and how many frames of each.
MADE = {"ct": 4, "small": 8, "large": 1}
SMALL = (64, 128)

Frame = np.ndarray[Any, Any]
Encode = Callable[[Frame, int], bytes]
Decode = Callable[[bytes], Frame]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Mark:
    """A figure, what it must and what it should be: of grey groups, and of those of colours where that differs."""

    what: str
    must: float
    goal: float | None = None
    must_of_colours: float | None = None
    goal_of_colours: float | None = None
    # The less the better.
    time: bool = False
    # The goal is for groups whose name begins so; others have what they must.
    goal_of: tuple[str, ...] = ()


# Frames -------------------------------------------------------------------------------------------------------------


def own_frames() -> Iterator[tuple[str, Frame, int]]:
    """(group, frame, bits stored) of everything that is coded; all samples are within the bits."""
    import sets
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


def frames_of(folder: Path) -> Iterator[tuple[str, Frame, int]]:
    for row in json.loads((folder / "index.json").read_text()):
        frame = np.load(folder / f"{row['name']}.npz")["frame"]
        yield row["group"], frame, bits_of(frame, row["bits_stored"])


def bits_of(frame: Frame, stored: int) -> int:
    low, high = (-(1 << stored - 1), 1 << stored - 1) if frame.dtype.kind == "i" else (0, 1 << stored)
    return stored if low <= int(frame.min()) and int(frame.max()) < high else 8 * frame.itemsize


def lay_out(folder: Path, frames: Iterator[tuple[str, Frame, int]]) -> Rows:
    """Write frames for the workers; with small ones, cut from the middle of two grey groups and one of colours."""
    index: Rows = []
    cut: dict[bool, list[str]] = {False: [], True: []}

    def add(group: str, frame: Frame, bits: int) -> None:
        np.save(folder / f"{len(index)}.npy", np.ascontiguousarray(frame))
        index.append({"group": group, "bytes": frame.nbytes, "bits": bits, "colours": frame.ndim == 3})

    for group, frame, bits in frames:
        add(group, frame, bits)
        groups = cut[frame.ndim == 3]
        if min(frame.shape[:2]) >= 256 and group not in groups and len(groups) < (1 if frame.ndim == 3 else 2):
            groups.append(group)
            for side in SMALL:
                y, x = (frame.shape[axis] // 2 - side // 2 for axis in (0, 1))
                add(f"{side}²{' RGB' if frame.ndim == 3 else ''}", frame[y : y + side, x : x + side], bits)
    (folder / "index.json").write_text(json.dumps(index))
    return index


# Workers ------------------------------------------------------------------------------------------------------------


def radmesh() -> tuple[Encode, Decode]:
    from radmesh_native import htj2k

    return (lambda frame, bits: htj2k.encode(frame, bits_stored=bits).codestream), htj2k.decode


def levels(frame: Frame) -> int:
    """What 1.2.840.10008.1.2.4.202 demands (PS3.5 10.18): a lowest resolution of 64 samples at most."""
    return max(1, int((max(frame.shape[:2]) - 1) // 64).bit_length())


def imagecodecs() -> tuple[Encode, Decode]:
    """RPCL, reversible, a tile-part a resolution with TLM: what 1.2.840.10008.1.2.4.202 asks for."""
    import imagecodecs as codecs

    def encode(frame: Frame, _bits: int) -> bytes:
        return bytes(
            codecs.htj2k_encode(
                frame, resolutions=levels(frame), reversible=True, tlm=True, tilepart=1, rgb=frame.ndim == 3
            )
        )

    return encode, lambda stream: np.asarray(codecs.htj2k_decode(stream))


def ojph() -> tuple[Encode, Decode]:
    """The same without TLM and without a transform of colours, which it has not."""
    import ojph as codec

    def encode(frame: Frame, _bits: int) -> bytes:
        return codec.imwrite_to_memory(
            frame, num_decompositions=levels(frame), progression_order="RPCL", tileparts_at_resolutions=True
        )

    return encode, lambda stream: np.asarray(codec.imread_from_memory(stream))


CODECS: dict[str, Callable[[], tuple[Encode, Decode]]] = {
    "radmesh": radmesh,
    "portable": radmesh,
    "imagecodecs": imagecodecs,
    "ojph": ojph,
}


def fastest(call: Callable[[], object], budget: float) -> float:
    times: list[float] = []
    until = time.perf_counter() + budget
    while len(times) < 3 or (time.perf_counter() < until and len(times) < 500):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def work(name: str, folder: Path, budget: float) -> None:
    """Measure one codec; print a line of JSON."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    encode, decode = CODECS[name]()
    rows = []
    for n, row in enumerate(json.loads((folder / "index.json").read_text())):
        frame, bits = np.load(folder / f"{n}.npy"), row["bits"]
        stream = encode(frame, bits)
        back = decode(stream)
        if back.shape != frame.shape and back.ndim == 3:
            back = back.transpose(1, 2, 0)
        if not np.array_equal(back, frame):
            raise SystemExit(f"{name}: a frame of {row['group']} did not come back as it was")
        row["coded"] = len(stream)
        row["encode"] = fastest(lambda f=frame, b=bits: encode(f, b), budget)
        row["decode"] = fastest(lambda s=stream: decode(s), budget)
        rows.append(row)
    print(json.dumps(rows))


def work_in_threads(folder: Path, budget: float) -> None:
    """Measure our batches in one thread and in two, of as many frames as do for 64 MB; print a line of JSON."""
    from radmesh_native import htj2k

    found = {f"{what} {threads}": 0.0 for what in ("encode", "decode") for threads in (1, 2)}
    for n, row in enumerate(json.loads((folder / "index.json").read_text())):
        frame, bits = np.load(folder / f"{n}.npy"), row["bits"]
        if min(frame.shape[:2]) < 256:
            continue
        batch = [frame] * min(256, max(4, (1 << 26) // frame.nbytes & ~1))
        streams = [htj2k.encode(frame, bits_stored=bits).codestream] * len(batch)
        out = np.empty((len(batch), *frame.shape), htj2k.decode(streams[0]).dtype)
        for threads in (1, 2):
            found[f"encode {threads}"] += fastest(
                lambda a=batch, b=bits, t=threads: htj2k.encode_frames(a, bits_stored=b, threads=t), budget
            )
            found[f"decode {threads}"] += fastest(
                lambda s=streams, o=out, t=threads: htj2k.decode_frames(s, threads=t, out=o), budget
            )
    print(json.dumps(found))


def ask(name: str, folder: Path, budget: float) -> Any:
    """What a worker measured; None: it is not there, or did not do what it was to."""
    python = os.environ.get(f"CODEC_PYTHON_{name.upper()}", sys.executable)
    environment = {**os.environ, "RADMESH_NATIVE_SIMD": "portable"} if name == "portable" else None
    command = [python, __file__, "--work", name, "--folder", str(folder), "--budget", str(budget)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        print(f"codec: {name}: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout)


def measure(folder: Path, rounds: int, budget: float) -> dict[str, Rows]:
    """Rows of every codec that is there, a frame each, with the fastest of all rounds."""
    found: dict[str, Rows] = {}
    for _ in range(rounds):
        for name in CODECS:
            rows = ask(name, folder, budget)
            if rows is None:
                continue
            for row, before in zip(rows, found.get(name, rows), strict=True):
                row |= {what: min(row[what], before[what]) for what in ("encode", "decode")}
            found[name] = rows
    return found


def measure_threads(folder: Path, rounds: int, budget: float) -> dict[str, float]:
    """How many times as fast two threads are, or nothing where there is one core."""
    if len(os.sched_getaffinity(0)) < 2:
        return {}
    found: dict[str, float] = {}
    for _ in range(rounds):
        times = ask("threads", folder, budget) or {}
        found = {key: min(value, found.get(key, value)) for key, value in times.items()}
    return {what: found[f"{what} 1"] / found[f"{what} 2"] for what in ("encode", "decode")} if found else {}


# Tables -------------------------------------------------------------------------------------------------------------


def of(rows: Rows, group: str) -> Rows:
    small = {row["group"] for row in rows if "²" in row["group"]}
    return [row for row in rows if row["group"] == group or (group == "ALL" and row["group"] not in small)]


def figure(rows: Rows, what: str) -> float:
    """MB/s of samples, or what of their bytes the coded ones are, the other way round."""
    size = float(sum(row["bytes"] for row in rows))
    if what == "ratio":
        return size / float(sum(row["coded"] for row in rows))
    return size / float(sum(row[what] for row in rows)) / 1e6


def lines_of(head: list[str], body: list[list[str]]) -> str:
    rows = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def figures(found: dict[str, Rows], groups: list[str]) -> str:
    """MB/s and ratio of every codec, by group."""
    body = []
    for what in ("encode", "decode", "ratio"):
        for name in CODECS:
            if name not in found or (name == "portable" and what == "ratio"):
                continue
            digits = 3 if what == "ratio" else 0
            cells = [f"{figure(of(found[name], group), what):.{digits}f}" for group in groups]
            body.append([f"{what}{'' if what == 'ratio' else ', MB/s'}: {name}", *cells])
    return lines_of(["", *groups], body)


def small_figures(found: dict[str, Rows], groups: list[str]) -> str:
    """Microseconds a frame."""
    body = []
    for what in ("encode", "decode"):
        for name, rows in found.items():
            times = [[row[what] for row in of(rows, group)] for group in groups]
            body.append([f"{what}, µs: {name}", *(f"{1e6 * sum(t) / len(t):.0f}" for t in times)])
    return lines_of(["", *groups], body)


def verdict(mark: Mark, values: list[tuple[str, float, bool]]) -> str:
    """Of a mark: whether every value, of a group that may be one of colours, is what it must be, and what it should."""

    def met(group: str, value: float, *, colours: bool, goal: bool) -> bool:
        goal = goal and (not mark.goal_of or group.startswith(mark.goal_of))
        of_grey, of_colours = (mark.goal, mark.goal_of_colours) if goal else (mark.must, mark.must_of_colours)
        bound = of_colours if colours and of_colours is not None else of_grey
        if bound is None:
            return False
        return value <= bound if mark.time else value >= bound

    if not values:
        return "not measured"
    if not all(met(group, value, colours=colours, goal=False) for group, value, colours in values):
        return "MISSED"
    reached = all(met(group, value, colours=colours, goal=True) for group, value, colours in values)
    return "goal" if mark.goal is not None and reached else "met"


def marks(found: dict[str, Rows], groups: list[str], small: list[str], threads: dict[str, float]) -> str:
    """The table of marks: each by group and of all, what it must be and should be, and whether it is."""
    body: list[list[str]] = []
    ours = found["radmesh"]
    colours = {row["group"] for row in ours if row["colours"]}

    def bounds(mark: Mark) -> list[str]:
        def both(one: float | None, other: float | None) -> str:
            return "-" if one is None else f"{one:g}" if other is None else f"{one:g}, RGB {other:g}"

        sign = "≤ " if mark.time else "≥ "
        goal = both(mark.goal, mark.goal_of_colours) + (f" on {', '.join(mark.goal_of)}" if mark.goal_of else "")
        return [sign + both(mark.must, mark.must_of_colours), goal]

    def compare(mark: Mark, what: str, name: str, other: str, of_groups: list[str], *, all_too: bool = True) -> None:
        if name not in found or other not in found:
            body.append([mark.what, *bounds(mark), *["not measured"] * (len(groups) + 2)])
            return
        columns = [*of_groups, "ALL"] if all_too else of_groups
        values = []
        for group in columns:
            value = figure(of(found[name], group), what) / figure(of(found[other], group), what)
            values.append((group, 1 / value if mark.time else value, group in colours))
        digits = 4 if what == "ratio" else 2
        cells = [f"{value:.{digits}f}" for _, value, _ in values]
        if not all_too:
            cells = [
                ", ".join(f"{group}: {cell}" for group, cell in zip(columns, cells, strict=True)),
                *[""] * len(groups),
            ]
        body.append([mark.what, *bounds(mark), *cells, verdict(mark, values)])

    compare(Mark("encode ÷ imagecodecs", 1.5, 2.2), "encode", "radmesh", "imagecodecs", groups[:-1])
    compare(Mark("encode ÷ ojph", 0.9, 1.25, 1.0, 1.4), "encode", "radmesh", "ojph", groups[:-1])
    compare(Mark("decode ÷ imagecodecs", 1.0, 1.4), "decode", "radmesh", "imagecodecs", groups[:-1])
    compare(Mark("decode ÷ ojph", 0.9, 1.2), "decode", "radmesh", "ojph", groups[:-1])
    compare(
        Mark("ratio ÷ imagecodecs", 1.0, 1.01, goal_of=("CT", "MR", "US")),
        "ratio",
        "radmesh",
        "imagecodecs",
        groups[:-1],
    )
    for what in ("encode", "decode"):
        mark = Mark(f"64² and 128² frames, {what} time ÷ ojph", 1.0, 0.7, time=True)
        compare(mark, what, "radmesh", "ojph", small, all_too=False)
    for what in ("encode", "decode"):
        mark = Mark(f"two threads ÷ one, {what}", 1.9)
        cells = [*[""] * (len(groups) - 1), f"{threads[what]:.2f}" if threads else "not measured"]
        body.append(
            [mark.what, *bounds(mark), *cells, verdict(mark, [("ALL", threads[what], False)] if threads else [])]
        )
    mark = Mark("encode without SIMD ÷ imagecodecs", 0.6, 0.8)
    compare(mark, "encode", "portable", "imagecodecs", groups[:-1])
    return lines_of(["mark", "must", "goal", *groups, ""], body)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--budget", type=float, default=0.1, help="seconds for a frame's repeats")
    parser.add_argument("--frames", type=Path, help="a folder of frames, instead of the benchmark's own")
    parser.add_argument("--work", choices=[*CODECS, "threads"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work == "threads":
        return work_in_threads(arguments.folder, arguments.budget)
    if arguments.work:
        return work(arguments.work, arguments.folder, arguments.budget)
    with tempfile.TemporaryDirectory(prefix="radmesh-codec-") as temporary:
        folder = Path(temporary)
        index = lay_out(folder, frames_of(arguments.frames) if arguments.frames else own_frames())
        found = measure(folder, arguments.rounds, arguments.budget)
        threads = measure_threads(folder, arguments.rounds, arguments.budget)
    if "radmesh" not in found:
        raise SystemExit("codec: ours could not be measured")
    out = HERE / "out"
    out.mkdir(exist_ok=True)
    (out / "codec.json").write_text(json.dumps({"rows": found, "threads": threads}, indent=1))
    names = list(dict.fromkeys(row["group"] for row in index))
    small = [name for name in names if "²" in name]
    groups = [*(name for name in names if name not in small), "ALL"]
    count = len(of(found["radmesh"], "ALL"))
    print(f"\nHTJ2K lossless, one core, {count} frames, each decoded exactly\n\n{figures(found, groups)}")
    print(f"\nSmall frames\n\n{small_figures(found, small)}")
    print(f"\nMarks\n\n{marks(found, groups, small, threads)}")
    return None


if __name__ == "__main__":
    main()
