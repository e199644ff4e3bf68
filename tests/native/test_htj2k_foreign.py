"""Code streams of others: OpenJPH's, and passes that our encoder does not write, which the two other decoders judge."""

import imagecodecs
import numpy as np
import pytest
from depth import examples
from htj2k_support import Frame, assert_same, decoded, limits, made, openjpeg_, openjph
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


def test_a_style_that_is_that_of_all_may_be_said_again() -> None:
    """COC of OpenJPH's sort: one component's style, which is COD's."""
    frame = made((50, 60, 3), 8, False, "smooth", 1)
    codestream = htj2k.encode(frame, bits_stored=8, levels=2).codestream
    at = codestream.index(b"\xff\x5c")
    style = codestream.index(b"\xff\x52") + 4
    said = b"\1\1" + codestream[style + 5 : style + 13]
    again = codestream[:at] + b"\xff\x53" + (2 + len(said)).to_bytes(2) + said + codestream[at:]
    assert np.array_equal(htj2k.decode(again), frame)
    other = again[: at + 7] + b"\3" + again[at + 8 :]
    with pytest.raises(htj2k.CodestreamError, match="differ in depth, sampling or style"):
        htj2k.decode(other)


def bands_of(rows: int, columns: int, levels: int) -> list[list[tuple[int, int]]]:
    """(rows, columns) of the subbands of each resolution, lowest first, of a frame that begins at 0."""

    def shares(side: int, level: int) -> tuple[int, int]:
        whole = -(-side // (1 << (level - 1)))
        return -(-whole // 2), whole // 2

    resolutions = []
    for level in range(levels, 0, -1):
        (low_y, high_y), (low_x, high_x) = shares(rows, level), shares(columns, level)
        resolutions.append([(low_y, high_x), (high_y, low_x), (high_y, high_x)])
    return [[(-(-rows // (1 << levels)), -(-columns // (1 << levels)))], *resolutions]


class Bits:
    """A reader of packet headers (T.800 B.10.1)."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at, self.byte, self.have = data, at, 0, 0

    def bit(self) -> int:
        if self.have == 0:
            self.have = 7 if self.byte == 0xFF else 8
            self.byte = self.data[self.at]
            self.at += 1
        self.have -= 1
        return self.byte >> self.have & 1

    def number(self, length: int) -> int:
        return sum(self.bit() << n for n in reversed(range(length)))


def packet_length(data: bytes, at: int, bands: list[tuple[int, int]]) -> int:
    """The length of a packet of our encoder whose subbands have one code block each."""
    bits, body = Bits(data, at), 0
    if bits.bit():
        for rows, columns in bands:
            if rows and columns and bits.bit():
                while not bits.bit():
                    pass
                assert bits.bit() == 0
                length_bits = 3
                while bits.bit():
                    length_bits += 1
                body += bits.number(length_bits)
    return bits.at + (bits.byte == 0xFF) - at + body


@pytest.mark.parametrize("progression", range(5))
def test_progressions(progression: int) -> None:
    """The packets of one of our code streams in every order; with one precinct a resolution there are two."""
    levels, shape = 3, (61, 47, 3)
    frame = made(shape, 8, False, "smooth", progression)
    encoded = htj2k.encode(frame, bits_stored=8, levels=levels)
    first = encoded.codestream.index(b"\xff\x90")
    packets: dict[tuple[int, int], bytes] = {}
    for resolution, bands in enumerate(bands_of(*shape[:2], levels)):
        at = ([first, *encoded.resolution_offsets])[resolution] + 14
        for component in range(3):
            length = packet_length(encoded.codestream, at, bands)
            packets[resolution, component] = encoded.codestream[at : at + length]
            at += length
        assert at == encoded.resolution_offsets[resolution] - (2 if resolution == levels else 0)
    by_component = progression > 2
    order = sorted(packets, key=(lambda key: key[::-1]) if by_component else None)
    body = b"".join(packets[key] for key in order)
    main = bytearray(encoded.codestream[:first])
    main[main.index(b"\xff\x52") + 5] = progression
    # Without TLM, in one tile-part whose length is left open.
    main = main[: main.index(b"\xff\x55")]
    part = bytearray(encoded.codestream[first : first + 14])
    part[6:12] = bytes(6)
    codestream = bytes(main + part) + body + b"\xff\xd9"
    assert np.array_equal(htj2k.decode(codestream), frame)
    assert_same(frame, openjph(codestream))
    assert_same(frame, openjpeg_(codestream))
    for reduce in range(1, levels + 1):
        assert np.array_equal(htj2k.decode(codestream, reduce=reduce), htj2k.decode(encoded.codestream, reduce=reduce))


# Refinement ---------------------------------------------------------------------------------------------------------
# A writer of SigProp and MagRef passes after T.814 7.4 and 7.5, for one code block: our encoder makes the cleanup pass
# of all bit planes but the last, which is refined.


def forward(bits: list[int]) -> bytes:
    """Least significant bit first; seven bits follow 0xFF."""
    out = bytearray()
    while bits:
        room = 7 if out[-1:] == b"\xff" else 8
        out.append(sum(bit << n for n, bit in enumerate(bits[:room])))
        bits = bits[room:]
    return bytes(out)


def backward(bits: list[int]) -> bytes:
    """The same from the end; seven bits follow a byte over 0x8F if they are all ones."""
    out, last = bytearray(), 0xFF
    while bits:
        room = 7 if last > 0x8F and bits[:7] == [1] * 7 else 8
        last = sum(bit << n for n, bit in enumerate(bits[:room]))
        out.append(last)
        bits = bits[room:]
    return bytes(reversed(out))


def refine(magnitudes: Frame, negative: Frame, passes: int, causal: bool) -> tuple[bytes, Frame]:
    """The two passes of the last bit plane, and the magnitudes that a decoder finds with them."""
    rows, columns = magnitudes.shape
    known = np.zeros((rows + 2, columns + 2), bool)
    known[1:-1, 1:-1] = magnitudes > 1
    was = known.copy()
    found = np.where(magnitudes > 1, magnitudes & ~1, 0)
    raw, more = [], []
    for top in range(0, rows, 4):
        bottom = min(top + 4, rows)
        for left in range(0, columns, 4):
            fresh = []
            for x in range(left, min(left + 4, columns)):
                for y in range(top, bottom):
                    around = known[y : y + 3, x : x + 3].copy()
                    if causal and y + 1 == bottom:
                        around[2] = False
                    if known[y + 1, x + 1] or not around.any():
                        continue
                    raw.append(int(magnitudes[y, x] & 1))
                    if magnitudes[y, x] & 1:
                        known[y + 1, x + 1] = True
                        found[y, x] = 1
                        fresh.append((y, x))
            raw += [int(negative[at]) for at in fresh]
        if passes > 2:
            for x in range(columns):
                for y in range(top, bottom):
                    if was[y + 1, x + 1]:
                        more.append(int(magnitudes[y, x] & 1))
                        found[y, x] = magnitudes[y, x]
    return forward(raw) + backward(more), found


def packet_header(missing: int, passes: int, skipped: int, cleanup: int, refinement: int) -> bytes:
    """T.800 B.10: one block, included; so many bit planes missing; passes; lengths."""
    total = passes + 3 * skipped
    bits = "1" + "1" + "0" * (missing - skipped) + "1"
    bits += {1: "0", 2: "10", 3: "1100", 4: "1101", 5: "1110"}.get(total) or "1111" + f"{total - 6:05b}"
    extra = (skipped * 3 + 1).bit_length() - 1
    length_bits = max(cleanup.bit_length() - extra, refinement.bit_length() - passes // 3, 3)
    bits += "1" * (length_bits - 3) + "0"
    bits += f"{cleanup:0{length_bits + extra}b}"
    if passes > 1:
        bits += f"{refinement:0{length_bits + passes // 3}b}"
    out = bytearray()
    while bits:
        room = 7 if out[-1:] == b"\xff" else 8
        out.append(int(bits[:room].ljust(room, "0"), 2))
        bits = bits[room:]
    return bytes(out) + (b"\0" if out[-1:] == b"\xff" else b"")


def refined(frame: Frame, passes: int, skipped: int = 0, causal: bool = False) -> tuple[bytes, Frame]:
    """A code stream of one block whose last bit plane is refined, and the frame that it stands for."""
    bits = 12
    magnitudes, negative = np.abs(frame.astype(int)), frame < 0
    coarse = np.where(negative, -(magnitudes >> 1), magnitudes >> 1).astype(np.int16)
    codestream = htj2k.encode(coarse, bits_stored=bits, levels=0).codestream
    data = codestream.index(b"\xff\x93") + 2
    # One block and one pass: two bits, 12 zeros and a one, a zero, Lblock and the length.
    head, widths = "", []
    for n in range(data, data + 7):
        widths.append(7 if codestream[n - 1] == 0xFF and n > data else 8)
        head += f"{codestream[n]:08b}"[-widths[-1] :]
    ones = head[16:].index("0")
    end = 16 + ones + 1 + 3 + ones
    cleanup = int(head[end - 3 - ones : end], 2)
    begin = data + next(n + 1 for n in range(7) if sum(widths[: n + 1]) >= end)
    block = codestream[begin : begin + cleanup]
    assert begin + cleanup == len(codestream) - 2
    refinement, found = refine(magnitudes, negative, passes, causal)
    body = packet_header(11, passes, skipped, cleanup, len(refinement)) + block + refinement
    main = bytearray(codestream[: data - 14])
    style = main.index(b"\xff\x52") + 12
    assert main[style] == 0x40
    main[style] |= 8 if causal else 0
    main[-4:] = (14 + len(body)).to_bytes(4)
    part = bytearray(codestream[data - 14 : data])
    part[6:10] = (14 + len(body)).to_bytes(4)
    return bytes(main + part + body + b"\xff\xd9"), np.where(negative, -found, found)


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
