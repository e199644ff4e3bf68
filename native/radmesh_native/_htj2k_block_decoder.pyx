# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The HT block decoder: cleanup (htj2k_decode_block.h), SigProp and MagRef (T.814 clause 7)."""

from libc.stdint cimport int16_t, int32_t, uint8_t, uint32_t

from radmesh_native._htj2k_bits cimport (
    BackwardReader,
    ForwardReader,
    backward_read,
    forward_read,
    forward_read_start,
    magref_read_start,
)
from radmesh_native._htj2k_cpu cimport htj2k_choose_path, htj2k_use_path
from radmesh_native._htj2k_layout cimport BAD_BLOCK, FINE


cdef extern from "htj2k_decode_block.h" nogil:
    void htj2k_fill_decode_tables()
    int htj2k_cleanup(
        int narrow, const uint8_t *data, uint32_t length, int missing, int plane, void *samples, Py_ssize_t stride,
        int width, int height
    )

htj2k_fill_decode_tables()
htj2k_choose_path()


cdef int use_block_path(int path) noexcept nogil:
    return htj2k_use_path(path)


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
    const Coded *coded, int bits, bint causal, bint narrow, float delta, void *samples, Py_ssize_t stride, int width,
    int height
) noexcept nogil:
    """Decode a block of `bits` bit planes, 30 at most, to all of width × height samples; 4,096 of them at most.

    `delta`: what samples were divided by, which are floats then, and 29 bit planes at most; 0 for the reversible path,
    where they are int16 if `narrow`, and int32 if not. Returns FINE or BAD_BLOCK. Reads the bytes of the block only,
    whatever they are.
    """
    cdef int plane = bits - 1 - coded.missing
    cdef int passes = coded.passes if coded.refinement else 1
    cdef int32_t wide[4096]
    cdef int x, y
    cdef ForwardReader forward
    cdef BackwardReader backward
    cdef const uint8_t *refinement = coded.data + coded.cleanup
    cdef const uint8_t *end = refinement + coded.refinement
    if plane < 0 or (passes > 1 and plane < 1):
        return BAD_BLOCK
    # Half a step is not nothing: it is a bit more here.
    if delta:
        plane += 1
    if passes == 1 and delta == 0:
        return BAD_BLOCK if htj2k_cleanup(
            narrow, coded.data, coded.cleanup, coded.missing, plane, samples, stride, width, height
        ) else FINE
    if htj2k_cleanup(False, coded.data, coded.cleanup, coded.missing, plane, wide, width, width, height):
        return BAD_BLOCK
    if passes > 2:
        magref_read_start(&backward, refinement, end)
        magref(&backward, plane - 1, wide, width, width, height)
    if passes > 1:
        forward_read_start(&forward, refinement, end)
        sigprop(&forward, plane - 1, causal, wide, width, width, height)
    for y in range(height):
        for x in range(width):
            if delta:
                (<float *> samples)[y * stride + x] = <float> wide[y * width + x] * (delta / 2)
            elif narrow:
                (<int16_t *> samples)[y * stride + x] = <int16_t> wide[y * width + x]
            else:
                (<int32_t *> samples)[y * stride + x] = wide[y * width + x]
    return FINE
