# cython: language_level=3, boundscheck=False, wraparound=False
"""CRC-32C, by the fastest path this processor has."""

import os

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    # What is copied is summed while it is in the nearest cache.
    STEP = 16384


cdef extern from "crc32c.h" nogil:
    void crc32c_init()
    int crc32c_has_sse42()
    uint32_t crc32c_combine(uint32_t first, uint32_t second, uint64_t length)
    uint32_t crc32c_portable(uint32_t crc, const uint8_t *p, size_t n)
    uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t n)

crc32c_init()
cdef bint _fast = crc32c_has_sse42() and os.environ.get("RADMESH_NATIVE") != "portable"


def path():
    return "sse4.2" if _fast else "portable"


def crc32c(data, uint32_t value=0):
    cdef Py_buffer view
    cdef const uint8_t *p
    cdef size_t n
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    p = <const uint8_t *> view.buf
    n = view.len
    # Short data is done before another thread could take the GIL.
    if n < 4096:
        value = crc32c_sse42(value, p, n) if _fast else crc32c_portable(value, p, n)
    else:
        with nogil:
            value = crc32c_sse42(value, p, n) if _fast else crc32c_portable(value, p, n)
    PyBuffer_Release(&view)
    return value


def copy(into, size_t offset, data, uint32_t value=0):
    cdef Py_buffer target, view
    cdef const uint8_t *p
    cdef uint8_t *out
    cdef size_t left, n
    PyObject_GetBuffer(into, &target, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            left = view.len
            if offset > <size_t> target.len or left > <size_t> target.len - offset:
                raise ValueError("the data does not fit")
            p = <const uint8_t *> view.buf
            out = <uint8_t *> target.buf + offset
            with nogil:
                while left:
                    n = left if left < STEP else STEP
                    memcpy(out, p, n)
                    value = crc32c_sse42(value, p, n) if _fast else crc32c_portable(value, p, n)
                    p += n
                    out += n
                    left -= n
        finally:
            PyBuffer_Release(&view)
    finally:
        PyBuffer_Release(&target)
    return value


def combine(uint32_t first, uint32_t second, uint64_t length):
    return crc32c_combine(first, second, length)
