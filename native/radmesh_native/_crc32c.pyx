# cython: language_level=3, boundscheck=False, wraparound=False
"""CRC-32C, by the fastest path this processor has."""

import os

from libc.stdint cimport uint8_t, uint32_t


cdef extern from "crc32c.h" nogil:
    void crc32c_init()
    int crc32c_has_sse42()
    uint32_t crc32c_portable(uint32_t crc, const uint8_t *p, size_t n)
    uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t n)

crc32c_init()
cdef bint _fast = crc32c_has_sse42() and os.environ.get("RADMESH_NATIVE") != "portable"


def path():
    return "sse4.2" if _fast else "portable"


def crc32c(data, uint32_t value=0):
    cdef const uint8_t[::1] view
    cdef const uint8_t *p
    cdef size_t n
    if len(data) == 0:
        return value
    view = data
    n = view.shape[0]
    p = &view[0]
    # Short data is done before another thread could take the GIL.
    if n < 4096:
        return crc32c_sse42(value, p, n) if _fast else crc32c_portable(value, p, n)
    with nogil:
        value = crc32c_sse42(value, p, n) if _fast else crc32c_portable(value, p, n)
    return value
