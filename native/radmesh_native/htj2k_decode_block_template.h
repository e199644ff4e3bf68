/* Steps 2 and 3 of htj2k_decode_block.h, which includes this once for each path: no guard. */

/* Step 2 for quads 2 j and 2 j + 1 of a line; `second`: the latter is in it. */
HTJ2K_TARGET HTJ2K_INLINE void HTJ2K_PATH(htj2k_read_pair)(
    htj2k_cleanup_state *s, uint32_t *words, int j, int second, int first_line, uint32_t *left
) {
    const uint32_t *table = HTJ2K_VLC[!first_line];
    uint64_t bits = s->bits | htj2k_load64(s->vlc) << s->have;
    uint32_t context, one, other = 0, mode, entry, suffixes, first, last;
    int consumed, run = s->run;
    s->vlc += (63 - s->have) >> 3;
    s->have |= 56;
    context = *left | (first_line ? 0 : s->contexts[2 * j]);
    one = table[context | (bits & 0x7F)];
    if (context == 0) {
        run -= 2;
        one = run == -1 ? one : 0;
        if (run < 0) run = htj2k_mel_run(&s->mel);
    }
    bits >>= one >> 20 & 7;
    consumed = one >> 20 & 7;
    *left = first_line ? one >> 16 & 0x380 : one >> 18 & 0x100;
    if (second) {
        context = *left | (first_line ? 0 : s->contexts[2 * j + 1]);
        other = table[context | (bits & 0x7F)];
        if (context == 0) {
            run -= 2;
            other = run == -1 ? other : 0;
            if (run < 0) run = htj2k_mel_run(&s->mel);
        }
        bits >>= other >> 20 & 7;
        consumed += other >> 20 & 7;
        *left = first_line ? other >> 16 & 0x380 : other >> 18 & 0x100;
    }
    s->bad |= one | other;
    mode = (one >> 19 & 1) | (other >> 18 & 2);
    if (first_line && mode == 3) {
        run -= 2;
        mode += run == -1;
        if (run < 0) run = htj2k_mel_run(&s->mel);
    }
    entry = HTJ2K_UVLC[!first_line][mode][bits & 63];
    suffixes = (uint32_t)(bits >> (entry & 15)) & ((1u << (entry >> 4 & 15)) - 1);
    bits >>= entry >> 20;
    consumed += entry >> 20;
    first = suffixes & ((1u << (entry >> 8 & 15)) - 1);
    last = suffixes >> (entry >> 8 & 15);
    if (HTJ2K_UNLIKELY((first >= 28) | (last >= 28))) {
        if (first >= 28) {
            first += 4 * (uint32_t)(bits & 15);
            bits >>= 4;
            consumed += 4;
        }
        if (last >= 28) {
            last += 4 * (uint32_t)(bits & 15);
            bits >>= 4;
            consumed += 4;
        }
    }
    s->bits = bits;
    s->have -= consumed;
    s->run = run;
    words[2 * j] = (one & HTJ2K_KEPT) | (first + (entry >> 12 & 15)) << HTJ2K_OFFSET_AT;
    words[2 * j + 1] = (other & HTJ2K_KEPT) | (last + (entry >> 16 & 15)) << HTJ2K_OFFSET_AT;
}

/* Step 3 for a line, first part: from bit 24 on, words have the exponent bound U instead of the offset; places and the
 * contexts of the line below are set. Returns 0, or 1 where a bound is too large. */
HTJ2K_TARGET static int HTJ2K_PATH(htj2k_bind_line)(htj2k_cleanup_state *s, uint32_t *words, int first_line) {
    const uint32_t *bottoms = s->bottoms + 8;
    int q, quads = s->quads;
    uint32_t position = s->position;
#if HTJ2K_LANES == 1
    uint32_t largest = 0;
    for (q = 0; q < quads; q++) {
        uint32_t word = words[q], bound = 1, above;
        above = bottoms[2 * q - 1] | bottoms[2 * q] | bottoms[2 * q + 1] | bottoms[2 * q + 2];
        if (!first_line && word >> 12 & 1 && above > 3) bound = (uint32_t)htj2k_bit_length(above) - 1;
        bound += word >> HTJ2K_OFFSET_AT;
        bound = word & 15 ? bound : 0;
        largest = bound > largest ? bound : largest;
        s->places[q] = position;
        position += (word >> 13 & 7) * bound - (word >> 16 & 7);
        words[q] = (word & HTJ2K_KEPT) | bound << HTJ2K_OFFSET_AT;
    }
    if (largest > (uint32_t)s->limit) return 1;
    for (q = 0; q < quads; q++) {
        uint32_t before = (q ? words[q - 1] >> 3 : 0) | words[q] >> 1;
        uint32_t after = words[q] >> 3 | (q + 1 < quads ? words[q + 1] >> 1 : 0);
        s->contexts[q] = (before & 1) << 7 | (after & 1) << 9;
    }
    s->position = position;
#else
    __m256i one = _mm256_set1_epi32(1), largest = _mm256_setzero_si256(), from = _mm256_set1_epi32((int)position);
    /* What is behind the line has no significance. */
    _mm256_storeu_si256((__m256i *)(words + quads), _mm256_setzero_si256());
    for (q = 0; q < quads; q += 8) {
        __m256i word = _mm256_loadu_si256((const __m256i *)(words + q)), bound = one, some, count, before, after;
        __m256i known, sum, carry;
        if (!first_line) {
            const uint32_t *above = bottoms + 2 * q;
            __m256i low = _mm256_or_si256(
                _mm256_loadu_si256((const __m256i *)(above - 1)), _mm256_loadu_si256((const __m256i *)(above + 1))
            );
            __m256i high = _mm256_or_si256(
                _mm256_loadu_si256((const __m256i *)(above + 7)), _mm256_loadu_si256((const __m256i *)(above + 9))
            );
            __m256 a = _mm256_castsi256_ps(low), b = _mm256_castsi256_ps(high);
            __m256i any = _mm256_or_si256(
                _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88)), _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xDD))
            );
            any = _mm256_permute4x64_epi64(any, 0xD8);
            /* The top bit is kept: nothing is rounded up. Its place is the exponent of a float. */
            any = _mm256_andnot_si256(_mm256_srli_epi32(any, 1), any);
            any = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(any)), 23);
            any = _mm256_max_epi32(_mm256_sub_epi32(any, _mm256_set1_epi32(127)), one);
            some = _mm256_srai_epi32(_mm256_slli_epi32(word, 19), 31);
            bound = _mm256_blendv_epi8(one, any, some);
        }
        bound = _mm256_add_epi32(bound, _mm256_srli_epi32(word, HTJ2K_OFFSET_AT));
        count = _mm256_and_si256(_mm256_srli_epi32(word, 13), _mm256_set1_epi32(7));
        bound = _mm256_andnot_si256(_mm256_cmpeq_epi32(count, _mm256_setzero_si256()), bound);
        largest = _mm256_max_epi32(largest, bound);
        known = _mm256_and_si256(_mm256_srli_epi32(word, 16), _mm256_set1_epi32(7));
        count = _mm256_sub_epi32(_mm256_mullo_epi16(count, bound), known);
        sum = _mm256_add_epi32(count, _mm256_slli_si256(count, 4));
        sum = _mm256_add_epi32(sum, _mm256_slli_si256(sum, 8));
        carry = _mm256_permute2x128_si256(sum, sum, 0x08);
        sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(carry, 0xFF));
        _mm256_storeu_si256((__m256i *)(s->places + q), _mm256_add_epi32(from, _mm256_sub_epi32(sum, count)));
        from = _mm256_add_epi32(from, _mm256_permutevar8x32_epi32(sum, _mm256_set1_epi32(7)));
        before = _mm256_or_si256(
            _mm256_srli_epi32(_mm256_loadu_si256((const __m256i *)(words + q - 1)), 3), _mm256_srli_epi32(word, 1)
        );
        after = _mm256_or_si256(
            _mm256_srli_epi32(word, 3), _mm256_srli_epi32(_mm256_loadu_si256((const __m256i *)(words + q + 1)), 1)
        );
        before = _mm256_slli_epi32(_mm256_and_si256(before, one), 7);
        after = _mm256_slli_epi32(_mm256_and_si256(after, one), 9);
        _mm256_storeu_si256((__m256i *)(s->contexts + q), _mm256_or_si256(before, after));
        word = _mm256_and_si256(word, _mm256_set1_epi32(HTJ2K_KEPT));
        _mm256_storeu_si256(
            (__m256i *)(words + q), _mm256_or_si256(word, _mm256_slli_epi32(bound, HTJ2K_OFFSET_AT))
        );
    }
    if (_mm256_movemask_epi8(_mm256_cmpgt_epi32(largest, _mm256_set1_epi32(s->limit)))) return 1;
    s->position = (uint32_t)_mm256_cvtsi256_si32(from);
#endif
    return 0;
}

/* Step 3, second part: the samples of quads 2 j and 2 j + 1, four in each of two rows from column `x` on. */
HTJ2K_TARGET HTJ2K_INLINE void HTJ2K_PATH(htj2k_place_pair)(
    htj2k_cleanup_state *s, const uint32_t *words, int j, void *top, void *bottom, ptrdiff_t x, int narrow
) {
#if HTJ2K_LANES == 1
    int k, n;
    int32_t base = (int32_t)((1u << s->plane) + ((1u << s->plane) >> 1));
    for (k = 0; k < 2; k++) {
        uint32_t word = words[2 * j + k], at = s->places[2 * j + k];
        for (n = 0; n < 4; n++) {
            uint32_t value = 0;
            int32_t sample = 0;
            if (word >> n & 1) {
                uint32_t bits = (word >> HTJ2K_OFFSET_AT) - (word >> (4 + n) & 1);
                value = (uint32_t)(htj2k_load64(s->flat_mag + (at >> 3)) >> (at & 7) & (((uint64_t)1 << bits) - 1));
                value |= (uint32_t)((uint64_t)(word >> (8 + n) & 1) << bits);
                at += bits;
                sample = (int32_t)((value >> 1) << s->plane) + base;
                sample = value & 1 ? -sample : sample;
                value |= 1;
            }
            /* Broken code streams say that there are more bits: all paths end where the range does. */
            if (narrow)
                ((int16_t *)(n & 1 ? bottom : top))[x + 2 * k + (n >> 1)] =
                    (int16_t)(sample > INT16_MAX ? INT16_MAX : sample < INT16_MIN ? INT16_MIN : sample);
            else
                ((int32_t *)(n & 1 ? bottom : top))[x + 2 * k + (n >> 1)] = sample;
            if (n & 1) s->bottoms[8 + 4 * j + 2 * k + (n >> 1)] = value;
        }
    }
#else
    const __m256i spread = _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1);
    const __m256i rows = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 1, 2, 4, 8);
    const __m256i known = _mm256_slli_epi32(each, 4), top_bit = _mm256_slli_epi32(each, 8);
    const __m256i low_byte = _mm256_setr_epi8(
        0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12, 0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12
    );
    const __m256i four = _mm256_set1_epi32(0x03020100), seven = _mm256_set1_epi32(7);
    const __m256i base = _mm256_set1_epi32((int)((1u << s->plane) + ((1u << s->plane) >> 1)));
    __m256i word, place, sigma, bits, at, value, unit, sample;
    word = _mm256_permutevar8x32_epi32(
        _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(words + 2 * j))), spread
    );
    place = _mm256_permutevar8x32_epi32(
        _mm256_castsi128_si256(_mm_loadl_epi64((const __m128i *)(s->places + 2 * j))), spread
    );
    sigma = _mm256_cmpeq_epi32(_mm256_and_si256(word, each), each);
    bits = _mm256_add_epi32(
        _mm256_srli_epi32(word, HTJ2K_OFFSET_AT), _mm256_cmpeq_epi32(_mm256_and_si256(word, known), known)
    );
    bits = _mm256_and_si256(bits, sigma);
    /* Where each begins, behind the whole bytes before the first of its quad. */
    at = _mm256_add_epi32(bits, _mm256_slli_si256(bits, 4));
    at = _mm256_add_epi32(at, _mm256_slli_si256(at, 8));
    at = _mm256_add_epi32(_mm256_sub_epi32(at, bits), _mm256_and_si256(place, seven));
    value = _mm256_inserti128_si256(
        _mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(s->flat_mag + (s->places[2 * j] >> 3)))),
        _mm_loadu_si128((const __m128i *)(s->flat_mag + (s->places[2 * j + 1] >> 3))), 1
    );
    value = _mm256_shuffle_epi8(
        value, _mm256_add_epi8(_mm256_shuffle_epi8(_mm256_srli_epi32(at, 3), low_byte), four)
    );
    value = _mm256_srlv_epi32(value, _mm256_and_si256(at, seven));
    unit = _mm256_sllv_epi32(_mm256_set1_epi32(1), bits);
    value = _mm256_and_si256(value, _mm256_add_epi32(unit, _mm256_set1_epi32(-1)));
    unit = _mm256_and_si256(unit, _mm256_cmpeq_epi32(_mm256_and_si256(word, top_bit), top_bit));
    value = _mm256_or_si256(value, unit);
    sample = _mm256_sll_epi32(_mm256_srli_epi32(value, 1), _mm_cvtsi32_si128(s->plane));
    sample = _mm256_add_epi32(sample, base);
    sigma = _mm256_srli_epi32(sigma, 31);
    sample = _mm256_sign_epi32(sample, _mm256_or_si256(_mm256_slli_epi32(value, 31), sigma));
    sample = _mm256_permutevar8x32_epi32(sample, rows);
    value = _mm256_permutevar8x32_epi32(_mm256_or_si256(value, sigma), rows);
    if (narrow) {
        __m128i both = _mm_packs_epi32(_mm256_castsi256_si128(sample), _mm256_extracti128_si256(sample, 1));
        _mm_storel_epi64((__m128i *)((int16_t *)top + x), both);
        _mm_storel_epi64((__m128i *)((int16_t *)bottom + x), _mm_unpackhi_epi64(both, both));
    } else {
        _mm_storeu_si128((__m128i *)((int32_t *)top + x), _mm256_castsi256_si128(sample));
        _mm_storeu_si128((__m128i *)((int32_t *)bottom + x), _mm256_extracti128_si256(sample, 1));
    }
    _mm_storeu_si128((__m128i *)(s->bottoms + 8 + 4 * j), _mm256_extracti128_si256(value, 1));
#endif
}

HTJ2K_TARGET HTJ2K_INLINE int HTJ2K_PATH(htj2k_cleanup)(
    const uint8_t *data, uint32_t length, int missing, int plane, char *samples, ptrdiff_t stride, int width, int height,
    int narrow
) {
    htj2k_cleanup_state s;
    int32_t spare[2 * HTJ2K_LINE_QUADS + 8], edges[8];
    const ptrdiff_t size = narrow ? sizeof(int16_t) : sizeof(int32_t);
    uint32_t tail, left = 0;
    uint32_t *now, *next, *swap;
    int j, y, pairs, whole, odd;
    if (length < 2) return 1;
    tail = (uint32_t)data[length - 1] << 4 | (data[length - 2] & 0x0F);
    if (tail < 2 || tail > length || tail > 4079) return 1;
    s.mag_end = htj2k_unstuff_mag(data, data + length - tail, s.flat_mag);
    htj2k_unstuff_vlc(data + length - tail, data + length, s.flat_vlc);
    htj2k_mel_start(&s.mel, data + length - tail, data + length);
    s.run = htj2k_mel_run(&s.mel);
    s.vlc = s.flat_vlc;
    s.bits = 0;
    s.have = 0;
    s.bad = 0;
    s.position = 0;
    s.quads = (width + 1) >> 1;
    s.limit = missing + 2;
    s.plane = plane;
    pairs = (s.quads + 1) >> 1;
    whole = width >> 2;
    odd = s.quads & 1;
    now = s.words[0] + 8;
    next = s.words[1] + 8;
    /* Nothing in front of a line is significant. */
    now[-1] = 0;
    next[-1] = 0;
    memset(s.bottoms, 0, ((size_t)4 * pairs + 24) * sizeof(uint32_t));
    for (j = 0; j < pairs; j++) HTJ2K_PATH(htj2k_read_pair)(&s, now, j, !(odd && j + 1 == pairs), 1, &left);
    for (y = 0; y < height; y += 2) {
        char *top = samples + y * stride * size, *bottom = y + 1 < height ? top + stride * size : (char *)spare;
        uint8_t *needed;
        if (HTJ2K_PATH(htj2k_bind_line)(&s, now, y == 0)) return 1;
        if (odd) s.places[s.quads] = s.position;
        /* Ones follow the last bit of MagSgn. */
        needed = s.flat_mag + (s.position >> 3) + HTJ2K_SLACK;
        if (needed > s.mag_end) {
            memset(s.mag_end, 0xFF, (size_t)(needed - s.mag_end));
            s.mag_end = needed;
        }
        if (y + 2 < height) {
            left = 0;
            for (j = 0; j < whole; j++) {
                HTJ2K_PATH(htj2k_read_pair)(&s, next, j, 1, 0, &left);
                HTJ2K_PATH(htj2k_place_pair)(&s, now, j, top, bottom, 4 * j, narrow);
            }
            if (whole < pairs) HTJ2K_PATH(htj2k_read_pair)(&s, next, whole, !odd, 0, &left);
        } else
            for (j = 0; j < whole; j++) HTJ2K_PATH(htj2k_place_pair)(&s, now, j, top, bottom, 4 * j, narrow);
        if (whole < pairs) {
            HTJ2K_PATH(htj2k_place_pair)(&s, now, whole, edges, edges + 4, 0, narrow);
            memcpy(top + 4 * whole * size, edges, (size_t)((width & 3) * size));
            memcpy(bottom + 4 * whole * size, edges + 4, (size_t)((width & 3) * size));
        }
        swap = now;
        now = next;
        next = swap;
    }
    return s.bad >> 31;
}

HTJ2K_TARGET static int HTJ2K_PATH(htj2k_cleanup_32)(
    const uint8_t *data, uint32_t length, int missing, int plane, void *samples, ptrdiff_t stride, int width, int height
) {
    return HTJ2K_PATH(htj2k_cleanup)(data, length, missing, plane, (char *)samples, stride, width, height, 0);
}

HTJ2K_TARGET static int HTJ2K_PATH(htj2k_cleanup_16)(
    const uint8_t *data, uint32_t length, int missing, int plane, void *samples, ptrdiff_t stride, int width, int height
) {
    return HTJ2K_PATH(htj2k_cleanup)(data, length, missing, plane, (char *)samples, stride, width, height, 1);
}
