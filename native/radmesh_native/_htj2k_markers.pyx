# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Marker segments of a code stream (T.800 annex A, T.814 annex A): the main header, and where tile-parts are."""

from libc.stdint cimport INT32_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from radmesh_native._htj2k_layout cimport (
    BAD_MARKER,
    BAD_PROGRESSION,
    BAD_QUANTIZATION,
    BAD_SIZE,
    BAD_STYLE,
    BAD_TILE_PART,
    CPRL,
    FINE,
    MAX_CHANGES,
    MAX_COMPONENTS,
    MAX_LEVELS,
    NO_MEMORY,
    NOT_ALIKE,
    NOT_EXTENDED,
    NOT_HIGH_THROUGHPUT,
    NOT_OF_REGIONS,
    NOT_THESE_BITS,
    NOT_THESE_COMPONENTS,
    TRUNCATED,
    Header,
    Progression,
    Style,
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
    # DCO … ATK, of T.801.
    EXTENSIONS = 0xFF70
    EXTENSIONS_END = 0xFF7A
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
    return 128 + 3 * header.components + 10 * (header.style[0].levels + 1)


cdef int largest_bit_planes(const Header *header) noexcept nogil:
    cdef int n, c, planes, largest = 0
    for c in range(header.components):
        for n in range(3 * header.style[c].levels + 1):
            planes = header.guard[c] + header.exponents[c][n] - 1
            if planes > largest:
                largest = planes
    return largest


cdef uint8_t *write_main_header(const Header *header, uint8_t *out, uint8_t **lengths) noexcept nogil:
    """Write SOC … TLM of one tile whose parts are its resolutions; return the end.

    All components are as the first. TLM's entries are left open: `lengths` becomes where they are.
    """
    cdef int n, planes = largest_bit_planes(header)
    cdef const Style *style = &header.style[0]
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
    p = write16(p, 13 + style.levels)
    # Precincts are given; one layer.
    p = write8(p, 1)
    p = write8(p, header.progression)
    p = write16(p, 1)
    p = write8(p, header.colour)
    p = write8(p, style.levels)
    p = write8(p, style.block_width - 2)
    p = write8(p, style.block_height - 2)
    p = write8(p, 0x40)
    # The reversible 5/3 wavelet.
    p = write8(p, 1)
    for n in range(style.levels + 1):
        p = write8(p, style.precincts[n])
    p = write16(p, QCD)
    p = write16(p, 4 + 3 * style.levels)
    p = write8(p, header.guard[0] << 5)
    for n in range(3 * style.levels + 1):
        p = write8(p, header.exponents[0][n] << 3)
    p = write16(p, TLM)
    p = write16(p, 4 + 6 * (style.levels + 1))
    p = write8(p, 0)
    # Tile of 16 bits, length of 32.
    p = write8(p, 0x60)
    lengths[0] = p
    return p + 6 * (style.levels + 1)


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


cdef int read_style(const uint8_t *p, Py_ssize_t n, bint with_precincts, Style *style) noexcept nogil:
    """SPcod or SPcoc (A.6.1), from the number of levels on."""
    cdef int k
    if n < 5:
        return BAD_STYLE
    memset(style, 0, sizeof(Style))
    style.levels = p[0]
    style.block_width = p[1] + 2
    style.block_height = p[2] + 2
    style.causal = p[3] >> 3 & 1
    if style.levels > MAX_LEVELS:
        return BAD_STYLE
    if p[3] & 0xF7 != 0x40:
        return NOT_HIGH_THROUGHPUT
    if p[4] > 1:
        return BAD_STYLE
    style.irreversible = p[4] == 0
    # 4 to 1,024 each, 4,096 samples at most.
    if style.block_width > 10 or style.block_height > 10 or style.block_width + style.block_height > 12:
        return BAD_STYLE
    memset(style.precincts, 0xFF, sizeof(style.precincts))
    if not with_precincts:
        return FINE if n == 5 else BAD_STYLE
    if n != 6 + style.levels:
        return BAD_STYLE
    for k in range(style.levels + 1):
        style.precincts[k] = p[5 + k]
        # Half of it is what a subband has.
        if k and (p[5 + k] & 15 == 0 or p[5 + k] >> 4 == 0):
            return BAD_STYLE
    return FINE


cdef int read_coding(const uint8_t *p, Py_ssize_t n, Header *header) noexcept nogil:
    """COD (A.6.1), from behind its length: the style of all components that have no COC."""
    cdef Style style
    cdef int k, fault
    if n < 10:
        return BAD_STYLE
    header.sop = p[0] >> 1 & 1
    header.eph = p[0] >> 2 & 1
    header.progression = p[1]
    header.layers = <int> read16(p + 2)
    header.colour = p[4]
    if p[0] > 7 or p[1] > CPRL or p[4] > 1 or header.layers == 0:
        return BAD_STYLE
    fault = read_style(p + 5, n - 5, p[0] & 1, &style)
    for k in range(header.components):
        if not header.style[k].own:
            header.style[k] = style
    return fault


cdef int read_component_coding(const uint8_t *p, Py_ssize_t n, Header *header) noexcept nogil:
    """COC (A.6.2), from behind its length."""
    cdef int fault
    if n < 7 or p[0] >= header.components or p[1] > 1:
        return BAD_STYLE
    fault = read_style(p + 2, n - 2, p[1], &header.style[p[0]])
    header.style[p[0]].own = True
    return fault


cdef int read_changes(const uint8_t *p, Py_ssize_t n, Header *header) noexcept nogil:
    """POC (A.6.6), from behind its length: more progressions, of less than 257 components."""
    cdef Progression *change
    if n < 7 or n % 7:
        return BAD_PROGRESSION
    while n:
        if header.changes == MAX_CHANGES:
            return BAD_PROGRESSION
        change = &header.change[header.changes]
        change.resolution = p[0]
        change.component = p[1]
        change.layer_end = <int> read16(p + 2)
        change.resolution_end = p[4]
        # 0 is 256.
        change.component_end = p[5] if p[5] else 256
        change.order = p[6]
        if change.order > CPRL or change.resolution_end <= change.resolution or change.layer_end == 0:
            return BAD_PROGRESSION
        if change.component_end <= change.component:
            return BAD_PROGRESSION
        header.changes += 1
        p += 7
        n -= 7
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
    cdef int k, level, derived, levels = header.style[component].levels
    cdef bint irreversible = header.style[component].irreversible
    if (header.quantization[component] != 0) != irreversible:
        return BAD_QUANTIZATION
    if header.quantization[component] == 1:
        header.exponent_count[component] = 97
        derived = header.exponents[component][0]
        for k in range(3 * levels + 1):
            # E-5: of the level of the subband.
            level = levels - (k - 1) // 3 if k else levels
            if derived - levels + level < 0:
                return BAD_QUANTIZATION
            header.exponents[component][k] = <uint8_t> (derived - levels + level)
            header.mantissas[component][k] = header.mantissas[component][0]
    if header.exponent_count[component] < 3 * levels + 1:
        return BAD_QUANTIZATION
    for k in range(3 * levels + 1):
        # The 9/7 has a bit more, for halves.
        if header.guard[component] + header.exponents[component][k] - 1 > MAX_BIT_PLANES - irreversible:
            return BAD_QUANTIZATION
    return FINE


cdef int settle(Header *header) noexcept nogil:
    """Check what the segments of a tile say together; each may come before or after the others."""
    cdef int k, fault
    if header.colour:
        if header.components != 3:
            return BAD_STYLE
        for k in range(1, 3):
            if header.style[k].irreversible != header.style[0].irreversible:
                return BAD_STYLE
    for k in range(header.components):
        fault = settle_quantization(header, k)
        if fault != FINE:
            return fault
    return FINE


cdef int read_segment(uint32_t marker, const uint8_t *p, Py_ssize_t n, Header *header) noexcept nogil:
    """A segment that a main header and that of a tile may have, from behind its length."""
    cdef int k, fault = FINE
    if marker == COD:
        return read_coding(p, n, header)
    if marker == COC:
        return read_component_coding(p, n, header)
    if marker == QCD:
        for k in range(header.components):
            if fault == FINE and not header.own[k]:
                fault = read_quantization(p, n, header, k)
        return fault
    if marker == QCC:
        if n < 1 or p[0] >= header.components:
            return BAD_QUANTIZATION
        header.own[p[0]] = True
        return read_quantization(p + 1, n - 1, header, p[0])
    if marker == POC:
        return read_changes(p, n, header)
    if marker == RGN:
        return NOT_OF_REGIONS
    return NOT_EXTENDED if EXTENSIONS <= marker < EXTENSIONS_END else FINE


cdef int read_main_header(const uint8_t **start, const uint8_t *end, Header *header) noexcept nogil:
    """Read SOC … the first SOT, and move *start to that."""
    cdef const uint8_t *p = start[0]
    cdef uint32_t marker, length
    cdef int fault
    cdef bint sized = False, coded = False, quantized = False
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
        if (marker == SIZ and sized) or (marker == COD and coded) or (marker == QCD and quantized):
            return BAD_MARKER
        sized |= marker == SIZ
        coded |= marker == COD
        quantized |= marker == QCD
        if marker == SIZ:
            fault = read_size(p + 4, length - 2, header)
        elif marker == CAP:
            fault = read_capabilities(p + 4, length - 2, header)
        elif marker == PPM:
            header.packed = True
            fault = FINE
        else:
            fault = read_segment(marker, p + 4, length - 2, header)
        if fault != FINE:
            return fault
        p += 2 + length
    if not coded:
        return BAD_STYLE
    if not quantized:
        return BAD_QUANTIZATION
    start[0] = p
    return FINE


cdef int read_capabilities(const uint8_t *p, Py_ssize_t n, Header *header) noexcept nogil:
    """CAP (T.814 A.3): whether blocks may have several HT sets."""
    cdef int bit, k = 0
    if n < 4:
        return BAD_MARKER
    for bit in range(1, 32):
        if read32(p) >> (32 - bit) & 1:
            if 6 + 2 * k > n:
                return BAD_MARKER
            if bit == 15:
                header.sets = read16(p + 4 + 2 * k) >> 13 & 1
            k += 1
    return FINE


cdef int read_tile_header(const Parts *parts, Py_ssize_t tile, Header *header) noexcept nogil:
    """Change a copy of the main header to what the headers of a tile's parts say."""
    cdef Py_ssize_t part
    cdef const uint8_t *p
    cdef uint32_t marker
    cdef bint changed = False
    cdef int k, fault
    for k in range(header.components):
        # COC of the main header yields to COD of the tile (A.6.1), and so does QCC to QCD.
        header.style[k].own = False
        header.own[k] = False
    part = parts.first[tile]
    while part >= 0:
        p = parts.parts[part].head if parts.parts[part].own else NULL
        while p != NULL and read16(p) != SOD:
            marker = read16(p)
            if marker == POC and not changed:
                changed = True
                header.changes = 0
            fault = read_segment(marker, p + 4, read16(p + 2) - 2, header)
            if fault != FINE:
                return fault
            p += 2 + read16(p + 2)
        part = parts.parts[part].next
    return FINE


cdef int walk_part_header(const uint8_t **start, const uint8_t *end, Part *part) noexcept nogil:
    """Move *start from behind SOT to behind SOD."""
    cdef const uint8_t *p = start[0]
    cdef uint32_t marker, length
    part.head = p
    part.own = False
    part.packed = False
    while True:
        if end - p < 2:
            return TRUNCATED
        marker = read16(p)
        if marker == SOD:
            start[0] = p + 2
            return FINE
        if marker < 0xFF4F or marker >= SOT:
            return BAD_TILE_PART
        if end - p < 4:
            return TRUNCATED
        length = read16(p + 2)
        if length < 2:
            return BAD_TILE_PART
        if end - p - 2 < length:
            return TRUNCATED
        if marker == PPT:
            part.packed = True
        elif COD <= marker <= COC or QCD <= marker <= POC or EXTENSIONS <= marker < EXTENSIONS_END:
            part.own = True
        p += 2 + length


cdef int find_parts(const Header *header, const uint8_t *p, const uint8_t *end, Parts *found) noexcept nogil:
    """Find all tile-parts. A code stream that ends early has fewer, and less of the last."""
    cdef Py_ssize_t room = 0, k
    cdef Py_ssize_t *last
    cdef Part *grown
    cdef Part part
    cdef uint32_t tile, length
    cdef int fault
    memset(found, 0, sizeof(Parts))
    memset(&part, 0, sizeof(Part))
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
        part.end = end if length == 0 or length > end - p else p + length
        p += 12
        fault = walk_part_header(&p, part.end, &part)
        if fault == TRUNCATED and part.end == end:
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
        part.data = p
        part.next = -1
        found.own |= part.own
        found.packed |= part.packed
        found.parts[found.count] = part
        if found.first[tile] < 0:
            found.first[tile] = found.count
        else:
            found.parts[last[tile]].next = found.count
        last[tile] = found.count
        found.count += 1
        p = part.end
    return FINE


# Packed packet headers ----------------------------------------------------------------------------------------------

cdef Py_ssize_t pack(const uint8_t *p, uint32_t wanted, uint32_t stop, uint8_t *out) noexcept nogil:
    """Put the contents of all PPM or PPT segments of a header together, by their index (A.7.4, A.7.5).

    `p`: the first segment; `stop`: the marker that ends the header. Returns how many bytes; -1: an index is twice.
    """
    cdef const uint8_t *segments[256]
    cdef Py_ssize_t size = 0
    cdef uint32_t length
    cdef int k
    memset(segments, 0, sizeof(segments))
    while read16(p) != stop:
        if read16(p) == wanted and read16(p + 2) > 2:
            if segments[p[4]] != NULL:
                return -1
            segments[p[4]] = p
        p += 2 + read16(p + 2)
    for k in range(256):
        if segments[k] != NULL:
            length = read16(segments[k] + 2) - 3
            memcpy(out + size, segments[k] + 5, length)
            size += length
    return size


cdef int unpack_main(const uint8_t *first, Py_ssize_t size, Parts *parts) noexcept nogil:
    """Give every tile-part its packet headers of PPM. `first`: the first segment of the main header, `size` bytes."""
    cdef const uint8_t *p
    cdef const uint8_t *end
    cdef Py_ssize_t k
    parts.headers = <uint8_t *> malloc(size)
    if parts.headers == NULL:
        return NO_MEMORY
    size = pack(first, PPM, SOT, parts.headers)
    if size < 0:
        return BAD_MARKER
    p = parts.headers
    end = p + size
    for k in range(parts.count):
        if end - p < 4 or end - p - 4 < read32(p):
            return BAD_MARKER
        parts.parts[k].headers = p + 4
        parts.parts[k].headers_size = read32(p)
        p += 4 + read32(p)
    return FINE


cdef Py_ssize_t packed_bound(const Parts *parts, Py_ssize_t tile) noexcept nogil:
    """Bytes that unpack_tile writes at most."""
    cdef Py_ssize_t part = parts.first[tile], size = 1
    while part >= 0:
        if parts.headers != NULL:
            size += parts.parts[part].headers_size
        else:
            size += parts.parts[part].data - parts.parts[part].head
        part = parts.parts[part].next
    return size


cdef Py_ssize_t unpack_tile(const Parts *parts, Py_ssize_t tile, uint8_t *out) noexcept nogil:
    """Put the packet headers of a tile together; returns how many bytes, or -1: they are broken."""
    cdef Py_ssize_t part = parts.first[tile], size = 0, more
    while part >= 0:
        if parts.headers != NULL:
            more = parts.parts[part].headers_size
            memcpy(out + size, parts.parts[part].headers, more)
        else:
            more = pack(parts.parts[part].head, PPT, SOD, out + size)
            if more < 0:
                return -1
        size += more
        part = parts.parts[part].next
    return size


cdef void release_parts(Parts *parts) noexcept nogil:
    free(parts.parts)
    free(parts.first)
    free(parts.headers)
