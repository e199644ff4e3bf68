"""Code streams that our encoder does not write: blocks of others put into packets of any order (T.800 A, B; T.814 B).

component = read(codestream)                 # of one component, one tile, one precinct a resolution
write([component] * 3, layers=3, progression=4, packed="PPT")
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from radmesh_native import htj2k

Frame = np.ndarray[Any, Any]
# Resolution, subband, row and column.
Key = tuple[int, int, int, int]
BLOCK = 64


@dataclass
class Block:
    """A code block: bit planes above the cleanup pass; cleanup, SigProp, MagRef, as far as they are there."""

    missing: int
    passes: list[bytes]
    # The layer of each pass.
    layers: list[int] = field(default_factory=lambda: [0, 0, 0])


@dataclass
class Component:
    rows: int
    columns: int
    depth: int  # as SIZ has it
    levels: int
    style: bytes  # SPcod from behind the levels: block sizes, block style, transform
    quantization: bytes  # from Sqcd on
    blocks: dict[Key, Block]


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


# Reading ------------------------------------------------------------------------------------------------------------


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

    def end(self) -> int:
        return self.at + (self.byte == 0xFF)


class Tree:
    """A tag tree (B.10.2): of each node, what it is at least, and whether it is that."""

    def __init__(self, down: int, across: int) -> None:
        self.levels = 0
        while max(down, across) > 1 << self.levels:
            self.levels += 1
        self.low: dict[tuple[int, int, int], int] = {}
        self.known: set[tuple[int, int, int]] = set()

    def read(self, bits: Bits, y: int, x: int, most: int) -> int:
        low = 0
        for level in range(self.levels, -1, -1):
            node = (level, y >> level, x >> level)
            low = max(low, self.low.get(node, 0))
            while low < most and node not in self.known:
                if bits.bit():
                    self.known.add(node)
                else:
                    low += 1
            self.low[node] = low
        return low


def segments(codestream: bytes) -> dict[int, bytes]:
    """The segments of the main header, behind their lengths."""
    at, found = 2, {}
    while codestream[at : at + 2] != b"\xff\x90":
        length = int.from_bytes(codestream[at + 2 : at + 4])
        found[codestream[at + 1]] = codestream[at + 4 : at + 2 + length]
        at += 2 + length
    return found


def read(codestream: bytes) -> Component:
    """The blocks of a code stream of one component with blocks of 64 by 64, one pass each."""
    found = segments(codestream)
    size, style = found[0x51], found[0x52]
    columns, rows, levels = int.from_bytes(size[2:6]), int.from_bytes(size[6:10]), style[5]
    component = Component(rows, columns, size[36], levels, style[6:10], found[0x5C], {})
    body, at = b"", codestream.index(b"\xff\x90")
    while codestream[at : at + 2] == b"\xff\x90":
        length = int.from_bytes(codestream[at + 6 : at + 10])
        body += codestream[at + 14 : at + length]
        at += length
    at = 0
    for resolution, bands in enumerate(bands_of(rows, columns, levels)):
        bits, order = Bits(body, at), []
        for band, (high, wide) in enumerate(bands) if bits.bit() else ():
            down, across = -(-high // BLOCK), -(-wide // BLOCK)
            included, missing = Tree(down, across), Tree(down, across)
            for y, x in np.ndindex(down, across):
                if included.read(bits, y, x, 1):
                    continue
                planes = missing.read(bits, y, x, 99)
                assert bits.bit() == 0
                width = 3
                while bits.bit():
                    width += 1
                order.append(((resolution, band, y, x), planes, bits.number(width)))
        at = bits.end()
        for key, planes, length in order:
            component.blocks[key] = Block(planes, [body[at : at + length]])
            at += length
    return component


# Writing ------------------------------------------------------------------------------------------------------------


def packed_bits(bits: str) -> bytes:
    """A packet header: seven bits follow 0xFF, and it does not end with that."""
    out = bytearray()
    while bits:
        room = 7 if out[-1:] == b"\xff" else 8
        out.append(int(bits[:room].ljust(room, "0"), 2))
        bits = bits[room:]
    return bytes(out) + (b"\0" if out[-1:] == b"\xff" else b"")


def passes_bits(total: int) -> str:
    """B.10.6."""
    return {1: "0", 2: "10", 3: "1100", 4: "1101", 5: "1110"}.get(total) or "1111" + f"{total - 6:05b}"


def lengths_bits(lengths: list[tuple[int, int]], least: int) -> tuple[str, int]:
    """Lblock and the lengths of a block, each with the bits that its number of passes adds; and Lblock."""
    width = max([least, *(length.bit_length() - extra for length, extra in lengths)])
    return "1" * (width - least) + "0" + "".join(f"{n:0{width + extra}b}" for n, extra in lengths), width


class Precinct:
    """One block a subband; what earlier packets said of it."""

    def __init__(self, blocks: list[Block | None]) -> None:
        self.blocks = blocks
        self.low = [0] * len(blocks)
        self.width = [0] * len(blocks)

    def packet(self, layer: int) -> tuple[bytes, bytes]:
        """Header and body of the packet of a layer."""
        bits, body = "1", b""
        if not any(block and layer in block.layers[: len(block.passes)] for block in self.blocks):
            return b"\0", b""
        for n, block in enumerate(self.blocks):
            if block is None:
                # The subband has no samples here.
                continue
            fresh = [data for data, at in zip(block.passes, block.layers, strict=False) if at == layer]
            if self.width[n]:
                bits += "1" if fresh else "0"
            else:
                first = block.layers[0] if block.passes else 1 << 20
                bits += "0" * (min(first, layer + 1) - self.low[n]) + ("1" if fresh else "")
                self.low[n] = layer + 1
            if not fresh:
                continue
            sizes = [(len(fresh[0]), 0)] if not self.width[n] else []
            rest = fresh[len(sizes) :]
            if rest:
                sizes.append((sum(map(len, rest)), len(rest) - 1))
            if not self.width[n]:
                bits += "0" * block.missing + "1"
            said, self.width[n] = lengths_bits(sizes, self.width[n] or 3)
            bits += passes_bits(len(fresh)) + said
            body += b"".join(fresh)
        return packed_bits(bits), body


@dataclass(frozen=True)
class Place:
    component: int
    resolution: int
    y: int
    x: int
    # On the reference grid.
    down: int
    across: int


def precincts(components: list[Component]) -> dict[Place, Precinct]:
    """Precincts of 128 by 128, of 64 by 64 in the lowest resolution: one block of each subband is in one."""
    found = {}
    for c, component in enumerate(components):
        for r, bands in enumerate(bands_of(component.rows, component.columns, component.levels)):
            below = component.levels - r
            side = 7 if r else 6
            down, across = (-(-n // (1 << below + side)) for n in (component.rows, component.columns))
            for y, x in np.ndindex(down, across):
                blocks = [
                    component.blocks.get((r, band, y, x), Block(0, []))
                    if y * BLOCK < rows and x * BLOCK < columns
                    else None
                    for band, (rows, columns) in enumerate(bands)
                ]
                place = Place(c, r, y, x, y << side + below, x << side + below)
                found[place] = Precinct(blocks)
    return found


def order(places: list[Place], progression: int, layers: int) -> Iterator[tuple[Place, int]]:
    """B.12.1."""
    by_row = sorted(places, key=lambda p: (p.resolution, p.component, p.y, p.x))
    if progression == 0:
        yield from ((place, layer) for layer in range(layers) for place in by_row)
    elif progression == 1:
        for _, group in groupby(by_row, lambda p: p.resolution):
            same = list(group)
            yield from ((place, layer) for layer in range(layers) for place in same)
    else:
        keys = {
            2: lambda p: (p.resolution, p.down, p.across, p.component),
            3: lambda p: (p.down, p.across, p.component, p.resolution),
            4: lambda p: (p.component, p.down, p.across, p.resolution),
        }
        yield from ((place, layer) for place in sorted(places, key=keys[progression]) for layer in range(layers))


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + (2 + len(data)).to_bytes(2) + data


def in_pieces(marker: int, data: bytes, first: int = 0) -> bytes:
    """PPM or PPT segments, the last first: readers go by their numbers."""
    most = max(100, -(-len(data) // 50))
    pieces = [data[at : at + most] for at in range(0, len(data), most)]
    return b"".join(segment(marker, bytes((n,)) + piece) for n, piece in reversed(list(enumerate(pieces, first))))


def write(
    components: list[Component],
    *,
    progression: int = 2,
    layers: int = 1,
    colour: bool = False,
    changes: list[tuple[int, int, int, int, int, int]] | None = None,
    changes_in_tile: bool = False,
    styles_in_tile: bool = False,
    packed: str = "",
    marked: bool = False,
    parts: int = 1,
) -> bytes:
    """A code stream of one tile.

    Args:
        components: of the same size and depth; what is not as it is with the first goes to COC and QCC.
        progression: of COD.
        layers: how many; blocks say in which they are.
        colour: there is a colour transform.
        changes: POC, each as its fields in order.
        changes_in_tile: POC is in the tile-part header.
        styles_in_tile: the main header says something else of quantization and style, and that of the tile what is so.
        packed: "", "PPM" or "PPT".
        marked: with SOP and EPH.
        parts: tile-parts.
    """
    first = components[0]
    # SIZ, with the bit of Part 15; CAP.
    size = b"\x40\0" + b"".join(
        n.to_bytes(4) for n in (first.columns, first.rows, 0, 0, first.columns, first.rows, 0, 0)
    )
    size += len(components).to_bytes(2) + bytes((first.depth, 1, 1)) * len(components)
    main = b"\xff\x4f" + segment(0x51, size) + segment(0x50, b"\0\2\0\0\0\x0f")
    own = b""
    for c, component in enumerate(components):
        sides = bytes((0x66, *[0x77] * component.levels))
        style = bytes((component.levels,)) + component.style + sides
        if c == 0:
            flags = 1 | 6 * marked
            own += segment(0x52, bytes((flags, progression)) + layers.to_bytes(2) + bytes((colour,)) + style)
            own += segment(0x5C, component.quantization)
            continue
        if (component.levels, component.style) != (first.levels, first.style):
            own += segment(0x53, bytes((c, 1)) + style)
        if component.quantization != first.quantization:
            own += segment(0x5D, bytes((c,)) + component.quantization)
    if styles_in_tile:
        # Of no use: three levels, 4 by 4; and of the last component that again.
        other = b"\3\0\0" + first.style[2:4]
        main += segment(0x52, b"\0\0\0\1\0" + other) + segment(0x53, bytes((len(components) - 1, 0)) + other)
        main += segment(0x5C, bytes((0x40, *[0x48] * 10)))
    else:
        main, own = main + own, b""
    if changes:
        poc = segment(
            0x5F, b"".join(bytes((r, c)) + end.to_bytes(2) + bytes((rr, cc, how)) for r, c, end, rr, cc, how in changes)
        )
        main, own = (main, own + poc) if changes_in_tile else (main + poc, own)
    held = precincts(components)
    done = dict.fromkeys(held, 0)
    packets: list[tuple[bytes, bytes]] = []
    for r, c, end, rr, cc, how in changes or [(0, 0, layers, 33, len(components), progression)]:
        inside = [p for p in held if r <= p.resolution < rr and c <= p.component < cc]
        for place, layer in order(inside, how, min(end, layers)):
            if done[place] == layer:
                done[place] += 1
                packets.append(held[place].packet(layer))
    assert set(done.values()) == {layers}
    bodies: list[bytes] = []
    headers: list[bytes] = []
    for n, (said, body) in enumerate(packets):
        sop = b"\xff\x91\0\4" + (n & 0xFFFF).to_bytes(2) if marked else b""
        header = said + b"\xff\x92" if marked else said
        headers.append(header if packed else b"")
        bodies.append(sop + body if packed else sop + header + body)
    cuts = [len(bodies) * n // parts for n in range(parts + 1)]
    if packed == "PPM":
        of_parts = (b"".join(headers[a:b]) for a, b in pairwise(cuts))
        main += in_pieces(0x60, b"".join(len(part).to_bytes(4) + part for part in of_parts))
    stream = main
    for n, (a, b) in enumerate(pairwise(cuts)):
        head = (own if n == 0 else b"") + (in_pieces(0x61, b"".join(headers[a:b]), 60 * n) if packed == "PPT" else b"")
        body = head + b"\xff\x93" + b"".join(bodies[a:b])
        stream += b"\xff\x90\0\x0a\0\0" + (12 + len(body)).to_bytes(4) + bytes((n, parts)) + body
    return stream + b"\xff\xd9"


# Refinement ---------------------------------------------------------------------------------------------------------


def forward(bits: list[int]) -> bytes:
    """SigProp's bytes: least significant bit first; seven bits follow 0xFF."""
    out = bytearray()
    while bits:
        room = 7 if out[-1:] == b"\xff" else 8
        out.append(sum(bit << n for n, bit in enumerate(bits[:room])))
        bits = bits[room:]
    return bytes(out)


def backward(bits: list[int]) -> bytes:
    """MagRef's: the same from the end; seven bits follow a byte over 0x8F if they are all ones."""
    out, last = bytearray(), 0xFF
    while bits:
        room = 7 if last > 0x8F and bits[:7] == [1] * 7 else 8
        last = sum(bit << n for n, bit in enumerate(bits[:room]))
        out.append(last)
        bits = bits[room:]
    return bytes(reversed(out))


def refine(magnitudes: Frame, negative: Frame, passes: int, causal: bool) -> tuple[bytes, bytes, Frame]:
    """SigProp and MagRef of the last bit plane (T.814 7.4, 7.5), and the magnitudes that a decoder finds with them."""
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
    return forward(raw), backward(more), found


def packet_header(missing: int, passes: int, skipped: int, cleanup: int, refinement: int) -> bytes:
    """T.800 B.10: one block, included; so many bit planes missing; passes; lengths."""
    total = passes + 3 * skipped
    bits = "1" + "1" + "0" * (missing - skipped) + "1"
    bits += passes_bits(total)
    extra = (skipped * 3 + 1).bit_length() - 1
    length_bits = max(cleanup.bit_length() - extra, refinement.bit_length() - passes // 3, 3)
    bits += "1" * (length_bits - 3) + "0"
    bits += f"{cleanup:0{length_bits + extra}b}"
    if passes > 1:
        bits += f"{refinement:0{length_bits + passes // 3}b}"
    return packed_bits(bits)


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
    sigprop, magref, found = refine(magnitudes, negative, passes, causal)
    refinement = sigprop + magref
    body = packet_header(11, passes, skipped, cleanup, len(refinement)) + block + refinement
    main = bytearray(codestream[: data - 14])
    style = main.index(b"\xff\x52") + 12
    assert main[style] == 0x40
    main[style] |= 8 if causal else 0
    main[-4:] = (14 + len(body)).to_bytes(4)
    part = bytearray(codestream[data - 14 : data])
    part[6:10] = (14 + len(body)).to_bytes(4)
    return bytes(main + part + body + b"\xff\xd9"), np.where(negative, -found, found)
