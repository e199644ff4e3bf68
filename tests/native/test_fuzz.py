"""What the fuzzer found to be worth keeping, once more, and what is near to it (fuzz_targets.py; `make fuzz` digs)."""

import ctypes
import gc
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from depth import times
from fuzz_targets import CORPUS, INPUTS, TARGETS, changed, corpus

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "native" / "radmesh_native"
COMPILER = shutil.which("gcc") or shutil.which("clang")
MOST_KEPT = 1 << 20


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_kept_and_what_is_near(name: str) -> None:
    kept = corpus(name)
    taken = {bool(TARGETS[name](memoryview(one))) for one in kept}
    chance = random.Random(name)
    for _ in range(times(20_000, 500)):
        one = changed(chance, kept, INPUTS[name])
        try:
            taken.add(TARGETS[name](memoryview(one)))
        except BaseException as error:
            error.add_note(f"the input: {one.hex()}")
            raise
    # Both kinds were met, or nothing was tried; but any bytes have a checksum.
    assert taken == ({True} if name == "checksum" else {True, False})


class Mallinfo2(ctypes.Structure):
    """What malloc says of its memory (mallinfo(3)); `uordblks`: bytes that are in use."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks")
    ] + [
        ("fordblks", ctypes.c_size_t),
        ("keepcost", ctypes.c_size_t),
    ]


MALLINFO = getattr(ctypes.CDLL(None), "mallinfo2", None)


def in_use() -> int:
    gc.collect()
    assert MALLINFO is not None
    said = MALLINFO()
    return int(said.uordblks + said.hblkhd)


@pytest.mark.skipif(MALLINFO is None, reason="there is no mallinfo2")
@pytest.mark.parametrize("name", TARGETS)
def test_no_memory_is_lost(name: str) -> None:
    assert MALLINFO is not None
    MALLINFO.restype = Mallinfo2
    kept = corpus(name)
    seen = []
    for _ in range(4):
        for one in kept:
            TARGETS[name](memoryview(one))
        seen.append(in_use())
    # What is kept for the next time is kept once: what is lost is lost every time.
    assert min(seen[2:]) <= max(seen[:2]), seen


def test_little_is_kept() -> None:
    assert {file.stem for file in CORPUS.iterdir()} == INPUTS.keys()
    assert sum(file.stat().st_size for file in CORPUS.iterdir()) < MOST_KEPT


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
def test_broken_blocks_under_sanitizers(tmp_path: Path) -> None:
    """Without libFuzzer (block.c): the block decoder of every path, under AddressSanitizer."""
    program = tmp_path / "block"
    assert COMPILER is not None
    sanitizers = ["-DALONE", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        [COMPILER, "-O1", "-g", *sanitizers, f"-I{NATIVE}", HERE / "fuzz" / "block.c", "-o", program], check=True
    )
    files = []
    for n, one in enumerate(corpus("block")):
        if len(one) > 8:
            files.append(tmp_path / f"{n}")
            files[-1].write_bytes(one)
    blocks = times(100_000, 2000)
    done = subprocess.run([program, str(blocks), "1", *files], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"(\d+) of (\d+) decoded\n", done.stdout)
    assert found
    assert 0 < int(found[1]) < int(found[2]) == blocks + len(files)
