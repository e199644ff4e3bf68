# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""HTJ2K code streams to frames (T.814, T.800): packets, blocks, wavelet, planes to samples."""

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memset

from radmesh_native._htj2k_block_decoder cimport Coded, decode_block
from radmesh_native._htj2k_cpu cimport HTJ2K_PATH_NAMES, HTJ2K_PATHS, htj2k_choose_path, htj2k_use_path
from radmesh_native._htj2k_layout cimport (
    BAD_BLOCK,
    BAD_MARKER,
    BAD_PACKET,
    BAD_QUANTIZATION,
    BAD_SIZE,
    BAD_STYLE,
    BAD_TILE_PART,
    CPRL,
    FINE,
    NO_MEMORY,
    NO_SUCH_RESOLUTION,
    NOT_ALIKE,
    NOT_HIGH_THROUGHPUT,
    NOT_LAYERED,
    NOT_REVERSIBLE,
    NOT_THESE_BITS,
    NOT_THESE_COMPONENTS,
    NOT_THIS_MARKER,
    PCRL,
    RPCL,
    TOO_LARGE,
    TOO_MANY_BLOCKS,
    TRUNCATED,
    Band,
    Grid,
    Header,
    Layout,
    Rect,
    Resolution,
    bit_planes,
    ceil_shift,
    height_of,
    lay_block,
    lay_grid,
    lay_out,
    tile_area,
    width_of,
)
from radmesh_native._htj2k_markers cimport Parts, find_parts, read_main_header, release_parts
from radmesh_native._htj2k_packets cimport Trees, read_packet_header, release_trees
from radmesh_native._htj2k_samples cimport minus, plus, sample
from radmesh_native._htj2k_wavelet cimport synthesise

cdef enum:
    # The blocks of one packet, at most.
    MAX_BLOCKS = 1 << 22


class CodestreamError(ValueError):
    """A code stream that cannot be decoded; the text says why."""


cdef dict FAULTS = {
    TRUNCATED: "the code stream ends too early: decode it with a greater reduce, or fetch more of it",
    BAD_MARKER: "not a JPEG 2000 code stream, or its main header is broken",
    BAD_SIZE: "the code stream's SIZ is broken",
    BAD_STYLE: "the code stream's COD is broken",
    BAD_QUANTIZATION: "the code stream's QCD or QCC is broken",
    BAD_TILE_PART: "the code stream's tile-parts are broken",
    BAD_PACKET: "the code stream has a broken packet header",
    BAD_BLOCK: "the code stream has a broken code block",
    TOO_LARGE: "the code stream's frame has too many samples",
    TOO_MANY_BLOCKS: "the code stream has too many code blocks",
    NOT_HIGH_THROUGHPUT: "the code stream is not HTJ2K: a JPEG 2000 decoder is needed",
    NOT_REVERSIBLE: "the code stream is not reversible: only lossless HTJ2K is decoded",
    NOT_ALIKE: "the code stream's components differ in depth or sampling, which is not decoded",
    NOT_THESE_COMPONENTS: "the code stream has neither one nor three components",
    NOT_THESE_BITS: "the code stream has more than 16 bits a sample",
    NOT_LAYERED: "the code stream has more than one layer, which is not decoded",
    NOT_THIS_MARKER: "the code stream has COC, RGN, POC, PPM, PPT, or styles of a single tile, which are not decoded",
    NO_SUCH_RESOLUTION: "reduce is greater than the code stream's decomposition levels",
}


cdef object error_of(int fault):
    return MemoryError() if fault == NO_MEMORY else CodestreamError(FAULTS[fault])


if htj2k_choose_path() < 0:
    raise ImportError("RADMESH_NATIVE_SIMD is none of portable, sse41, avx2, avx512")


def use_path(str name):
    """Use a path (htj2k_cpu.h), or the best below it that this processor has; return its name."""
    cdef int path
    for path in range(HTJ2K_PATHS):
        if HTJ2K_PATH_NAMES[path] == name.encode():
            return HTJ2K_PATH_NAMES[htj2k_use_path(path)].decode()
    raise ValueError("the paths are portable, sse41, avx2, avx512")


# Planes -------------------------------------------------------------------------------------------------------------

cdef struct Planes:
    # Two of each component; all the same size, in one piece.
    int32_t *whole
    int32_t *at[3][2]
    Py_ssize_t stride


cdef int make_planes(Planes *planes, int components, int64_t width, int64_t height) noexcept nogil:
    cdef int c, k
    planes.whole = <int32_t *> calloc(<size_t> (2 * components * width * height), sizeof(int32_t))
    if planes.whole == NULL:
        return NO_MEMORY
    planes.stride = width
    for c in range(components):
        for k in range(2):
            planes.at[c][k] = planes.whole + (2 * c + k) * width * height
    return FINE

cdef inline int32_t clip(int32_t value, int32_t low, int32_t high) noexcept nogil:
    return low if value < low else high if value > high else value


cdef void store(
    sample[:, :, ::1] frame, const Planes *planes, int plane, int bits, bint colour, const Rect *area,
    Py_ssize_t left, Py_ssize_t top
) noexcept nogil:
    """Planes to samples: the inverse RCT, within `bits` (G.1.2, G.2.2)."""
    cdef Py_ssize_t x, y, columns = width_of(area), count = frame.shape[2]
    cdef int32_t low = -(1 << (bits - 1)), high = (1 << (bits - 1)) - 1
    cdef int32_t shift = 0 if sample is int8_t or sample is int16_t else 1 << (bits - 1)
    cdef int32_t red, green, blue
    cdef const int32_t *first
    cdef const int32_t *second
    cdef const int32_t *third
    cdef sample *p
    for y in range(height_of(area)):
        p = &frame[top + y, left, 0]
        first = planes.at[0][plane] + y * planes.stride
        if count == 1:
            for x in range(columns):
                p[x] = <sample> (clip(first[x], low, high) + shift)
            continue
        second = planes.at[1][plane] + y * planes.stride
        third = planes.at[2][plane] + y * planes.stride
        for x in range(columns):
            red = first[x]
            green = second[x]
            blue = third[x]
            if colour:
                green = minus(first[x], plus(second[x], third[x]) >> 2)
                red = plus(third[x], green)
                blue = plus(second[x], green)
            p[3 * x] = <sample> (clip(red, low, high) + shift)
            p[3 * x + 1] = <sample> (clip(green, low, high) + shift)
            p[3 * x + 2] = <sample> (clip(blue, low, high) + shift)

# Decoding -----------------------------------------------------------------------------------------------------------

# A packet of a progression by position.
cdef struct Place:
    int64_t first
    int64_t second
    int64_t third
    int component
    int resolution
    int32_t x
    int32_t y


cdef struct Decoder:
    Header header
    Parts parts
    Layout layout
    Planes planes
    Trees trees
    int reduce
    int32_t *work
    Coded *blocks
    Py_ssize_t blocks_room
    Place *places
    # What is being read: a tile-part, and where in it.
    Py_ssize_t part
    const uint8_t *p
    const uint8_t *end


cdef void release_decoder(Decoder *d) noexcept nogil:
    release_parts(&d.parts)
    release_trees(&d.trees)
    free(d.planes.whole)
    free(d.work)
    free(d.blocks)
    free(d.places)


cdef inline void enter(Decoder *d, Py_ssize_t part) noexcept nogil:
    d.part = part
    d.p = d.parts.parts[part].data
    d.end = d.parts.parts[part].end


cdef int read_packet(Decoder *d, int r, int component, int32_t px, int32_t py) noexcept nogil:
    """Read a packet, and decode its blocks if their resolution is wanted."""
    cdef const Resolution *resolution = &d.layout.resolutions[r]
    cdef const Band *band
    cdef Grid grids[3]
    cdef Rect area
    cdef Coded *block
    cdef int32_t *samples
    cdef int32_t x, y
    cdef int n, fault
    cdef int64_t count = 0
    cdef uint64_t length
    while d.p == d.end:
        if d.parts.parts[d.part].next < 0:
            return TRUNCATED
        enter(d, d.parts.parts[d.part].next)
    for n in range(resolution.count):
        lay_grid(resolution, n, px, py, &grids[n])
        count += <int64_t> grids[n].across * grids[n].down
    if count > MAX_BLOCKS:
        return TOO_MANY_BLOCKS
    if count > d.blocks_room:
        block = <Coded *> realloc(d.blocks, <size_t> count * sizeof(Coded))
        if block == NULL:
            return NO_MEMORY
        d.blocks = block
        d.blocks_room = <Py_ssize_t> count
    # SOP, if it is there, and EPH (A.8).
    if d.header.sop and d.end - d.p >= 6 and d.p[0] == 0xFF and d.p[1] == 0x91:
        d.p += 6
    fault = read_packet_header(grids, resolution.count, &d.p, d.end, d.blocks, &d.trees)
    if fault != FINE:
        return fault
    if d.header.eph and d.end - d.p >= 2 and d.p[0] == 0xFF and d.p[1] == 0x92:
        d.p += 2
    block = d.blocks
    for n in range(resolution.count):
        band = &resolution.bands[n]
        samples = d.planes.at[component][resolution.plane] + band.top * d.planes.stride + band.left
        for y in range(grids[n].down):
            for x in range(grids[n].across):
                if block.passes:
                    length = <uint64_t> block.cleanup + block.refinement
                    if length > <uint64_t> (d.end - d.p):
                        return TRUNCATED
                    block.data = d.p
                    d.p += length
                    if block.cleanup and r <= d.header.levels - d.reduce:
                        lay_block(resolution, &grids[n], x, y, &area)
                        fault = decode_block(
                            block,
                            bit_planes(&d.header, component, band),
                            d.header.causal,
                            samples + (area.y0 - band.area.y0) * d.planes.stride + area.x0 - band.area.x0,
                            d.planes.stride,
                            width_of(&area),
                            height_of(&area),
                        )
                        if fault != FINE:
                            return fault
                block += 1
    return FINE


cdef int compare(const void *a, const void *b) noexcept nogil:
    cdef const Place *left = <const Place *> a
    cdef const Place *right = <const Place *> b
    if left.first != right.first:
        return -1 if left.first < right.first else 1
    if left.second != right.second:
        return -1 if left.second < right.second else 1
    if left.third != right.third:
        return -1 if left.third < right.third else 1
    if left.component != right.component:
        return -1 if left.component < right.component else 1
    return -1 if left.resolution < right.resolution else 1


cdef int read_by_position(Decoder *d, int64_t available) noexcept nogil:
    """The packets of PCRL and CPRL (B.12.1.4, B.12.1.5)."""
    cdef int r, c, fault
    cdef int32_t x, y
    cdef int64_t count = 0, k, across, down
    cdef const Resolution *resolution
    cdef Place *place
    for r in range(d.header.levels + 1):
        resolution = &d.layout.resolutions[r]
        count += <int64_t> resolution.across * resolution.down * d.header.components
        # Every packet has a byte.
        if count > available:
            return TRUNCATED
    place = <Place *> realloc(d.places, <size_t> (count + 1) * sizeof(Place))
    if place == NULL:
        return NO_MEMORY
    d.places = place
    for r in range(d.header.levels + 1):
        resolution = &d.layout.resolutions[r]
        for y in range(resolution.down):
            down = <int64_t> (resolution.first_y + y) << (resolution.precinct_height + d.header.levels - r)
            if down < d.layout.area.y0:
                down = d.layout.area.y0
            for x in range(resolution.across):
                across = <int64_t> (resolution.first_x + x) << (resolution.precinct_width + d.header.levels - r)
                if across < d.layout.area.x0:
                    across = d.layout.area.x0
                for c in range(d.header.components):
                    place.first = down if d.header.progression == PCRL else c
                    place.second = across if d.header.progression == PCRL else down
                    place.third = c if d.header.progression == PCRL else across
                    place.component = c
                    place.resolution = r
                    place.x = x
                    place.y = y
                    place += 1
    qsort(d.places, <size_t> count, sizeof(Place), compare)
    for k in range(count):
        place = &d.places[k]
        fault = read_packet(d, place.resolution, place.component, place.x, place.y)
        if fault != FINE:
            return fault
    return FINE


cdef int read_by_resolution(Decoder *d) noexcept nogil:
    """The packets of LRCP, RLCP and RPCL with one layer, as far as they are wanted (B.12.1.1 … 3)."""
    cdef int r, c, k, fault, outer, inner, components = d.header.components
    cdef int32_t x, y
    cdef const Resolution *resolution
    for r in range(d.header.levels - d.reduce + 1):
        resolution = &d.layout.resolutions[r]
        # By component, then by position; or the reverse.
        outer = 1 if d.header.progression == RPCL else components
        inner = components if d.header.progression == RPCL else 1
        for c in range(outer):
            for y in range(resolution.down):
                for x in range(resolution.across):
                    for k in range(inner):
                        fault = read_packet(d, r, c + k, x, y)
                        if fault != FINE:
                            return fault
    return FINE


cdef int decode_tile(Decoder *d, Py_ssize_t tile) noexcept nogil:
    """Decode a tile to plane `reduce & 1` of each component."""
    cdef Rect area
    cdef int c, r, fault
    cdef int64_t available = 0
    cdef Py_ssize_t part = d.parts.first[tile]
    cdef const Resolution *resolution
    if part < 0:
        return TRUNCATED
    while part >= 0:
        available += d.parts.parts[part].end - d.parts.parts[part].data
        part = d.parts.parts[part].next
    tile_area(&d.header, tile, &area)
    lay_out(&d.header, &area, &d.layout)
    enter(d, d.parts.first[tile])
    if d.header.progression == PCRL or d.header.progression == CPRL:
        fault = read_by_position(d, available)
    else:
        fault = read_by_resolution(d)
    if fault != FINE:
        return fault
    for c in range(d.header.components):
        for r in range(1, d.header.levels - d.reduce + 1):
            resolution = &d.layout.resolutions[r]
            synthesise(
                d.planes.at[c][resolution.plane],
                d.planes.at[c][1 - resolution.plane],
                d.planes.stride,
                &resolution.area,
                d.work,
            )
    return FINE


cdef int decode_tiles(Decoder *d, sample[:, :, ::1] frame) noexcept nogil:
    cdef Py_ssize_t tile
    cdef int fault
    cdef int64_t width = d.header.tile_width, height = d.header.tile_height
    cdef const Rect *area
    if width > width_of(&d.header.image):
        width = width_of(&d.header.image)
    if height > height_of(&d.header.image):
        height = height_of(&d.header.image)
    # Wherever a tile begins, its lower resolution is not larger than this.
    width = ceil_shift(width, d.reduce) + 1
    height = ceil_shift(height, d.reduce) + 1
    d.work = <int32_t *> malloc(<size_t> width * sizeof(int32_t))
    if d.work == NULL:
        return NO_MEMORY
    fault = make_planes(&d.planes, d.header.components, width, height)
    for tile in range(d.parts.tiles):
        if tile:
            memset(d.planes.whole, 0, <size_t> (2 * d.header.components * width * height) * sizeof(int32_t))
        if fault == FINE:
            fault = decode_tile(d, tile)
        if fault != FINE:
            return fault
        area = &d.layout.resolutions[d.header.levels - d.reduce].area
        store(
            frame,
            &d.planes,
            d.reduce & 1,
            d.header.bits,
            d.header.colour,
            area,
            area.x0 - ceil_shift(d.header.image.x0, d.reduce),
            area.y0 - ceil_shift(d.header.image.y0, d.reduce),
        )
    return FINE


cdef int decode_into(Decoder *d, frame):
    cdef int fault
    cdef uint8_t[:, :, ::1] unsigned_bytes
    cdef int8_t[:, :, ::1] signed_bytes
    cdef uint16_t[:, :, ::1] unsigned_words
    cdef int16_t[:, :, ::1] signed_words
    if d.header.bits <= 8 and d.header.has_sign:
        signed_bytes = frame
        with nogil:
            fault = decode_tiles(d, signed_bytes)
    elif d.header.bits <= 8:
        unsigned_bytes = frame
        with nogil:
            fault = decode_tiles(d, unsigned_bytes)
    elif d.header.has_sign:
        signed_words = frame
        with nogil:
            fault = decode_tiles(d, signed_words)
    else:
        unsigned_words = frame
        with nogil:
            fault = decode_tiles(d, unsigned_words)
    return fault


def decode(codestream, int reduce, int64_t max_samples):
    """Return an array of (rows, columns, 1 or 3); 0 <= reduce <= 32."""
    cdef Decoder d
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef int fault
    cdef int64_t samples
    cdef Py_ssize_t rows, columns
    memset(&d, 0, sizeof(Decoder))
    d.reduce = reduce
    PyObject_GetBuffer(codestream, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *> view.buf
        end = p + view.len
        fault = read_main_header(&p, end, &d.header)
        if fault != FINE:
            raise error_of(fault)
        if reduce > d.header.levels:
            raise error_of(NO_SUCH_RESOLUTION)
        samples = <int64_t> width_of(&d.header.image) * height_of(&d.header.image)
        if samples > max_samples // d.header.components:
            raise error_of(TOO_LARGE)
        fault = find_parts(&d.header, p, end, &d.parts)
        if fault == FINE and d.parts.tiles > d.parts.count:
            fault = TRUNCATED
        if fault != FINE:
            raise error_of(fault)
        rows = ceil_shift(d.header.image.y1, reduce) - ceil_shift(d.header.image.y0, reduce)
        columns = ceil_shift(d.header.image.x1, reduce) - ceil_shift(d.header.image.x0, reduce)
        frame = np.empty(
            (rows, columns, d.header.components),
            np.dtype(f"{'i' if d.header.has_sign else 'u'}{1 if d.header.bits <= 8 else 2}"),
        )
        if rows == 0 or columns == 0:
            return frame
        fault = decode_into(&d, frame)
        if fault != FINE:
            raise error_of(fault)
        return frame
    finally:
        release_decoder(&d)
        PyBuffer_Release(&view)
