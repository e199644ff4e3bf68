# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The HT block decoder: cleanup, SigProp and MagRef (T.814 clause 7).

The names of things, and the row of exponents above a line of quads, are the block encoder's.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memset

from radmesh_native._htj2k_bits cimport (
    BackwardReader,
    ForwardReader,
    MelReader,
    backward_fill,
    backward_read,
    forward_read,
    forward_read_start,
    magref_read_start,
    mel_read,
    mel_read_start,
    vlc_read_start,
)
from radmesh_native._htj2k_layout cimport BAD_BLOCK, FINE
from radmesh_native._htj2k_tables cimport HTJ2K_VLC_FIRST, HTJ2K_VLC_OTHER, htj2k_bit_length, htj2k_vlc_row

cdef enum:
    MAX_WIDTH = 1024

# What the next seven bits say, by [line is not the first][context, bits]; 0: nothing.
# significance | e_k << 4 | e_1 << 8 | an exponent offset follows << 12 | length << 13
cdef uint16_t VLC[2][1024]


cdef void fill_vlc(uint16_t *table, const htj2k_vlc_row *rows, int count) noexcept:
    cdef int n, rest
    cdef const htj2k_vlc_row *row
    for n in range(count):
        row = &rows[n]
        for rest in range(1 << (7 - row.length)):
            table[row.c_q << 7 | rest << row.length | row.word] = <uint16_t> (
                row.rho | row.e_k << 4 | row.e_1 << 8 | row.u_off << 12 | row.length << 13
            )


fill_vlc(VLC[0], HTJ2K_VLC_FIRST, 444)
fill_vlc(VLC[1], HTJ2K_VLC_OTHER, 358)


cdef inline int read_word(BackwardReader *vlc, MelReader *mel, int context, const uint16_t *table) noexcept nogil:
    """The entry of `table` for a quad; 0 for one without significant samples, -1 for a word that there is not."""
    cdef int word
    if context == 0 and not mel_read(mel):
        return 0
    backward_fill(vlc)
    word = table[context << 7 | <int> (vlc.bits & 0x7F)]
    if word == 0:
        return -1
    vlc.bits >>= word >> 13
    vlc.have -= word >> 13
    return word


cdef inline int read_prefix(BackwardReader *vlc) noexcept nogil:
    """The least exponent offset with this prefix (T.814 table 3): 1, 2, 3 or 5."""
    if backward_read(vlc, 1):
        return 1
    if backward_read(vlc, 1):
        return 2
    return 3 if backward_read(vlc, 1) else 5


cdef inline int read_suffix(BackwardReader *vlc, int prefix) noexcept nogil:
    return <int> backward_read(vlc, 1 if prefix == 3 else 5) if prefix > 2 else 0


cdef inline int read_extension(BackwardReader *vlc, int suffix) noexcept nogil:
    return 4 * <int> backward_read(vlc, 4) if suffix >= 28 else 0


cdef inline void read_offsets(
    BackwardReader *vlc, MelReader *mel, bint first_line, const int *words, int *offsets
) noexcept nogil:
    """The exponent offsets of two quads: 0 where a word says that none follows."""
    cdef bint first = words[0] >> 12 & 1, second = words[1] >> 12 & 1
    cdef int base = 0, k
    cdef int suffixes[2]
    offsets[0] = 0
    offsets[1] = 0
    if first_line and first and second and mel_read(mel):
        base = 2
    if first:
        offsets[0] = read_prefix(vlc)
    if second:
        if first_line and first and base == 0 and offsets[0] > 2:
            offsets[1] = 1 + <int> backward_read(vlc, 1)
            # Complete: no suffix.
            suffixes[1] = 0
            suffixes[0] = read_suffix(vlc, offsets[0])
            offsets[0] += suffixes[0] + read_extension(vlc, suffixes[0])
            return
        offsets[1] = read_prefix(vlc)
    for k in range(2):
        suffixes[k] = read_suffix(vlc, offsets[k])
    for k in range(2):
        if offsets[k]:
            offsets[k] += base + suffixes[k] + read_extension(vlc, suffixes[k])


cdef int cleanup(
    const uint8_t *data, uint32_t length, int missing, int plane, int32_t *samples, Py_ssize_t stride,
    int width, int height
) noexcept nogil:
    """T.814 7.3. Magnitudes are in units of 2^plane; a half is added to all but whole ones."""
    cdef uint8_t rows[2][MAX_WIDTH + 4]
    cdef uint8_t *above = rows[0]
    cdef uint8_t *below = rows[1]
    cdef uint8_t *at
    cdef const uint16_t *table = VLC[0]
    cdef ForwardReader mag
    cdef BackwardReader vlc
    cdef MelReader mel
    cdef int x, y, k, n, left, rho, word, bound, bits, column, row
    cdef int words[2]
    cdef int offsets[2]
    cdef uint32_t value, tail, half = (<uint32_t> 1 << plane) >> 1
    cdef int32_t magnitude
    if length < 2:
        return BAD_BLOCK
    tail = data[length - 1] << 4 | data[length - 2] & 0x0F
    if tail < 2 or tail > length or tail > 4079:
        return BAD_BLOCK
    forward_read_start(&mag, data, data + length - tail, 0xFF)
    mel_read_start(&mel, data + length - tail, data + length)
    vlc_read_start(&vlc, data + length - tail, data + length)
    memset(rows, 0, sizeof(rows))
    for y in range(0, height, 2):
        left = 0
        for x in range(0, width, 4):
            words[1] = 0
            for k in range(2):
                column = x + 2 * k
                if column >= width:
                    break
                at = above + column
                if y == 0:
                    word = (1 if left & 3 else 0) | (left >> 1 & 6)
                else:
                    word = (1 if at[0] | at[1] else 0) | (2 if left & 12 else 0) | (4 if at[2] | at[3] else 0)
                word = read_word(&vlc, &mel, word, table)
                if word < 0:
                    return BAD_BLOCK
                words[k] = word
                left = word & 15
            read_offsets(&vlc, &mel, y == 0, words, offsets)
            for k in range(2):
                column = x + 2 * k
                if column >= width:
                    break
                word = words[k]
                rho = word & 15
                bound = 1
                if y and rho & (rho - 1):
                    at = above + column
                    for n in range(4):
                        if at[n] > bound + 1:
                            bound = at[n] - 1
                bound += offsets[k]
                # No magnitude has more bits than the bit planes, but for one more by rounding.
                if bound > missing + 2:
                    return BAD_BLOCK
                below[column + 1] = 0
                below[column + 2] = 0
                for n in range(4):
                    if not rho >> n & 1:
                        continue
                    bits = bound - (word >> (4 + n) & 1)
                    value = forward_read(&mag, bits) | <uint32_t> (word >> (8 + n) & 1) << bits
                    if n & 1:
                        below[column + 1 + (n >> 1)] = <uint8_t> htj2k_bit_length(value | 1)
                    row = y + (n & 1)
                    if row < height and column + (n >> 1) < width:
                        magnitude = <int32_t> (((value >> 1) + 1) << plane | half)
                        samples[row * stride + column + (n >> 1)] = -magnitude if value & 1 else magnitude
        above, below = below, above
        table = VLC[1]
    return FINE


cdef void magref(
    BackwardReader *bits, int plane, int32_t *samples, Py_ssize_t stride, int width, int height
) noexcept nogil:
    """T.814 7.5: a bit more of every sample that the cleanup pass found."""
    cdef int x, y, row
    cdef int32_t *p
    cdef int32_t half = (1 << plane) >> 1, more
    for y in range(0, height, 4):
        for x in range(width):
            for row in range(y, y + 4 if y + 4 < height else height):
                p = samples + row * stride + x
                if p[0]:
                    # The half of the plane above is there: take it away if the bit is zero.
                    more = half if backward_read(bits, 1) else half - (1 << plane)
                    p[0] += more if p[0] > 0 else -more


cdef inline bint has_neighbour(
    const int32_t *p, Py_ssize_t stride, bint up, bint down, bint before, bint after
) noexcept nogil:
    cdef const int32_t *above = p - stride
    cdef const int32_t *below = p + stride
    return (
        (before and (p - 1)[0]) or (after and p[1])
        or (up and (above[0] or (before and (above - 1)[0]) or (after and above[1])))
        or (down and (below[0] or (before and (below - 1)[0]) or (after and below[1])))
    )


cdef void sigprop(
    ForwardReader *bits, int plane, bint causal, int32_t *samples, Py_ssize_t stride, int width, int height
) noexcept nogil:
    """T.814 7.4: samples with a significant neighbour, in stripes of four lines; signs follow after four columns."""
    cdef int x, y, column, row, bottom, right, fresh, n
    cdef int32_t *p
    cdef int32_t *found[16]
    cdef int32_t magnitude = 1 << plane | (1 << plane) >> 1
    for y in range(0, height, 4):
        bottom = y + 4 if y + 4 < height else height
        for x in range(0, width, 4):
            right = x + 4 if x + 4 < width else width
            fresh = 0
            for column in range(x, right):
                for row in range(y, bottom):
                    p = samples + row * stride + column
                    if p[0] or not has_neighbour(
                        p,
                        stride,
                        row > 0,
                        row + 1 < (bottom if causal else height),
                        column > 0,
                        column + 1 < width,
                    ):
                        continue
                    if forward_read(bits, 1):
                        p[0] = magnitude
                        found[fresh] = p
                        fresh += 1
            for n in range(fresh):
                if forward_read(bits, 1):
                    found[n][0] = -magnitude


cdef int decode_block(
    const Coded *coded, int bits, bint causal, int32_t *samples, Py_ssize_t stride, int width, int height
) noexcept nogil:
    """Decode a block of `bits` bit planes, 30 at most, into samples that are zero, 1,024 wide at most.

    Returns FINE or BAD_BLOCK. Reads the bytes of the block only, whatever they are.
    """
    cdef int plane = bits - 1 - coded.missing
    cdef int passes = coded.passes if coded.refinement else 1
    cdef int fault
    cdef ForwardReader forward
    cdef BackwardReader backward
    if plane < 0 or (passes > 1 and plane < 1):
        return BAD_BLOCK
    fault = cleanup(coded.data, coded.cleanup, coded.missing, plane, samples, stride, width, height)
    if fault != FINE:
        return fault
    if passes > 2:
        magref_read_start(&backward, coded.data + coded.cleanup, coded.data + coded.cleanup + coded.refinement)
        magref(&backward, plane - 1, samples, stride, width, height)
    if passes > 1:
        forward_read_start(
            &forward, coded.data + coded.cleanup, coded.data + coded.cleanup + coded.refinement, 0
        )
        sigprop(&forward, plane - 1, causal, samples, stride, width, height)
    return FINE
