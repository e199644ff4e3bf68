# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Where everything of a tile is: resolutions, subbands, precincts, code blocks (T.800 annex B).

All components are sampled alike; a tile has a layout for each, as they may differ in levels, blocks and precincts.

Samples and coefficients live in two planes of int32 per component. The wavelet moves them from one plane to the other,
level by level, so that every subband is written once and stays where it is: the picture is in plane 0, the subbands of
the last resolution in plane 1, those of the one before in plane 0 …
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t

cdef enum:
    MAX_LEVELS = 32
    MAX_COMPONENTS = 3
    # Progressions of a tile: more are in no code stream that anybody wrote.
    MAX_CHANGES = 32
    LRCP = 0
    RLCP = 1
    RPCL = 2
    PCRL = 3
    CPRL = 4


cdef enum Fault:
    # Everything that can be wrong; _htj2k_decoder.pyx has a sentence for each.
    FINE = 0
    NO_MEMORY
    TRUNCATED
    BAD_MARKER
    BAD_PROGRESSION
    BAD_SIZE
    BAD_STYLE
    BAD_QUANTIZATION
    BAD_TILE_PART
    BAD_PACKET
    BAD_BLOCK
    TOO_LARGE
    TOO_MANY_BLOCKS
    NOT_HIGH_THROUGHPUT
    NOT_ALIKE
    NOT_THESE_COMPONENTS
    NOT_THESE_BITS
    NOT_IN_SETS
    NOT_OF_REGIONS
    NOT_EXTENDED
    NO_SUCH_RESOLUTION


cdef struct Rect:
    int32_t x0
    int32_t y0
    int32_t x1
    int32_t y1


# How a component is coded: COD or COC (T.800 A.6.1, A.6.2).
cdef struct Style:
    int levels
    # Code blocks: powers of two.
    int block_width
    int block_height
    bint causal
    # The 9/7 wavelet.
    bint irreversible
    # By resolution: width in the low, height in the high half of a byte, as powers of two.
    uint8_t precincts[33]
    # COC said so, and not COD.
    bint own


# One progression (A.6.6): a volume of packets, and the order in which those are that have not been yet.
cdef struct Progression:
    int order
    int resolution
    int resolution_end
    int component
    int component_end
    int layer_end


# What the main header says, and the headers of the parts of a tile (A.5, A.6). Coordinates are of the reference grid.
cdef struct Header:
    Rect image
    int32_t tile_x0
    int32_t tile_y0
    int32_t tile_width
    int32_t tile_height
    int components
    int bits
    bint has_sign
    int progression
    int layers
    bint colour
    # Markers around packets.
    bint sop
    bint eph
    # Packet headers are in PPM; blocks may have several HT sets.
    bint packed
    bint sets
    # POC, if there are any.
    int changes
    Progression change[MAX_CHANGES]
    # By component.
    Style style[3]
    # By component: QCC said so, and not QCD; guard bits, the style of quantization (0 none, 1 derived, 2 expounded),
    # how many exponents there are, and exponents and mantissas of the subbands.
    bint own[3]
    uint8_t guard[3]
    uint8_t quantization[3]
    uint8_t exponent_count[3]
    uint8_t exponents[3][97]
    uint16_t mantissas[3][97]


cdef struct Band:
    Rect area
    # Where its first coefficient is in the plane.
    int32_t left
    int32_t top
    # 0 low; 1 high horizontally, 2 high vertically, 3 both.
    int orientation
    # Its place in Header.exponents.
    int index


cdef struct Resolution:
    Rect area
    # The plane that its subbands are in.
    int plane
    int count
    Band bands[3]
    # Precincts: first index, how many, their size as a power of two.
    int32_t first_x
    int32_t first_y
    int32_t across
    int32_t down
    int precinct_width
    int precinct_height
    int block_width
    int block_height


cdef struct Layout:
    Rect area
    int levels
    Resolution resolutions[33]


# The code blocks of one subband in one precinct.
cdef struct Grid:
    # The part of the subband that the precinct has; empty: across and down are 0.
    Rect area
    # Index of the first block, and how many.
    int32_t first_x
    int32_t first_y
    int32_t across
    int32_t down


cdef inline int32_t width_of(const Rect *r) noexcept nogil:
    return r.x1 - r.x0


cdef inline int32_t height_of(const Rect *r) noexcept nogil:
    return r.y1 - r.y0


cdef inline int bit_planes(const Header *header, int component, const Band *band) noexcept nogil:
    """M_b (E.2)."""
    return header.guard[component] + header.exponents[component][band.index] - 1


cdef inline int32_t ceil_shift(int64_t value, int shift) noexcept nogil:
    """⌈value / 2^shift⌉, of a value that may be negative."""
    return <int32_t> ((value + ((<int64_t> 1 << shift) - 1)) >> shift)


cdef void tile_area(const Header *header, int64_t tile, Rect *area) noexcept nogil
cdef void lay_out(const Style *style, const Rect *area, Layout *layout) noexcept nogil
cdef void lay_grid(const Resolution *resolution, int band, int32_t x, int32_t y, Grid *grid) noexcept nogil
cdef void lay_block(const Resolution *resolution, const Grid *grid, int32_t x, int32_t y, Rect *area) noexcept nogil
