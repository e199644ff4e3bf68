# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""HTJ2K code streams to frames (T.814, T.800): packets, blocks, wavelet, planes to samples."""

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport ldexp
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memset

from radmesh_native._htj2k_block_decoder cimport Coded, decode_block, use_block_path
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
    NOT_ALIKE: "the code stream's components differ in depth, sampling or style, which is not decoded",
    NOT_THESE_COMPONENTS: "the code stream has neither one nor three components",
    NOT_THESE_BITS: "the code stream has more than 16 bits a sample",
    NOT_LAYERED: "the code stream has more than one layer, which is not decoded",
    NOT_THIS_MARKER: "the code stream has RGN, POC, PPM, PPT, or styles of a single tile, which are not decoded",
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
            use_block_path(path)
            return HTJ2K_PATH_NAMES[htj2k_use_path(path)].decode()
    raise ValueError("the paths are portable, sse41, avx2, avx512")


cdef extern from "htj2k_decode_wavelet.h" nogil:
    enum:
        HTJ2K_RING
        HTJ2K_MARGIN
    ctypedef struct htj2k_level:
        const void *source
        void *target
        Py_ssize_t stride
        Py_ssize_t target_stride
        Py_ssize_t columns
        Py_ssize_t rows
        int odd_x
        int odd_y
    ctypedef struct htj2k_output:
        uint8_t *p
        Py_ssize_t pitch
        int bytes
        int components
        int colour
        int32_t low
        int32_t high
        int32_t shift
    void htj2k_synthesise(int narrow, const htj2k_level *level, void *work)
    void htj2k_finish(int narrow, const htj2k_level *levels, const htj2k_output *out, void *work)
    void htj2k_emit(int narrow, const htj2k_level *levels, const htj2k_output *out)


cdef extern from "htj2k_decode_97.h" nogil:
    void htj2k_synthesise_97(const htj2k_level *level)
    void htj2k_emit_97(const htj2k_level *levels, const htj2k_output *out)


# Work space ---------------------------------------------------------------------------------------------------------
# Fresh memory costs more than decoding into it: what one frame needed is kept for the next. Whoever touches the shelf
# has the GIL.

cdef enum:
    SHELF = 4
    LARGEST_KEPT = 1 << 26

cdef struct Space:
    void *memory
    size_t size

cdef Space shelf[SHELF]


cdef Space take_space(size_t size):
    """Memory of `size` bytes at least, whatever is in it; NULL if there is none."""
    cdef Space found
    cdef int n, best = -1
    for n in range(SHELF):
        if shelf[n].size >= size and (best < 0 or shelf[n].size < shelf[best].size):
            best = n
    if best >= 0:
        found = shelf[best]
        shelf[best].memory = NULL
        shelf[best].size = 0
        return found
    found.memory = malloc(size)
    found.size = size if found.memory != NULL else 0
    return found


cdef void give_space(Space space):
    """Keep it in place of the smallest that is kept, unless it is smaller still."""
    cdef int n, least = 0
    for n in range(SHELF):
        if shelf[n].size < shelf[least].size:
            least = n
    if space.size > LARGEST_KEPT or space.size <= shelf[least].size:
        free(space.memory)
        return
    free(shelf[least].memory)
    shelf[least] = space


cdef struct Planes:
    # Two of each component, as _htj2k_layout has them; coefficients of 2 or of 4 bytes.
    char *at[3][2]
    Py_ssize_t stride[2]
    char *work


cdef inline Py_ssize_t padded(Py_ssize_t count) noexcept nogil:
    """A row of coefficients begins where a vector does, and no two rows where their lines of cache collide."""
    return ((count + 31) & ~31) + 32


cdef size_t lay_planes(Planes *planes, char *memory, const Header *header, int reduce, Py_ssize_t size) noexcept nogil:
    """Lay the planes of a tile of any place into memory, or count their bytes where that is NULL."""
    cdef int64_t width = header.tile_width, height = header.tile_height
    cdef Py_ssize_t rows
    cdef size_t at = 0
    cdef int c, k, last
    if width > width_of(&header.image):
        width = width_of(&header.image)
    if height > height_of(&header.image):
        height = height_of(&header.image)
    # Wherever a tile begins, its lower resolution is not larger than this.
    width = ceil_shift(width, reduce) + 1
    height = ceil_shift(height, reduce) + 1
    # The last level goes to samples, so only one plane is as large: that of its subbands. Not with the 9/7.
    last = (reduce if reduce == header.levels else reduce + 1) & 1
    for k in range(2):
        planes.stride[k] = padded(width if k == last or header.irreversible else (width >> 1) + 2)
        rows = height if k == last or header.irreversible else (height >> 1) + 2
        for c in range(header.components):
            if memory != NULL:
                planes.at[c][k] = memory + at
            at += <size_t> (planes.stride[k] * rows * size)
    if memory != NULL:
        planes.work = memory + at
    return at + <size_t> ((HTJ2K_RING * header.components + 2) * (padded(width) + 2 * HTJ2K_MARGIN) * size)


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
    # Coefficients have two bytes.
    bint narrow
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
    free(d.blocks)
    free(d.places)


cdef float delta_of(const Header *header, int component, const Band *band) noexcept nogil:
    """Delta_b (E-3): what the quantizer of the 9/7 divided by; 0 for the 5/3, which has none."""
    cdef int range_bits = header.bits + (band.orientation & 1) + (band.orientation >> 1)
    if not header.irreversible:
        return 0
    return <float> ldexp(
        1 + header.mantissas[component][band.index] / 2048.0, range_bits - header.exponents[component][band.index]
    )


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
    cdef char *samples
    cdef char *at
    cdef Py_ssize_t row
    cdef float delta
    cdef Py_ssize_t stride = d.planes.stride[resolution.plane], size = 2 if d.narrow else 4
    cdef int32_t x, y
    cdef int n, fault
    cdef bint wanted = r <= d.header.levels - d.reduce
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
        samples = d.planes.at[component][resolution.plane]
        delta = delta_of(&d.header, component, band)
        for y in range(grids[n].down):
            for x in range(grids[n].across):
                length = 0
                if block.passes:
                    length = <uint64_t> block.cleanup + block.refinement
                    if length > <uint64_t> (d.end - d.p):
                        return TRUNCATED
                    block.data = d.p
                    d.p += length
                if wanted:
                    lay_block(resolution, &grids[n], x, y, &area)
                    at = samples + size * (
                        (band.top + area.y0 - band.area.y0) * stride + band.left + area.x0 - band.area.x0
                    )
                    if length == 0 or block.cleanup == 0:
                        for row in range(height_of(&area)):
                            memset(at + row * stride * size, 0, width_of(&area) * size)
                    else:
                        fault = decode_block(
                            block,
                            bit_planes(&d.header, component, band),
                            d.header.causal,
                            d.narrow,
                            delta,
                            at,
                            stride,
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


cdef void lay_level(const Decoder *d, int r, int component, htj2k_level *level) noexcept nogil:
    """The level that makes resolution r of what is below it."""
    cdef const Resolution *resolution = &d.layout.resolutions[r]
    cdef int plane = resolution.plane
    level.source = d.planes.at[component][plane]
    level.target = d.planes.at[component][1 - plane]
    level.stride = d.planes.stride[plane]
    level.target_stride = d.planes.stride[1 - plane]
    level.columns = width_of(&resolution.area)
    level.rows = height_of(&resolution.area)
    level.odd_x = resolution.area.x0 & 1
    level.odd_y = resolution.area.y0 & 1


cdef int decode_tile(Decoder *d, Py_ssize_t tile, htj2k_output *out) noexcept nogil:
    """Decode a tile to its place in the frame, whose first sample is at out.p."""
    cdef Rect area
    cdef int c, r, fault, top = d.header.levels - d.reduce
    cdef int64_t available = 0
    cdef Py_ssize_t part = d.parts.first[tile]
    cdef uint8_t *frame = out.p
    cdef const Rect *lower
    cdef htj2k_level level
    cdef htj2k_level last[3]
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
        for r in range(1, top):
            lay_level(d, r, c, &level)
            if d.header.irreversible:
                htj2k_synthesise_97(&level)
            else:
                htj2k_synthesise(d.narrow, &level, d.planes.work)
        lay_level(d, top, c, &last[c])
        if d.header.irreversible and top:
            htj2k_synthesise_97(&last[c])
            last[c].source = last[c].target
            last[c].stride = last[c].target_stride
    lower = &d.layout.resolutions[top].area
    out.p = (
        frame
        + (lower.y0 - ceil_shift(d.header.image.y0, d.reduce)) * out.pitch
        + <Py_ssize_t> (lower.x0 - ceil_shift(d.header.image.x0, d.reduce)) * out.components * out.bytes
    )
    if d.header.irreversible:
        htj2k_emit_97(last, out)
    elif top:
        htj2k_finish(d.narrow, last, out, d.planes.work)
    else:
        htj2k_emit(d.narrow, last, out)
    out.p = frame
    return FINE


cdef int decode_tiles(Decoder *d, htj2k_output *out) noexcept nogil:
    cdef Py_ssize_t tile
    cdef int fault
    for tile in range(d.parts.tiles):
        fault = decode_tile(d, tile, out)
        if fault != FINE:
            return fault
    return FINE


def decode(codestream, int reduce, int64_t max_samples, into=None):
    """Return an array of (rows, columns, 1 or 3); 0 <= reduce <= 32.

    `into`: the array to fill, of that shape or, for one component, (rows, columns); C-contiguous.
    """
    cdef Decoder d
    cdef Py_buffer view
    cdef Space space
    cdef htj2k_output out
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef int fault
    cdef int64_t samples
    cdef Py_ssize_t rows, columns
    cdef uint8_t[::1] frame_bytes
    memset(&d, 0, sizeof(Decoder))
    memset(&space, 0, sizeof(Space))
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
        out.bytes = 1 if d.header.bits <= 8 else 2
        out.components = d.header.components
        shape = (rows, columns, d.header.components)
        dtype = np.dtype(f"{'i' if d.header.has_sign else 'u'}{out.bytes}")
        if into is None:
            frame = np.empty(shape, dtype)
        elif into.dtype != dtype or into.shape not in (shape, shape[:2] if shape[2] == 1 else shape):
            raise ValueError(
                f"the code stream has {shape} samples of {dtype}, which is not what they are to be decoded into"
            )
        else:
            frame = into.reshape(shape)
        if rows == 0 or columns == 0:
            return frame
        frame_bytes = frame.reshape(-1).view(np.uint8)
        out.p = &frame_bytes[0]
        out.pitch = columns * d.header.components * out.bytes
        out.colour = d.header.colour
        out.low = -(1 << (d.header.bits - 1))
        out.high = (1 << (d.header.bits - 1)) - 1
        out.shift = 0 if d.header.has_sign else 1 << (d.header.bits - 1)
        # The sum of two coefficients, each eight times the range at most, has to fit.
        d.narrow = not d.header.irreversible and d.header.bits + (1 if d.header.colour else 0) <= 12
        space = take_space(lay_planes(&d.planes, NULL, &d.header, reduce, 2 if d.narrow else 4) + 64)
        if space.memory == NULL:
            raise MemoryError
        lay_planes(
            &d.planes, <char *> ((<size_t> space.memory + 63) & ~<size_t> 63), &d.header, reduce, 2 if d.narrow else 4
        )
        with nogil:
            fault = decode_tiles(&d, &out)
        if fault != FINE:
            raise error_of(fault)
        return frame
    finally:
        give_space(space)
        release_decoder(&d)
        PyBuffer_Release(&view)
