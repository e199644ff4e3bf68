"""The block decoder under AddressSanitizer, fed with broken blocks (htj2k_block_fuzz.c)."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from htj2k_support import made

from radmesh_native import htj2k

HERE = Path(__file__).resolve().parent
NATIVE = HERE.parents[1] / "native" / "radmesh_native"
COMPILER = shutil.which("gcc") or shutil.which("clang")

# More than a few seconds' worth is asked for by hand: RADMESH_FUZZ=1000000 pytest tests/native/test_htj2k_fuzz.py
BLOCKS = int(os.environ.get("RADMESH_FUZZ", "2000"))


@pytest.mark.skipif(COMPILER is None, reason="there is no C compiler")
def test_broken_blocks(tmp_path: Path) -> None:
    program = tmp_path / "fuzz"
    assert COMPILER is not None
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run(
        [COMPILER, "-O1", "-g", *sanitizers, f"-I{NATIVE}", HERE / "htj2k_block_fuzz.c", "-o", program], check=True
    )
    files = []
    for n, (bits, kind) in enumerate([(8, "smooth"), (12, "smooth"), (12, "noise"), (16, "noise"), (8, "sparse")]):
        # Without levels a frame of 64 by 64 is one block, which begins a few bytes behind SOD: its end is what counts.
        codestream = htj2k.encode(made((64, 64), bits, False, kind, n), bits_stored=bits, levels=0).codestream
        file = tmp_path / f"block{n}"
        file.write_bytes(codestream[codestream.index(b"\xff\x93") + 8 : -2])
        files.append(file)
    done = subprocess.run(
        [program, str(BLOCKS), "1", *files], capture_output=True, text=True, timeout=7200, check=False
    )
    assert done.returncode == 0, done.stderr
    found = re.fullmatch(r"(\d+) of (\d+) decoded\n", done.stdout)
    assert found
    # Both kinds were met, or nothing was tried.
    assert 0 < int(found[1]) < int(found[2]) == BLOCKS
