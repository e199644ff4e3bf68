/* The irreversible 9/7 wavelet (T.800 F.3.8.2), from subbands to samples: coefficients are floats. The terms are those
 * of htj2k_decode_wavelet.h, whose rows of samples it ends in. */
#ifndef RADMESH_HTJ2K_DECODE_97_H
#define RADMESH_HTJ2K_DECODE_97_H

#include "htj2k_decode_wavelet.h"

static const float HTJ2K_97_STEPS[4] = {0.443506852f, 0.882911075f, -0.052980118f, -1.586134342f};
static const float HTJ2K_97_LOW = 1.230174105f, HTJ2K_97_HIGH = 1 / 1.230174105f;

/* One row, in place: low samples are at `odd` and every second from there, n is 2 at least. */
static void htj2k_lift_row_97(float *row, ptrdiff_t n, int odd) {
    int step;
    ptrdiff_t x;
    for (step = 0; step < 4; step++) {
        const float factor = HTJ2K_97_STEPS[step];
        ptrdiff_t first = step & 1 ? 1 - odd : odd;
        for (x = first ? first : 2; x < n - 1; x += 2) row[x] -= factor * (row[x - 1] + row[x + 1]);
        if (!first) row[0] -= factor * 2 * row[1];
        if (((n - 1) & 1) == first && n - 1 > 0) row[n - 1] -= factor * 2 * row[n - 2];
    }
}

static void htj2k_synthesise_97(const htj2k_level *level) {
    ptrdiff_t columns = level->columns, rows = level->rows, x, y, stride = level->target_stride;
    ptrdiff_t wide = (columns + 1 - level->odd_x) >> 1, high = (rows + 1 - level->odd_y) >> 1;
    int step;
    if (rows < 1 || columns < 1) return;
    for (y = 0; y < rows; y++) {
        int lower = y < high;
        const float *restrict source = (const float *)level->source + y * level->stride;
        ptrdiff_t at = rows == 1 ? 0 : lower ? 2 * y + level->odd_y : 2 * (y - high) + 1 - level->odd_y;
        float *restrict row = (float *)level->target + at * stride;
        const float scale = rows == 1 ? (lower ? 1.0f : 0.5f) : lower ? HTJ2K_97_LOW : HTJ2K_97_HIGH;
        const float low = scale * HTJ2K_97_LOW, other = scale * HTJ2K_97_HIGH;
        if (columns == 1) {
            row[0] = source[0] * scale * (wide ? 1.0f : 0.5f);
            continue;
        }
        for (x = 0; x < wide; x++) row[2 * x + level->odd_x] = low * source[x];
        for (x = wide; x < columns; x++) row[2 * (x - wide) + 1 - level->odd_x] = other * source[x];
        htj2k_lift_row_97(row, columns, level->odd_x);
    }
    if (rows == 1) return;
    for (step = 0; step < 4; step++) {
        const float factor = HTJ2K_97_STEPS[step];
        for (y = step & 1 ? 1 - level->odd_y : level->odd_y; y < rows; y += 2) {
            float *row = (float *)level->target + y * stride;
            const float *above = y ? row - stride : row + stride, *below = y + 1 < rows ? row + stride : row - stride;
            for (x = 0; x < columns; x++) row[x] -= factor * (above[x] + below[x]);
        }
    }
}

/* Planes of samples, through the inverse ICT (G.3.2) where there is colour. */
static void htj2k_emit_97(const htj2k_level *levels, const htj2k_output *out) {
    const float low = (float)out->low, high = (float)out->high;
    htj2k_output plain = *out;
    int32_t samples[3][256];
    const int32_t *rows[3] = {samples[0], samples[1], samples[2]};
    float values[3][256];
    ptrdiff_t x, y, from;
    int c;
    plain.colour = 0;
    for (y = 0; y < levels[0].rows; y++)
        for (from = 0; from < levels[0].columns; from += 256) {
            ptrdiff_t n = levels[0].columns - from < 256 ? levels[0].columns - from : 256;
            for (c = 0; c < out->components; c++)
                memcpy(values[c], (const float *)levels[c].source + y * levels[c].stride + from, (size_t)n * sizeof(float));
            if (out->colour)
                for (x = 0; x < n; x++) {
                    float luma = values[0][x], blue = values[1][x], red = values[2][x];
                    values[0][x] = luma + 1.402f * red;
                    values[1][x] = luma - 0.344136f * blue - 0.714136f * red;
                    values[2][x] = luma + 1.772f * blue;
                }
            for (c = 0; c < out->components; c++)
                for (x = 0; x < n; x++) {
                    /* What is no number, of a broken code stream, becomes the least. */
                    float value = values[c][x] >= low ? values[c][x] <= high ? values[c][x] : high : low;
                    samples[c][x] = (int32_t)(value + 65536.5f) - 65536;
                }
            plain.p = out->p + from * out->components * out->bytes;
            htj2k_emit_row_portable_32(rows, n, &plain, y);
        }
}

#endif
