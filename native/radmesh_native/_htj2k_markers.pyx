# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Marker segments of a code stream (T.800 annex A, T.814 annex A): the main header, and where tile-parts are."""

from libc.stdint cimport INT32_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from radmesh_native._htj2k_layout cimport (
    BAD_MARKER,
    BAD_QUANTIZATION,
    BAD_SIZE,
    BAD_STYLE,
    BAD_TILE_PART,
    CPRL,
    FINE,
    MAX_COMPONENTS,
    MAX_LEVELS,
    NO_MEMORY,
    NOT_ALIKE,
    NOT_HIGH_THROUGHPUT,
    NOT_LAYERED,
    NOT_THESE_BITS,
    NOT_THESE_COMPONENTS,
    NOT_THIS_MARKER,
    TRUNCATED,
    Header,
)

cdef enum:
    SOC = 0xFF4F
    CAP = 0xFF50
    SIZ = 0xFF51
    COD = 0xFF52
    COC = 0xFF53
    TLM = 0xFF55
    QCD = 0xFF5C
    QCC = 0xFF5D
    RGN = 0xFF5E
    POC = 0xFF5F
    PPM = 0xFF60
    PPT = 0xFF61
    SOT = 0xFF90
    SOD = 0xFF93
    EOC = 0xFFD9
    # Magnitudes of the block decoder fit 30 bits.
    MAX_BIT_PLANES = 30


cdef inline uint32_t read16(const uint8_t *p) noexcept nogil:
    return <uint32_t> p[0] << 8 | p[1]


cdef inline uint32_t read32(const uint8_t *p) noexcept nogil:
    return read16(p) << 16 | read16(p + 2)


cdef inline uint8_t *write8(uint8_t *p, uint32_t value) noexcept nogil:
    p[0] = <uint8_t> value
    return p + 1


cdef inline uint8_t *write16(uint8_t *p, uint32_t value) noexcept nogil:
    return write8(write8(p, value >> 8), value)


cdef inline uint8_t *write32(uint8_t *p, uint32_t value) noexcept nogil:
    return write16(write16(p, value >> 16), value)


# Writing ------------------------------------------------------------------------------------------------------------

cdef Py_ssize_t main_header_bound(const Header *header) noexcept nogil:
    return 128 + 3 * header.components + 4 * (header.levels + 1) + 6 * (header.levels + 1)


cdef int largest_bit_planes(const Header *header) noexcept nogil:
    cdef int n, c, planes, largest = 0
    for c in range(header.components):
        for n in range(3 * header.levels + 1):
            planes = header.guard[c] + header.exponents[c][n] - 1
            if planes > largest:
                largest = planes
    return largest


cdef uint8_t *write_main_header(const Header *header, uint8_t *out, uint8_t **lengths) noexcept nogil:
    """Write SOC … TLM of one tile whose parts are its resolutions; return the end.

    All components are as the first. TLM's entries are left open: `lengths` becomes where they are.
    """
    cdef int n, planes = largest_bit_planes(header)
    cdef uint8_t *p = write16(out, SOC)
    p = write16(p, SIZ)
    p = write16(p, 38 + 3 * header.components)
    # Needs Part 15.
    p = write16(p, 0x4000)
    p = write32(p, header.image.x1)
    p = write32(p, header.image.y1)
    p = write32(p, header.image.x0)
    p = write32(p, header.image.y0)
    p = write32(p, header.tile_width)
    p = write32(p, header.tile_height)
    p = write32(p, header.tile_x0)
    p = write32(p, header.tile_y0)
    p = write16(p, header.components)
    for _ in range(header.components):
        p = write8(p, (header.bits - 1) | (0x80 if header.has_sign else 0))
        p = write16(p, 0x0101)
    # T.814 A.3: HT blocks only, one set of passes, reversible; magnitudes of up to 8 + MAGB bits.
    p = write16(p, CAP)
    p = write16(p, 8)
    p = write32(p, 0x00020000)
    p = write16(p, 0 if planes <= 8 else planes - 8 if planes < 28 else 13 + (planes >> 2))
    p = write16(p, COD)
    p = write16(p, 13 + header.levels)
    # Precincts are given; one layer.
    p = write8(p, 1)
    p = write8(p, header.progression)
    p = write16(p, 1)
    p = write8(p, header.colour)
    p = write8(p, header.levels)
    p = write8(p, header.block_width - 2)
    p = write8(p, header.block_height - 2)
    p = write8(p, 0x40)
    # The reversible 5/3 wavelet.
    p = write8(p, 1)
    for n in range(header.levels + 1):
        p = write8(p, header.precincts[n])
    p = write16(p, QCD)
    p = write16(p, 4 + 3 * header.levels)
    p = write8(p, header.guard[0] << 5)
    for n in range(3 * header.levels + 1):
        p = write8(p, header.exponents[0][n] << 3)
    p = write16(p, TLM)
    p = write16(p, 4 + 6 * (header.levels + 1))
    p = write8(p, 0)
    # Tile of 16 bits, length of 32.
    p = write8(p, 0x60)
    lengths[0] = p
    return p + 6 * (header.levels + 1)


cdef void write_tile_part(uint8_t *out, int part, int parts, uint32_t length) noexcept nogil:
    """SOT and SOD, SOT_BYTES in all, of a part of tile 0 with `length` bytes, these included."""
    cdef uint8_t *p = write16(out, SOT)
    p = write16(p, 10)
    p = write16(p, 0)
    p = write32(p, length)
    p = write8(p, part)
    p = write8(p, parts)
    write16(p, SOD)


cdef void write_part_length(uint8_t *lengths, int part, uint32_t length) noexcept nogil:
    write32(write16(lengths + 6 * part, 0), length)


# Reading ------------------------------------------------------------------------------------------------------------

cdef int read_size(const uint8_t *p, Py_ssize_t n, Header *header) noexcept nogil:
    """SIZ (A.5.1), from behind its length."""
    cdef uint32_t value[8]
    cdef int64_t tiles
    cdef int k, components
    if n < 36:
        return BAD_SIZE
    for k in range(8):
        value[k] = read32(p + 2 + 4 * k)
        if value[k] > INT32_MAX:
            return BAD_SIZE
    header.image.x1 = value[0]
    header.image.y1 = value[1]
    header.image.x0 = value[2]
    header.image.y0 = value[3]
    header.tile_width = value[4]
    header.tile_height = value[5]
    header.tile_x0 = value[6]
    header.tile_y0 = value[7]
    if header.image.x0 >= header.image.x1 or header.image.y0 >= header.image.y1:
        return BAD_SIZE
    # B.3: the first tile has a part of the image.
    if header.tile_x0 > header.image.x0 or header.tile_y0 > header.image.y0:
        return BAD_SIZE
    if <int64_t> header.tile_x0 + header.tile_width <= header.image.x0:
        return BAD_SIZE
    if <int64_t> header.tile_y0 + header.tile_height <= header.image.y0:
        return BAD_SIZE
    tiles = tile_count(header)
    if tiles > 65535:
        return BAD_SIZE
    components = <int> read16(p + 34)
    if n != 36 + 3 * components:
        return BAD_SIZE
    if components != 1 and components != MAX_COMPONENTS:
        return NOT_THESE_COMPONENTS
    header.components = components
    header.bits = (p[36] & 0x7F) + 1
    header.has_sign = p[36] >> 7
    if header.bits > 16:
        return NOT_THESE_BITS
    for k in range(components):
        if p[36 + 3 * k] != p[36] or p[37 + 3 * k] != 1 or p[38 + 3 * k] != 1:
            return NOT_ALIKE
    return FINE


cdef int64_t tile_count(const Header *header) noexcept nogil:
    cdef int64_t across = header.image.x1 - <int64_t> header.tile_x0 + header.tile_width - 1
    cdef int64_t down = header.image.y1 - <int64_t> header.tile_y0 + header.tile_height - 1
    return (across // header.tile_width) * (down // header.tile_height)


cdef int read_coding(const uint8_t *p, Py_ssize_t n, Header *header) noexcept nogil:
    """COD (A.6.1), from behind its length."""
    cdef int k
    if n < 10:
        return BAD_STYLE
    header.sop = p[0] >> 1 & 1
    header.eph = p[0] >> 2 & 1
    header.progression = p[1]
    header.colour = p[4]
    header.levels = p[5]
    header.block_width = p[6] + 2
    header.block_height = p[7] + 2
    header.causal = p[8] >> 3 & 1
    if p[0] > 7 or p[1] > CPRL or p[4] > 1 or header.levels > MAX_LEVELS:
        return BAD_STYLE
    if read16(p + 2) != 1:
        return NOT_LAYERED
    if p[8] & 0xF7 != 0x40:
        return NOT_HIGH_THROUGHPUT
    if p[9] > 1:
        return BAD_STYLE
    header.irreversible = p[9] == 0
    # A.6.1: 4 to 1,024 each, 4,096 samples at most.
    if header.block_width > 10 or header.block_height > 10 or header.block_width + header.block_height > 12:
        return BAD_STYLE
    memset(header.precincts, 0xFF, sizeof(header.precincts))
    if not p[0] & 1:
        return FINE if n == 10 else BAD_STYLE
    if n != 11 + header.levels:
        return BAD_STYLE
    for k in range(header.levels + 1):
        header.precincts[k] = p[10 + k]
        # Half of it is what a subband has.
        if k and (p[10 + k] & 15 == 0 or p[10 + k] >> 4 == 0):
            return BAD_STYLE
    return FINE


cdef int read_quantization(const uint8_t *p, Py_ssize_t n, Header *header, int component) noexcept nogil:
    """QCD or QCC (A.6.4, A.6.5), from its Sqcd on."""
    cdef Py_ssize_t k
    cdef int style, size
    if n < 2:
        return BAD_QUANTIZATION
    style = p[0] & 31
    size = 2 if style else 1
    if style > 2 or n > 1 + 97 * size or (n - 1) % size or (style == 1 and n != 3):
        return BAD_QUANTIZATION
    header.guard[component] = p[0] >> 5
    header.quantization[component] = <uint8_t> style
    header.exponent_count[component] = <uint8_t> ((n - 1) // size)
    for k in range(header.exponent_count[component]):
        header.exponents[component][k] = p[1 + k * size] >> 3
        header.mantissas[component][k] = <uint16_t> (read16(p + 1 + k * size) & 0x7FF) if style else 0
    return FINE


cdef int settle_quantization(Header *header, int component) noexcept nogil:
    """What QCD or QCC says of each subband, once the levels are known (E.1.1)."""
    cdef int k, level, derived
    if (header.quantization[component] != 0) != header.irreversible:
        return BAD_QUANTIZATION
    if header.quantization[component] == 1:
        header.exponent_count[component] = 97
        derived = header.exponents[component][0]
        for k in range(3 * header.levels + 1):
            # E-5: of the level of the subband.
            level = header.levels - (k - 1) // 3 if k else header.levels
            if derived - header.levels + level < 0:
                return BAD_QUANTIZATION
            header.exponents[component][k] = <uint8_t> (derived - header.levels + level)
            header.mantissas[component][k] = header.mantissas[component][0]
    if header.exponent_count[component] < 3 * header.levels + 1:
        return BAD_QUANTIZATION
    for k in range(3 * header.levels + 1):
        # The 9/7 has a bit more, for halves.
        if header.guard[component] + header.exponents[component][k] - 1 > MAX_BIT_PLANES - header.irreversible:
            return BAD_QUANTIZATION
    return FINE


cdef int read_component_coding(const uint8_t *p, Py_ssize_t n, const Header *header) noexcept nogil:
    """COC (A.6.2), from behind its length: what it says has to be what COD says of all components."""
    cdef int k
    if n < 7 or p[0] >= header.components or p[1] > 1 or n != (8 + p[2] if p[1] else 7):
        return BAD_STYLE
    if p[2] != header.levels or p[3] + 2 != header.block_width or p[4] + 2 != header.block_height:
        return NOT_ALIKE
    if p[5] != (0x48 if header.causal else 0x40) or p[6] != (0 if header.irreversible else 1):
        return NOT_ALIKE
    for k in range(header.levels + 1):
        if header.precincts[k] != (p[7 + k] if p[1] else 0xFF):
            return NOT_ALIKE
    return FINE


cdef int read_main_header(const uint8_t **start, const uint8_t *end, Header *header) noexcept nogil:
    """Read SOC … the first SOT, and move *start to that."""
    cdef const uint8_t *p = start[0]
    cdef uint32_t marker, length
    cdef int fault, k
    cdef bint sized = False, coded = False, quantized = False
    cdef bint own[3]
    memset(own, 0, sizeof(own))
    memset(header, 0, sizeof(Header))
    if end - p < 4 or read16(p) != SOC or read16(p + 2) != SIZ:
        return BAD_MARKER
    p += 2
    while True:
        if end - p < 4:
            return TRUNCATED
        marker = read16(p)
        if marker == SOT:
            break
        length = read16(p + 2)
        # All marker segments of a main header have a length.
        if marker < 0xFF4F or marker == SOC or marker >= SOT or length < 2:
            return BAD_MARKER
        if end - p - 2 < length:
            return TRUNCATED
        fault = FINE
        if marker == SIZ:
            fault = BAD_MARKER if sized else read_size(p + 4, length - 2, header)
            sized = True
        elif marker == COD:
            fault = BAD_MARKER if coded else read_coding(p + 4, length - 2, header)
            coded = True
        elif marker == QCD:
            if quantized:
                return BAD_MARKER
            quantized = True
            for k in range(header.components):
                if fault == FINE and not own[k]:
                    fault = read_quantization(p + 4, length - 2, header, k)
        elif marker == QCC:
            if length < 4 or p[4] >= header.components:
                return BAD_QUANTIZATION
            own[p[4]] = True
            fault = read_quantization(p + 5, length - 3, header, p[4])
        elif marker == COC:
            # It does not come before COD (A.6.2).
            fault = read_component_coding(p + 4, length - 2, header) if coded else BAD_STYLE
        elif marker == RGN or marker == POC or marker == PPM:
            fault = NOT_THIS_MARKER
        if fault != FINE:
            return fault
        p += 2 + length
    if not coded:
        return BAD_STYLE
    if not quantized:
        return BAD_QUANTIZATION
    if header.colour and header.components != 3:
        return BAD_STYLE
    for k in range(header.components):
        fault = settle_quantization(header, k)
        if fault != FINE:
            return fault
    start[0] = p
    return FINE


cdef int skip_part_header(const uint8_t **start, const uint8_t *end) noexcept nogil:
    """Move *start from behind SOT to behind SOD."""
    cdef const uint8_t *p = start[0]
    cdef uint32_t marker, length
    while True:
        if end - p < 2:
            return TRUNCATED
        marker = read16(p)
        if marker == SOD:
            start[0] = p + 2
            return FINE
        if marker == COD or marker == COC or marker == QCD or marker == QCC or marker == RGN or marker == POC:
            return NOT_THIS_MARKER
        if marker == PPT:
            return NOT_THIS_MARKER
        if marker < 0xFF4F or marker >= SOT:
            return BAD_TILE_PART
        if end - p < 4:
            return TRUNCATED
        length = read16(p + 2)
        if length < 2:
            return BAD_TILE_PART
        if end - p - 2 < length:
            return TRUNCATED
        p += 2 + length


cdef int find_parts(const Header *header, const uint8_t *p, const uint8_t *end, Parts *found) noexcept nogil:
    """Find all tile-parts. A code stream that ends early has fewer, and less of the last."""
    cdef Py_ssize_t room = 0, k
    cdef Py_ssize_t *last
    cdef Part *grown
    cdef uint32_t tile, length
    cdef const uint8_t *part_end
    cdef int fault
    memset(found, 0, sizeof(Parts))
    found.tiles = <Py_ssize_t> tile_count(header)
    # First and last part of each tile.
    found.first = <Py_ssize_t *> calloc(2 * found.tiles, sizeof(Py_ssize_t))
    if found.first == NULL:
        return NO_MEMORY
    last = found.first + found.tiles
    for k in range(found.tiles):
        found.first[k] = -1
    while end - p >= SOT_BYTES:
        if read16(p) == EOC:
            break
        if read16(p) != SOT or read16(p + 2) != 10:
            return BAD_TILE_PART
        tile = read16(p + 4)
        length = read32(p + 6)
        if tile >= found.tiles or (length and length < SOT_BYTES):
            return BAD_TILE_PART
        # 0: up to the end of the code stream.
        part_end = end if length == 0 or length > end - p else p + length
        p += 12
        fault = skip_part_header(&p, part_end)
        if fault == TRUNCATED and part_end == end:
            break
        if fault != FINE:
            return BAD_TILE_PART if fault == TRUNCATED else fault
        if found.count == room:
            # Each takes SOT_BYTES at least, so there are not many more than bytes.
            room = 2 * room + 8
            grown = <Part *> realloc(found.parts, room * sizeof(Part))
            if grown == NULL:
                return NO_MEMORY
            found.parts = grown
        found.parts[found.count].tile = tile
        found.parts[found.count].data = p
        found.parts[found.count].end = part_end
        found.parts[found.count].next = -1
        if found.first[tile] < 0:
            found.first[tile] = found.count
        else:
            found.parts[last[tile]].next = found.count
        last[tile] = found.count
        found.count += 1
        p = part_end
    return FINE


cdef void release_parts(Parts *parts) noexcept nogil:
    free(parts.parts)
    free(parts.first)
