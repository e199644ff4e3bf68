/* What htj2k_decode_wavelet.h includes once for each path and width of coefficients: no guard. */

#define HTJ2K_T_ADD(a, b) ((HTJ2K_T)((HTJ2K_U)(a) + (HTJ2K_U)(b)))
#define HTJ2K_T_SUB(a, b) ((HTJ2K_T)((HTJ2K_U)(a) - (HTJ2K_U)(b)))
/* What a high sample is predicted from, and what a low one is updated by. */
#define HTJ2K_HALF(a, b) ((HTJ2K_T)(HTJ2K_T_ADD(a, b) >> 1))
#define HTJ2K_QUARTER(a, b) ((HTJ2K_T)(HTJ2K_T_ADD(HTJ2K_T_ADD(a, b), 2) >> 2))

/* One row. `work` has n / 2 + 1 coefficients, and a margin on either side. */
HTJ2K_TARGET static void HTJ2K_PATH(htj2k_row)(
    const HTJ2K_T *restrict low, const HTJ2K_T *restrict high, HTJ2K_T *restrict row, ptrdiff_t n, int odd,
    HTJ2K_T *restrict work
) {
    ptrdiff_t k, lows = (n + 1 - odd) >> 1, highs = (n + odd) >> 1;
    if (n == 1) {
        row[0] = odd ? (HTJ2K_T)(high[0] >> 1) : low[0];
        return;
    }
    if (odd) {
        for (k = 0; k < lows - 1; k++) work[k] = HTJ2K_T_SUB(low[k], HTJ2K_QUARTER(high[k], high[k + 1]));
        k = lows - 1;
        work[k] = HTJ2K_T_SUB(low[k], HTJ2K_QUARTER(high[k], high[htj2k_clamp(k + 1, highs)]));
        work[-1] = work[0];
        work[lows] = work[lows - 1];
        for (k = 0; k < lows; k++) {
            row[2 * k] = HTJ2K_T_ADD(high[k], HTJ2K_HALF(work[k - 1], work[k]));
            row[2 * k + 1] = work[k];
        }
        if (highs > lows) row[2 * k] = HTJ2K_T_ADD(high[k], HTJ2K_HALF(work[k - 1], work[k]));
    } else {
        work[0] = HTJ2K_T_SUB(low[0], HTJ2K_QUARTER(high[0], high[0]));
        for (k = 1; k < lows - 1; k++) work[k] = HTJ2K_T_SUB(low[k], HTJ2K_QUARTER(high[k - 1], high[k]));
        if (lows > 1) {
            k = lows - 1;
            work[k] = HTJ2K_T_SUB(low[k], HTJ2K_QUARTER(high[k - 1], high[htj2k_clamp(k, highs)]));
        }
        work[lows] = work[lows - 1];
        for (k = 0; k < highs; k++) {
            row[2 * k] = work[k];
            row[2 * k + 1] = HTJ2K_T_ADD(high[k], HTJ2K_HALF(work[k], work[k + 1]));
        }
        if (lows > highs) row[2 * k] = work[k];
    }
}

HTJ2K_TARGET static void HTJ2K_PATH(htj2k_lift_low)(
    HTJ2K_T *restrict low, const HTJ2K_T *restrict above, const HTJ2K_T *restrict below, ptrdiff_t n
) {
    ptrdiff_t k;
    for (k = 0; k < n; k++) low[k] = HTJ2K_T_SUB(low[k], HTJ2K_QUARTER(above[k], below[k]));
}

HTJ2K_TARGET static void HTJ2K_PATH(htj2k_lift_high)(
    HTJ2K_T *restrict high, const HTJ2K_T *above, const HTJ2K_T *below, ptrdiff_t n
) {
    ptrdiff_t k;
    for (k = 0; k < n; k++) high[k] = HTJ2K_T_ADD(high[k], HTJ2K_HALF(above[k], below[k]));
}

/* A low row, and the high row above it that waited for it; `before` is the low row above that. */
HTJ2K_TARGET static void HTJ2K_PATH(htj2k_lift_both)(
    HTJ2K_T *restrict low, HTJ2K_T *restrict above, const HTJ2K_T *restrict below, const HTJ2K_T *restrict before,
    ptrdiff_t n
) {
    ptrdiff_t k;
    for (k = 0; k < n; k++) {
        HTJ2K_T value = HTJ2K_T_SUB(low[k], HTJ2K_QUARTER(above[k], below[k]));
        low[k] = value;
        above[k] = HTJ2K_T_ADD(above[k], HTJ2K_HALF(before[k], value));
    }
}

/* Step i of the sweep over a level: low row i as soon as the high rows around it are there, then the high row that
 * waited for it. Row y goes to row y & mask of the target. */
HTJ2K_TARGET static void HTJ2K_PATH(htj2k_step)(
    const htj2k_level *level, HTJ2K_T *target, ptrdiff_t stride, ptrdiff_t mask, ptrdiff_t i, HTJ2K_T *work
) {
    const HTJ2K_T *source = (const HTJ2K_T *)level->source, *line;
    ptrdiff_t odd = level->odd_y, columns = level->columns, k, j = i - 1 + odd;
    ptrdiff_t lows = (level->rows + 1 - odd) >> 1, highs = (level->rows + odd) >> 1;
    ptrdiff_t left = (columns + 1 - level->odd_x) >> 1;
    HTJ2K_T *low = NULL;
#define HTJ2K_ROW(y) (target + ((y) & mask) * stride)
#define HTJ2K_LOW(i) HTJ2K_ROW(2 * htj2k_clamp(i, lows) + odd)
#define HTJ2K_HIGH(i) HTJ2K_ROW(2 * htj2k_clamp(i, highs) + 1 - odd)
    for (k = i ? i + odd : 0; k <= i + odd && k < highs; k++) {
        line = source + (lows + k) * level->stride;
        HTJ2K_PATH(htj2k_row)(line, line + left, HTJ2K_ROW(2 * k + 1 - odd), columns, level->odd_x, work);
    }
    if (i < lows) {
        line = source + i * level->stride;
        low = HTJ2K_ROW(2 * i + odd);
        HTJ2K_PATH(htj2k_row)(line, line + left, low, columns, level->odd_x, work);
    }
    if (low && i > 0 && i + odd < highs)
        HTJ2K_PATH(htj2k_lift_both)(low, HTJ2K_HIGH(j), HTJ2K_HIGH(i + odd), HTJ2K_LOW(i - 1), columns);
    else {
        if (low) HTJ2K_PATH(htj2k_lift_low)(low, HTJ2K_HIGH(j), HTJ2K_HIGH(i + odd), columns);
        if (j >= 0 && j < highs) HTJ2K_PATH(htj2k_lift_high)(HTJ2K_HIGH(j), HTJ2K_LOW(i - 1), HTJ2K_LOW(i), columns);
    }
#undef HTJ2K_LOW
#undef HTJ2K_HIGH
#undef HTJ2K_ROW
}

/* A level of one row, which no sweep has. */
HTJ2K_TARGET static void HTJ2K_PATH(htj2k_single)(const htj2k_level *level, HTJ2K_T *target, HTJ2K_T *work) {
    const HTJ2K_T *source = (const HTJ2K_T *)level->source;
    ptrdiff_t k, left = (level->columns + 1 - level->odd_x) >> 1;
    HTJ2K_PATH(htj2k_row)(source, source + left, target, level->columns, level->odd_x, work);
    if (level->odd_y)
        for (k = 0; k < level->columns; k++) target[k] >>= 1;
}

HTJ2K_TARGET static void HTJ2K_PATH(htj2k_synthesise)(const htj2k_level *level, void *work) {
    ptrdiff_t i;
    HTJ2K_T *target = (HTJ2K_T *)level->target, *spare = (HTJ2K_T *)work + HTJ2K_MARGIN;
    if (level->rows < 1 || level->columns < 1) return;
    if (level->rows == 1)
        HTJ2K_PATH(htj2k_single)(level, target, spare);
    else
        for (i = 0; i <= (level->rows + 1 - level->odd_y) >> 1; i++)
            HTJ2K_PATH(htj2k_step)(level, target, level->target_stride, -1, i, spare);
}

/* Samples of a row, from one row of each component. */
HTJ2K_TARGET static void HTJ2K_PATH(htj2k_emit_row)(
    const HTJ2K_T *const *rows, ptrdiff_t n, const htj2k_output *out, ptrdiff_t y
) {
    const HTJ2K_T *restrict first = rows[0];
    const HTJ2K_T low = (HTJ2K_T)out->low, high = (HTJ2K_T)out->high, shift = (HTJ2K_T)out->shift;
    uint8_t *restrict bytes = out->p + y * out->pitch;
    uint16_t *restrict words = (uint16_t *)bytes;
    ptrdiff_t x;
#define HTJ2K_SAMPLE(v) HTJ2K_T_ADD((v) < low ? low : (v) > high ? high : (v), shift)
    if (out->components == 1) {
        if (out->bytes == 1)
            for (x = 0; x < n; x++) bytes[x] = (uint8_t)HTJ2K_SAMPLE(first[x]);
        else
            for (x = 0; x < n; x++) words[x] = (uint16_t)HTJ2K_SAMPLE(first[x]);
        return;
    }
    {
        const HTJ2K_T *restrict second = rows[1];
        const HTJ2K_T *restrict third = rows[2];
        const int colour = out->colour;
        HTJ2K_T red[64], green[64], blue[64];
        while (n > 0) {
            ptrdiff_t count = n < 64 ? n : 64;
            if (colour)
                for (x = 0; x < count; x++) {
                    HTJ2K_T quarter = (HTJ2K_T)(HTJ2K_T_ADD(second[x], third[x]) >> 2);
                    HTJ2K_T g = HTJ2K_T_SUB(first[x], quarter);
                    HTJ2K_T r = HTJ2K_T_ADD(third[x], g), b = HTJ2K_T_ADD(second[x], g);
                    red[x] = HTJ2K_SAMPLE(r);
                    green[x] = HTJ2K_SAMPLE(g);
                    blue[x] = HTJ2K_SAMPLE(b);
                }
            else
                for (x = 0; x < count; x++) {
                    red[x] = HTJ2K_SAMPLE(first[x]);
                    green[x] = HTJ2K_SAMPLE(second[x]);
                    blue[x] = HTJ2K_SAMPLE(third[x]);
                }
            if (out->bytes == 1) {
                for (x = 0; x < count; x++) {
                    bytes[3 * x] = (uint8_t)red[x];
                    bytes[3 * x + 1] = (uint8_t)green[x];
                    bytes[3 * x + 2] = (uint8_t)blue[x];
                }
                bytes += 3 * count;
            } else {
                for (x = 0; x < count; x++) {
                    words[3 * x] = (uint16_t)red[x];
                    words[3 * x + 1] = (uint16_t)green[x];
                    words[3 * x + 2] = (uint16_t)blue[x];
                }
                words += 3 * count;
            }
            first += count;
            second += count;
            third += count;
            n -= count;
        }
    }
#undef HTJ2K_SAMPLE
}

HTJ2K_TARGET static void HTJ2K_PATH(htj2k_emit)(const htj2k_level *levels, const htj2k_output *out) {
    const HTJ2K_T *rows[3];
    ptrdiff_t y;
    int c;
    for (y = 0; y < levels[0].rows; y++) {
        for (c = 0; c < out->components; c++) rows[c] = (const HTJ2K_T *)levels[c].source + y * levels[c].stride;
        HTJ2K_PATH(htj2k_emit_row)(rows, levels[0].columns, out, y);
    }
}

HTJ2K_TARGET static void HTJ2K_PATH(htj2k_finish)(const htj2k_level *levels, const htj2k_output *out, void *work) {
    const htj2k_level *level = &levels[0];
    HTJ2K_T *spare = (HTJ2K_T *)work + HTJ2K_MARGIN;
    ptrdiff_t pitch = (level->columns + HTJ2K_MARGIN) & ~(ptrdiff_t)(HTJ2K_MARGIN - 1);
    HTJ2K_T *ring = spare + pitch + HTJ2K_MARGIN;
    const HTJ2K_T *rows[3];
    ptrdiff_t i, k, odd = level->odd_y, lows = (level->rows + 1 - odd) >> 1, highs = (level->rows + odd) >> 1, y;
    int c;
    if (level->rows < 1 || level->columns < 1) return;
    if (level->rows == 1) {
        for (c = 0; c < out->components; c++) {
            HTJ2K_PATH(htj2k_single)(&levels[c], ring + c * HTJ2K_RING * pitch, spare);
            rows[c] = ring + c * HTJ2K_RING * pitch;
        }
        HTJ2K_PATH(htj2k_emit_row)(rows, level->columns, out, 0);
        return;
    }
    for (i = 0; i <= lows; i++) {
        for (c = 0; c < out->components; c++)
            HTJ2K_PATH(htj2k_step)(&levels[c], ring + c * HTJ2K_RING * pitch, pitch, HTJ2K_RING - 1, i, spare);
        /* High row i - 1 + odd and low row i are done. */
        for (k = 0; k < 2; k++) {
            if (k ? i >= lows : i - 1 + odd < 0 || i - 1 + odd >= highs) continue;
            y = k ? 2 * i + odd : 2 * (i - 1 + odd) + 1 - odd;
            for (c = 0; c < out->components; c++) rows[c] = ring + (c * HTJ2K_RING + (y & (HTJ2K_RING - 1))) * pitch;
            HTJ2K_PATH(htj2k_emit_row)(rows, level->columns, out, y);
        }
    }
}

#undef HTJ2K_T_ADD
#undef HTJ2K_T_SUB
#undef HTJ2K_HALF
#undef HTJ2K_QUARTER
