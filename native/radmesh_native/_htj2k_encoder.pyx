# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Frames to HTJ2K code streams, lossless (T.814, T.800): samples to planes, wavelet, blocks, packets."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc
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
    Rect,
    Resolution,
    bit_planes,
    height_of,
    lay_block,
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
from radmesh_native._htj2k_wavelet cimport analyse


cdef extern from "htj2k_encode_block.h" nogil:
    const int HTJ2K_BLOCK_BYTES
    ctypedef struct htj2k_block_work:
        pass
    void htj2k_fill_encoder_tables()
    Py_ssize_t htj2k_encode_block(
        const void *samples, Py_ssize_t stride, int narrow, int width, int height, htj2k_block_work *work, uint8_t *out
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

cdef bint load(const sample[:, :, ::1] frame, Planes *planes, int bits) noexcept nogil:
    """Samples to planes, around zero and through the RCT (G.1.1, G.2.1). False if one is outside of `bits`."""
    cdef Py_ssize_t x, y, columns = frame.shape[1]
    cdef int32_t low = -(1 << (bits - 1)), high = (1 << (bits - 1)) - 1, outside = 0
    cdef int32_t shift = 0 if sample is int8_t or sample is int16_t else 1 << (bits - 1)
    cdef int32_t red, green, blue
    cdef int32_t *first
    cdef int32_t *second
    cdef int32_t *third
    cdef const sample *p
    for y in range(frame.shape[0]):
        p = &frame[y, 0, 0]
        first = planes.at[0][0] + y * planes.stride
        if frame.shape[2] == 1:
            for x in range(columns):
                red = p[x] - shift
                outside |= (red < low) | (red > high)
                first[x] = red
        else:
            second = planes.at[1][0] + y * planes.stride
            third = planes.at[2][0] + y * planes.stride
            for x in range(columns):
                red = p[3 * x] - shift
                green = p[3 * x + 1] - shift
                blue = p[3 * x + 2] - shift
                outside |= (red < low) | (red > high) | (green < low) | (green > high) | (blue < low) | (blue > high)
                first[x] = (red + 2 * green + blue) >> 2
                second[x] = blue - green
                third[x] = red - green
    return not outside

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
    Planes planes
    Trees trees
    htj2k_block_work *block
    # The code stream; the code blocks of a packet, and their lengths.
    Bytes out
    Bytes body
    uint32_t *lengths
    Py_ssize_t lengths_room


cdef void release_encoder(Encoder *e) noexcept nogil:
    free(e.planes.whole)
    free(e.block)
    release_trees(&e.trees)
    free(e.out.p)
    free(e.body.p)
    free(e.lengths)


cdef int encode_packet(Encoder *e, int r, int component, int32_t px, int32_t py) noexcept nogil:
    cdef const Resolution *resolution = &e.layout.resolutions[r]
    cdef const Band *band
    cdef Grid grids[3]
    cdef int missing[3]
    cdef int n
    cdef int32_t x, y
    cdef Py_ssize_t blocks = 0, k = 0, length
    cdef uint32_t *lengths
    cdef const int32_t *samples
    cdef uint8_t *end
    cdef Rect area
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
    e.body.size = 0
    for n in range(resolution.count):
        band = &resolution.bands[n]
        samples = e.planes.at[component][resolution.plane] + band.top * e.planes.stride + band.left
        for y in range(grids[n].down):
            for x in range(grids[n].across):
                if make_room(&e.body, HTJ2K_BLOCK_BYTES) != FINE:
                    return NO_MEMORY
                lay_block(resolution, &grids[n], x, y, &area)
                length = htj2k_encode_block(
                    samples + (area.y0 - band.area.y0) * e.planes.stride + area.x0 - band.area.x0,
                    e.planes.stride,
                    False,
                    width_of(&area),
                    height_of(&area),
                    e.block,
                    e.body.p + e.body.size,
                )
                e.lengths[k] = <uint32_t> length
                k += 1
                e.body.size += length
    if make_room(&e.out, header_bound(grids, resolution.count) + e.body.size) != FINE:
        return NO_MEMORY
    end = write_packet_header(grids, missing, resolution.count, e.lengths, &e.trees, e.out.p + e.out.size)
    if end == NULL:
        return NO_MEMORY
    if e.body.size:
        memcpy(end, e.body.p, e.body.size)
    e.out.size = end + e.body.size - e.out.p
    return FINE


cdef int encode_planes(Encoder *e, Py_ssize_t *ends) noexcept nogil:
    """Write the code stream of what is in plane 0 of each component; `ends`: where each resolution is complete."""
    cdef int c, r, fault, levels = e.header.levels
    cdef int32_t x, y
    cdef uint8_t *lengths
    cdef Py_ssize_t table, start
    cdef const Resolution *resolution
    for c in range(e.header.components):
        for r in range(levels, 0, -1):
            resolution = &e.layout.resolutions[r]
            analyse(
                e.planes.at[c][1 - resolution.plane],
                e.planes.at[c][resolution.plane],
                e.planes.stride,
                &resolution.area,
            )
    if make_room(&e.out, main_header_bound(&e.header)) != FINE:
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
                    fault = encode_packet(e, r, c, x, y)
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


cdef void plan(
    Header *header, Py_ssize_t rows, Py_ssize_t columns, int components, int bits, int levels
) noexcept nogil:
    """A header as PS3.5 10.18 has it for .202: one tile, RPCL, reversible; code blocks of 64 × 64."""
    cdef int b, r, range_bits = bits + (1 if components == 3 else 0)
    memset(header, 0, sizeof(Header))
    header.image.x1 = <int32_t> columns
    header.image.y1 = <int32_t> rows
    header.tile_width = <int32_t> columns
    header.tile_height = <int32_t> rows
    header.components = components
    header.bits = bits
    header.progression = RPCL
    header.colour = components == 3
    header.levels = levels
    header.block_width = 6
    header.block_height = 6
    memset(header.precincts, 0xFF, sizeof(header.precincts))
    # Whatever the levels, the wavelet's gains are below 1.5 in LL, 2.4 in HL and LH, 4 in HH of the range, and 2 guard
    # bits are room for 2, 4 and 8. Rounding adds to them, which counts where there are few bits.
    if range_bits < 4:
        range_bits = 4
    for b in range(components):
        header.guard[b] = 2
        header.exponent_count[b] = <uint8_t> (3 * levels + 1)
        header.exponents[b][0] = <uint8_t> range_bits
        for r in range(levels):
            header.exponents[b][3 * r + 1] = <uint8_t> (range_bits + 1)
            header.exponents[b][3 * r + 2] = <uint8_t> (range_bits + 1)
            header.exponents[b][3 * r + 3] = <uint8_t> (range_bits + 2)


def encode(const sample[:, :, ::1] frame, int bits, int levels):
    """Return (code stream, prefix lengths), or None if a sample is outside of `bits`.

    (rows, columns, 1 or 3), 1 at least; 1 <= bits <= 16, 0 <= levels <= 32: the caller has checked these.
    """
    cdef Encoder e
    cdef Py_ssize_t ends[MAX_LEVELS + 1]
    cdef int r, fault = FINE
    cdef bint within = True
    memset(&e, 0, sizeof(Encoder))
    plan(&e.header, frame.shape[0], frame.shape[1], <int> frame.shape[2], bits, levels)
    e.header.has_sign = sample is int8_t or sample is int16_t
    try:
        with nogil:
            lay_out(&e.header, &e.header.image, &e.layout)
            fault = make_planes(&e.planes, e.header.components, frame.shape[1], frame.shape[0])
            e.block = <htj2k_block_work *> malloc(sizeof(htj2k_block_work))
            if e.block == NULL:
                fault = NO_MEMORY
            if fault == FINE:
                within = load(frame, &e.planes, bits)
                if within:
                    fault = encode_planes(&e, ends)
        if fault != FINE:
            raise MemoryError()
        if not within:
            return None
        return PyBytes_FromStringAndSize(<char *> e.out.p, e.out.size), tuple([ends[r] for r in range(levels + 1)])
    finally:
        release_encoder(&e)
