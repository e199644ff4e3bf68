# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Bit streams of a JPEG 2000 code stream: each kind as a struct and its reader, and the writer of packet headers.

Writers never check for room: whoever starts one gives it a buffer for the worst case. Readers never read outside their
bytes: past the end they give what the standard says a decoder is to see there. MagSgn, MEL and
VLC are written by htj2k_encode_block.h and read by htj2k_decode_block.h.

| stream | bytes | bits | seven bits follow | clause |
| --- | --- | --- | --- | --- |
| SigProp | forward | least significant first | 0xFF | T.814 7.1.5 |
| MagRef | backward | least significant first | over 0x8F, and they are all ones | T.814 7.1.6 |
| packet header | forward | most significant first | 0xFF | T.800 B.10.1 |
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

# SigProp -----------------------------------------------------------------------------------------------------------

cdef struct ForwardReader:
    const uint8_t *p
    const uint8_t *end
    uint64_t bits
    int have
    int room


cdef inline void forward_read_start(ForwardReader *r, const uint8_t *p, const uint8_t *end) noexcept nogil:
    r.p = p
    r.end = end
    r.bits = 0
    r.have = 0
    r.room = 8


cdef inline uint32_t forward_read(ForwardReader *r, int length) noexcept nogil:
    """Read `length` <= 32 bits; zeros follow the last byte."""
    cdef uint8_t byte
    cdef uint32_t value
    while r.have < length:
        byte = 0
        if r.p < r.end:
            byte = r.p[0]
            r.p += 1
        r.bits |= <uint64_t> (byte & ((1 << r.room) - 1)) << r.have
        r.have += r.room
        r.room = 7 if byte == 0xFF else 8
    value = <uint32_t> (r.bits & ((<uint64_t> 1 << length) - 1))
    r.bits >>= length
    r.have -= length
    return value


# MagRef -------------------------------------------------------------------------------------------------------------

cdef struct BackwardReader:
    # The byte that comes next, and the lowest that may.
    const uint8_t *p
    const uint8_t *begin
    uint64_t bits
    int have
    bint over


cdef inline void backward_fill(BackwardReader *r) noexcept nogil:
    """Make at least 32 bits ready; zeros follow the last byte."""
    cdef uint8_t byte
    cdef int room
    while r.have < 32:
        byte = 0
        if r.p >= r.begin:
            byte = r.p[0]
            r.p -= 1
        room = 7 if r.over and (byte & 0x7F) == 0x7F else 8
        r.bits |= <uint64_t> (byte & ((1 << room) - 1)) << r.have
        r.have += room
        r.over = byte > 0x8F


cdef inline void magref_read_start(BackwardReader *r, const uint8_t *begin, const uint8_t *end) noexcept nogil:
    r.p = end - 1
    r.begin = begin
    r.bits = 0
    r.have = 0
    r.over = True


cdef inline uint32_t backward_read(BackwardReader *r, int length) noexcept nogil:
    """Read `length` <= 32 bits."""
    cdef uint32_t value
    backward_fill(r)
    value = <uint32_t> (r.bits & ((<uint64_t> 1 << length) - 1))
    r.bits >>= length
    r.have -= length
    return value


# Packet headers -----------------------------------------------------------------------------------------------------

cdef struct HeaderWriter:
    uint8_t *p
    int byte
    int room


cdef inline void header_write_start(HeaderWriter *w, uint8_t *p) noexcept nogil:
    w.p = p
    w.byte = 0
    w.room = 8


cdef inline void header_write(HeaderWriter *w, uint32_t value, int length) noexcept nogil:
    while length:
        length -= 1
        w.byte = (w.byte << 1) | ((value >> length) & 1)
        w.room -= 1
        if w.room == 0:
            w.p[0] = <uint8_t> w.byte
            w.p += 1
            w.room = 7 if w.byte == 0xFF else 8
            w.byte = 0


cdef inline uint8_t *header_write_end(HeaderWriter *w) noexcept nogil:
    """Fill the last byte with zeros; return the end. A header does not end with 0xFF."""
    if w.room != 8:
        w.p[0] = <uint8_t> (w.byte << w.room)
        w.p += 1
    return w.p


cdef struct HeaderReader:
    const uint8_t *p
    const uint8_t *end
    int byte
    int have
    bint short


cdef inline void header_read_start(HeaderReader *r, const uint8_t *p, const uint8_t *end) noexcept nogil:
    r.p = p
    r.end = end
    r.byte = 0
    r.have = 0
    r.short = False


cdef inline uint32_t header_read(HeaderReader *r, int length) noexcept nogil:
    """Read `length` <= 32 bits; zeros, and `short` is set, past the end."""
    cdef uint32_t value = 0
    while length:
        length -= 1
        if r.have == 0:
            r.have = 7 if r.byte == 0xFF else 8
            if r.p < r.end:
                r.byte = r.p[0]
                r.p += 1
            else:
                r.byte = 0
                r.short = True
        r.have -= 1
        value = (value << 1) | ((r.byte >> r.have) & 1)
    return value


cdef inline const uint8_t *header_read_end(HeaderReader *r) noexcept nogil:
    """The end of the header: behind the byte that follows a last 0xFF."""
    if r.byte == 0xFF:
        if r.p < r.end:
            r.p += 1
        else:
            r.short = True
    return r.p
