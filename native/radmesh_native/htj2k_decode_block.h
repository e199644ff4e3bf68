/* The HT cleanup pass, read (T.814 7.3), in C because it is where a decoder's time goes.
 *
 * 1. MagSgn and VLC bits are unstuffed to flat buffers, eight bytes at a time: any bit is then one load away.
 * 2. VLC and MEL are serial: a line of quads gives words (below) and exponent offsets.
 * 3. What is left of a line has no order: exponent bounds from the line above, the place of each quad's bits from
 *    prefix sums, then magnitudes and signs, two quads or more at a time.
 *
 * Step 2 of a line does not wait for step 3 of the line above, so both are in one loop: the one waits for its loads
 * while the other computes. htj2k_decode_block_template.h holds 2 and 3, and is compiled once for each path.
 */
#ifndef RADMESH_HTJ2K_DECODE_BLOCK_H
#define RADMESH_HTJ2K_DECODE_BLOCK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "htj2k_cpu.h"
#include "htj2k_tables.h"

/* Blocks have 1,024 quads at most, 512 in a line at most; two quads read 38 bits of VLC at most. */
enum {
    HTJ2K_LINE_QUADS = 512,
    HTJ2K_VLC_FLAT = 512 * 38 / 8,
    HTJ2K_MAG_FLAT = 1024 * 4 * 32 / 8,
    HTJ2K_SLACK = 64
};

/* A word of CxtVLC, as the next seven bits find it: bits of the entry.
 *  0 … 3 significance, 4 … 7 e_k, 8 … 11 e_1, 12 more than one is significant, 13 … 15 how many are,
 *  16 … 18 how many e_k are, 19 an exponent offset follows, 20 … 22 length, 23 … 25 context to the right in the first
 *  line, 26 the same in others, 31 there is no such word.
 * A line keeps the first 19 bits, and the exponent offset above bit 24. */
enum { HTJ2K_KEPT = 0x7FFFF, HTJ2K_OFFSET_AT = 24 };

static uint32_t HTJ2K_VLC[2][1024];

/* Exponent offsets of two quads (T.814 table 3), as the next six bits find them: bits of the entry.
 *  0 … 3 length of both prefixes, 4 … 7 of both suffixes, 8 … 11 of the first suffix, 12 … 15 and 16 … 19 the least
 *  offset of each, 20 … 24 length of all.
 * By which of the two follow (1, 2, 3 both); the first line has 3 without and 4 with the MEL event. */
static uint32_t HTJ2K_UVLC[2][5][64];

static void htj2k_fill_vlc(uint32_t *table, const htj2k_vlc_row *rows, int count) {
    int n, rest;
    for (n = 0; n < 1024; n++) table[n] = 1u << 31;
    for (n = 0; n < count; n++) {
        const htj2k_vlc_row *row = &rows[n];
        uint32_t rho = row->rho, many = (rho & 1) + (rho >> 1 & 1) + (rho >> 2 & 1) + (rho >> 3);
        uint32_t known = (row->e_k & 1) + (row->e_k >> 1 & 1) + (row->e_k >> 2 & 1) + (row->e_k >> 3);
        uint32_t entry = rho | (uint32_t)row->e_k << 4 | (uint32_t)row->e_1 << 8 | (uint32_t)(many > 1) << 12 |
                         many << 13 | known << 16 | (uint32_t)row->u_off << 19 | (uint32_t)row->length << 20 |
                         (uint32_t)((rho & 3 ? 1 : 0) | (rho >> 1 & 6)) << 23 | (uint32_t)(rho & 12 ? 1 : 0) << 26;
        for (rest = 0; rest < 1 << (7 - row->length); rest++)
            table[row->c_q << 7 | rest << row->length | row->word] = entry;
    }
}

/* A prefix at the low end of `bits`: the least offset, and how long prefix and suffix are. */
static int htj2k_prefix(int bits, int *length, int *suffix) {
    *length = bits & 1 ? 1 : bits & 2 ? 2 : 3;
    *suffix = bits & 3 ? 0 : bits & 4 ? 1 : 5;
    return bits & 1 ? 1 : bits & 2 ? 2 : bits & 4 ? 3 : 5;
}

static void htj2k_fill_uvlc(void) {
    int line, mode, bits;
    for (line = 0; line < 2; line++)
        for (mode = 0; mode < 5; mode++)
            for (bits = 0; bits < 64; bits++) {
                int lengths[2] = {0, 0}, suffixes[2] = {0, 0}, least[2] = {0, 0};
                if (mode & 1 || mode == 4) least[0] = htj2k_prefix(bits, &lengths[0], &suffixes[0]);
                if (line == 0 && mode == 3 && least[0] > 2) {
                    lengths[1] = 1;
                    least[1] = 1 + (bits >> lengths[0] & 1);
                } else if (mode > 1)
                    least[1] = htj2k_prefix(bits >> lengths[0], &lengths[1], &suffixes[1]);
                if (mode == 4) {
                    least[0] += 2;
                    least[1] += 2;
                }
                HTJ2K_UVLC[line][mode][bits] =
                    (uint32_t)(lengths[0] + lengths[1]) | (uint32_t)(suffixes[0] + suffixes[1]) << 4 |
                    (uint32_t)suffixes[0] << 8 | (uint32_t)least[0] << 12 | (uint32_t)least[1] << 16 |
                    (uint32_t)(lengths[0] + lengths[1] + suffixes[0] + suffixes[1]) << 20;
            }
}

static void htj2k_fill_decode_tables(void) {
    htj2k_fill_vlc(HTJ2K_VLC[0], HTJ2K_VLC_FIRST, 444);
    htj2k_fill_vlc(HTJ2K_VLC[1], HTJ2K_VLC_OTHER, 358);
    htj2k_fill_uvlc();
}

/* Little-endian words of memory. */
HTJ2K_INLINE uint64_t htj2k_load64(const uint8_t *p) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
#else
    uint64_t v = 0;
    int n;
    for (n = 7; n >= 0; n--) v = v << 8 | p[n];
    return v;
#endif
}

HTJ2K_INLINE void htj2k_store64(uint8_t *p, uint64_t v) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    memcpy(p, &v, 8);
#else
    int n;
    for (n = 0; n < 8; n++) p[n] = (uint8_t)(v >> 8 * n);
#endif
}

HTJ2K_INLINE uint64_t htj2k_swap64(uint64_t v) {
#if defined(__GNUC__)
    return __builtin_bswap64(v);
#else
    v = (v & 0x00FF00FF00FF00FFu) << 8 | (v >> 8 & 0x00FF00FF00FF00FFu);
    v = (v & 0x0000FFFF0000FFFFu) << 16 | (v >> 16 & 0x0000FFFF0000FFFFu);
    return v << 32 | v >> 32;
#endif
}

/* The high bit of every byte that is zero. */
HTJ2K_INLINE uint64_t htj2k_zeros(uint64_t v) {
    return ~(((v & 0x7F7F7F7F7F7F7F7Fu) + 0x7F7F7F7F7F7F7F7Fu) | v | 0x7F7F7F7F7F7F7F7Fu);
}

/* A flat buffer that is being filled: less than eight bits wait. */
typedef struct {
    uint8_t *p;
    uint64_t bits;
    int waiting;
} htj2k_flat;

/* Append `count` <= 56 bits; those above are zero. Writes eight bytes. */
HTJ2K_INLINE void htj2k_append(htj2k_flat *flat, uint64_t bits, int count) {
    int total = flat->waiting + count;
    bits = flat->bits | bits << flat->waiting;
    htj2k_store64(flat->p, bits);
    flat->p += total >> 3;
    flat->bits = bits >> (total & ~7);
    flat->waiting = total & 7;
}

HTJ2K_INLINE void htj2k_append64(htj2k_flat *flat, uint64_t bits) {
    htj2k_store64(flat->p, flat->bits | bits << flat->waiting);
    flat->p += 8;
    flat->bits = (bits >> 1) >> (63 - flat->waiting);
}

/* Unstuff MagSgn bytes (7.1.2). Returns where the flat bytes end, the last of which is filled up with ones. */
static uint8_t *htj2k_unstuff_mag(const uint8_t *p, const uint8_t *end, uint8_t *out) {
    htj2k_flat flat = {out, 0, 0};
    int after = 0;
    if (end - p > HTJ2K_MAG_FLAT) end = p + HTJ2K_MAG_FLAT;
    while (end - p >= 8) {
        uint64_t bits = htj2k_load64(p), full;
        if (HTJ2K_UNLIKELY(after)) {
            /* What would be the eighth bit is zero, or nobody's. */
            htj2k_append(&flat, bits & 0x7F, 7);
            after = *p++ == 0xFF;
            continue;
        }
        full = htj2k_zeros(~bits);
        if (HTJ2K_LIKELY(!full)) {
            htj2k_append64(&flat, bits);
            p += 8;
        } else {
            int count = 0;
            while (!(full >> 8 * count & 0x80)) count++;
            count = count < 7 ? count + 1 : 7;
            htj2k_append(&flat, bits & (((uint64_t)1 << 8 * count) - 1), 8 * count);
            p += count;
            after = p[-1] == 0xFF;
        }
    }
    for (; p < end; p++) {
        htj2k_append(&flat, after ? *p & 0x7F : *p, after ? 7 : 8);
        after = *p == 0xFF;
    }
    htj2k_append(&flat, 0xFF >> flat.waiting, 8 - flat.waiting);
    return flat.p;
}

/* Unstuff VLC bytes (7.1.4), which are read from the end: begin … end are those of MEL and VLC, 2 at least. */
static void htj2k_unstuff_vlc(const uint8_t *begin, const uint8_t *end, uint8_t *out) {
    int last = end[-2] | 0x0F, short_one = (last & 0x7F) == 0x7F;
    const uint8_t *p = end - 2;
    htj2k_flat flat = {out, (uint64_t)(last >> 4 & (short_one ? 7 : 15)), short_one ? 3 : 4};
    uint8_t *stop = out + HTJ2K_VLC_FLAT + 8;
    int over = last > 0x8F;
    while (p > begin && flat.p < stop) {
        if (HTJ2K_LIKELY(p - begin >= 8)) {
            uint64_t bits = htj2k_swap64(htj2k_load64(p - 8));
            /* No byte has seven ones at its low end: none is short. */
            if (HTJ2K_LIKELY(!htj2k_zeros(~bits & 0x7F7F7F7F7F7F7F7Fu))) {
                htj2k_append64(&flat, bits);
                p -= 8;
                over = *p > 0x8F;
                continue;
            }
        }
        p--;
        short_one = over && (*p & 0x7F) == 0x7F;
        htj2k_append(&flat, short_one ? *p & 0x7F : *p, short_one ? 7 : 8);
        over = *p > 0x8F;
    }
    htj2k_append(&flat, 0, 8);
    if (flat.p < stop + HTJ2K_SLACK) memset(flat.p, 0, (size_t)(stop + HTJ2K_SLACK - flat.p));
}

/* MEL (7.1.3, 7.3.3): runs of zeros, as twice their length, and one more if a one follows. */
typedef struct {
    const uint8_t *p;
    const uint8_t *end;
    /* From the most significant on. */
    uint64_t bits;
    int have;
    int before;
    int state;
} htj2k_mel;

/* begin … end are the bytes of MEL and VLC: the last one and a half are the length, and read as ones. */
static void htj2k_mel_start(htj2k_mel *mel, const uint8_t *begin, const uint8_t *end) {
    mel->p = begin;
    mel->end = end;
    mel->bits = 0;
    mel->have = 0;
    mel->before = 0;
    mel->state = 0;
}

static int htj2k_mel_run(htj2k_mel *mel) {
    int exponent = HTJ2K_MEL_EXPONENT[mel->state], run;
    while (mel->have < 8) {
        int byte = 0xFF, room = mel->before == 0xFF ? 7 : 8;
        if (mel->p < mel->end - 1) {
            byte = *mel->p;
            if (mel->p == mel->end - 2) byte |= 0x0F;
            mel->p++;
        }
        mel->bits |= (uint64_t)(byte & ((1 << room) - 1)) << (64 - mel->have - room);
        mel->have += room;
        mel->before = byte;
    }
    if (mel->bits >> 63) {
        mel->bits <<= 1;
        mel->have -= 1;
        if (mel->state < 12) mel->state++;
        return 2 * ((1 << exponent) - 1);
    }
    run = exponent ? (int)(mel->bits << 1 >> (64 - exponent)) : 0;
    mel->bits <<= 1 + exponent;
    mel->have -= 1 + exponent;
    if (mel->state > 0) mel->state--;
    return 2 * run + 1;
}

/* What the two steps share. Lines are of quads; `words` of the line that is being read and the one before. */
typedef struct {
    /* Step 2. */
    const uint8_t *vlc;
    uint64_t bits;
    int have;
    int run;
    uint32_t bad;
    htj2k_mel mel;
    /* Step 3. */
    uint8_t *mag_end;
    uint32_t position;
    int quads;
    int limit;
    int plane;
    uint32_t words[2][HTJ2K_LINE_QUADS + 16];
    /* Of the quads below, by the significance of this line: what is above adds to the context. */
    uint32_t contexts[HTJ2K_LINE_QUADS + 16];
    /* Where the bits of each quad begin. */
    uint32_t places[HTJ2K_LINE_QUADS + 16];
    /* By column, of the lower samples of the line above: 2 |sample| - 1 or so, whose length is the exponent. From
     * [8] on: there are zeros on either side. */
    uint32_t bottoms[2 * HTJ2K_LINE_QUADS + 32];
    uint8_t flat_mag[HTJ2K_MAG_FLAT + 512 * 4 * 32 / 8 + 2 * HTJ2K_SLACK];
    uint8_t flat_vlc[HTJ2K_VLC_FLAT + 8 + 2 * HTJ2K_SLACK];
} htj2k_cleanup_state;

#define HTJ2K_PATH(name) name##_portable
#define HTJ2K_TARGET
#define HTJ2K_LANES 1
#include "htj2k_decode_block_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#undef HTJ2K_LANES

#if HTJ2K_X86
#define HTJ2K_PATH(name) name##_avx2
#define HTJ2K_TARGET HTJ2K_AVX2
#define HTJ2K_LANES 8
#include "htj2k_decode_block_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#undef HTJ2K_LANES
#endif

/* Read the cleanup pass of `length` bytes at `data` to samples, int16 if narrow and int32 if not; all of width × height
 * are written. Magnitudes are in units of 2^plane, and a half is added to all but whole ones. Returns 0, or 1 where the
 * block is broken. */
static int htj2k_cleanup(
    int narrow, const uint8_t *data, uint32_t length, int missing, int plane, void *samples, ptrdiff_t stride, int width,
    int height
) {
#if HTJ2K_X86
    /* 25 bits are within reach of a lane, whatever bit of a byte they begin at. */
    if (htj2k_path >= HTJ2K_PATH_AVX2 && missing + 2 <= 25)
        return (narrow ? htj2k_cleanup_16_avx2 : htj2k_cleanup_32_avx2)(
            data, length, missing, plane, samples, stride, width, height
        );
#endif
    return (narrow ? htj2k_cleanup_16_portable : htj2k_cleanup_32_portable)(
        data, length, missing, plane, samples, stride, width, height
    );
}

#endif
