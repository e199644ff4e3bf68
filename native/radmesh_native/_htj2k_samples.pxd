# cython: language_level=3
"""The samples of a frame, and sums that wrap around: coefficients of a broken code stream may be any number."""

from libc.stdint cimport int8_t, int16_t, int32_t, uint8_t, uint16_t, uint32_t

ctypedef fused sample:
    uint8_t
    int8_t
    uint16_t
    int16_t


cdef inline int32_t plus(int32_t a, int32_t b) noexcept nogil:
    return <int32_t> (<uint32_t> a + <uint32_t> b)


cdef inline int32_t minus(int32_t a, int32_t b) noexcept nogil:
    return <int32_t> (<uint32_t> a - <uint32_t> b)
