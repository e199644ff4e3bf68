# cython: language_level=3, boundscheck=False, wraparound=False
"""Protobuf wire form of a message whose last field is `bytes data = 15`, without protobuf's copies."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
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


def lead(bytes prefix not None, uint64_t length, uint8_t tag=TAG):
    cdef uint8_t tail[11]
    cdef int k = 1
    tail[0] = tag
    while length > 0x7F:
        tail[k] = 0x80 | (length & 0x7F)
        length >>= 7
        k += 1
    tail[k] = <uint8_t> length
    return prefix + PyBytes_FromStringAndSize(<char *> tail, k + 1)


def room(Py_ssize_t size):
    return PyByteArray_FromStringAndSize(NULL, size)


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


cdef int locate(const uint8_t *p, Py_ssize_t n, Py_ssize_t *head, Py_ssize_t *body) noexcept nogil:
    """Find `data`: 1 with the ends of what is before it and of its tag and length, 0 if there is none, -1 if broken."""
    cdef Py_ssize_t i = 0, j = 0
    cdef uint64_t tag = 0, length = 0
    while i < n:
        j = varint(p, i, n, &tag)
        if j < 0:
            return -1
        if tag == TAG:
            j = varint(p, j, n, &length)
            # The last field, once: as protobuf itself writes it.
            if j < 0 or length != <uint64_t> (n - j):
                return -1
            head[0] = i
            body[0] = j
            return 1
        if tag & 7 == 0:
            j = varint(p, j, n, &length)
        elif tag & 7 == 1:
            j += 8
        elif tag & 7 == 2:
            j = varint(p, j, n, &length)
            if j < 0 or length > <uint64_t> (n - j):
                return -1
            j += <Py_ssize_t> length
        elif tag & 7 == 5:
            j += 4
        else:
            return -1
        if j < 0 or j > n:
            return -1
        i = j
    return 0


def split(wire not None):
    cdef Py_buffer view
    cdef Py_ssize_t head = 0, body = 0
    cdef int found
    PyObject_GetBuffer(wire, &view, PyBUF_SIMPLE)
    try:
        found = locate(<const uint8_t *> view.buf, view.len, &head, &body)
        if found < 0:
            return None
        if found == 0:
            return bytes(wire), b""
        return (
            PyBytes_FromStringAndSize(<char *> view.buf, head),
            PyMemoryView_FromObject(wire)[body:],
        )
    finally:
        PyBuffer_Release(&view)
