# cython: language_level=3
"""Packets: tag trees and packet headers (T.800 B.10)."""

from libc.stdint cimport int32_t, uint8_t, uint32_t

from radmesh_native._htj2k_block_decoder cimport Coded
from radmesh_native._htj2k_layout cimport Grid


cdef struct Tree:
    # Nodes of all levels, leaves first; levels end with the one node of the root.
    int32_t *values
    int32_t *lows
    uint8_t *known
    Py_ssize_t room
    int levels
    int32_t across[32]
    Py_ssize_t starts[32]


# Work space of packet headers: zero it to begin with, and release it in the end.
cdef struct Trees:
    Tree inclusion
    Tree missing


# A block of several layers, as far as it was read.
cdef struct LayeredBlock:
    # `data` is that of the cleanup pass; refinement is in two pieces at most, a piece a packet.
    Coded coded
    const uint8_t *pieces[2]
    uint32_t lengths[2]
    # Lblock; 0: it was in no packet.
    int length_bits
    # It is in the packet whose header was read last, with so many bytes of refinement. Those of the cleanup pass are
    # in its first.
    bint fresh
    uint32_t fresh_refinement


# What of a precinct was read: so many layers, and nothing yet where `blocks` is NULL.
cdef struct Precinct:
    int layers
    Trees *trees
    LayeredBlock *blocks


cdef void release_trees(Trees *trees) noexcept nogil
cdef Py_ssize_t header_bound(const Grid *grids, int count) noexcept nogil
cdef uint8_t *write_packet_header(
    const Grid *grids, const int *missing, int count, const uint32_t *lengths, Trees *trees, uint8_t *out
) noexcept nogil
cdef int read_packet_header(
    const Grid *grids, int count, bint sets, const uint8_t **p, const uint8_t *end, Coded *blocks, Trees *trees
) noexcept nogil
cdef void close_precinct(Precinct *precinct) noexcept nogil
cdef int read_layer(
    const Grid *grids, int count, int layer, bint sets, const uint8_t **p, const uint8_t *end, Precinct *precinct
) noexcept nogil
