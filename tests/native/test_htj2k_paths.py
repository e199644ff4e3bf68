"""Every path of the HTJ2K encoder (htj2k_cpu.h) writes the same bytes, and they are exact."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from depth import examples
from htj2k_support import KINDS, Frame, assert_same, frames, made, openjpeg_, openjph
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh_native import _htj2k_encoder, htj2k

PATHS = ("portable", "sse41", "avx2", "avx512")
CHOSEN = "RADMESH_NATIVE_SIMD"


@pytest.fixture(autouse=True)
def _path() -> Iterator[None]:
    yield
    _htj2k_encoder.use_path(os.environ.get(CHOSEN) or PATHS[-1])


def written(frame: Frame, bits: int, levels: int | None = None) -> htj2k.Encoded:
    """What all paths write; a path that this processor has not stands for the best below it."""
    each = []
    for path in PATHS:
        _htj2k_encoder.use_path(path)
        each.append(htj2k.encode(frame, bits_stored=bits, levels=levels))
    assert all(one == each[0] for one in each)
    return each[0]


@settings(max_examples=examples(150), deadline=None)
@given(frames(), st.one_of(st.none(), st.integers(0, 8)))
def test_all_paths_write_the_same(case: tuple[Frame, int], levels: int | None) -> None:
    frame, bits = case
    assert np.array_equal(htj2k.decode(written(frame, bits, levels).codestream), frame)


@pytest.mark.parametrize("bits", [1, 4, 8, 11, 12, 13, 14, 15, 16])
def test_whole_blocks_of_every_content(bits: int) -> None:
    """64 by 64 and more, where vectors are full; around the depths at which planes of 16 bits no longer do."""
    for seed, kind in enumerate(KINDS):
        for shape in ((64, 64), (257, 322), (129, 64, 3)):
            for signed in (False, True):
                frame = made(shape, bits, signed, kind, seed)
                stream = written(frame, bits).codestream
                assert np.array_equal(htj2k.decode(stream), frame)
                assert_same(frame, openjph(stream))
    assert_same(frame, openjpeg_(stream))


def test_streams_whose_bits_are_stuffed_often() -> None:
    """Runs of ones in the samples: 0xFF after 0xFF in MagSgn, and ones in VLC."""
    for seed in range(40):
        random = np.random.default_rng(seed)
        ones = (1 << random.integers(1, 13, (96, 160))) - 1
        frame = np.where(random.random(ones.shape) < random.random(), -ones, ones).astype(np.int16)
        stream = written(frame, 16, 0).codestream
        assert np.array_equal(htj2k.decode(stream), frame)
        assert_same(frame, openjph(stream))


@pytest.mark.parametrize("path", PATHS)
def test_the_environment_chooses_a_path(path: str) -> None:
    code = "from radmesh_native import _htj2k_encoder as e; print(e.path())"
    got = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, CHOSEN: path}, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert got == _htj2k_encoder.use_path(path)


def test_a_path_that_there_is_not_is_refused() -> None:
    with pytest.raises(ValueError, match="the paths are"):
        _htj2k_encoder.use_path("mmx")
    done = subprocess.run(
        [sys.executable, "-c", "import radmesh_native.htj2k"],
        env={**os.environ, CHOSEN: "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode
    assert "RADMESH_NATIVE_SIMD is none of" in done.stderr
