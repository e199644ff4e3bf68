/* The HT block encoder: one cleanup pass (Rec. ITU-T T.814 7.3) of a block of 64 by 64 samples at the most.
 *
 * A block is coded in quads, two by two samples; sample n of a quad is bit n of its patterns:
 *
 *     0 2
 *     1 3
 *
 * An encoder knows all samples beforehand, so what a quad takes from its neighbours does not make it wait for them.
 * Stages, each over all quads, the vector ones in htj2k_encode_block_path.h once for each kind of processor:
 *
 *     examine   samples to values, exponents, significance               vectors
 *     decide    contexts, bounds, exponent offsets; MEL events           vectors, and a little for each row
 *     look up   code words of quads, and of the offsets of two quads     two loads each
 *     gather    the MagSgn bits of two quads, and the VLC bits of four, to one word each: vectors; then words to bytes
 *
 * Bits are gathered as if there were no stuffing, and stuffed in the end, seven bytes at a time: it is rare.
 */
#ifndef RADMESH_HTJ2K_ENCODE_BLOCK_H
#define RADMESH_HTJ2K_ENCODE_BLOCK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "htj2k_cpu.h"
#include "htj2k_tables.h"

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the block encoder wants GCC or Clang, for their vectors, and a processor that puts the low byte first"
#endif

enum {
    HTJ2K_QUADS = 32,
    /* A row of quads with what lies left and right of it: zeros. */
    HTJ2K_QUAD_ROW = 64,
    HTJ2K_QUAD_LEFT = 16,
    /* The longest that a block may become: 31 bits a sample and one in eight stuffed, MEL and VLC. */
    HTJ2K_BLOCK_BYTES = 24576,
    HTJ2K_MAG_BYTES = 4096 * 4,
    /* 30 bits for each two quads; twelve bits stuffed in a hundred would be more than there can be. */
    HTJ2K_VLC_BYTES = 2560,
    HTJ2K_MEL_BYTES = 1536
};

/* Work space of a block. A quad as it is found: low to high, top bits (4 bits), significance (4), largest exponent (8),
 * exponents of samples 1 and 3 (8 each). As it is decided: top bits, significance, context (3), none (5), the exponent
 * that its values are written with (8), its offset (8). */
typedef struct {
    uint32_t found[HTJ2K_QUADS + 1][HTJ2K_QUAD_ROW];
    uint32_t decided[HTJ2K_QUADS][HTJ2K_QUADS];
    uint32_t words[HTJ2K_QUADS][HTJ2K_QUADS];
    uint64_t offsets[HTJ2K_QUADS][HTJ2K_QUADS / 2];
    uint32_t values[HTJ2K_QUADS][4][HTJ2K_QUADS];
    /* A block that lies at an edge, with zeros beyond. */
    int32_t edge[64 * 64];
    /* One of the lowest subband. */
    int32_t lowest[64 * 64];
    uint8_t mag[HTJ2K_MAG_BYTES + 64];
    uint8_t vlc[HTJ2K_VLC_BYTES + 64];
    uint8_t vlc_stuffed[HTJ2K_VLC_BYTES + 64];
    uint8_t mel[HTJ2K_MEL_BYTES];
} htj2k_block_work;

/* Tables ---------------------------------------------------------------------------------------------------------- */

/* Code words by [line is not the first][context, significance, top bits]: word | length << 7 | e_k << 10. */
static uint16_t htj2k_vlc_words[2][2048];
/* Code words of the exponent offsets of two quads, by [line is not the first][offsets]: word | length << 16. */
static uint32_t htj2k_offset_words[2][1024];

static void htj2k_fill_vlc(uint16_t *table, const htj2k_vlc_row *rows, int count) {
    int context, rho, top, n, cost, best;
    const htj2k_vlc_row *row;
    for (context = 0; context < 8; context++)
        for (rho = 0; rho < 16; rho++)
            for (top = 0; top < 16; top++) {
                best = 99;
                for (n = 0; n < count; n++) {
                    row = &rows[n];
                    if (row->c_q != context || row->rho != rho || row->u_off != (top != 0) ||
                        (top & row->e_k) != row->e_1)
                        continue;
                    /* Of all that may stand for the quad, that which costs least; each known top bit spares one. */
                    cost = row->length - __builtin_popcount(row->e_k);
                    if (cost < best) {
                        best = cost;
                        table[context << 8 | rho << 4 | top] =
                            (uint16_t)(row->word | row->length << 7 | row->e_k << 10);
                    }
                }
            }
}

/* T.814 table 3: prefix, its length, suffix, its length. No offset is beyond 32: samples have 31 bits at the most. */
static void htj2k_offset_code(int offset, int code[4]) {
    code[0] = offset == 1 ? 1 : offset == 2 ? 2 : offset == 3 || offset == 4 ? 4 : 0;
    code[1] = offset == 0 ? 0 : offset < 3 ? offset : 3;
    code[2] = offset < 3 ? 0 : offset < 5 ? offset - 3 : offset - 5;
    code[3] = offset < 3 ? 0 : offset < 5 ? 1 : 5;
}

static uint32_t htj2k_offset_word(int first, int second, int is_first_line) {
    int one[4], two[4], length, both_over = is_first_line && first > 2 && second > 2;
    uint32_t word;
    if (both_over) {
        /* An event said so. */
        first -= 2;
        second -= 2;
    }
    htj2k_offset_code(first, one);
    htj2k_offset_code(second, two);
    if (is_first_line && !both_over && first > 2 && (second == 1 || second == 2)) {
        /* An event said that not both are over 2: one bit does for the second. */
        two[0] = second - 1;
        two[1] = 1;
    }
    /* Both prefixes, then both suffixes. */
    word = (uint32_t)(one[0] | two[0] << one[1]);
    length = one[1] + two[1];
    word |= (uint32_t)one[2] << length;
    length += one[3];
    word |= (uint32_t)two[2] << length;
    return word | (uint32_t)(length + two[3]) << 16;
}

static void htj2k_fill_encoder_tables(void) {
    int line, n;
    htj2k_fill_vlc(htj2k_vlc_words[0], HTJ2K_VLC_FIRST, 444);
    htj2k_fill_vlc(htj2k_vlc_words[1], HTJ2K_VLC_OTHER, 358);
    for (line = 0; line < 2; line++)
        for (n = 0; n < 1024; n++) htj2k_offset_words[line][n] = htj2k_offset_word(n >> 5, n & 31, !line);
}

/* Bits ------------------------------------------------------------------------------------------------------------ */

HTJ2K_INLINE uint64_t htj2k_load64(const uint8_t *p) {
    uint64_t x;
    memcpy(&x, p, 8);
    return x;
}

HTJ2K_INLINE void htj2k_store64(uint8_t *p, uint64_t x) { memcpy(p, &x, 8); }

/* Bits before any stuffing, low bits first: `used` < 64 of them wait in `bits`. */
typedef struct {
    uint8_t *p;
    uint64_t bits;
    unsigned used;
} htj2k_bits;

/* Add 64 bits at most; those of `word` above them are zero. Writes 8 bytes at p, whatever. */
HTJ2K_INLINE void htj2k_add(htj2k_bits *b, uint64_t word, unsigned length) {
    uint64_t bits = b->bits | word << b->used;
    unsigned used = b->used + length;
    htj2k_store64(b->p, bits);
    b->bits = used & 64 ? (word >> 1) >> (~b->used & 63) : bits;
    b->p += used >> 3 & 8;
    b->used = used & 63;
}

/* The adaptive run length code (7.3.3), most significant bit first. */
typedef struct {
    uint8_t *p;
    unsigned byte;
    /* Bits that the byte still takes: 8, 7 after 0xFF. */
    int room;
    unsigned run;
    int state;
} htj2k_mel;

/* Write `length` <= 6 bits. */
HTJ2K_INLINE void htj2k_mel_bits(htj2k_mel *m, unsigned bits, int length) {
    while (length >= m->room) {
        length -= m->room;
        m->byte = m->byte << m->room | bits >> length;
        bits &= (1u << length) - 1;
        *m->p++ = (uint8_t)m->byte;
        m->room = m->byte == 0xFF ? 7 : 8;
        m->byte = 0;
    }
    m->byte = m->byte << length | bits;
    m->room -= length;
}

/* `count` events that are zero. */
HTJ2K_INLINE void htj2k_mel_zeros(htj2k_mel *m, unsigned count) {
    m->run += count;
    while (m->run >> HTJ2K_MEL_EXPONENT[m->state]) {
        m->run -= 1u << HTJ2K_MEL_EXPONENT[m->state];
        htj2k_mel_bits(m, 1, 1);
        if (m->state < 12) m->state++;
    }
}

HTJ2K_INLINE void htj2k_mel_one(htj2k_mel *m) {
    /* A zero, and how long the run was. */
    htj2k_mel_bits(m, m->run, 1 + HTJ2K_MEL_EXPONENT[m->state]);
    m->run = 0;
    if (m->state > 0) m->state--;
}

HTJ2K_INLINE void htj2k_mel_event(htj2k_mel *m, int event) {
    if (event)
        htj2k_mel_one(m);
    else
        htj2k_mel_zeros(m, 1);
}

/* The events of a row: of the quads `asked`, those that are `significant`. */
HTJ2K_INLINE void htj2k_mel_row(htj2k_mel *m, uint32_t asked, uint32_t significant) {
    significant &= asked;
    while (significant) {
        uint32_t first = significant & (0u - significant);
        htj2k_mel_zeros(m, (unsigned)__builtin_popcount(asked & (first - 1)));
        htj2k_mel_one(m);
        asked &= 0u - (first << 1);
        significant ^= first;
    }
    htj2k_mel_zeros(m, (unsigned)__builtin_popcount(asked));
}

/* Copy `count` bits to `out`, seven to a byte after 0xFF (7.1.2); return the end. All ones follow them in `bits`: they
 * fill the last byte. A last 0xFF goes: the reader supplies it. */
static uint8_t *htj2k_stuff_mag(const uint8_t *bits, size_t count, uint8_t *out) {
    const uint64_t low = 0x0101010101010101u, high = 0x0080808080808080u;
    uint8_t *start = out;
    size_t at = 0;
    int room;
    while (at + 64 <= count) {
        uint64_t word = htj2k_load64(bits + (at >> 3)) >> (at & 7);
        uint64_t full = (~word - low) & word & high;
        htj2k_store64(out, word);
        if (HTJ2K_LIKELY(!full)) {
            out += 7;
            at += 56;
            continue;
        }
        room = __builtin_ctzll(full) >> 3;
        out += room + 1;
        at += 8 * (size_t)room + 8;
        /* Not the last: then it goes. */
        if (at < count) {
            *out++ = (uint8_t)(htj2k_load64(bits + (at >> 3)) >> (at & 7)) & 0x7F;
            at += 7;
        }
    }
    room = out > start && out[-1] == 0xFF ? 7 : 8;
    while (at < count) {
        *out = (uint8_t)((htj2k_load64(bits + (at >> 3)) >> (at & 7)) & ((1u << room) - 1));
        at += (size_t)room;
        room = *out++ == 0xFF ? 7 : 8;
    }
    return out - (room == 7);
}

/* Copy `count` bits backwards to below `out`: seven where they are ones, over a byte beyond 0x8F (7.1.4). Returns where
 * the last whole byte is; *rest is of what is left the bits, *used how many. */
static uint8_t *htj2k_stuff_vlc(const uint8_t *bits, size_t count, uint8_t *out, unsigned *rest, unsigned *used) {
    const uint64_t sevens = 0x7F7F7F7F7F7F7F7Fu;
    /* What is below the byte that the length goes to. */
    uint64_t over = 0x80;
    size_t at = 0;
    unsigned room;
    while (at + 64 <= count) {
        uint64_t word = htj2k_load64(bits + (at >> 3)) >> (at & 7);
        uint64_t beyond = ((word & sevens) + 0x7070707070707070u) & word & ~sevens;
        uint64_t stuffed = ((word & sevens) + 0x0101010101010101u) & (beyond << 8 | over) & 0x0080808080808080u;
        htj2k_store64(out - 8, __builtin_bswap64(word));
        if (HTJ2K_LIKELY(!stuffed)) {
            out -= 7;
            at += 56;
            over = beyond >> 48 & 0x80;
            continue;
        }
        room = (unsigned)__builtin_ctzll(stuffed) >> 3;
        out -= room + 1;
        *out = 0x7F;
        at += 8 * room + 7;
        over = 0;
    }
    for (;;) {
        unsigned left = (unsigned)(count - at);
        unsigned next = (unsigned)(htj2k_load64(bits + (at >> 3)) >> (at & 7)) & (left < 8 ? (1u << left) - 1 : 0xFF);
        room = over && (next & 0x7F) == 0x7F ? 7 : 8;
        if (left < room) {
            *rest = next;
            *used = left;
            return out;
        }
        next &= (1u << room) - 1;
        *--out = (uint8_t)next;
        at += room;
        over = next > 0x8F;
    }
}

/* Finish MEL and VLC: their last bytes become one, where both readers find their bits in it. `vlc` is the last byte of
 * VLC, and the new one is returned. */
static uint8_t *htj2k_end_mel_vlc(htj2k_mel *mel, uint8_t *vlc, unsigned rest, unsigned used) {
    unsigned mel_mask, vlc_mask = (1u << used) - 1, both;
    if (mel->run) htj2k_mel_bits(mel, 1, 1);
    /* The seven bits after 0xFF end a byte whose first bit is zero: that one is used as well. */
    mel_mask = (0xFFu << mel->room) & 0xFF;
    mel->byte <<= mel->room;
    both = mel->byte | rest;
    if (mel_mask && vlc_mask && !((both ^ mel->byte) & mel_mask) && !((both ^ rest) & vlc_mask) && both != 0xFF) {
        *mel->p++ = (uint8_t)both;
        return vlc;
    }
    if (mel_mask) *mel->p++ = (uint8_t)mel->byte;
    if (vlc_mask) *--vlc = (uint8_t)rest;
    return vlc;
}

/* Code words of all quads, and the events of the first row. */
static void htj2k_look_up(htj2k_block_work *work, int across, int down) {
    const uint16_t *words = htj2k_vlc_words[0];
    const uint32_t *offsets = htj2k_offset_words[0];
    int x, y;
    for (y = 0; y < down; y++) {
        const uint32_t *quads = work->decided[y];
        for (x = 0; x < across; x += 2) {
            work->words[y][x] = words[quads[x] & 0x7FF];
            work->words[y][x + 1] = words[quads[x + 1] & 0x7FF];
            work->offsets[y][x >> 1] = offsets[quads[x] >> 24 << 5 | quads[x + 1] >> 24];
        }
        words = htj2k_vlc_words[1];
        offsets = htj2k_offset_words[1];
    }
}

/* The events of the first row: among them, where two quads have an offset, whether both are over 2 (7.3.6). */
static void htj2k_first_events(const htj2k_block_work *work, int across, htj2k_mel *mel) {
    int x, k;
    for (x = 0; x < across; x += 2) {
        const uint32_t *quads = work->decided[0] + x;
        unsigned first = quads[0] >> 24, second = quads[1] >> 24;
        for (k = 0; k < 2 && x + k < across; k++)
            if (!(quads[k] & 0x700)) htj2k_mel_event(mel, (quads[k] & 0xF0) != 0);
        if (first && second) htj2k_mel_event(mel, first > 2 && second > 2);
    }
}

/* Everything behind the gathering: stuff, and put together. */
static ptrdiff_t htj2k_finish_block(
    htj2k_block_work *work, htj2k_bits *mag, htj2k_bits *vlc, htj2k_mel *mel, uint8_t *out
) {
    uint8_t *vlc_end = work->vlc_stuffed + sizeof(work->vlc_stuffed), *low, *end;
    unsigned rest, used;
    size_t mel_length, vlc_length, both;
    htj2k_store64(mag->p, mag->bits | ~(uint64_t)0 << mag->used);
    htj2k_store64(mag->p + 8, ~(uint64_t)0);
    end = htj2k_stuff_mag(work->mag, 8 * (size_t)(mag->p - work->mag) + mag->used, out);
    htj2k_store64(vlc->p, vlc->bits);
    htj2k_store64(vlc->p + 8, 0);
    /* The last byte, and the low half of the one before, are the length of MEL and VLC: written below. */
    low = htj2k_stuff_vlc(work->vlc, 8 * (size_t)(vlc->p - work->vlc) + vlc->used, vlc_end - 1, &rest, &used);
    low = htj2k_end_mel_vlc(mel, low, rest, used);
    mel_length = (size_t)(mel->p - work->mel);
    vlc_length = (size_t)(vlc_end - low);
    both = mel_length + vlc_length;
    memcpy(end, work->mel, mel_length);
    memcpy(end + mel_length, low, vlc_length);
    end += both;
    end[-2] = (uint8_t)((end[-2] & 0xF0) | (both & 0x0F));
    end[-1] = (uint8_t)(both >> 4);
    return end - out;
}

/* Paths ----------------------------------------------------------------------------------------------------------- */

#if !defined(__clang__)
#define HTJ2K_SHUFFLE(a, b, which) __builtin_shuffle(a, b, which)
#else
/* Clang has no shuffle by a vector: lane by lane. */
#define HTJ2K_SHUFFLE(a, b, which)                                                                                     \
    ({                                                                                                                 \
        __typeof__(a) one_ = (a), two_ = (b), to_ = one_, which_ = (__typeof__(a))(which);                             \
        int n_, count_ = (int)(sizeof(to_) / sizeof(to_[0]));                                                          \
        for (n_ = 0; n_ < count_; n_++)                                                                                \
            to_[n_] = (int)which_[n_] < count_ ? one_[which_[n_]] : two_[which_[n_] - count_];                         \
        to_;                                                                                                           \
    })
#endif

#define HTJ2K_JOIN_(a, b) a##_##b
#define HTJ2K_JOIN(a, b) HTJ2K_JOIN_(a, b)

#define HTJ2K_PATH portable
#define HTJ2K_TARGET
#define HTJ2K_LANES 4
#include "htj2k_encode_block_path.h"

#if HTJ2K_X86
#define HTJ2K_PATH sse41
#define HTJ2K_TARGET HTJ2K_SSE41
#define HTJ2K_LANES 4
#include "htj2k_encode_block_path.h"

#define HTJ2K_PATH avx2
#define HTJ2K_TARGET HTJ2K_AVX2
#define HTJ2K_LANES 8
#include "htj2k_encode_block_path.h"

#define HTJ2K_PATH avx512
#define HTJ2K_TARGET HTJ2K_AVX512
#define HTJ2K_LANES 16
#include "htj2k_encode_block_path.h"
#endif

/* Code a block of 64 by 64 samples at most, to HTJ2K_BLOCK_BYTES at `out`. Returns the length, 0 if all samples are
 * zero. Samples are within ±2^29: int16_t where `narrow`, else int32_t. `stride` counts samples. */
static ptrdiff_t htj2k_encode_block(
    const void *samples, ptrdiff_t stride, int narrow, int width, int height, htj2k_block_work *work, uint8_t *out
) {
#if HTJ2K_X86
    switch (htj2k_path) {
    case HTJ2K_PATH_AVX512:
        return htj2k_encode_block_avx512(samples, stride, narrow, width, height, work, out);
    case HTJ2K_PATH_AVX2:
        return htj2k_encode_block_avx2(samples, stride, narrow, width, height, work, out);
    case HTJ2K_PATH_SSE41:
        return htj2k_encode_block_sse41(samples, stride, narrow, width, height, work, out);
    default:
        break;
    }
#endif
    return htj2k_encode_block_portable(samples, stride, narrow, width, height, work, out);
}

#endif
