# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Frames to HTJ2K code streams, lossless (T.814, T.800): samples to planes, wavelet, blocks, packets."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from radmesh_native._htj2k_cpu cimport HTJ2K_PATH_NAMES, HTJ2K_PATHS, htj2k_choose_path, htj2k_path, htj2k_use_path
from radmesh_native._htj2k_layout cimport (
    FINE,
    MAX_LEVELS,
    NO_MEMORY,
    RPCL,
    Band,
    Grid,
    Header,
    Layout,
    Resolution,
    Style,
    bit_planes,
    height_of,
    lay_grid,
    lay_out,
    width_of,
)
from radmesh_native._htj2k_markers cimport (
    SOT_BYTES,
    main_header_bound,
    write_main_header,
    write_part_length,
    write_tile_part,
)
from radmesh_native._htj2k_packets cimport Trees, header_bound, release_trees, write_packet_header
from radmesh_native._htj2k_samples cimport sample


cdef extern from "htj2k_encode_frame.h" nogil:
    const int HTJ2K_NARROW
    const int HTJ2K_UINT8
    const int HTJ2K_INT8
    const int HTJ2K_UINT16
    const int HTJ2K_INT16
    const int HTJ2K_PLANE
    ctypedef struct htj2k_coded:
        size_t at
        size_t length
    ctypedef struct htj2k_arena:
        uint8_t *bytes
        size_t size
        size_t room
        size_t space_room
        void *planes
        size_t planes_room
        uint8_t *out
        size_t out_room
    ctypedef struct htj2k_component:
        const void *source
        int kind
        int width
        int height
        int levels
        int32_t middle
        int32_t back
        int bits
        int outside
        htj2k_coded *blocks[33][3]
    void htj2k_fill_encoder_tables()
    int htj2k_take_room(void **room, size_t *size, size_t bytes)
    void htj2k_release_arena(htj2k_arena *arena)
    int htj2k_encode_component(htj2k_arena *arena, htj2k_component *component, int narrow)
    void htj2k_range(const void *samples, int kind, size_t count, int32_t *limits)
    void htj2k_colours(
        const void *samples, int kind, int narrow, int32_t middle, size_t count, void *const *planes
    )


if htj2k_choose_path() < 0:
    raise ImportError("RADMESH_NATIVE_SIMD is none of portable, sse41, avx2, avx512")
htj2k_fill_encoder_tables()


def path():
    """Return the name of the path in use (htj2k_cpu.h)."""
    return HTJ2K_PATH_NAMES[htj2k_path].decode()


def use_path(str name):
    """Use a path (htj2k_cpu.h), or the best below it that this processor has; return its name."""
    cdef int path
    for path in range(HTJ2K_PATHS):
        if HTJ2K_PATH_NAMES[path] == name.encode():
            return HTJ2K_PATH_NAMES[htj2k_use_path(path)].decode()
    raise ValueError("the paths are portable, sse41, avx2, avx512")


# Room ---------------------------------------------------------------------------------------------------------------

cdef enum:
    # Arenas that are kept for who comes next, each no larger than this.
    KEPT = 4
    KEPT_BYTES = 1 << 25

cdef htj2k_arena *kept_arenas[KEPT]
cdef int kept = 0


cdef htj2k_arena *take_arena() except NULL:
    """An arena of nobody else. The GIL is held, here and where it is given back."""
    global kept
    cdef htj2k_arena *arena
    if kept:
        kept -= 1
        arena = kept_arenas[kept]
        arena.size = 0
        return arena
    arena = <htj2k_arena *> calloc(1, sizeof(htj2k_arena))
    if arena == NULL:
        raise MemoryError()
    return arena


cdef void give_back(htj2k_arena *arena) noexcept:
    global kept
    if kept < KEPT and arena.room + arena.space_room + arena.planes_room + arena.out_room <= KEPT_BYTES:
        kept_arenas[kept] = arena
        kept += 1
        return
    htj2k_release_arena(arena)
    free(arena)


# Encoding -----------------------------------------------------------------------------------------------------------

cdef struct Bytes:
    uint8_t *p
    Py_ssize_t size
    Py_ssize_t room


cdef int make_room(Bytes *out, Py_ssize_t more) noexcept nogil:
    cdef Py_ssize_t room = out.size + more
    cdef uint8_t *grown
    if room <= out.room:
        return FINE
    room += room >> 1
    grown = <uint8_t *> realloc(out.p, room)
    if grown == NULL:
        return NO_MEMORY
    out.p = grown
    out.room = room
    return FINE


cdef struct Encoder:
    Header header
    Layout layout
    htj2k_arena *arena
    htj2k_component components[3]
    # All code blocks of the components.
    htj2k_coded *blocks
    Trees trees
    # The code stream; the lengths of the code blocks of a packet.
    Bytes out
    uint32_t *lengths
    Py_ssize_t lengths_room


cdef void release_encoder(Encoder *e) noexcept nogil:
    free(e.blocks)
    release_trees(&e.trees)
    free(e.lengths)


cdef inline size_t blocks_across(const Band *band) noexcept nogil:
    return <size_t> (width_of(&band.area) + 63) >> 6


cdef int make_blocks(Encoder *e) noexcept nogil:
    """Give every component its tables of code blocks."""
    cdef size_t count = 0
    cdef int c, r, n, step
    cdef const Band *band
    # Count, then hand out.
    for step in range(2):
        if step:
            e.blocks = <htj2k_coded *> calloc(count, sizeof(htj2k_coded))
            if e.blocks == NULL:
                return NO_MEMORY
            count = 0
        for c in range(e.header.components):
            for r in range(e.layout.levels + 1):
                for n in range(e.layout.resolutions[r].count):
                    band = &e.layout.resolutions[r].bands[n]
                    if step:
                        e.components[c].blocks[r][n] = e.blocks + count
                    count += blocks_across(band) * (<size_t> (height_of(&band.area) + 63) >> 6)
    return FINE


cdef int write_packet(Encoder *e, int r, int component, int32_t px, int32_t py) noexcept nogil:
    cdef const Resolution *resolution = &e.layout.resolutions[r]
    cdef Grid grids[3]
    cdef int missing[3]
    cdef int n
    cdef int32_t x, y
    cdef Py_ssize_t blocks = 0, k = 0, body = 0
    cdef uint32_t *lengths
    cdef uint8_t *end
    cdef const htj2k_coded *row
    for n in range(resolution.count):
        lay_grid(resolution, n, px, py, &grids[n])
        # Every bit plane is in the one pass.
        missing[n] = bit_planes(&e.header, component, &resolution.bands[n]) - 1
        blocks += <Py_ssize_t> grids[n].across * grids[n].down
    if blocks > e.lengths_room:
        lengths = <uint32_t *> realloc(e.lengths, blocks * sizeof(uint32_t))
        if lengths == NULL:
            return NO_MEMORY
        e.lengths = lengths
        e.lengths_room = blocks
    for n in range(resolution.count):
        for y in range(grids[n].down):
            row = block_row(e, component, r, n, &grids[n], y)
            for x in range(grids[n].across):
                e.lengths[k] = <uint32_t> row[x].length
                body += row[x].length
                k += 1
    if make_room(&e.out, header_bound(grids, resolution.count) + body) != FINE:
        return NO_MEMORY
    end = write_packet_header(grids, missing, resolution.count, e.lengths, &e.trees, e.out.p + e.out.size)
    if end == NULL:
        return NO_MEMORY
    for n in range(resolution.count):
        for y in range(grids[n].down):
            row = block_row(e, component, r, n, &grids[n], y)
            for x in range(grids[n].across):
                if row[x].length:
                    memcpy(end, e.arena.bytes + row[x].at, row[x].length)
                    end += row[x].length
    e.out.size = end - e.out.p
    return FINE


cdef inline const htj2k_coded *block_row(
    const Encoder *e, int component, int r, int n, const Grid *grid, int32_t y
) noexcept nogil:
    """The blocks of row `y` of a grid."""
    cdef size_t across = blocks_across(&e.layout.resolutions[r].bands[n])
    return e.components[component].blocks[r][n] + (grid.first_y + y) * across + grid.first_x


cdef int write_stream(Encoder *e, Py_ssize_t *ends) noexcept nogil:
    """Write the code stream of what was coded; `ends`: where each resolution is complete."""
    cdef int c, r, fault, levels = e.layout.levels
    cdef int32_t x, y
    cdef uint8_t *lengths
    cdef Py_ssize_t table, start
    cdef const Resolution *resolution
    if make_room(&e.out, main_header_bound(&e.header) + e.arena.size + (e.arena.size >> 5)) != FINE:
        return NO_MEMORY
    e.out.size = write_main_header(&e.header, e.out.p, &lengths) - e.out.p
    table = lengths - e.out.p
    for r in range(levels + 1):
        start = e.out.size
        if make_room(&e.out, SOT_BYTES) != FINE:
            return NO_MEMORY
        e.out.size += SOT_BYTES
        resolution = &e.layout.resolutions[r]
        for y in range(resolution.down):
            for x in range(resolution.across):
                for c in range(e.header.components):
                    fault = write_packet(e, r, c, x, y)
                    if fault != FINE:
                        return fault
        write_tile_part(e.out.p + start, r, levels + 1, <uint32_t> (e.out.size - start))
        write_part_length(e.out.p + table, r, <uint32_t> (e.out.size - start))
        ends[r] = e.out.size
    if make_room(&e.out, 2) != FINE:
        return NO_MEMORY
    # EOC
    e.out.p[e.out.size] = 0xFF
    e.out.p[e.out.size + 1] = 0xD9
    e.out.size += 2
    ends[levels] = e.out.size
    return FINE


cdef int encode_samples(
    Encoder *e, const void *samples, int kind, Py_ssize_t count, bint *within
) noexcept nogil:
    """Code the blocks of all components; `within` becomes whether all samples are within their bits."""
    cdef int c, bits = e.header.bits, components = e.header.components, size
    cdef int32_t shift = 0 if e.header.has_sign else 1 << (bits - 1)
    cdef int32_t low = shift - (1 << (bits - 1)), high = low + (1 << bits) - 1, middle = shift
    cdef int32_t limits[2]
    cdef bint narrow, checked = bits < (8 if kind == HTJ2K_UINT8 or kind == HTJ2K_INT8 else 16)
    cdef void *planes[3]
    cdef htj2k_component *component
    # Differences of colours are as far from zero as samples are from each other.
    narrow = 2 * (high - low) <= HTJ2K_NARROW if components == 3 else high - low <= HTJ2K_NARROW
    if components == 3 and checked or components == 1 and not narrow:
        htj2k_range(samples, kind, components * count, limits)
        within[0] = limits[0] >= low and limits[1] <= high
        if not within[0]:
            return FINE
        checked = False
        if components == 1 and limits[1] - limits[0] <= HTJ2K_NARROW:
            narrow = True
            middle = (limits[0] + limits[1]) >> 1
    if components == 3:
        checked = False
        size = 2 if narrow else 4
        if htj2k_take_room(&e.arena.planes, &e.arena.planes_room, 3 * count * size):
            return NO_MEMORY
        for c in range(3):
            planes[c] = <uint8_t *> e.arena.planes + c * count * size
        htj2k_colours(samples, kind, narrow, middle, count, planes)
    for c in range(components):
        component = &e.components[c]
        component.source = samples if components == 1 else planes[c]
        component.kind = kind if components == 1 else HTJ2K_PLANE
        component.width = width_of(&e.header.image)
        component.height = height_of(&e.header.image)
        component.levels = e.layout.levels
        component.bits = bits if checked else 0
        if components == 1:
            component.middle = middle
            component.back = middle - shift
        if htj2k_encode_component(e.arena, component, narrow):
            return NO_MEMORY
        if component.outside:
            within[0] = False
            return FINE
    return FINE


cdef void plan(
    Header *header, Py_ssize_t rows, Py_ssize_t columns, int components, int bits, int levels
) noexcept nogil:
    """A header as PS3.5 10.18 has it for .202: one tile, RPCL, reversible; code blocks of 64 × 64."""
    cdef int b, r, range_bits = bits + (1 if components == 3 else 0)
    cdef Style *style
    memset(header, 0, sizeof(Header))
    header.image.x1 = <int32_t> columns
    header.image.y1 = <int32_t> rows
    header.tile_width = <int32_t> columns
    header.tile_height = <int32_t> rows
    header.components = components
    header.bits = bits
    header.progression = RPCL
    header.layers = 1
    header.colour = components == 3
    # Whatever the levels, the wavelet's gains are below 1.5 in LL, 2.4 in HL and LH, 4 in HH of the range, and 2 guard
    # bits are room for 2, 4 and 8. Rounding adds to them, which counts where there are few bits.
    if range_bits < 4:
        range_bits = 4
    for b in range(components):
        style = &header.style[b]
        style.levels = levels
        style.block_width = 6
        style.block_height = 6
        memset(style.precincts, 0xFF, sizeof(style.precincts))
        header.guard[b] = 2
        header.exponent_count[b] = <uint8_t> (3 * levels + 1)
        header.exponents[b][0] = <uint8_t> range_bits
        for r in range(levels):
            header.exponents[b][3 * r + 1] = <uint8_t> (range_bits + 1)
            header.exponents[b][3 * r + 2] = <uint8_t> (range_bits + 1)
            header.exponents[b][3 * r + 3] = <uint8_t> (range_bits + 2)


def encode(const sample[:, :, ::1] frame, int bits, int levels, uint8_t[::1] out=None):
    """Return (code stream, prefix lengths), or None if a sample is outside of `bits`.

    Where there is `out`, the code stream goes there, if it has the room, and None stands for it.

    (rows, columns, 1 or 3), 1 at least; 1 <= bits <= 16, 0 <= levels <= 32: the caller has checked these.
    """
    cdef Encoder e
    cdef Py_ssize_t ends[MAX_LEVELS + 1]
    cdef int r, fault = FINE, kind
    cdef bint within = True
    cdef uint8_t *copy
    memset(&e, 0, sizeof(Encoder))
    plan(&e.header, frame.shape[0], frame.shape[1], <int> frame.shape[2], bits, levels)
    e.header.has_sign = sample is int8_t or sample is int16_t
    if sample is uint8_t:
        kind = HTJ2K_UINT8
    elif sample is int8_t:
        kind = HTJ2K_INT8
    elif sample is int16_t:
        kind = HTJ2K_INT16
    else:
        kind = HTJ2K_UINT16
    e.arena = take_arena()
    e.out.p = e.arena.out
    e.out.room = e.arena.out_room
    try:
        with nogil:
            lay_out(&e.header.style[0], &e.header.image, &e.layout)
            fault = make_blocks(&e)
            if fault == FINE:
                fault = encode_samples(&e, &frame[0, 0, 0], kind, frame.shape[0] * frame.shape[1], &within)
            if fault == FINE and within:
                fault = write_stream(&e, ends)
        if fault != FINE:
            raise MemoryError()
        if not within:
            return None
        offsets = tuple([ends[r] for r in range(levels + 1)])
        made = None
        copy = NULL
        if out is None:
            made = PyBytes_FromStringAndSize(NULL, e.out.size)
            copy = <uint8_t *> PyBytes_AS_STRING(made)
        elif e.out.size <= out.shape[0]:
            copy = &out[0]
        if copy != NULL:
            with nogil:
                memcpy(copy, e.out.p, e.out.size)
        return made, offsets
    finally:
        e.arena.out = e.out.p
        e.arena.out_room = e.out.room
        give_back(e.arena)
        release_encoder(&e)
