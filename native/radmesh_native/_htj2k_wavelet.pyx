# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The reversible 5/3 wavelet (T.800 annex F), one level at a time.

A level of `area` is in the top left corner of a plane: as samples in one, as four subbands in the other. Which samples
are low and which high depends on where the area starts: even coordinates are low. `odd` is 1 where it starts at an odd
one; low sample k is then at 2k + odd, high sample k at 2k + 1 - odd, and their neighbours are

    high k:  low k - odd,      low k + 1 - odd
    low k:   high k - 1 + odd, high k + odd

each no further than the ends, which is the symmetric extension of F.3.7.

Sums wrap around: coefficients of a broken code stream may be any number.
"""

from libc.stdint cimport int32_t, uint32_t

from radmesh_native._htj2k_layout cimport Rect, height_of, width_of


cdef inline int32_t plus(int32_t a, int32_t b) noexcept nogil:
    return <int32_t> (<uint32_t> a + <uint32_t> b)


cdef inline int32_t minus(int32_t a, int32_t b) noexcept nogil:
    return <int32_t> (<uint32_t> a - <uint32_t> b)


cdef inline int32_t half(int32_t a, int32_t b) noexcept nogil:
    """What a high sample is predicted from."""
    return plus(a, b) >> 1


cdef inline int32_t quarter(int32_t a, int32_t b) noexcept nogil:
    """What a low sample is updated by."""
    return plus(plus(a, b), 2) >> 2


cdef inline Py_ssize_t clamp(Py_ssize_t k, Py_ssize_t count) noexcept nogil:
    return 0 if k < 0 else count - 1 if k >= count else k


# Analysis -----------------------------------------------------------------------------------------------------------

cdef void analyse_row(const int32_t *row, int32_t *low, int32_t *high, Py_ssize_t n, int odd) noexcept nogil:
    cdef Py_ssize_t k, lows = (n + 1 - odd) >> 1, highs = (n + odd) >> 1
    if n == 1:
        if odd:
            high[0] = <int32_t> (<uint32_t> row[0] << 1)
        else:
            low[0] = row[0]
        return
    for k in range(highs):
        high[k] = row[2 * k + 1 - odd]
    for k in range(lows):
        low[k] = row[2 * k + odd]
    # All but the ends have both neighbours.
    for k in range(odd, highs - 1):
        high[k] = minus(high[k], half(low[k - odd], low[k + 1 - odd]))
    if odd:
        high[0] = minus(high[0], low[0])
    if highs > odd:
        k = highs - 1
        high[k] = minus(high[k], half(low[k - odd], low[clamp(k + 1 - odd, lows)]))
    for k in range(1 - odd, lows - 1):
        low[k] = plus(low[k], quarter(high[k - 1 + odd], high[k + odd]))
    if not odd:
        low[0] = plus(low[0], quarter(high[0], high[0]))
    if lows > 1 - odd:
        k = lows - 1
        low[k] = plus(low[k], quarter(high[k - 1 + odd], high[clamp(k + odd, highs)]))


cdef void predict_row(int32_t *row, const int32_t *above, const int32_t *below, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        row[k] = minus(row[k], half(above[k], below[k]))


cdef void update_row(int32_t *row, const int32_t *above, const int32_t *below, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        row[k] = plus(row[k], quarter(above[k], below[k]))


cdef void analyse(int32_t *source, int32_t *target, Py_ssize_t stride, const Rect *area) noexcept nogil:
    """Samples in `source`, which is used up, to subbands in `target`."""
    cdef Py_ssize_t columns = width_of(area), rows = height_of(area), k, i
    cdef int odd = area.y0 & 1, odd_x = area.x0 & 1
    cdef Py_ssize_t lows = (rows + 1 - odd) >> 1, highs = (rows + odd) >> 1
    cdef Py_ssize_t left = (columns + 1 - odd_x) >> 1
    cdef int32_t *row
    if rows == 1:
        if odd:
            for i in range(columns):
                source[i] = <int32_t> (<uint32_t> source[i] << 1)
        analyse_row(source, target, target + left, columns, odd_x)
        return
    # One sweep: high row k, then the low row that waited for it.
    for k in range(highs + 1):
        if k < highs:
            row = source + (2 * k + 1 - odd) * stride
            predict_row(
                row,
                source + (2 * clamp(k - odd, lows) + odd) * stride,
                source + (2 * clamp(k + 1 - odd, lows) + odd) * stride,
                columns,
            )
            analyse_row(row, target + (lows + k) * stride, target + (lows + k) * stride + left, columns, odd_x)
        i = k - odd
        if 0 <= i < lows:
            row = source + (2 * i + odd) * stride
            update_row(
                row,
                source + (2 * clamp(i - 1 + odd, highs) + 1 - odd) * stride,
                source + (2 * clamp(i + odd, highs) + 1 - odd) * stride,
                columns,
            )
            analyse_row(row, target + i * stride, target + i * stride + left, columns, odd_x)


# Synthesis ----------------------------------------------------------------------------------------------------------

cdef void synthesise_row(
    const int32_t *low, const int32_t *high, int32_t *row, Py_ssize_t n, int odd, int32_t *work
) noexcept nogil:
    """`work` holds n / 2 + 1 samples."""
    cdef Py_ssize_t k, lows = (n + 1 - odd) >> 1, highs = (n + odd) >> 1
    if n == 1:
        row[0] = high[0] >> 1 if odd else low[0]
        return
    for k in range(1 - odd, lows - 1):
        work[k] = minus(low[k], quarter(high[k - 1 + odd], high[k + odd]))
    if not odd:
        work[0] = minus(low[0], quarter(high[0], high[0]))
    if lows > 1 - odd:
        k = lows - 1
        work[k] = minus(low[k], quarter(high[k - 1 + odd], high[clamp(k + odd, highs)]))
    for k in range(lows):
        row[2 * k + odd] = work[k]
    for k in range(odd, highs - 1):
        row[2 * k + 1 - odd] = plus(high[k], half(work[k - odd], work[k + 1 - odd]))
    if odd:
        row[0] = plus(high[0], work[0])
    if highs > odd:
        k = highs - 1
        row[2 * k + 1 - odd] = plus(high[k], half(work[k - odd], work[clamp(k + 1 - odd, lows)]))


cdef void restore_low(int32_t *row, const int32_t *above, const int32_t *below, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        row[k] = minus(row[k], quarter(above[k], below[k]))


cdef void restore_high(int32_t *row, const int32_t *above, const int32_t *below, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        row[k] = plus(row[k], half(above[k], below[k]))


cdef void synthesise(
    const int32_t *source, int32_t *target, Py_ssize_t stride, const Rect *area, int32_t *work
) noexcept nogil:
    """Subbands in `source` to samples in `target`. `work` holds half a row and one more."""
    cdef Py_ssize_t columns = width_of(area), rows = height_of(area), k, i, j
    cdef int odd = area.y0 & 1, odd_x = area.x0 & 1
    cdef Py_ssize_t lows = (rows + 1 - odd) >> 1, highs = (rows + odd) >> 1
    cdef Py_ssize_t left = (columns + 1 - odd_x) >> 1
    cdef const int32_t *line
    cdef int32_t *row
    if rows < 1 or columns < 1:
        return
    if rows == 1:
        synthesise_row(source, source + left, target, columns, odd_x, work)
        if odd:
            for i in range(columns):
                target[i] >>= 1
        return
    # One sweep: low row i as soon as the high rows around it are there, then the high row that waited for it.
    k = 0
    for i in range(lows + 1):
        while k <= i + odd and k < highs:
            line = source + (lows + k) * stride
            synthesise_row(line, line + left, target + (2 * k + 1 - odd) * stride, columns, odd_x, work)
            k += 1
        if i < lows:
            line = source + i * stride
            row = target + (2 * i + odd) * stride
            synthesise_row(line, line + left, row, columns, odd_x, work)
            restore_low(
                row,
                target + (2 * clamp(i - 1 + odd, highs) + 1 - odd) * stride,
                target + (2 * clamp(i + odd, highs) + 1 - odd) * stride,
                columns,
            )
        j = i - 1 + odd
        if 0 <= j < highs:
            restore_high(
                target + (2 * j + 1 - odd) * stride,
                target + (2 * clamp(j - odd, lows) + odd) * stride,
                target + (2 * clamp(j + 1 - odd, lows) + odd) * stride,
                columns,
            )
