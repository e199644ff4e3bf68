# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""Packets: tag trees and packet headers (T.800 B.10, T.814 annex B).

With one layer a packet has all of its precinct, and nothing is remembered from one packet to the next: so it is
written, and read by read_packet_header. read_layer is for several layers, and remembers.
"""

from libc.stdint cimport INT32_MAX, int32_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memset

from radmesh_native._htj2k_bits cimport (
    HeaderReader,
    HeaderWriter,
    header_read,
    header_read_end,
    header_read_start,
    header_write,
    header_write_end,
    header_write_start,
)
from radmesh_native._htj2k_block_decoder cimport Coded
from radmesh_native._htj2k_layout cimport BAD_PACKET, FINE, NO_MEMORY, NOT_IN_SETS, TRUNCATED, Grid
from radmesh_native._htj2k_tables cimport htj2k_bit_length

cdef enum:
    # More is in no code stream: M_b is 37 at most.
    MAX_MISSING = 64
    # Of Lblock: no block has a length of more bits.
    MAX_LENGTH_BITS = 32
    FIRST_LENGTH_BITS = 3


# Tag trees (B.10.2) -------------------------------------------------------------------------------------------------

cdef int plant(Tree *tree, int32_t across, int32_t down, int32_t value) noexcept nogil:
    """Make a tree of across × down leaves, 1 × 1 at least, whose nodes all have `value`."""
    cdef Py_ssize_t nodes = 0, n
    cdef int32_t *grown
    cdef uint8_t *marks
    tree.levels = 0
    while True:
        tree.across[tree.levels] = across
        tree.starts[tree.levels] = nodes
        nodes += <Py_ssize_t> across * down
        tree.levels += 1
        if across == 1 and down == 1:
            break
        across = (across + 1) >> 1
        down = (down + 1) >> 1
    if nodes > tree.room:
        # One at a time: what was got is kept in the tree, and released with it.
        grown = <int32_t *> realloc(tree.values, nodes * sizeof(int32_t))
        if grown == NULL:
            return NO_MEMORY
        tree.values = grown
        grown = <int32_t *> realloc(tree.lows, nodes * sizeof(int32_t))
        if grown == NULL:
            return NO_MEMORY
        tree.lows = grown
        marks = <uint8_t *> realloc(tree.known, nodes)
        if marks == NULL:
            return NO_MEMORY
        tree.known = marks
        tree.room = nodes
    for n in range(nodes):
        tree.values[n] = value
    memset(tree.lows, 0, nodes * sizeof(int32_t))
    memset(tree.known, 0, nodes)
    return FINE


cdef void release(Tree *tree) noexcept nogil:
    free(tree.values)
    free(tree.lows)
    free(tree.known)


cdef void release_trees(Trees *trees) noexcept nogil:
    release(&trees.inclusion)
    release(&trees.missing)


cdef inline Py_ssize_t node_of(const Tree *tree, int level, int32_t x, int32_t y) noexcept nogil:
    return tree.starts[level] + <Py_ssize_t> (y >> level) * tree.across[level] + (x >> level)


cdef void lower(Tree *tree, int32_t x, int32_t y, int32_t value) noexcept nogil:
    """Give a leaf its value: every node above has the least of those below."""
    cdef int level
    cdef Py_ssize_t n
    for level in range(tree.levels):
        n = node_of(tree, level, x, y)
        if level and tree.values[n] <= value:
            return
        tree.values[n] = value


cdef void write_leaf(Tree *tree, int32_t x, int32_t y, int32_t threshold, HeaderWriter *w) noexcept nogil:
    """Say whether the leaf is below the threshold, and what it is if so."""
    cdef int level
    cdef int32_t low = 0
    cdef Py_ssize_t n
    for level in range(tree.levels - 1, -1, -1):
        n = node_of(tree, level, x, y)
        if tree.lows[n] > low:
            low = tree.lows[n]
        while low < threshold and not tree.known[n]:
            if low >= tree.values[n]:
                header_write(w, 1, 1)
                tree.known[n] = 1
            else:
                header_write(w, 0, 1)
                low += 1
        tree.lows[n] = low


cdef int32_t read_leaf(Tree *tree, int32_t x, int32_t y, int32_t threshold, HeaderReader *r) noexcept nogil:
    """The leaf if it is below the threshold; else the threshold, or more."""
    cdef int level
    cdef int32_t low = 0
    cdef Py_ssize_t n
    for level in range(tree.levels - 1, -1, -1):
        n = node_of(tree, level, x, y)
        if tree.lows[n] > low:
            low = tree.lows[n]
        while low < threshold and not tree.known[n]:
            if header_read(r, 1):
                tree.known[n] = 1
            else:
                low += 1
        tree.lows[n] = low
    return low


# Packet headers -----------------------------------------------------------------------------------------------------

cdef Py_ssize_t header_bound(const Grid *grids, int count) noexcept nogil:
    """The most bytes that the header of a packet can have, as written here."""
    cdef Py_ssize_t bits = 1
    cdef int n
    for n in range(count):
        # Two trees of less than 4/3 nodes a leaf, and a chain above, with few steps in all; passes, Lblock, length.
        bits += (<Py_ssize_t> grids[n].across * grids[n].down + 32) * (2 * 2 + 1 + 2 * MAX_LENGTH_BITS) + MAX_MISSING
    return bits // 7 + 2


cdef uint8_t *write_packet_header(
    const Grid *grids, const int *missing, int count, const uint32_t *lengths, Trees *trees, uint8_t *out
) noexcept nogil:
    """Write the header of a packet, whose blocks are in `lengths`, grid by grid: 0 for those that are not in it.

    `missing`: by grid, the bit planes above the one that is coded. `out` has header_bound() bytes. Returns the end, or
    NULL where there is no memory.
    """
    cdef HeaderWriter w
    cdef int n, bits, length_bits
    cdef int32_t x, y
    cdef uint32_t length
    cdef const uint32_t *next = lengths
    cdef Py_ssize_t k, blocks = 0
    cdef bint some = False
    for n in range(count):
        blocks += <Py_ssize_t> grids[n].across * grids[n].down
    for k in range(blocks):
        some |= lengths[k] != 0
    header_write_start(&w, out)
    header_write(&w, some, 1)
    if not some:
        return header_write_end(&w)
    for n in range(count):
        if grids[n].across == 0 or grids[n].down == 0:
            continue
        if plant(&trees.inclusion, grids[n].across, grids[n].down, 1) != FINE:
            return NULL
        if plant(&trees.missing, grids[n].across, grids[n].down, missing[n]) != FINE:
            return NULL
        for y in range(grids[n].down):
            for x in range(grids[n].across):
                if next[<Py_ssize_t> y * grids[n].across + x]:
                    lower(&trees.inclusion, x, y, 0)
        for y in range(grids[n].down):
            for x in range(grids[n].across):
                write_leaf(&trees.inclusion, x, y, 1, &w)
                length = next[0]
                next += 1
                if length == 0:
                    continue
                write_leaf(&trees.missing, x, y, missing[n] + 1, &w)
                # One pass (B.10.6), and the length (B.10.7).
                header_write(&w, 0, 1)
                bits = htj2k_bit_length(length)
                length_bits = bits if bits > FIRST_LENGTH_BITS else FIRST_LENGTH_BITS
                # Lblock grows by a one each, and a zero ends it.
                header_write(&w, (1 << (length_bits - FIRST_LENGTH_BITS + 1)) - 2, length_bits - FIRST_LENGTH_BITS + 1)
                header_write(&w, length, length_bits)
    return header_write_end(&w)


cdef int read_passes(HeaderReader *r) noexcept nogil:
    """B.10.6, table B.4."""
    cdef int more
    if not header_read(r, 1):
        return 1
    if not header_read(r, 1):
        return 2
    more = <int> header_read(r, 2)
    if more < 3:
        return 3 + more
    more = <int> header_read(r, 5)
    if more < 31:
        return 6 + more
    return 37 + <int> header_read(r, 7)


cdef int read_length_bits(HeaderReader *r, int *length_bits) noexcept nogil:
    """By how much Lblock grows (B.10.7.1)."""
    while header_read(r, 1):
        length_bits[0] += 1
        if length_bits[0] > MAX_LENGTH_BITS:
            return BAD_PACKET
    return FINE


cdef int read_block(HeaderReader *r, Coded *block, int32_t missing, bint sets, int *length_bits) noexcept nogil:
    """Passes and lengths of a block of no packet before (T.814 annex B); `sets`: it may have several HT sets."""
    cdef int passes = read_passes(r), skipped, bits
    length_bits[0] = FIRST_LENGTH_BITS
    if read_length_bits(r, length_bits) != FINE:
        return BAD_PACKET
    if passes > 3 and sets:
        # Which of them are empty is not to be seen here.
        return NOT_IN_SETS
    # Sets of three passes before the last are empty: each stands for a bit plane.
    skipped = (passes - 1) // 3
    passes -= 3 * skipped
    missing += skipped
    if missing > MAX_MISSING:
        return BAD_PACKET
    bits = length_bits[0] + htj2k_bit_length(3 * skipped + 1) - 1
    if bits > MAX_LENGTH_BITS:
        return BAD_PACKET
    block.cleanup = header_read(r, bits)
    block.refinement = 0
    if passes > 1:
        bits = length_bits[0] + (1 if passes == 3 else 0)
        if bits > MAX_LENGTH_BITS:
            return BAD_PACKET
        block.refinement = header_read(r, bits)
    block.passes = <uint8_t> passes
    block.missing = <uint8_t> missing
    return FINE


cdef int read_packet_header(
    const Grid *grids, int count, bint sets, const uint8_t **p, const uint8_t *end, Coded *blocks, Trees *trees
) noexcept nogil:
    """Read the header of a packet at *p, and move *p behind it.

    Fills `blocks`, grid by grid; passes are 0 for those that are not in the packet. `data` is left as it is. `sets`:
    blocks may have several HT sets. Returns FINE, TRUNCATED, BAD_PACKET, NOT_IN_SETS or NO_MEMORY.
    """
    cdef HeaderReader r
    cdef int n, fault, length_bits
    cdef int32_t x, y, missing
    cdef Py_ssize_t total = 0, k
    for n in range(count):
        total += <Py_ssize_t> grids[n].across * grids[n].down
    for k in range(total):
        blocks[k].passes = 0
    header_read_start(&r, p[0], end)
    if header_read(&r, 1):
        for n in range(count):
            if grids[n].across == 0 or grids[n].down == 0:
                continue
            if plant(&trees.inclusion, grids[n].across, grids[n].down, INT32_MAX) != FINE:
                return NO_MEMORY
            if plant(&trees.missing, grids[n].across, grids[n].down, INT32_MAX) != FINE:
                return NO_MEMORY
            for y in range(grids[n].down):
                for x in range(grids[n].across):
                    if read_leaf(&trees.inclusion, x, y, 1, &r) < 1:
                        missing = read_leaf(&trees.missing, x, y, MAX_MISSING, &r)
                        if missing >= MAX_MISSING:
                            return TRUNCATED if r.short else BAD_PACKET
                        fault = read_block(&r, blocks, missing, sets, &length_bits)
                        if fault != FINE:
                            return fault
                    blocks += 1
                    if r.short:
                        return TRUNCATED
    p[0] = header_read_end(&r)
    return TRUNCATED if r.short else FINE


# Several layers -----------------------------------------------------------------------------------------------------

cdef int open_precinct(const Grid *grids, int count, Precinct *precinct) noexcept nogil:
    cdef Py_ssize_t blocks = 0
    cdef int n
    for n in range(count):
        blocks += <Py_ssize_t> grids[n].across * grids[n].down
    precinct.blocks = <LayeredBlock *> calloc(blocks + 1, sizeof(LayeredBlock))
    precinct.trees = <Trees *> calloc(3, sizeof(Trees))
    if precinct.blocks == NULL or precinct.trees == NULL:
        return NO_MEMORY
    for n in range(count):
        if grids[n].across == 0 or grids[n].down == 0:
            continue
        if plant(&precinct.trees[n].inclusion, grids[n].across, grids[n].down, INT32_MAX) != FINE:
            return NO_MEMORY
        if plant(&precinct.trees[n].missing, grids[n].across, grids[n].down, INT32_MAX) != FINE:
            return NO_MEMORY
    return FINE


cdef void close_precinct(Precinct *precinct) noexcept nogil:
    cdef int n
    if precinct.trees != NULL:
        for n in range(3):
            release_trees(&precinct.trees[n])
    free(precinct.trees)
    free(precinct.blocks)


cdef int read_more(HeaderReader *r, LayeredBlock *block) noexcept nogil:
    """Passes and length of a block that was in a packet before: SigProp, MagRef or both."""
    cdef int passes = read_passes(r), bits
    if read_length_bits(r, &block.length_bits) != FINE:
        return BAD_PACKET
    # What follows three passes is another HT set.
    if block.coded.passes + passes > 3:
        return NOT_IN_SETS
    bits = block.length_bits + (1 if passes == 2 else 0)
    if bits > MAX_LENGTH_BITS:
        return BAD_PACKET
    block.fresh_refinement = header_read(r, bits)
    block.coded.passes += <uint8_t> passes
    block.fresh = True
    return FINE


cdef int read_layer(
    const Grid *grids, int count, int layer, bint sets, const uint8_t **p, const uint8_t *end, Precinct *precinct
) noexcept nogil:
    """Read the header of the packet of a layer at *p, and move *p behind it.

    Blocks that are in it are `fresh`, and have fresh lengths. The precinct is opened with the first packet that has
    something. Returns as read_packet_header.
    """
    cdef HeaderReader r
    cdef LayeredBlock *block
    cdef int n, fault
    cdef int32_t x, y, missing
    header_read_start(&r, p[0], end)
    if header_read(&r, 1):
        if precinct.blocks == NULL:
            fault = open_precinct(grids, count, precinct)
            if fault != FINE:
                return fault
        block = precinct.blocks
        for n in range(count):
            for y in range(grids[n].down):
                for x in range(grids[n].across):
                    fault = FINE
                    if block.length_bits:
                        if header_read(&r, 1):
                            fault = read_more(&r, block)
                    elif read_leaf(&precinct.trees[n].inclusion, x, y, layer + 1, &r) <= layer:
                        missing = read_leaf(&precinct.trees[n].missing, x, y, MAX_MISSING, &r)
                        if missing >= MAX_MISSING:
                            return TRUNCATED if r.short else BAD_PACKET
                        fault = read_block(&r, &block.coded, missing, sets, &block.length_bits)
                        block.fresh = True
                        block.fresh_refinement = block.coded.refinement
                        block.coded.refinement = 0
                    if r.short:
                        return TRUNCATED
                    if fault != FINE:
                        return fault
                    block += 1
    p[0] = header_read_end(&r)
    return TRUNCATED if r.short else FINE
