# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""HTJ2K code streams to frames (T.814, T.800): packets, blocks, wavelet, planes to samples."""

import numpy as np

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.math cimport ldexp
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy, memset

from radmesh_native._htj2k_block_decoder cimport Coded, decode_block, use_block_path
from radmesh_native._htj2k_cpu cimport HTJ2K_PATH_NAMES, HTJ2K_PATHS, htj2k_choose_path, htj2k_use_path
from radmesh_native._htj2k_layout cimport (
    BAD_BLOCK,
    BAD_MARKER,
    BAD_PACKET,
    BAD_PROGRESSION,
    BAD_QUANTIZATION,
    BAD_SIZE,
    BAD_STYLE,
    BAD_TILE_PART,
    FINE,
    LRCP,
    MAX_LEVELS,
    NO_MEMORY,
    NO_SUCH_RESOLUTION,
    NOT_ALIKE,
    NOT_EXTENDED,
    NOT_HIGH_THROUGHPUT,
    NOT_IN_SETS,
    NOT_OF_REGIONS,
    NOT_THESE_BITS,
    NOT_THESE_COMPONENTS,
    PCRL,
    RLCP,
    RPCL,
    TOO_LARGE,
    TOO_MANY_BLOCKS,
    TRUNCATED,
    Band,
    Grid,
    Header,
    Layout,
    Progression,
    Rect,
    Resolution,
    Style,
    bit_planes,
    ceil_shift,
    height_of,
    lay_block,
    lay_grid,
    lay_out,
    tile_area,
    width_of,
)
from radmesh_native._htj2k_markers cimport (
    Parts,
    find_parts,
    packed_bound,
    read_main_header,
    read_tile_header,
    release_parts,
    settle,
    unpack_main,
    unpack_tile,
)
from radmesh_native._htj2k_packets cimport (
    LayeredBlock,
    Precinct,
    Trees,
    close_precinct,
    read_layer,
    read_packet_header,
    release_trees,
)

cdef enum:
    # The blocks of one packet, or of a tile with several layers, at most; and the precincts of such a tile.
    MAX_BLOCKS = 1 << 22
    MAX_PRECINCTS = 1 << 16
    # Bytes that planes may have beyond 16 for every sample that there may be.
    SPARE_ROOM = 1 << 28


class CodestreamError(ValueError):
    """A code stream that cannot be decoded; the text says why."""


class TruncatedError(CodestreamError):
    """A code stream that ends before the wanted resolution is complete."""


cdef dict FAULTS = {
    TRUNCATED: "the code stream ends too early: decode it with a greater reduce, or fetch more of it",
    BAD_MARKER: "not a JPEG 2000 code stream, or its main header is broken",
    BAD_SIZE: "the code stream's SIZ is broken",
    BAD_STYLE: "the code stream's COD or COC is broken",
    BAD_PROGRESSION: "the code stream's POC is broken",
    BAD_QUANTIZATION: "the code stream's QCD or QCC is broken",
    BAD_TILE_PART: "the code stream's tile-parts are broken",
    BAD_PACKET: "the code stream has a broken packet header",
    BAD_BLOCK: "the code stream has a broken code block",
    TOO_LARGE: "the code stream's frame has too many samples",
    TOO_MANY_BLOCKS: "the code stream has too many code blocks",
    NOT_HIGH_THROUGHPUT: "the code stream is not HTJ2K, or not in all of its blocks: a JPEG 2000 decoder is needed",
    NOT_ALIKE: "the code stream's components differ in depth or sampling, which no DICOM object has (PS3.5 8.2.18)",
    NOT_THESE_COMPONENTS: "the code stream has neither one nor three components, as all DICOM objects (PS3.5 8.2.18)",
    NOT_THESE_BITS: "the code stream has more than 16 bits a sample",
    NOT_IN_SETS: "the code stream has blocks of several HT sets (T.814 8.7.3), which are not decoded",
    NOT_OF_REGIONS: "the code stream has regions of interest (RGN, T.800 A.6.3), which are not decoded",
    NOT_EXTENDED: "the code stream has extensions of T.801 (a marker of 0xFF70 to 0xFF79), which are not decoded",
    NO_SUCH_RESOLUTION: "reduce is greater than the code stream's decomposition levels",
}


cdef object error_of(int fault):
    if fault == NO_MEMORY:
        return MemoryError()
    return (TruncatedError if fault == TRUNCATED else CodestreamError)(FAULTS[fault])


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


cdef size_t lay_planes(
    Planes *planes, char *memory, const Header *header, int reduce, bint fused, Py_ssize_t size
) noexcept nogil:
    """Lay the planes of a tile of any place into memory, or count their bytes where that is NULL.

    `fused`: the last level of all components goes to samples.
    """
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
    # Then only one plane is as large as the frame: that of its subbands.
    last = (reduce if reduce == header.style[0].levels else reduce + 1) & 1
    for k in range(2):
        planes.stride[k] = padded((width >> 1) + 2 if fused and k != last else width)
        rows = (height >> 1) + 2 if fused and k != last else height
        for c in range(header.components):
            if memory != NULL:
                planes.at[c][k] = memory + at
            at += <size_t> (planes.stride[k] * rows * size)
    if memory != NULL:
        planes.work = memory + at
    return at + <size_t> ((HTJ2K_RING * header.components + 2) * (padded(width) + 2 * HTJ2K_MARGIN) * size)


# Decoding -----------------------------------------------------------------------------------------------------------

# A precinct, and where a progression has its packets: by what counts most to what counts least.
cdef struct Place:
    int64_t keys[5]
    int component
    int resolution
    int32_t x
    int32_t y


cdef struct Decoder:
    # What the main header says, and the tile that is being read.
    Header main
    Header header
    Parts parts
    Planes planes
    Trees trees
    int reduce
    # The last level goes to samples; coefficients have two bytes.
    bint fused
    bint narrow
    # All components have the same style.
    bint alike
    Coded *blocks
    Py_ssize_t blocks_room
    Place *places
    # Of several layers: all precincts, and where those of a component and resolution begin; bytes of a block that are
    # in several packets.
    Precinct *precincts
    Py_ssize_t precinct_count
    Py_ssize_t starts[3][33]
    uint8_t *joined
    # What is being read: a tile-part, and where in it; where in the packet headers, if they are packed.
    Py_ssize_t part
    const uint8_t *p
    const uint8_t *end
    bint packed
    uint8_t *headers
    const uint8_t *h
    const uint8_t *h_end
    # The last, and not set to zero with the rest: they are large.
    Layout layouts[3]


cdef void release_precincts(Decoder *d) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(d.precinct_count):
        close_precinct(&d.precincts[k])
    free(d.precincts)
    d.precincts = NULL
    d.precinct_count = 0


cdef void release_decoder(Decoder *d) noexcept nogil:
    release_parts(&d.parts)
    release_trees(&d.trees)
    release_precincts(d)
    free(d.blocks)
    free(d.places)
    free(d.joined)
    free(d.headers)


cdef float delta_of(const Header *header, int component, const Band *band) noexcept nogil:
    """Delta_b (E-3): what the quantizer of the 9/7 divided by; 0 for the 5/3, which has none."""
    cdef int range_bits = header.bits + (band.orientation & 1) + (band.orientation >> 1)
    if not header.style[component].irreversible:
        return 0
    return <float> ldexp(
        1 + header.mantissas[component][band.index] / 2048.0, range_bits - header.exponents[component][band.index]
    )


cdef inline void enter(Decoder *d, Py_ssize_t part) noexcept nogil:
    d.part = part
    d.p = d.parts.parts[part].data
    d.end = d.parts.parts[part].end


cdef int open_packet(Decoder *d) noexcept nogil:
    """Come to where the next packet begins: behind its SOP, if it has one (A.8.1)."""
    while d.p == d.end and d.parts.parts[d.part].next >= 0:
        enter(d, d.parts.parts[d.part].next)
    if d.header.sop and d.end - d.p >= 6 and d.p[0] == 0xFF and d.p[1] == 0x91:
        d.p += 6
    return TRUNCATED if d.p == d.end and not d.packed else FINE


cdef inline void skip_eph(Decoder *d, const uint8_t **p, const uint8_t *end) noexcept nogil:
    """EPH is where the packet header is (A.8.2)."""
    if d.header.eph and end - p[0] >= 2 and p[0][0] == 0xFF and p[0][1] == 0x92:
        p[0] += 2


cdef int put_block(
    Decoder *d, int component, const Resolution *resolution, int n, const Grid *grid, int32_t x, int32_t y,
    const Coded *block
) noexcept nogil:
    """Decode block (x, y) of a grid of subband n to its place in the planes; NULL: it is all zeros."""
    cdef const Band *band = &resolution.bands[n]
    cdef Py_ssize_t stride = d.planes.stride[resolution.plane], size = 2 if d.narrow else 4, row
    cdef Rect area
    cdef char *at
    lay_block(resolution, grid, x, y, &area)
    at = d.planes.at[component][resolution.plane] + size * (
        (band.top + area.y0 - band.area.y0) * stride + band.left + area.x0 - band.area.x0
    )
    if block == NULL:
        for row in range(height_of(&area)):
            memset(at + row * stride * size, 0, width_of(&area) * size)
        return FINE
    return decode_block(
        block,
        bit_planes(&d.header, component, band),
        d.header.style[component].causal,
        d.narrow,
        delta_of(&d.header, component, band),
        at,
        stride,
        width_of(&area),
        height_of(&area),
    )


cdef int read_packet(Decoder *d, int r, int component, int32_t px, int32_t py) noexcept nogil:
    """Read the one packet of a precinct, and decode its blocks if their resolution is wanted."""
    cdef const Resolution *resolution = &d.layouts[component].resolutions[r]
    cdef Grid grids[3]
    cdef Coded *block
    cdef int32_t x, y
    cdef int n, fault
    cdef bint wanted = r <= d.header.style[component].levels - d.reduce
    cdef int64_t count = 0
    cdef uint64_t length
    fault = open_packet(d)
    if fault != FINE:
        return fault
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
    if d.packed:
        fault = read_packet_header(grids, resolution.count, d.header.sets, &d.h, d.h_end, d.blocks, &d.trees)
        skip_eph(d, &d.h, d.h_end)
    else:
        fault = read_packet_header(grids, resolution.count, d.header.sets, &d.p, d.end, d.blocks, &d.trees)
        skip_eph(d, &d.p, d.end)
    if fault != FINE:
        return fault
    block = d.blocks
    for n in range(resolution.count):
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
                    fault = put_block(
                        d, component, resolution, n, &grids[n], x, y, block if length and block.cleanup else NULL
                    )
                    if fault != FINE:
                        return fault
                block += 1
    return FINE


cdef int compare(const void *a, const void *b) noexcept nogil:
    cdef const int64_t *left = (<Place *> a).keys
    cdef const int64_t *right = (<Place *> b).keys
    cdef int k
    for k in range(5):
        if left[k] != right[k]:
            return -1 if left[k] < right[k] else 1
    return 0


cdef int64_t find_places(
    Decoder *d, const Progression *change, int64_t available, Place **found
) noexcept nogil:
    """The precincts of a volume in the order of their packets, whatever the layer (B.12.1); returns how many.

    Less than 0: the negative of a fault. Every precinct has a byte in the code stream; it may end behind a resolution,
    if resolutions follow each other.
    """
    cdef int r, c, last
    cdef int32_t x, y
    cdef int64_t count = 0, down, across
    cdef const Resolution *resolution
    cdef Place *place
    for c in range(change.component, min(change.component_end, d.header.components)):
        for r in range(change.resolution, min(change.resolution_end, d.layouts[c].levels + 1)):
            resolution = &d.layouts[c].resolutions[r]
            count += <int64_t> resolution.across * resolution.down
            if count > available and (change.order > RPCL or count > MAX_PRECINCTS):
                return -<int64_t> TRUNCATED
    place = <Place *> realloc(d.places, <size_t> (count + 1) * sizeof(Place))
    if place == NULL:
        return -<int64_t> NO_MEMORY
    d.places = place
    for c in range(change.component, min(change.component_end, d.header.components)):
        for r in range(change.resolution, min(change.resolution_end, d.layouts[c].levels + 1)):
            resolution = &d.layouts[c].resolutions[r]
            last = d.layouts[c].levels - r
            for y in range(resolution.down):
                down = max(
                    <int64_t> (resolution.first_y + y) << (resolution.precinct_height + last), d.layouts[c].area.y0
                )
                for x in range(resolution.across):
                    across = max(
                        <int64_t> (resolution.first_x + x) << (resolution.precinct_width + last), d.layouts[c].area.x0
                    )
                    place.component = c
                    place.resolution = r
                    place.x = x
                    place.y = y
                    if change.order <= RLCP:
                        place.keys[:] = [r, c, y, x, 0]
                    elif change.order == RPCL:
                        place.keys[:] = [r, down, across, c, 0]
                    elif change.order == PCRL:
                        place.keys[:] = [down, across, c, r, 0]
                    else:
                        place.keys[:] = [c, down, across, r, 0]
                    place += 1
    qsort(d.places, <size_t> count, sizeof(Place), compare)
    found[0] = d.places
    return count


cdef inline void whole(const Header *header, Progression *change) noexcept nogil:
    """The volume of everything, as COD orders it."""
    change.order = header.progression
    change.resolution = 0
    change.resolution_end = MAX_LEVELS + 1
    change.component = 0
    change.component_end = header.components
    change.layer_end = header.layers


cdef int read_by_place(Decoder *d, int64_t available) noexcept nogil:
    """The packets of one layer, where the order of precincts is more than rows and columns."""
    cdef Progression change
    cdef Place *place = NULL
    cdef int64_t count
    cdef int fault
    whole(&d.header, &change)
    count = find_places(d, &change, available, &place)
    if count < 0:
        return <int> -count
    for _ in range(count):
        # A resolution that is not wanted, and all behind it are not either.
        if change.order <= RPCL and d.alike and place.resolution > d.header.style[0].levels - d.reduce:
            break
        fault = read_packet(d, place.resolution, place.component, place.x, place.y)
        if fault != FINE:
            return fault
        place += 1
    return FINE


cdef int read_by_resolution(Decoder *d) noexcept nogil:
    """The packets of LRCP, RLCP and RPCL with one layer, as far as they are wanted (B.12.1.1 … 3); styles are alike."""
    cdef int r, c, k, fault, outer, inner, components = d.header.components
    cdef int32_t x, y
    cdef const Resolution *resolution
    for r in range(d.header.style[0].levels - d.reduce + 1):
        resolution = &d.layouts[0].resolutions[r]
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


# Several layers, or several progressions: everything is read before anything is decoded ------------------------------

cdef int take_bytes(Decoder *d, uint32_t length, const uint8_t **found) noexcept nogil:
    if length > <uint64_t> (d.end - d.p):
        return TRUNCATED
    found[0] = d.p
    d.p += length
    return FINE


cdef int read_layer_packet(Decoder *d, const Place *place, int layer, Precinct *precinct) noexcept nogil:
    cdef const Resolution *resolution = &d.layouts[place.component].resolutions[place.resolution]
    cdef Grid grids[3]
    cdef int n, fault
    cdef Py_ssize_t k, blocks = 0
    cdef LayeredBlock *block
    fault = open_packet(d)
    if fault != FINE:
        return fault
    for n in range(resolution.count):
        lay_grid(resolution, n, place.x, place.y, &grids[n])
        blocks += <Py_ssize_t> grids[n].across * grids[n].down
    if d.packed:
        fault = read_layer(grids, resolution.count, layer, d.header.sets, &d.h, d.h_end, precinct)
        skip_eph(d, &d.h, d.h_end)
    else:
        fault = read_layer(grids, resolution.count, layer, d.header.sets, &d.p, d.end, precinct)
        skip_eph(d, &d.p, d.end)
    if fault != FINE or precinct.blocks == NULL:
        return fault
    for k in range(blocks):
        block = &precinct.blocks[k]
        if not block.fresh:
            continue
        block.fresh = False
        if block.coded.data == NULL:
            fault = take_bytes(d, block.coded.cleanup, &block.coded.data)
            if fault != FINE:
                return fault
        n = 1 if block.lengths[0] else 0
        if block.fresh_refinement:
            block.lengths[n] = block.fresh_refinement
            fault = take_bytes(d, block.fresh_refinement, &block.pieces[n])
            if fault != FINE:
                return fault
    return FINE


cdef int read_layers(Decoder *d, const Place *place, int first, int end) noexcept nogil:
    """The packets of a precinct in the layers from `first` on that were not read before."""
    cdef Precinct *precinct = &d.precincts[
        d.starts[place.component][place.resolution]
        + <Py_ssize_t> place.y * d.layouts[place.component].resolutions[place.resolution].across + place.x
    ]
    cdef int fault
    while first <= precinct.layers < end:
        fault = read_layer_packet(d, place, precinct.layers, precinct)
        if fault != FINE:
            return fault
        precinct.layers += 1
    return FINE


cdef int read_volume(Decoder *d, const Progression *change, int64_t available) noexcept nogil:
    """The packets of a volume that were not read before (B.12.2)."""
    cdef Place *places = NULL
    cdef int64_t count = find_places(d, change, available, &places), k, start = 0, end
    cdef int layer, layers = min(change.layer_end, d.header.layers), fault
    if count < 0:
        return <int> -count
    while start < count:
        # Within these, layers count more than anything else; in the three progressions by position less.
        end = start + 1
        while end < count and (
            change.order == LRCP or (change.order == RLCP and places[end].resolution == places[start].resolution)
        ):
            end += 1
        if change.order == RLCP and not d.header.changes and d.alike:
            if places[start].resolution > d.header.style[0].levels - d.reduce:
                return FINE
        for layer in range(layers if change.order <= RLCP else 1):
            for k in range(start, end):
                fault = read_layers(d, &places[k], layer, layer + 1 if change.order <= RLCP else layers)
                if fault != FINE:
                    return fault
        start = end
    return FINE


cdef int put_layered(
    Decoder *d, int component, const Resolution *resolution, int n, const Grid *grid, int32_t x, int32_t y,
    const LayeredBlock *block
) noexcept nogil:
    """Decode a block whose bytes are in several packets."""
    cdef Coded coded
    cdef uint8_t *joined
    cdef size_t size
    if block == NULL or block.coded.passes == 0 or block.coded.cleanup == 0:
        return put_block(d, component, resolution, n, grid, x, y, NULL)
    coded = block.coded
    coded.refinement = block.lengths[0] + block.lengths[1]
    if coded.refinement:
        # All of them were in the code stream.
        size = <size_t> coded.cleanup + coded.refinement
        joined = <uint8_t *> realloc(d.joined, size)
        if joined == NULL:
            return NO_MEMORY
        d.joined = joined
        memcpy(joined, coded.data, coded.cleanup)
        memcpy(joined + coded.cleanup, block.pieces[0], block.lengths[0])
        if block.lengths[1]:
            memcpy(joined + coded.cleanup + block.lengths[0], block.pieces[1], block.lengths[1])
        coded.data = joined
    return put_block(d, component, resolution, n, grid, x, y, &coded)


cdef int decode_layered(Decoder *d) noexcept nogil:
    """Decode what was read of all precincts that are wanted."""
    cdef const Resolution *resolution
    cdef const Precinct *precinct
    cdef const LayeredBlock *block
    cdef Grid grid
    cdef int c, r, n, fault
    cdef int32_t px, py, x, y
    for c in range(d.header.components):
        for r in range(d.layouts[c].levels - d.reduce + 1):
            resolution = &d.layouts[c].resolutions[r]
            precinct = &d.precincts[d.starts[c][r]]
            for py in range(resolution.down):
                for px in range(resolution.across):
                    block = precinct.blocks
                    for n in range(resolution.count):
                        lay_grid(resolution, n, px, py, &grid)
                        for y in range(grid.down):
                            for x in range(grid.across):
                                fault = put_layered(d, c, resolution, n, &grid, x, y, block)
                                if fault != FINE:
                                    return fault
                                if block != NULL:
                                    block += 1
                    precinct += 1
    return FINE


cdef int read_all_layers(Decoder *d, int64_t available) noexcept nogil:
    """The packets of all layers and progressions."""
    cdef const Resolution *resolution
    cdef Progression change
    cdef int c, r, n, k, fault
    cdef int64_t count = 0, blocks = 0
    cdef int wide, high
    release_precincts(d)
    for c in range(d.header.components):
        for r in range(d.layouts[c].levels + 1):
            resolution = &d.layouts[c].resolutions[r]
            d.starts[c][r] = <Py_ssize_t> count
            count += <int64_t> resolution.across * resolution.down
            for n in range(resolution.count):
                # A block at either end may be cut by a precinct.
                wide = width_of(&resolution.bands[n].area)
                high = height_of(&resolution.bands[n].area)
                blocks += ((wide >> resolution.block_width) + 2) * <int64_t> ((high >> resolution.block_height) + 2)
    # Of what was read already, a progression reads nothing again: then the bytes do not bound the work.
    if d.header.changes and count * d.header.layers > available:
        return TRUNCATED
    if count > MAX_PRECINCTS or blocks > MAX_BLOCKS:
        return TOO_MANY_BLOCKS
    d.precincts = <Precinct *> calloc(count + 1, sizeof(Precinct))
    if d.precincts == NULL:
        return NO_MEMORY
    d.precinct_count = <Py_ssize_t> count
    if d.header.changes == 0:
        whole(&d.header, &change)
        return read_volume(d, &change, available)
    for k in range(d.header.changes):
        fault = read_volume(d, &d.header.change[k], available)
        if fault != FINE:
            return fault
    return FINE


# Tiles --------------------------------------------------------------------------------------------------------------

cdef void lay_level(const Decoder *d, int r, int component, htj2k_level *level) noexcept nogil:
    """The level that makes resolution r of what is below it."""
    cdef const Resolution *resolution = &d.layouts[component].resolutions[r]
    cdef int plane = resolution.plane
    level.source = d.planes.at[component][plane]
    level.target = d.planes.at[component][1 - plane]
    level.stride = d.planes.stride[plane]
    level.target_stride = d.planes.stride[1 - plane]
    level.columns = width_of(&resolution.area)
    level.rows = height_of(&resolution.area)
    level.odd_x = resolution.area.x0 & 1
    level.odd_y = resolution.area.y0 & 1


cdef void synthesise(Decoder *d, int r, int component, htj2k_level *level) noexcept nogil:
    """Make resolution r, above 0; it is then the source of `level`."""
    lay_level(d, r, component, level)
    if d.header.style[component].irreversible:
        htj2k_synthesise_97(level)
    else:
        htj2k_synthesise(d.narrow, level, d.planes.work)
    level.source = level.target
    level.stride = level.target_stride


cdef bint are_alike(const Style *a, const Style *b) noexcept nogil:
    return (
        a.levels == b.levels and a.block_width == b.block_width and a.block_height == b.block_height
        and a.causal == b.causal and a.irreversible == b.irreversible
        and memcmp(a.precincts, b.precincts, sizeof(a.precincts)) == 0
    )


cdef int settle_tile(Decoder *d, Py_ssize_t tile) noexcept nogil:
    """What the headers say of a tile, and where everything of it is."""
    cdef Rect area
    cdef int c, fault
    d.header = d.main
    if d.parts.own:
        fault = read_tile_header(&d.parts, tile, &d.header)
        if fault != FINE:
            return fault
    fault = settle(&d.header)
    if fault != FINE:
        return fault
    tile_area(&d.header, tile, &area)
    d.alike = True
    for c in range(d.header.components):
        if d.reduce > d.header.style[c].levels:
            return NO_SUCH_RESOLUTION
        d.alike &= are_alike(&d.header.style[c], &d.header.style[0])
        lay_out(&d.header.style[c], &area, &d.layouts[c])
    return FINE


cdef int unpack(Decoder *d, Py_ssize_t tile) noexcept nogil:
    """Put the packet headers of a tile together, if they are not where the packets are."""
    cdef uint8_t *grown
    cdef Py_ssize_t size
    d.packed = d.parts.headers != NULL or d.parts.packed
    if not d.packed:
        return FINE
    grown = <uint8_t *> realloc(d.headers, packed_bound(&d.parts, tile))
    if grown == NULL:
        return NO_MEMORY
    d.headers = grown
    size = unpack_tile(&d.parts, tile, grown)
    if size < 0:
        return BAD_TILE_PART
    # Tiles without PPT may be beside some with.
    d.packed = d.parts.headers != NULL or size > 0
    d.h = grown
    d.h_end = grown + size
    return FINE


cdef int decode_tile(Decoder *d, Py_ssize_t tile, htj2k_output *out) noexcept nogil:
    """Decode a tile to its place in the frame, whose first sample is at out.p."""
    cdef int c, r, fault, top
    cdef int64_t available
    cdef Py_ssize_t part = d.parts.first[tile], x, y
    cdef uint8_t *frame = out.p
    cdef const Rect *lower
    cdef htj2k_level last[3]
    cdef bint irreversible = False
    cdef float *row
    if part < 0:
        return TRUNCATED
    fault = settle_tile(d, tile)
    if fault == FINE:
        fault = unpack(d, tile)
    if fault != FINE:
        return fault
    available = d.h_end - d.h if d.packed else 0
    while part >= 0:
        available += d.parts.parts[part].end - d.parts.parts[part].data
        part = d.parts.parts[part].next
    enter(d, d.parts.first[tile])
    out.colour = d.header.colour
    if d.header.layers > 1 or d.header.changes:
        fault = read_all_layers(d, available)
        if fault == FINE:
            fault = decode_layered(d)
    elif d.header.progression <= RPCL and d.alike:
        fault = read_by_resolution(d)
    else:
        fault = read_by_place(d, available)
    if fault != FINE:
        return fault
    for c in range(d.header.components):
        irreversible |= d.header.style[c].irreversible
        top = d.header.style[c].levels - d.reduce
        for r in range(1, top if d.fused else top + 1):
            synthesise(d, r, c, &last[c])
        if d.fused or top == 0:
            lay_level(d, top, c, &last[c])
    lower = &d.layouts[0].resolutions[d.header.style[0].levels - d.reduce].area
    out.p = (
        frame
        + (lower.y0 - ceil_shift(d.header.image.y0, d.reduce)) * out.pitch
        + <Py_ssize_t> (lower.x0 - ceil_shift(d.header.image.x0, d.reduce)) * out.components * out.bytes
    )
    if irreversible:
        for c in range(d.header.components):
            if d.header.style[c].irreversible:
                continue
            # Beside a component of the 9/7.
            for y in range(last[c].rows):
                row = <float *> last[c].source + y * last[c].stride
                for x in range(last[c].columns):
                    row[x] = <float> (<int32_t *> row)[x]
        htj2k_emit_97(last, out)
    elif d.fused and d.header.style[0].levels > d.reduce:
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


cdef const uint8_t *in_file(const uint8_t *p, const uint8_t *end) noexcept nogil:
    """The code stream in the boxes of a JPH file (T.800 annex I, T.814 annex D), or p if that is none."""
    cdef uint64_t length, header
    cdef const uint8_t *box = p
    cdef int k
    if end - p < 12 or memcmp(p, b"\0\0\0\x0cjP  \r\n\x87\n", 12):
        return p
    while end - box >= 8:
        length = 0
        header = 8
        for k in range(4):
            length = length << 8 | box[k]
        if length == 1 and end - box >= 16:
            length = 0
            header = 16
            for k in range(8, 16):
                length = length << 8 | box[k]
        if memcmp(box + 4, b"jp2c", 4) == 0:
            return box + header
        if length < header or length > <uint64_t> (end - box):
            break
        box += length
    return p


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
    cdef const uint8_t *first
    cdef int fault, c
    cdef int64_t samples
    cdef Py_ssize_t rows, columns
    cdef size_t room
    cdef uint8_t[::1] frame_bytes
    memset(&d, 0, <size_t> (<char *> &d.layouts - <char *> &d))
    memset(&space, 0, sizeof(Space))
    d.reduce = reduce
    PyObject_GetBuffer(codestream, &view, PyBUF_SIMPLE)
    try:
        p = <const uint8_t *> view.buf
        end = p + view.len
        p = in_file(p, end)
        first = p + 2
        fault = read_main_header(&p, end, &d.main)
        if fault != FINE:
            raise error_of(fault)
        samples = <int64_t> width_of(&d.main.image) * height_of(&d.main.image)
        if samples > max_samples // d.main.components:
            raise error_of(TOO_LARGE)
        fault = find_parts(&d.main, p, end, &d.parts)
        if fault == FINE and d.main.packed:
            fault = unpack_main(first, p - first, &d.parts)
        # Tiles may have other levels than the main header says.
        if fault == FINE and not d.parts.own:
            for c in range(d.main.components):
                if reduce > d.main.style[c].levels:
                    fault = NO_SUCH_RESOLUTION
        if fault == FINE and d.parts.tiles > d.parts.count:
            fault = TRUNCATED
        if fault != FINE:
            raise error_of(fault)
        rows = ceil_shift(d.main.image.y1, reduce) - ceil_shift(d.main.image.y0, reduce)
        columns = ceil_shift(d.main.image.x1, reduce) - ceil_shift(d.main.image.x0, reduce)
        out.bytes = 1 if d.main.bits <= 8 else 2
        out.components = d.main.components
        shape = (rows, columns, d.main.components)
        dtype = np.dtype(f"{'i' if d.main.has_sign else 'u'}{out.bytes}")
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
        out.pitch = columns * d.main.components * out.bytes
        out.low = -(1 << (d.main.bits - 1))
        out.high = (1 << (d.main.bits - 1)) - 1
        out.shift = 0 if d.main.has_sign else 1 << (d.main.bits - 1)
        # Where no tile is coded in a way of its own, the last level may go straight to samples; and where the sum of
        # two coefficients fits, each eight times the range at most, they have 16 bits.
        d.fused = not d.parts.own
        for c in range(d.main.components):
            d.fused &= are_alike(&d.main.style[c], &d.main.style[0]) and not d.main.style[c].irreversible
        d.narrow = d.fused and d.main.bits + (1 if d.main.colour else 0) <= 12
        room = lay_planes(&d.planes, NULL, &d.main, reduce, d.fused, 2 if d.narrow else 4) + 64
        # Rows of a thin frame take many times what its samples do: that is not memory which the caller has allowed.
        if room > SPARE_ROOM + 16 * <size_t> max_samples:
            raise error_of(TOO_LARGE)
        space = take_space(room)
        if space.memory == NULL:
            raise MemoryError
        lay_planes(
            &d.planes,
            <char *> ((<size_t> space.memory + 63) & ~<size_t> 63),
            &d.main,
            reduce,
            d.fused,
            2 if d.narrow else 4,
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
