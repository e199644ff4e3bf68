/* The vector stages of htj2k_encode_block.h, for HTJ2K_PATH, HTJ2K_TARGET and HTJ2K_LANES; undefines them.
 *
 * A vector has one quad in each lane of 32 bits.
 */
#define HT(name) HTJ2K_JOIN(name, HTJ2K_PATH)
#define HT_INLINE HTJ2K_TARGET HTJ2K_INLINE

typedef uint32_t HT(lanes) __attribute__((vector_size(4 * HTJ2K_LANES)));
typedef int32_t HT(ints) __attribute__((vector_size(4 * HTJ2K_LANES)));
typedef float HT(floats) __attribute__((vector_size(4 * HTJ2K_LANES)));
typedef uint64_t HT(wides) __attribute__((vector_size(4 * HTJ2K_LANES)));
typedef uint32_t HT(loose) __attribute__((vector_size(4 * HTJ2K_LANES), aligned(2), may_alias));
typedef uint64_t HT(loose_wides) __attribute__((vector_size(4 * HTJ2K_LANES), aligned(4), may_alias));
#define lanes HT(lanes)
#define ints HT(ints)
#define wides HT(wides)
#define LOAD(p) (*(const HT(loose) *)(p))
#define STORE(p, x) (*(HT(loose) *)(p) = (x))
#define LOAD_WIDES(p) (*(const HT(loose_wides) *)(p))
#define STORE_WIDES(p, x) (*(HT(loose_wides) *)(p) = (x))

/* What vector operators do not say well. */

#if HTJ2K_LANES == 16
HT_INLINE lanes HT(larger)(lanes a, lanes b) { return (lanes)_mm512_max_epi32((__m512i)a, (__m512i)b); }
HT_INLINE lanes HT(smaller)(lanes a, lanes b) { return (lanes)_mm512_min_epu32((__m512i)a, (__m512i)b); }
/* Bits of x >= 0 without leading zeros. */
HT_INLINE lanes HT(length)(lanes x) { return 32 - (lanes)_mm512_lzcnt_epi32((__m512i)x); }
/* x, and the bit where a is b. */
HT_INLINE lanes HT(mark)(lanes x, lanes a, lanes b, uint32_t bit) {
    __mmask16 same = _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b);
    return (lanes)_mm512_mask_or_epi32((__m512i)x, same, (__m512i)x, _mm512_set1_epi32((int)bit));
}
/* By lane, whether it has any of the bits. */
HT_INLINE uint32_t HT(any)(lanes x, uint32_t bits) {
    return _mm512_test_epi32_mask((__m512i)x, _mm512_set1_epi32((int)bits));
}
/* x where the lane of q has the bit, else 0. */
HT_INLINE lanes HT(where)(lanes q, int bit, lanes x) {
    return (lanes)_mm512_maskz_mov_epi32(
        _mm512_test_epi32_mask((__m512i)q, _mm512_set1_epi32(1 << bit)), (__m512i)x);
}
#else
HT_INLINE lanes HT(length)(lanes x) {
    /* The exponent of a float. Without its second bit, a number is not rounded up to the next power of two. */
    union { HT(floats) f; ints bits; } as = {.f = __builtin_convertvector((ints)(x & ~(x >> 1)), HT(floats))};
    ints n = (as.bits >> 23) - 126;
    return (lanes)(n & ~(n >> 31));
}
#if HTJ2K_LANES == 8
HT_INLINE lanes HT(larger)(lanes a, lanes b) { return (lanes)_mm256_max_epi32((__m256i)a, (__m256i)b); }
HT_INLINE lanes HT(smaller)(lanes a, lanes b) { return (lanes)_mm256_min_epu32((__m256i)a, (__m256i)b); }
#else
HT_INLINE lanes HT(larger)(lanes a, lanes b) {
    lanes more = (lanes)((ints)a > (ints)b);
    return (a & more) | (b & ~more);
}
/* Of two below 2^31. */
HT_INLINE lanes HT(smaller)(lanes a, lanes b) {
    lanes less = (lanes)((ints)a < (ints)b);
    return (a & less) | (b & ~less);
}
#endif
HT_INLINE lanes HT(mark)(lanes x, lanes a, lanes b, uint32_t bit) { return x | ((lanes)(a == b) & bit); }
HT_INLINE uint32_t HT(any)(lanes x, uint32_t bits) {
    lanes none = (lanes)((x & bits) == 0);
#if HTJ2K_LANES == 8
    return ~(uint32_t)_mm256_movemask_ps((__m256)none) & 0xFF;
#elif HTJ2K_X86 && defined(__SSE2__)
    return ~(uint32_t)_mm_movemask_ps((__m128)none) & 0xF;
#else
    return ~(none[0] & 1 | none[1] & 2 | none[2] & 4 | none[3] & 8) & 0xF;
#endif
}
HT_INLINE lanes HT(where)(lanes q, int bit, lanes x) { return (lanes)((ints)(q << (31 - bit)) >> 31) & x; }
#endif

/* Samples at even and at odd columns of a line. */
HT_INLINE void HT(split)(const void *line, ptrdiff_t x, int narrow, ints *even, ints *odd) {
    if (narrow) {
        lanes both = LOAD((const int16_t *)line + x);
        *even = (ints)(both << 16) >> 16;
        *odd = (ints)both >> 16;
    } else {
        const int32_t *p = (const int32_t *)line + x;
        lanes low = LOAD(p), high = LOAD(p + HTJ2K_LANES);
#if HTJ2K_LANES == 16
        const lanes evens = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
#elif HTJ2K_LANES == 8
        const lanes evens = {0, 2, 4, 6, 8, 10, 12, 14};
#else
        const lanes evens = {0, 2, 4, 6};
#endif
        *even = (ints)HTJ2K_SHUFFLE(low, high, evens);
        *odd = (ints)HTJ2K_SHUFFLE(low, high, evens + 1);
    }
}

/* The value that a sample is written as: twice its magnitude less one, and the sign. Stores it; returns the exponent,
 * 0 for a zero. The value of a zero has no meaning. */
HT_INLINE lanes HT(examine_sample)(ints sample, uint32_t *value) {
    ints sign = sample >> 31;
    ints twice = ((sample << 1) ^ sign) + ~sign;
    STORE(value, (lanes)(twice + ~sign));
    return HT(length)(HT(larger)((lanes)twice, (lanes){0}));
}

/* Fill found and values; return the significance patterns of all quads together. */
HT_INLINE uint32_t HT(examine)(
    const void *samples, ptrdiff_t stride, int narrow, int across, int down, htj2k_block_work *work
) {
    const ptrdiff_t line = stride * (narrow ? 2 : 4);
    lanes all = {0};
    int x, y;
    for (y = 0; y < down; y++) {
        const char *upper = (const char *)samples + 2 * y * line, *lower = upper + line;
        uint32_t *found = work->found[y + 1] + HTJ2K_QUAD_LEFT;
        for (x = 0; x < across; x += HTJ2K_LANES) {
            ints s0, s1, s2, s3;
            lanes e0, e1, e2, e3, largest, quad;
            HT(split)(upper, 2 * x, narrow, &s0, &s2);
            HT(split)(lower, 2 * x, narrow, &s1, &s3);
            e0 = HT(examine_sample)(s0, work->values[y][0] + x);
            e1 = HT(examine_sample)(s1, work->values[y][1] + x);
            e2 = HT(examine_sample)(s2, work->values[y][2] + x);
            e3 = HT(examine_sample)(s3, work->values[y][3] + x);
            largest = HT(larger)(HT(larger)(e0, e1), HT(larger)(e2, e3));
            quad = e1 << 16 | e3 << 24 | largest << 8;
            quad |= HT(smaller)(e0, (lanes){0} + 1) << 4 | HT(smaller)(e1, (lanes){0} + 1) << 5;
            quad |= HT(smaller)(e2, (lanes){0} + 1) << 6 | HT(smaller)(e3, (lanes){0} + 1) << 7;
            all |= quad;
            quad = HT(mark)(quad, e0, largest, 1);
            quad = HT(mark)(quad, e1, largest, 2);
            quad = HT(mark)(quad, e2, largest, 4);
            quad = HT(mark)(quad, e3, largest, 8);
            STORE(found + x, quad);
        }
        found[-1] = 0;
        found[x] = 0;
    }
    return HT(any)(all, 0xF0);
}

/* Decide a row of quads: contexts (7.3.5), what exponents are compared with, offsets. Of those that ask for an event,
 * and of those that are significant, a bit for each quad. */
HT_INLINE void HT(decide_row)(
    const uint32_t *above, const uint32_t *found, int first, int across, uint32_t *decided, uint32_t *asked,
    uint32_t *significant
) {
    int x;
    *asked = 0;
    *significant = 0;
    for (x = 0; x < across; x += HTJ2K_LANES) {
        const lanes one = (lanes){0} + 1;
        lanes left = LOAD(found + x - 1), quad = LOAD(found + x);
        lanes largest = quad >> 8 & 0xFF, context, bound, exponent, offset, top;
        if (first) {
            context = HT(smaller)(left >> 4 & 3, one) | (left >> 5 & 6);
            bound = one;
        } else {
            lanes b = LOAD(above + x), c = LOAD(above + x + 1) >> 16 & 0xFF;
            lanes nw = LOAD(above + x - 1) >> 24, n = b >> 16 & 0xFF, ne = b >> 24;
            lanes rho = quad >> 4 & 0xF;
            /* All ones where more than one sample is significant. */
            lanes several = (lanes)((ints)(0 - (rho & (rho - 1))) >> 31);
            context = HT(smaller)(nw | n, one) | ((left >> 5 | left >> 6) & 2) | HT(smaller)(ne | c, one) << 2;
            bound = HT(larger)(HT(larger)(nw, n), HT(larger)(ne, c)) - 1;
            bound = HT(larger)(bound & several, one);
        }
        exponent = HT(larger)(largest, bound);
        offset = exponent - bound;
        /* Top bits count where there is an offset. */
        top = quad & ((lanes)((ints)(0 - offset) >> 31) | 0xF0) & 0xFF;
        STORE(decided + x, top | context << 8 | exponent << 16 | offset << 24);
        *asked |= (HT(any)(context, 7) ^ ((1u << (HTJ2K_LANES - 1) << 1) - 1)) << x;
        *significant |= HT(any)(quad, 0xF0) << x;
    }
}

/* Of a value as many bits as `length`, 31 at the most. */
HT_INLINE lanes HT(bits_of)(const uint32_t *value, lanes length) { return LOAD(value) & ~(~(lanes){0} << length); }

/* How many bits sample n is written with: one less where the word of its quad tells the top one. */
HT_INLINE lanes HT(length_of)(lanes quad, lanes word, lanes exponent, int n) {
    return HT(where)(quad, 4 + n, exponent - (word >> (10 + n) & 1));
}

/* The MagSgn bits of a row of quads (7.3.1). */
HT_INLINE void HT(gather_mag)(
    const uint32_t *decided, const uint32_t *words, uint32_t values[4][HTJ2K_QUADS], int across, htj2k_bits *mag
) {
    const uint64_t low = 0xFFFFFFFFu;
    int x, k;
    for (x = 0; x < across; x += HTJ2K_LANES) {
        lanes quad = LOAD(decided + x), word = LOAD(words + x), exponent = quad >> 16 & 0xFF;
        lanes l0 = HT(length_of)(quad, word, exponent, 0), l1 = HT(length_of)(quad, word, exponent, 1);
        lanes l2 = HT(length_of)(quad, word, exponent, 2), l3 = HT(length_of)(quad, word, exponent, 3);
        lanes b0 = HT(bits_of)(values[0] + x, l0), b1 = HT(bits_of)(values[1] + x, l1);
        lanes b2 = HT(bits_of)(values[2] + x, l2), b3 = HT(bits_of)(values[3] + x, l3);
        lanes left, right;
        wides even, odd, even_length, odd_length;
        uint64_t bits[HTJ2K_LANES / 2], lengths[HTJ2K_LANES / 2];
        if (HTJ2K_UNLIKELY(HT(any)(HT(larger)(exponent, (lanes){0} + 16) - 16, 0xFF))) {
            /* A quad may have more than 64 bits. */
            uint32_t each[4][HTJ2K_LANES], long_[4][HTJ2K_LANES];
            STORE(each[0], b0), STORE(each[1], b1), STORE(each[2], b2), STORE(each[3], b3);
            STORE(long_[0], l0), STORE(long_[1], l1), STORE(long_[2], l2), STORE(long_[3], l3);
            for (k = 0; k < HTJ2K_LANES; k++) {
                htj2k_add(mag, each[0][k] | (uint64_t)each[1][k] << long_[0][k], long_[0][k] + long_[1][k]);
                htj2k_add(mag, each[2][k] | (uint64_t)each[3][k] << long_[2][k], long_[2][k] + long_[3][k]);
            }
            continue;
        }
        left = b0 | b1 << l0;
        right = b2 | b3 << l2;
        l0 += l1;
        l2 += l3;
        even = ((wides)left & low) | ((wides)right & low) << ((wides)l0 & low);
        odd = (wides)left >> 32 | ((wides)right >> 32) << ((wides)l0 >> 32);
        even_length = (wides)(l0 + l2) & low;
        odd_length = (wides)(l0 + l2) >> 32;
        if (HTJ2K_LIKELY(!HT(any)(HT(larger)((lanes)(even_length + odd_length), (lanes){0} + 64) - 64, 0xFF))) {
            STORE_WIDES(bits, even | odd << (even_length & 63));
            STORE_WIDES(lengths, even_length + odd_length);
            for (k = 0; k < HTJ2K_LANES / 2; k++) htj2k_add(mag, bits[k], (unsigned)lengths[k]);
        } else {
            uint64_t more[HTJ2K_LANES / 2], more_lengths[HTJ2K_LANES / 2];
            STORE_WIDES(bits, even);
            STORE_WIDES(lengths, even_length);
            STORE_WIDES(more, odd);
            STORE_WIDES(more_lengths, odd_length);
            for (k = 0; k < HTJ2K_LANES / 2; k++) {
                htj2k_add(mag, bits[k], (unsigned)lengths[k]);
                htj2k_add(mag, more[k], (unsigned)more_lengths[k]);
            }
        }
    }
}

/* The VLC bits of two quads a lane, their words and their offsets (7.3.4): the bits, and how many in the upper half. */
HT_INLINE wides HT(vlc_of)(const uint32_t *words, const uint64_t *offsets) {
    wides two = LOAD_WIDES(words), both = LOAD_WIDES(offsets);
    wides length = two >> 7 & 7, bits = (two & 0x7F) | (two >> 32 & 0x7F) << length;
    length += two >> 39 & 7;
    return (bits | (both & 0xFFFF) << length) + ((length + (both >> 16)) << 32);
}

/* The VLC bits of a row of quads: of four to a word, 60 bits at the most. */
HT_INLINE void HT(gather_vlc)(const uint32_t *words, const uint64_t *offsets, int across, htj2k_bits *vlc) {
    const uint64_t low = 0xFFFFFFFFu;
    int x, k;
    for (x = 0; x < across; x += 2 * HTJ2K_LANES) {
        wides first = HT(vlc_of)(words + x, offsets + (x >> 1)), second = (wides){0}, even, odd, length;
        uint64_t bits[HTJ2K_LANES / 2], lengths[HTJ2K_LANES / 2];
        if (x + HTJ2K_LANES < across) second = HT(vlc_of)(words + x + HTJ2K_LANES, offsets + ((x + HTJ2K_LANES) >> 1));
#if HTJ2K_LANES == 16
        const wides evens = {0, 2, 4, 6, 8, 10, 12, 14};
#elif HTJ2K_LANES == 8
        const wides evens = {0, 2, 4, 6};
#else
        const wides evens = {0, 2};
#endif
        even = HTJ2K_SHUFFLE(first, second, evens);
        odd = HTJ2K_SHUFFLE(first, second, evens + 1);
        length = even >> 32;
        STORE_WIDES(bits, (even & low) | (odd & low) << length);
        STORE_WIDES(lengths, length + (odd >> 32));
        for (k = 0; k < HTJ2K_LANES / 2; k++) htj2k_add(vlc, bits[k], (unsigned)lengths[k]);
    }
}

/* Whether there is nothing but zeros. Rows are looked at until there is something. */
HT_INLINE int HT(is_empty)(const char *row, ptrdiff_t bytes, ptrdiff_t step, int height) {
    int y;
    for (y = 0; y < height; y++, row += step) {
        uint64_t all = 0;
        ptrdiff_t k;
        for (k = 0; k < bytes; k += 8) all |= htj2k_load64((const uint8_t *)row + k);
        if (all) return 0;
    }
    return 1;
}

static HTJ2K_TARGET ptrdiff_t HT(htj2k_encode_block)(
    const void *samples, ptrdiff_t stride, int narrow, int width, int height, htj2k_block_work *work, uint8_t *out
) {
    int across = (width + 1) >> 1, down = (height + 1) >> 1, whole, x, y;
    htj2k_bits mag = {work->mag, 0, 0}, vlc = {work->vlc, 0xF, 4};
    htj2k_mel mel = {work->mel, 0, 8, 0, 0};
    if (width == 64 && HT(is_empty)((const char *)samples, narrow ? 128 : 256, stride * (narrow ? 2 : 4), height))
        return 0;
    whole = (across + HTJ2K_LANES - 1) / HTJ2K_LANES * HTJ2K_LANES;
    if (height & 1 || 2 * whole != width) {
        /* Lines of 64 samples each, with zeros where the block has none. */
        const int size = narrow ? 2 : 4;
        char *edge = (char *)work->edge;
        memset(edge, 0, (size_t)(128 * down * size));
        for (y = 0; y < height; y++)
            memcpy(edge + 64 * y * size, (const char *)samples + y * stride * size, (size_t)(width * size));
        samples = edge;
        stride = 64;
    }
    if (!(narrow ? HT(examine)(samples, stride, 1, whole, down, work)
                 : HT(examine)(samples, stride, 0, whole, down, work)))
        return 0;
    for (y = 0; y < down; y++) {
        const uint32_t *found = work->found[y + 1] + HTJ2K_QUAD_LEFT;
        uint32_t asked, significant;
        if (y == 0) {
            HT(decide_row)(found, found, 1, whole, work->decided[y], &asked, &significant);
        } else {
            HT(decide_row)(found - HTJ2K_QUAD_ROW, found, 0, whole, work->decided[y], &asked, &significant);
            htj2k_mel_row(&mel, asked & (0xFFFFFFFFu >> (32 - across)), significant);
        }
        /* Beyond the block is no quad. */
        for (x = across; x < whole; x++) work->decided[y][x] = 0;
        if (y == 0) htj2k_first_events(work, across, &mel);
    }
    htj2k_look_up(work, whole, down);
    for (y = 0; y < down; y++) {
        HT(gather_mag)(work->decided[y], work->words[y], work->values[y], whole, &mag);
        HT(gather_vlc)(work->words[y], work->offsets[y], whole, &vlc);
    }
    return htj2k_finish_block(work, &mag, &vlc, &mel, out);
}

#undef lanes
#undef ints
#undef wides
#undef LOAD
#undef STORE
#undef LOAD_WIDES
#undef STORE_WIDES
#undef HT
#undef HT_INLINE
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#undef HTJ2K_LANES
