# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Where some elements of a data set are, or would be, so that their bytes can be replaced and all others copied.

Nothing recurses: open sequences are a stack of 64 flags.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

FOUND = 0
ENDED = 1
CUT = 2

cdef enum:
    S_FOUND = 0
    S_ENDED = 1
    S_CUT = 2
    DEEPEST = 64
    MOST_TAGS = 64
    BAD = 3
    DISORDER = 4
    DEEP = 5
    ITEM_END = 0xFFFEE00D
    SEQUENCE_END = 0xFFFEE0DD


cdef uint16_t u16(const uint8_t *p, bint big) noexcept nogil:
    return <uint16_t> (p[0] << 8 | p[1]) if big else <uint16_t> (p[0] | p[1] << 8)


cdef uint32_t u32(const uint8_t *p, bint big) noexcept nogil:
    return (<uint32_t> u16(p, big) << 16) | u16(p + 2, big) if big else u16(p, big) | (<uint32_t> u16(p + 2, big) << 16)


cdef uint32_t tag_at(const uint8_t *p, bint big) noexcept nogil:
    return (<uint32_t> u16(p, big) << 16) | u16(p + 2, big)


cdef bint is_long(uint8_t a, uint8_t b) noexcept nogil:
    """Whether a VR has a length of 32 bits (PS3.5 table 7.1-1)."""
    if a == c"O":
        return b in (c"B", c"D", c"F", c"L", c"V", c"W")
    if a == c"S":
        return b in (c"Q", c"V")
    return a == c"U" and b in (c"C", c"N", c"R", c"T", c"V")


cdef struct Element:
    uint32_t tag
    # Offsets: of the header, of the value, of what follows; the last is 0 while the length is undefined
    size_t start
    size_t value
    size_t end
    bint undefined
    # Whether what is within has no VRs
    bint implicit


cdef int read_element(
    const uint8_t *p, size_t n, size_t at, bint implicit, bint big, Element *out
) noexcept nogil:
    """0, CUT (its header, or its value, is not all there), or BAD."""
    cdef uint64_t length
    cdef uint8_t a, b
    if n - at < 8:
        return S_CUT
    out.tag = tag_at(p + at, big)
    out.start = at
    out.implicit = implicit
    if out.tag >> 16 == 0xFFFE or implicit:
        # A delimiter has no value, whatever length some writers give it.
        length = 0 if out.tag == ITEM_END or out.tag == SEQUENCE_END else u32(p + at + 4, big)
        out.value = at + 8
    else:
        a = p[at + 4]
        b = p[at + 5]
        if a < c"A" or a > c"Z" or b < c"A" or b > c"Z":
            return BAD
        if is_long(a, b):
            if n - at < 12:
                return S_CUT
            length = u32(p + at + 8, big)
            out.value = at + 12
        else:
            length = u16(p + at + 6, big)
            out.value = at + 8
        # UN of undefined length holds Implicit VR (PS3.5 6.2.2 note 2).
        out.implicit = a == c"U" and b == c"N"
    out.undefined = length == <uint32_t> -1
    out.end = 0
    if not out.undefined:
        if length > n - out.value:
            return S_CUT
        out.end = out.value + length
    return 0


cdef int skip_undefined(const uint8_t *p, size_t n, bint big, Element *element) noexcept nogil:
    """Set the end of an element of undefined length: behind its delimiter. As read_element, or DEEP."""
    cdef bint modes[DEEPEST]
    cdef int depth = 1
    cdef size_t at = element.value
    cdef Element inner
    cdef int state
    modes[0] = element.implicit
    while depth:
        state = read_element(p, n, at, modes[depth - 1], big, &inner)
        if state:
            return state
        if inner.tag == ITEM_END or inner.tag == SEQUENCE_END:
            depth -= 1
            at = inner.value
        elif not inner.undefined:
            at = inner.end
        else:
            if depth == DEEPEST:
                return DEEP
            modes[depth] = modes[depth - 1] or (inner.implicit and inner.tag >> 16 != 0xFFFE)
            depth += 1
            at = inner.value
    element.end = at
    return 0


def locate(const uint8_t[::1] data not None, tags, *, bint implicit, bint big_endian):
    cdef uint32_t wanted[MOST_TAGS]
    cdef list found = []
    cdef list order = sorted(tags)
    cdef const uint8_t *p = NULL
    cdef size_t n = data.shape[0]
    cdef size_t at = 0
    cdef int count = len(order)
    cdef int k = 0
    cdef int state = S_ENDED
    cdef int i
    cdef int64_t last = -1
    cdef Element element
    if not 0 < count <= MOST_TAGS:
        raise ValueError("tags: 1 to 64")
    for i in range(count):
        wanted[i] = order[i]
    if n:
        p = &data[0]
    while at < n:
        state = read_element(p, n, at, implicit, big_endian, &element)
        # What lies behind all that is wanted need not be there.
        if n - at >= 8 and tag_at(p + at, big_endian) > wanted[count - 1]:
            state = S_FOUND
            break
        if state == 0 and element.undefined:
            element.implicit = implicit or element.implicit
            state = skip_undefined(p, n, big_endian, &element)
        if state:
            break
        if element.tag <= last:
            state = DISORDER
            break
        last = element.tag
        while k < count and wanted[k] < element.tag:
            found.append((element.start, element.start, element.start, False))
            k += 1
        if k < count and wanted[k] == element.tag:
            found.append((element.start, element.value, element.end, element.undefined))
            k += 1
        at = element.end
        state = S_ENDED
    if state == BAD:
        raise ValueError("an element has no VR")
    if state == DISORDER:
        raise ValueError("the elements are not in order")
    if state == DEEP:
        raise ValueError("sequences are nested too deeply")
    while k < count:
        found.append((at, at, at, False))
        k += 1
    return state, at, dict(zip(order, found))
