/* CRC-32C (Castagnoli, RFC 3720 12.1), reflected polynomial 0x82F63B78.
 *
 * Two paths: SSE4.2, three streams interleaved since the instruction has a latency of three cycles, and slicing-by-8. The
 * path is chosen once, at import.
 */
#ifndef RADMESH_CRC32C_H
#define RADMESH_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static uint32_t crc32c_table[8][256];
/* Operators that advance a CRC over LONG or SHORT zero bytes, as four byte-indexed tables. */
#define CRC32C_LONG 8192
#define CRC32C_SHORT 256
static uint32_t crc32c_long[4][256], crc32c_short[4][256];

static uint32_t crc32c_gf2_times(const uint32_t *matrix, uint32_t vector) {
    uint32_t sum = 0;
    for (; vector; vector >>= 1, matrix++)
        if (vector & 1) sum ^= *matrix;
    return sum;
}

/* The operator that advances a CRC over one zero byte, as a matrix over GF(2), and its square. */
static void crc32c_square(uint32_t square[32], const uint32_t matrix[32]) {
    for (int n = 0; n < 32; n++) square[n] = crc32c_gf2_times(matrix, matrix[n]);
}

static void crc32c_zero_byte(uint32_t matrix[32]) {
    uint32_t bits[32];
    matrix[0] = 0x82F63B78;
    for (int n = 1; n < 32; n++) matrix[n] = (uint32_t)1 << (n - 1);
    for (int k = 0; k < 3; k++) {
        memcpy(bits, matrix, sizeof bits);
        crc32c_square(matrix, bits);
    }
}

/* The CRC of A and B, from that of A, that of B, and the length of B. */
static uint32_t crc32c_combine(uint32_t first, uint32_t second, uint64_t length) {
    uint32_t matrix[32], half[32];
    crc32c_zero_byte(matrix);
    for (; length; length >>= 1) {
        if (length & 1) first = crc32c_gf2_times(matrix, first);
        memcpy(half, matrix, sizeof half);
        crc32c_square(matrix, half);
    }
    return first ^ second;
}

static void crc32c_zeros(uint32_t zeros[4][256], size_t length) {
    uint32_t matrix[32];
    for (int n = 0; n < 32; n++) matrix[n] = crc32c_combine((uint32_t)1 << n, 0, length);
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 0; k < 4; k++) zeros[k][n] = crc32c_gf2_times(matrix, n << (8 * k));
}

static inline uint32_t crc32c_shift(uint32_t zeros[4][256], uint32_t crc) {
    return zeros[0][crc & 0xFF] ^ zeros[1][(crc >> 8) & 0xFF] ^ zeros[2][(crc >> 16) & 0xFF] ^ zeros[3][crc >> 24];
}

static void crc32c_init(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int k = 0; k < 8; k++) crc = crc & 1 ? (crc >> 1) ^ 0x82F63B78 : crc >> 1;
        crc32c_table[0][n] = crc;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            crc32c_table[k][n] = (crc32c_table[k - 1][n] >> 8) ^ crc32c_table[0][crc32c_table[k - 1][n] & 0xFF];
    crc32c_zeros(crc32c_long, CRC32C_LONG);
    crc32c_zeros(crc32c_short, CRC32C_SHORT);
}

static uint32_t crc32c_portable(uint32_t crc, const uint8_t *p, size_t n) {
    crc = ~crc;
    while (n >= 8) {
        uint32_t a = crc ^ ((uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = crc32c_table[7][a & 0xFF] ^ crc32c_table[6][(a >> 8) & 0xFF] ^ crc32c_table[5][(a >> 16) & 0xFF] ^
              crc32c_table[4][a >> 24] ^ crc32c_table[3][p[4]] ^ crc32c_table[2][p[5]] ^ crc32c_table[1][p[6]] ^
              crc32c_table[0][p[7]];
        p += 8;
        n -= 8;
    }
    while (n--) crc = crc32c_table[0][(crc ^ *p++) & 0xFF] ^ (crc >> 8);
    return ~crc;
}

#if defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
static inline uint64_t crc32c_load(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t a = (uint32_t)~crc;
    const size_t blocks[2] = {CRC32C_LONG, CRC32C_SHORT};
    for (int size = 0; size < 2; size++) {
        size_t block = blocks[size];
        while (n >= 3 * block) {
            uint64_t b = 0, c = 0;
            for (size_t i = 0; i < block; i += 8) {
                a = _mm_crc32_u64(a, crc32c_load(p + i));
                b = _mm_crc32_u64(b, crc32c_load(p + block + i));
                c = _mm_crc32_u64(c, crc32c_load(p + 2 * block + i));
            }
            a = crc32c_shift(size ? crc32c_short : crc32c_long, (uint32_t)a) ^ b;
            a = crc32c_shift(size ? crc32c_short : crc32c_long, (uint32_t)a) ^ c;
            p += 3 * block;
            n -= 3 * block;
        }
    }
    for (; n >= 8; n -= 8, p += 8) a = _mm_crc32_u64(a, crc32c_load(p));
    for (; n; n--) a = _mm_crc32_u8((uint32_t)a, *p++);
    return ~(uint32_t)a;
}
static int crc32c_has_sse42(void) { return __builtin_cpu_supports("sse4.2"); }
#else
#define crc32c_sse42 crc32c_portable
static int crc32c_has_sse42(void) { return 0; }
#endif

#endif
