# cython: language_level=3
"""The HT block decoder: cleanup, SigProp and MagRef (T.814 clause 7)."""

from libc.stdint cimport uint8_t, uint32_t


# A code block as packets give it.
cdef struct Coded:
    const uint8_t *data
    # Bytes of the cleanup pass, and of the two others together.
    uint32_t cleanup
    uint32_t refinement
    # 1 cleanup, 2 and SigProp, 3 and MagRef.
    uint8_t passes
    # Bit planes above the first that is coded.
    uint8_t missing


cdef int decode_block(
    const Coded *coded, int bits, bint causal, bint narrow, float delta, void *samples, Py_ssize_t stride, int width,
    int height
) noexcept nogil
cdef int use_block_path(int path) noexcept nogil
