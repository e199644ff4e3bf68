# cython: language_level=3, boundscheck=False, wraparound=False
"""Protobuf wire form of a message whose last field is `bytes data = 15`, without protobuf's copies."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef enum:
    # Field 15, wire type 2 (length-delimited): (15 << 3) | 2, which fits one byte.
    TAG = 0x7A


def join(bytes prefix not None, data):
    cdef Py_buffer view
    cdef Py_ssize_t head = PyBytes_GET_SIZE(prefix)
    cdef uint64_t rest
    cdef uint8_t length[10]
    cdef int k = 0
    cdef bytes out
    cdef char *p
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len == 0:
            return prefix
        rest = view.len
        while rest > 0x7F:
            length[k] = 0x80 | (rest & 0x7F)
            rest >>= 7
            k += 1
        length[k] = <uint8_t> rest
        k += 1
        out = PyBytes_FromStringAndSize(NULL, head + 1 + k + view.len)
        p = PyBytes_AS_STRING(out)
        memcpy(p, PyBytes_AS_STRING(prefix), head)
        p[head] = TAG
        memcpy(p + head + 1, length, k)
        with nogil:
            memcpy(p + head + 1 + k, view.buf, view.len)
        return out
    finally:
        PyBuffer_Release(&view)


cdef Py_ssize_t varint(const uint8_t *p, Py_ssize_t i, Py_ssize_t n, uint64_t *value) noexcept nogil:
    """Read a varint at i; return the index behind it, or -1."""
    cdef int shift = 0
    value[0] = 0
    while i < n and shift < 64:
        value[0] |= (<uint64_t> (p[i] & 0x7F)) << shift
        i += 1
        if not p[i - 1] & 0x80:
            return i
        shift += 7
    return -1


def split(bytes wire not None):
    cdef const uint8_t *p = <const uint8_t *> PyBytes_AS_STRING(wire)
    cdef Py_ssize_t n = PyBytes_GET_SIZE(wire)
    cdef Py_ssize_t i = 0, j = 0
    cdef uint64_t tag = 0, length = 0
    while i < n:
        j = varint(p, i, n, &tag)
        if j < 0:
            return None
        if tag == TAG:
            j = varint(p, j, n, &length)
            # The last field, once: as protobuf itself writes it.
            if j < 0 or length != <uint64_t> (n - j):
                return None
            return wire[:i], PyMemoryView_FromObject(wire)[j:]
        if tag & 7 == 0:
            j = varint(p, j, n, &length)
        elif tag & 7 == 1:
            j += 8
        elif tag & 7 == 2:
            j = varint(p, j, n, &length)
            if j < 0 or length > <uint64_t> (n - j):
                return None
            j += <Py_ssize_t> length
        elif tag & 7 == 5:
            j += 4
        else:
            return None
        if j < 0 or j > n:
            return None
        i = j
    return wire, b""
