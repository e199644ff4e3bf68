# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The HT block encoder: one cleanup pass (T.814 7.3).

A block is coded in quads, two by two samples; sample n of a quad is bit n of its patterns:

    0 2
    1 3

Line by line of quads, two quads at a time. What a quad inherits from its neighbours is in the row of exponents above
it: sample x has one at [x + 1], 0 where it is zero or outside of the block.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memcpy, memset

from radmesh_native._htj2k_bits cimport (
    BackwardWriter,
    ForwardWriter,
    MelWriter,
    backward_write,
    backward_write_start,
    forward_write,
    forward_write_end,
    forward_write_start,
    mel_vlc_end,
    mel_write,
    mel_write_start,
)
from radmesh_native._htj2k_tables cimport HTJ2K_VLC_FIRST, HTJ2K_VLC_OTHER, htj2k_bit_length, htj2k_vlc_row

cdef enum:
    MAX_WIDTH = 1024
    # The exponent offset that the longest code word without an extension says.
    LONGEST_OFFSET = 32

# Code words by [line is not the first][context, significance, top bits]: word | length << 7 | e_k << 10.
cdef uint16_t VLC[2][2048]
# Code words of an exponent offset: prefix, its length, suffix, its length.
cdef uint8_t OFFSETS[LONGEST_OFFSET + 1][4]


cdef void fill_vlc(uint16_t *table, const htj2k_vlc_row *rows, int count) noexcept:
    """Choose the word for each case: of all that may stand for it the one that costs least in VLC and MagSgn."""
    cdef int c_q, rho, top, n, cost, best
    cdef const htj2k_vlc_row *row
    for c_q in range(8):
        for rho in range(16):
            for top in range(16):
                best = 99
                for n in range(count):
                    row = &rows[n]
                    if row.c_q != c_q or row.rho != rho or row.u_off != (top != 0) or (top & row.e_k) != row.e_1:
                        continue
                    # Each known top bit spares one in MagSgn.
                    cost = row.length - (row.e_k & 1) - (row.e_k >> 1 & 1) - (row.e_k >> 2 & 1) - (row.e_k >> 3)
                    if cost < best:
                        best = cost
                        table[c_q << 8 | rho << 4 | top] = row.word | row.length << 7 | row.e_k << 10


cdef void fill_offsets() noexcept:
    """T.814 table 3. No offset is beyond 32 here: samples have 31 bits at the most."""
    cdef int u
    for u in range(1, LONGEST_OFFSET + 1):
        if u == 1:
            OFFSETS[u][:] = [1, 1, 0, 0]
        elif u == 2:
            OFFSETS[u][:] = [2, 2, 0, 0]
        elif u <= 4:
            OFFSETS[u][:] = [4, 3, u - 3, 1]
        else:
            OFFSETS[u][:] = [0, 3, u - 5, 5]


fill_vlc(VLC[0], HTJ2K_VLC_FIRST, 444)
fill_vlc(VLC[1], HTJ2K_VLC_OTHER, 358)
fill_offsets()


cdef struct Quad:
    # By sample: twice the magnitude less one, and the sign; the exponent.
    uint32_t value[4]
    uint8_t exponent[4]
    uint8_t largest
    # Significant samples.
    uint8_t rho


cdef inline void load_sample(Quad *q, int n, int32_t sample) noexcept nogil:
    cdef uint32_t magnitude
    q.exponent[n] = 0
    if sample:
        magnitude = <uint32_t> sample if sample > 0 else 0 - <uint32_t> sample
        q.value[n] = 2 * (magnitude - 1) | (sample < 0)
        q.exponent[n] = <uint8_t> htj2k_bit_length(q.value[n] | 1)
        q.rho |= 1 << n
        if q.exponent[n] > q.largest:
            q.largest = q.exponent[n]


cdef inline void load_quad(Quad *q, const int32_t *p, Py_ssize_t stride, int columns, int rows) noexcept nogil:
    """Of `columns` and `rows` of the quad, 1 or 2, the rest lies outside of the block."""
    q.rho = 0
    q.largest = 0
    load_sample(q, 0, p[0])
    load_sample(q, 1, p[stride] if rows > 1 else 0)
    load_sample(q, 2, p[1] if columns > 1 else 0)
    load_sample(q, 3, p[stride + 1] if columns > 1 and rows > 1 else 0)


cdef inline int code_quad(
    const Quad *q, int context, int bound, const uint16_t *table,
    MelWriter *mel, BackwardWriter *vlc, ForwardWriter *mag,
) noexcept nogil:
    """Code a quad but for its exponent offset; return that, 0 if there is none."""
    cdef int n, top = 0, offset = 0, bits
    cdef uint16_t word
    if context == 0:
        mel_write(mel, q.rho != 0)
        if q.rho == 0:
            return 0
    if q.largest > bound:
        offset = q.largest - bound
        bound = q.largest
        for n in range(4):
            top |= (q.exponent[n] == bound) << n
    word = table[context << 8 | q.rho << 4 | top]
    backward_write(vlc, word & 0x7F, (word >> 7) & 7)
    for n in range(4):
        if q.rho >> n & 1:
            bits = bound - (word >> (10 + n) & 1)
            forward_write(mag, <uint32_t> (q.value[n] & ((<long long> 1 << bits) - 1)), bits)
    return offset


cdef inline void code_offsets(int first, int second, BackwardWriter *vlc) noexcept nogil:
    """The exponent offsets of two quads: both prefixes, then both suffixes."""
    backward_write(vlc, OFFSETS[first][0], OFFSETS[first][1])
    backward_write(vlc, OFFSETS[second][0], OFFSETS[second][1])
    backward_write(vlc, OFFSETS[first][2], OFFSETS[first][3])
    backward_write(vlc, OFFSETS[second][2], OFFSETS[second][3])


cdef inline void code_first_offsets(int first, int second, MelWriter *mel, BackwardWriter *vlc) noexcept nogil:
    """The same in the first line: where both quads have one, an event says whether both are over 2."""
    if first and second:
        mel_write(mel, first > 2 and second > 2)
        if first > 2 and second > 2:
            first -= 2
            second -= 2
        elif first > 2:
            # The second is 1 or 2, and one bit does.
            backward_write(vlc, OFFSETS[first][0], OFFSETS[first][1])
            backward_write(vlc, second - 1, 1)
            backward_write(vlc, OFFSETS[first][2], OFFSETS[first][3])
            return
    code_offsets(first, second, vlc)


cdef inline int first_context(int left) noexcept nogil:
    """T.814 (1), of the significance of the quad to the left."""
    return (1 if left & 3 else 0) | (left >> 1 & 6)


cdef inline int other_context(const uint8_t *above, int left) noexcept nogil:
    """T.814 (2), of the exponents above, from up and left to up and right of the quad."""
    return (1 if above[0] | above[1] else 0) | (2 if left & 12 else 0) | (4 if above[2] | above[3] else 0)


cdef inline int bound_of(const uint8_t *above, int rho) noexcept nogil:
    """T.814 (5): what the exponents of a quad in another line than the first are compared with."""
    cdef int n, largest = 2
    if rho & (rho - 1):
        for n in range(4):
            if above[n] > largest:
                largest = above[n]
    return largest - 1


cdef Py_ssize_t encode_block(
    const int32_t *samples, Py_ssize_t stride, int width, int height, uint8_t *out
) noexcept nogil:
    """Code a block of 4,096 samples at most, 1,024 wide at most, to BLOCK_BYTES at `out`.

    Returns the length, 0 if all samples are zero. Samples are within ±2^30.
    """
    cdef uint8_t rows[2][MAX_WIDTH + 4]
    cdef uint8_t mel_bytes[TAIL_BYTES]
    cdef uint8_t vlc_bytes[TAIL_BYTES]
    cdef uint8_t *above = rows[0]
    cdef uint8_t *below = rows[1]
    cdef uint8_t *end
    cdef const uint16_t *table = VLC[0]
    cdef const int32_t *line
    cdef ForwardWriter mag
    cdef BackwardWriter vlc
    cdef MelWriter mel
    cdef Quad quad
    cdef int x, y, k, context, left, seen = 0
    cdef int offsets[2]
    cdef Py_ssize_t mel_length, vlc_length
    forward_write_start(&mag, out)
    mel_write_start(&mel, mel_bytes)
    backward_write_start(&vlc, vlc_bytes + TAIL_BYTES)
    memset(rows, 0, sizeof(rows))
    for y in range(0, height, 2):
        line = samples + y * stride
        left = 0
        for x in range(0, width, 4):
            for k in range(2):
                offsets[k] = 0
                if x + 2 * k >= width:
                    continue
                load_quad(&quad, line + x + 2 * k, stride, width - x - 2 * k, height - y)
                if y == 0:
                    context = first_context(left)
                    offsets[k] = code_quad(&quad, context, 1, table, &mel, &vlc, &mag)
                else:
                    end = above + x + 2 * k
                    context = other_context(end, left)
                    offsets[k] = code_quad(&quad, context, bound_of(end, quad.rho), table, &mel, &vlc, &mag)
                left = quad.rho
                seen |= left
                below[x + 2 * k + 1] = quad.exponent[1]
                below[x + 2 * k + 2] = quad.exponent[3]
            if y == 0:
                code_first_offsets(offsets[0], offsets[1], &mel, &vlc)
            else:
                code_offsets(offsets[0], offsets[1], &vlc)
        above, below = below, above
        table = VLC[1]
    if not seen:
        return 0
    end = forward_write_end(&mag)
    mel_vlc_end(&mel, &vlc)
    mel_length = mel.p - mel_bytes
    vlc_length = vlc_bytes + TAIL_BYTES - vlc.p
    memcpy(end, mel_bytes, mel_length)
    memcpy(end + mel_length, vlc.p, vlc_length)
    end += mel_length + vlc_length - 2
    # The length of both, over the ones that the VLC writer began with (T.814 7.1.1).
    end[0] = (end[0] & 0xF0) | <uint8_t> ((mel_length + vlc_length) & 0x0F)
    end[1] = <uint8_t> ((mel_length + vlc_length) >> 4)
    return end + 2 - out
