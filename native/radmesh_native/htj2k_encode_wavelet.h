/* The wavelet of htj2k_encode_frame.h in numbers of HTJ2K_NUMBER, for a path; HN names its functions.
 *
 * A row in halves: `half` numbers of even columns, as many of odd ones; both have room to spare.
 */
#define NUMBER HTJ2K_NUMBER
/* Sums wrap around. */
#define ADD(a, b) ((NUMBER)((HTJ2K_UNSIGNED)(a) + (HTJ2K_UNSIGNED)(b)))
#define SUB(a, b) ((NUMBER)((HTJ2K_UNSIGNED)(a) - (HTJ2K_UNSIGNED)(b)))

#define HTJ2K_HALVES(type)                                                                                             \
    do {                                                                                                               \
        const type *restrict p = (const type *)source + offset;                                                        \
        for (k = 0; k < width >> 1; k++) {                                                                             \
            even[k] = (NUMBER)(p[2 * k] - middle);                                                                     \
            odd[k] = (NUMBER)(p[2 * k + 1] - middle);                                                                  \
        }                                                                                                              \
        if (width & 1) even[k] = (NUMBER)(p[2 * k] - middle);                                                          \
    } while (0)

/* Read a row in halves. */
static HTJ2K_TARGET void HN(htj2k_read_row)(
    const void *source, int kind, size_t offset, int width, int32_t middle, NUMBER *restrict even, NUMBER *restrict odd
) {
    int k;
    switch (kind) {
    case HTJ2K_UINT8:
        HTJ2K_HALVES(uint8_t);
        break;
    case HTJ2K_INT8:
        HTJ2K_HALVES(int8_t);
        break;
    case HTJ2K_UINT16:
        HTJ2K_HALVES(uint16_t);
        break;
    case HTJ2K_INT16:
        HTJ2K_HALVES(int16_t);
        break;
    default: {
        const NUMBER *restrict p = (const NUMBER *)source + offset;
        for (k = 0; k < width >> 1; k++) {
            even[k] = p[2 * k];
            odd[k] = p[2 * k + 1];
        }
        if (width & 1) even[k] = p[2 * k];
    }
    }
}

/* A high row of what is around it, and the low row above; `before` is the high row above that, NULL: there is none. */
static HTJ2K_TARGET void HN(htj2k_lift_rows)(
    const NUMBER *restrict above, const NUMBER *restrict row, const NUMBER *restrict below,
    const NUMBER *restrict before, NUMBER *restrict high, NUMBER *restrict low, size_t count
) {
    size_t k;
    if (before)
        for (k = 0; k < count; k++) {
            NUMBER h = SUB(row[k], ADD(above[k], below[k]) >> 1);
            high[k] = h;
            low[k] = ADD(above[k], ADD(ADD(before[k], h), 2) >> 2);
        }
    else
        for (k = 0; k < count; k++) {
            NUMBER h = SUB(row[k], ADD(above[k], below[k]) >> 1);
            high[k] = h;
            low[k] = ADD(above[k], ADD(ADD(h, h), 2) >> 2);
        }
}

/* The last low row, where the rows are odd in number. */
static HTJ2K_TARGET void HN(htj2k_lift_last)(
    const NUMBER *restrict row, const NUMBER *restrict before, NUMBER *restrict low, size_t count
) {
    size_t k;
    for (k = 0; k < count; k++) low[k] = ADD(row[k], ADD(ADD(before[k], before[k]), 2) >> 2);
}

/* A row in halves to its low and high numbers. Writes behind the even ones. */
static HTJ2K_TARGET void HN(htj2k_lift_columns)(
    NUMBER *restrict even, const NUMBER *restrict odd, int width, NUMBER *restrict low, NUMBER *restrict high
) {
    int lows = (width + 1) >> 1, highs = width >> 1, k;
    if (!highs) {
        low[0] = even[0];
        return;
    }
    if (lows == highs) even[lows] = even[lows - 1];
    for (k = 0; k < highs; k++) high[k] = SUB(odd[k], ADD(even[k], even[k + 1]) >> 1);
    low[0] = ADD(even[0], ADD(ADD(high[0], high[0]), 2) >> 2);
    for (k = 1; k < highs; k++) low[k] = ADD(even[k], ADD(ADD(high[k - 1], high[k]), 2) >> 2);
    if (lows > highs) low[highs] = ADD(even[highs], ADD(ADD(high[highs - 1], high[highs - 1]), 2) >> 2);
}

/* Code the lowest subband: in 32 bits, with what was subtracted from the samples. */
static int HN(htj2k_encode_lowest)(
    htj2k_arena *arena, const htj2k_component *component, const NUMBER *low, size_t stride, int width, int height
) {
    int32_t *block = arena->block.lowest;
    htj2k_coded *blocks = component->blocks[0][0];
    int x, y, i, k;
    for (y = 0; y < height; y += 64)
        for (x = 0; x < width; x += 64, blocks++) {
            int across = width - x < 64 ? width - x : 64, down = height - y < 64 ? height - y : 64;
            for (i = 0; i < down; i++)
                for (k = 0; k < across; k++)
                    block[64 * i + k] = low[(size_t)(y + i) * stride + (size_t)(x + k)] + component->back;
            if (htj2k_code_strip(arena, block, 64, 0, across, down, blocks)) return -1;
        }
    return 0;
}

/* Read row y of what a component is made of, in halves; returns whether its samples are within their bits. */
static HTJ2K_TARGET int HN(htj2k_read_sample_row)(const htj2k_component *c, int y, NUMBER *even, NUMBER *odd) {
    const size_t offset = (size_t)y * (size_t)c->width;
    const size_t size = c->kind <= HTJ2K_INT8 ? 1 : c->kind <= HTJ2K_INT16 ? 2 : sizeof(NUMBER);
    const char *row = (const char *)c->source + offset * size;
    /* The processor looks ahead no further than a page. */
    if (y + HTJ2K_AHEAD < c->height) {
        const char *p = row + HTJ2K_AHEAD * (size_t)c->width * size, *end = p + (size_t)c->width * size;
        for (; p < end; p += 64) __builtin_prefetch(p);
    }
    if (c->bits && !HT(htj2k_fits)(row, c->kind, c->width, c->bits)) return 0;
    HN(htj2k_read_row)(c->source, c->kind, offset, c->width, c->middle, even, odd);
    return 1;
}

static HTJ2K_TARGET int HN(htj2k_encode)(htj2k_arena *arena, htj2k_component *component) {
    /* What a level is made of; NULL: the samples. */
    const NUMBER *source = NULL;
    int width = component->width, height = component->height, level, y, k;
    size_t half = htj2k_row_room(width), stride = 0;
    NUMBER *rows[3], *highs[2], *low_row, *strips[3], *lows[2];
    if (htj2k_take_room(
            &arena->space, &arena->space_room, htj2k_space(width, height, component->levels) * sizeof(NUMBER)))
        return -1;
    rows[0] = (NUMBER *)arena->space;
    rows[1] = rows[0] + 2 * half;
    rows[2] = rows[1] + 2 * half;
    highs[0] = rows[2] + 2 * half;
    highs[1] = highs[0] + 2 * half;
    low_row = highs[1] + 2 * half;
    strips[0] = low_row + 2 * half;
    strips[1] = strips[0] + 64 * half;
    strips[2] = strips[1] + 64 * half;
    lows[0] = strips[2] + 64 * half;
    lows[1] = lows[0] + half * ((size_t)(height + 1) / 2);
    memset(rows[0], 0, 12 * half * sizeof(NUMBER));
    for (level = component->levels; level > 0; level--) {
        NUMBER *target = lows[(component->levels - level) & 1];
        int low_width = (width + 1) >> 1, low_height = (height + 1) >> 1, high_width = width >> 1;
        half = htj2k_row_room(width);
        for (y = 0; y < low_height; y++) {
            NUMBER *high = highs[y & 1], *before = y ? highs[~y & 1] : NULL, *spare;
            NUMBER *low_target = target + (size_t)y * half;
            size_t at = (size_t)(y & 63) * half;
            /* rows[0] has row 2y, but for the first time. */
            for (k = y ? 1 : 0; k < 3 && 2 * y + k < height; k++) {
                NUMBER *even = rows[k], *odd = even + half;
                if (source)
                    HN(htj2k_read_row)(source, HTJ2K_PLANE, (size_t)(2 * y + k) * stride, width, 0, even, odd);
                else if (!HN(htj2k_read_sample_row)(component, 2 * y + k, even, odd)) {
                    component->outside = 1;
                    return 0;
                }
            }
            if (2 * y + 1 < height) {
                /* Below the last row is the one above it, once more. */
                const NUMBER *below = 2 * y + 2 < height ? rows[2] : rows[0];
                HN(htj2k_lift_rows)(rows[0], rows[1], below, before, high, low_row, 2 * half);
                HN(htj2k_lift_columns)(low_row, low_row + half, width, low_target, strips[0] + at);
                /* `high` stays as it is for the next low row, but for what is behind its even columns. */
                HN(htj2k_lift_columns)(high, high + half, width, strips[1] + at, strips[2] + at);
            } else if (y) {
                HN(htj2k_lift_last)(rows[0], before, low_row, 2 * half);
                HN(htj2k_lift_columns)(low_row, low_row + half, width, low_target, strips[0] + at);
            } else {
                HN(htj2k_lift_columns)(rows[0], rows[0] + half, width, low_target, strips[0] + at);
            }
            if ((y & 63) == 63 || y == low_height - 1) {
                /* The strip is full: high columns of low rows, low and high columns of high rows. */
                int first = y & ~63, down = y + 1 - first, high_down = (height >> 1) - first;
                size_t low_blocks = (size_t)(low_width + 63) >> 6, high_blocks = (size_t)(high_width + 63) >> 6;
                htj2k_coded *const *blocks = component->blocks[level];
                if (high_down > down) high_down = down;
                if (htj2k_code_strip(arena, strips[0], (ptrdiff_t)half, HTJ2K_IS_NARROW, high_width, down,
                                     blocks[0] + high_blocks * (size_t)(first >> 6)))
                    return -1;
                if (high_down > 0 && (htj2k_code_strip(arena, strips[1], (ptrdiff_t)half, HTJ2K_IS_NARROW, low_width,
                                                       high_down, blocks[1] + low_blocks * (size_t)(first >> 6)) ||
                                      htj2k_code_strip(arena, strips[2], (ptrdiff_t)half, HTJ2K_IS_NARROW, high_width,
                                                       high_down, blocks[2] + high_blocks * (size_t)(first >> 6))))
                    return -1;
            }
            spare = rows[0];
            rows[0] = rows[2];
            rows[2] = spare;
        }
        source = target;
        stride = half;
        width = low_width;
        height = low_height;
    }
    if (!source) {
        /* No level at all. */
        for (y = 0; y < height; y++) {
            NUMBER *row = lows[0] + (size_t)y * (size_t)width;
            if (!HN(htj2k_read_sample_row)(component, y, rows[0], rows[0] + half)) {
                component->outside = 1;
                return 0;
            }
            for (k = 0; k < width; k++) row[k] = rows[0][(size_t)(k >> 1) + (k & 1 ? half : 0)];
        }
        source = lows[0];
        stride = (size_t)width;
    }
    return HN(htj2k_encode_lowest)(arena, component, source, stride, width, height);
}

#undef HTJ2K_HALVES
#undef NUMBER
#undef ADD
#undef SUB
#undef HN
#undef HTJ2K_NUMBER
#undef HTJ2K_UNSIGNED
#undef HTJ2K_IS_NARROW
