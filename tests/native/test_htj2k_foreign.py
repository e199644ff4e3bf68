"""Code streams of others: OpenJPH's, and passes that our encoder does not write, which the two other decoders judge."""

import imagecodecs
import numpy as np
from depth import examples
from htj2k_support import assert_same, decoded, limits, made, openjpeg_, openjph
from htj2k_writer import refined
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh_native import htj2k

DEPTHS = [(8, False), (8, True), (16, False), (16, True)]


@settings(max_examples=examples(150))
@given(
    shape=st.tuples(st.integers(1, 140), st.integers(1, 140)),
    colour=st.booleans(),
    depth=st.sampled_from(DEPTHS),
    kind=st.sampled_from(["noise", "smooth", "sparse"]),
    seed=st.integers(0, 2**32 - 1),
    levels=st.integers(1, 6),
    tile=st.one_of(st.none(), st.tuples(st.integers(8, 100), st.integers(8, 100))),
    tlm=st.booleans(),
    parts=st.integers(0, 3),
)
def test_code_streams_of_openjph(
    shape: tuple[int, int],
    colour: bool,
    depth: tuple[int, bool],
    kind: str,
    seed: int,
    levels: int,
    tile: tuple[int, int] | None,
    tlm: bool,
    parts: int,
) -> None:
    frame = made((*shape, 3) if colour else shape, *depth, kind, seed)
    codestream = bytes(
        imagecodecs.htj2k_encode(
            frame, reversible=True, rgb=colour, tile=tile, resolutions=levels, tlm=tlm, tilepart=parts
        )
    )
    assert np.array_equal(decoded(codestream), frame)
    # OpenJPH itself cannot leave out resolutions of tiles everywhere.
    for reduce in range(1, levels + 1) if tile is None else ():
        lower = htj2k.decode(codestream, reduce=reduce)
        assert_same(lower, openjph(codestream, reduce), limits(*depth))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    colour=st.booleans(),
    depth=st.sampled_from(DEPTHS),
    kind=st.sampled_from(["noise", "smooth", "sparse"]),
    seed=st.integers(0, 2**32 - 1),
    levels=st.integers(1, 5),
    step=st.sampled_from([None, 0.0005, 0.01]),
    tile=st.one_of(st.none(), st.tuples(st.integers(8, 60), st.integers(8, 60))),
)
def test_irreversible_code_streams(
    shape: tuple[int, int],
    colour: bool,
    depth: tuple[int, bool],
    kind: str,
    seed: int,
    levels: int,
    step: float | None,
    tile: tuple[int, int] | None,
) -> None:
    """The 9/7 is computed in floats, which are rounded: others differ by one. OpenJPH wraps around, ours clips."""
    frame = made((*shape, 3) if colour else shape, *depth, kind, seed)
    codestream = bytes(
        imagecodecs.htj2k_encode(frame, reversible=False, rgb=colour, resolutions=levels, level=step, tile=tile)
    )
    back = decoded(codestream).astype(int)
    theirs = openjph(codestream).reshape(back.shape).astype(int)
    low, high = limits(*depth)
    inside = (back > low + 1) & (back < high - 1)
    assert np.abs(back - theirs)[inside].max(initial=0) <= 1
    if depth[0] == 8:
        assert np.abs(back - openjpeg_(codestream).reshape(back.shape).astype(int)).max() <= 1
    # Nothing is lost but what the quantizer took: a step of the default is far below the range.
    if step != 0.01 and kind == "smooth":
        assert np.abs(back - frame.astype(int)).max() <= (high - low) // 100 + 2


@settings(max_examples=examples(150))
@given(
    rows=st.integers(1, 64),
    columns=st.integers(1, 64),
    scale=st.sampled_from([1, 2, 5, 100]),
    seed=st.integers(0, 2**32 - 1),
    passes=st.sampled_from([2, 3]),
    skipped=st.integers(0, 3),
    causal=st.booleans(),
)
def test_refinement_passes(
    rows: int, columns: int, scale: int, seed: int, passes: int, skipped: int, causal: bool
) -> None:
    """Three passes are the frame; after two the last bit plane of what was known before is half way, as with others.

    Sets of passes that are skipped OpenJPEG does not read.
    """
    random = np.random.default_rng(seed)
    frame = np.clip(random.normal(0, scale, (rows, columns)).round(), -2000, 2000).astype(int)
    if not (np.abs(frame) > 1).any():
        frame[0, 0] = 2
    codestream, meant = refined(frame, passes, skipped, causal)
    back = decoded(codestream)
    assert_same(back, openjph(codestream))
    if skipped == 0:
        assert_same(back, openjpeg_(codestream))
    if passes == 3:
        assert np.array_equal(back, meant)
