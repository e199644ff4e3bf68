# cython: language_level=3
"""The HT block encoder: one cleanup pass (T.814 7.3)."""

from libc.stdint cimport int32_t, uint8_t

cdef enum:
    # The longest that a code block of 4,096 samples may become: 32 bits each and one in eight stuffed, MEL and VLC.
    BLOCK_BYTES = 24576
    # MEL and VLC together, as their length can say.
    TAIL_BYTES = 4079

cdef Py_ssize_t encode_block(
    const int32_t *samples, Py_ssize_t stride, int width, int height, uint8_t *out
) noexcept nogil
