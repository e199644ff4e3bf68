"""Code streams as T.800 allows them and our encoder does not write: written here of its blocks, judged by OpenJPEG."""

import imagecodecs
import numpy as np
import pytest
from depth import examples
from htj2k_support import Frame, assert_same, decoded, made, openjph
from htj2k_writer import Block, Component, read, refine, write
from hypothesis import given, settings
from hypothesis import strategies as st

from radmesh_native import htj2k


def judged(codestream: bytes, frame: Frame) -> None:
    """Ours on every path, and OpenJPEG, say that it is the frame."""
    assert np.array_equal(decoded(codestream), frame)
    assert_same(frame, np.asarray(imagecodecs.jpeg2k_decode(codestream)))


def greys(shape: tuple[int, int], seed: int, levels: tuple[int, ...]) -> tuple[Frame, list[Component]]:
    """A frame of three components that have nothing to do with each other."""
    frames = [made(shape, 8, False, "smooth", seed + n) for n in range(len(levels))]
    streams = [htj2k.encode(f, bits_stored=8, levels=n).codestream for f, n in zip(frames, levels, strict=True)]
    return np.stack(frames, -1), [read(stream) for stream in streams]


shapes = st.tuples(st.integers(1, 300), st.integers(1, 300))


@settings(max_examples=examples(60), deadline=None)
@given(
    shape=shapes,
    seed=st.integers(0, 1 << 30),
    levels=st.one_of(st.just((3, 3, 3)), st.tuples(*[st.integers(0, 5)] * 3)),
    progression=st.integers(0, 4),
    layers=st.integers(1, 5),
    packed=st.sampled_from(["", "PPM", "PPT"]),
    marked=st.booleans(),
    parts=st.integers(1, 4),
    styles_in_tile=st.booleans(),
)
def test_every_order_of_packets(
    shape: tuple[int, int],
    seed: int,
    levels: tuple[int, int, int],
    progression: int,
    layers: int,
    packed: str,
    marked: bool,
    parts: int,
    styles_in_tile: bool,
) -> None:
    """Progressions, layers, styles of single components and of the tile, packed headers, SOP and EPH, tile-parts."""
    frame, components = greys(shape, seed, levels)
    random = np.random.default_rng(seed)
    for component in components:
        for block in component.blocks.values():
            block.layers = [int(random.integers(0, layers))] * 3
    codestream = write(
        components,
        progression=progression,
        layers=layers,
        packed=packed,
        marked=marked,
        parts=parts,
        styles_in_tile=styles_in_tile,
    )
    judged(codestream, frame)
    for reduce in range(1, min(levels) + 1):
        lower = htj2k.decode(codestream, reduce=reduce)
        for n, component in enumerate(components):
            alone = htj2k.decode(write([component]), reduce=reduce)
            assert np.array_equal(
                lower[..., n], alone if layers == 1 else htj2k.decode(write([component], layers=layers), reduce=reduce)
            )


@settings(max_examples=examples(30), deadline=None)
@given(
    shape=shapes,
    seed=st.integers(0, 1 << 30),
    orders=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    in_tile=st.booleans(),
    packed=st.sampled_from(["", "PPM", "PPT"]),
    cut=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)),
)
def test_progressions_that_change(
    shape: tuple[int, int], seed: int, orders: list[int], in_tile: bool, packed: str, cut: tuple[int, int, int]
) -> None:
    """POC: what one progression has had, the next ones have not."""
    frame, components = greys(shape, seed, (3, 2, 3))
    random = np.random.default_rng(seed)
    for component in components:
        for block in component.blocks.values():
            block.layers = [int(random.integers(0, 4))] * 3
    resolution, component_end, layer = cut
    changes = [
        (0, 0, layer, resolution, component_end, orders[0]),
        (0, 0, 4, resolution, 3, orders[1]),
        (0, 0, 4, 33, 3, orders[2]),
    ]
    codestream = write(components, layers=4, changes=changes, changes_in_tile=in_tile, packed=packed, parts=2)
    judged(codestream, frame)


@settings(max_examples=examples(40), deadline=None)
@given(
    rows=st.integers(1, 64),
    columns=st.integers(1, 64),
    seed=st.integers(0, 1 << 30),
    layers=st.lists(st.integers(0, 5), min_size=3, max_size=3).map(sorted),
    passes=st.integers(1, 3),
)
def test_refinement_in_layers_of_its_own(rows: int, columns: int, seed: int, layers: list[int], passes: int) -> None:
    """SigProp and MagRef in other packets than the cleanup pass: as if they were all in one."""
    random = np.random.default_rng(seed)
    frame = np.clip(random.normal(0, 5, (rows, columns)).round(), -2000, 2000).astype(int)
    frame[0, 0] = 2
    magnitudes, negative = np.abs(frame), frame < 0
    component = read(
        htj2k.encode((np.sign(frame) * (magnitudes >> 1)).astype("i2"), bits_stored=12, levels=0).codestream
    )
    sigprop, magref, found = refine(magnitudes, negative, passes, False)
    cleanup = component.blocks[0, 0, 0, 0]
    data = [cleanup.passes[0], sigprop, magref][:passes]
    component.blocks[0, 0, 0, 0] = Block(cleanup.missing - 1, data, layers)
    together = Block(cleanup.missing - 1, data, [0, 0, 0])
    codestream = write([component], layers=6)
    component.blocks[0, 0, 0, 0] = together
    one = write([component])
    back = decoded(codestream)
    assert np.array_equal(back, decoded(one))
    assert_same(back, openjph(one))
    if passes == 3:
        assert np.array_equal(back, np.where(negative, -found, found))


def test_wavelets_of_both_kinds_in_a_frame() -> None:
    """One component without loss beside two of the 9/7."""
    frames = [made((90, 140), 8, False, "smooth", n) for n in range(3)]
    lossy = [bytes(imagecodecs.htj2k_encode(f, reversible=False, resolutions=3, level=0.001)) for f in frames]
    components = [read(htj2k.encode(frames[0], bits_stored=8, levels=3).codestream), *map(read, lossy[1:])]
    back = decoded(write(components, progression=3))
    assert np.array_equal(back[..., 0], frames[0])
    for n in (1, 2):
        assert np.array_equal(back[..., n], htj2k.decode(lossy[n]))


@pytest.mark.parametrize(
    "changes", [[(0, 0, 1, 0, 3, 0)], [(0, 3, 1, 4, 3, 0)], [(0, 0, 1, 4, 3, 5)], [(0, 0, 1, 1, 3, 0)] * 33]
)
def test_progressions_that_are_none(changes: list[tuple[int, int, int, int, int, int]]) -> None:
    stream = htj2k.encode(made((40, 50, 3), 8, False, "smooth", 1), bits_stored=8).codestream
    poc = b"".join(bytes((r, c)) + end.to_bytes(2) + bytes((rr, cc, how)) for r, c, end, rr, cc, how in changes)
    at = stream.index(b"\xff\x5c")
    with pytest.raises(htj2k.CodestreamError, match="POC is broken"):
        htj2k.decode(stream[:at] + b"\xff\x5f" + (2 + len(poc)).to_bytes(2) + poc + stream[at:])


def test_layers_and_packed_headers_that_are_cut_off() -> None:
    """Every prefix of a code stream of three layers, and of one with PPT, is a named error."""
    _, components = greys((70, 90), 1, (2, 2, 2))
    for component in components:
        for n, block in enumerate(component.blocks.values()):
            block.layers = [n % 3] * 3
    for packed in ("", "PPM", "PPT"):
        stream = write(components, layers=3, packed=packed, parts=2)
        for length in range(0, len(stream) - 2, 11):
            with pytest.raises(htj2k.CodestreamError):
                htj2k.decode(stream[:length])
