# cython: language_level=3
"""Marker segments of a code stream (T.800 annex A, T.814 annex A): the main header, and where tile-parts are."""

from libc.stdint cimport uint8_t, uint32_t

from radmesh_native._htj2k_layout cimport Header


# A tile-part: its bytes behind SOD, as far as they are there, and the next part of the same tile, or -1.
cdef struct Part:
    # The segments of its header. Among them are some that change what the main header says; some that are PPT.
    const uint8_t *head
    bint own
    bint packed
    # Its packet headers, where PPM has them.
    const uint8_t *headers
    Py_ssize_t headers_size
    const uint8_t *data
    const uint8_t *end
    Py_ssize_t next


cdef struct Parts:
    Part *parts
    Py_ssize_t count
    # Of each tile: its first part, or -1.
    Py_ssize_t *first
    Py_ssize_t tiles
    # There are parts that are so.
    bint own
    bint packed
    # What PPM has.
    uint8_t *headers


cdef enum:
    SOT_BYTES = 14

cdef Py_ssize_t main_header_bound(const Header *header) noexcept nogil
cdef uint8_t *write_main_header(const Header *header, uint8_t *out, uint8_t **lengths) noexcept nogil
cdef void write_tile_part(uint8_t *out, int part, int parts, uint32_t length) noexcept nogil
cdef void write_part_length(uint8_t *lengths, int part, uint32_t length) noexcept nogil
cdef int read_main_header(const uint8_t **p, const uint8_t *end, Header *header) noexcept nogil
cdef int read_tile_header(const Parts *parts, Py_ssize_t tile, Header *header) noexcept nogil
cdef int settle(Header *header) noexcept nogil
cdef int find_parts(const Header *header, const uint8_t *p, const uint8_t *end, Parts *parts) noexcept nogil
cdef int unpack_main(const uint8_t *first, Py_ssize_t size, Parts *parts) noexcept nogil
cdef Py_ssize_t packed_bound(const Parts *parts, Py_ssize_t tile) noexcept nogil
cdef Py_ssize_t unpack_tile(const Parts *parts, Py_ssize_t tile, uint8_t *out) noexcept nogil
cdef void release_parts(Parts *parts) noexcept nogil
