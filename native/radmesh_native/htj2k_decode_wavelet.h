/* From subbands to samples: the reversible 5/3 wavelet (T.800 annex F) level by level, and what follows the last of them,
 * the inverse RCT and the range of the samples (annex G), row by row while a row is at hand.
 *
 * A level is in one plane as four subbands, and goes to another. `odd` is 1 where it starts at an odd coordinate; low
 * sample k is then at 2 k + odd, high sample k at 2 k + 1 - odd, and their neighbours are
 *
 *     low k:   high k - 1 + odd, high k + odd
 *     high k:  low k - odd,      low k + 1 - odd
 *
 * each no further than the ends, which is the symmetric extension of F.3.7. Sums wrap around: coefficients of a broken
 * code stream may be any number.
 *
 * The loops are plain ones, for the compiler to make vectors of: htj2k_decode_wavelet_template.h is compiled for each
 * path, with coefficients of 16 bits for samples of 12 at most, and of 32.
 */
#ifndef RADMESH_HTJ2K_DECODE_WAVELET_H
#define RADMESH_HTJ2K_DECODE_WAVELET_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "htj2k_cpu.h"

enum {
    /* Rows of the last level that are at hand: a power of two, more than any step needs. */
    HTJ2K_RING = 8,
    /* Before and behind a row of work space. */
    HTJ2K_MARGIN = 32
};

typedef struct {
    const void *source;
    void *target;
    /* In coefficients. */
    ptrdiff_t stride;
    ptrdiff_t target_stride;
    ptrdiff_t columns;
    ptrdiff_t rows;
    int odd_x;
    int odd_y;
} htj2k_level;

typedef struct {
    /* Where the first row of samples goes, and how far the next is, in bytes. */
    uint8_t *p;
    ptrdiff_t pitch;
    /* Of a sample: 1 or 2. */
    int bytes;
    int components;
    /* The RCT was used. */
    int colour;
    int32_t low;
    int32_t high;
    int32_t shift;
} htj2k_output;

HTJ2K_INLINE ptrdiff_t htj2k_clamp(ptrdiff_t k, ptrdiff_t count) { return k < 0 ? 0 : k >= count ? count - 1 : k; }

#define HTJ2K_PATH(name) name##_portable_32
#define HTJ2K_TARGET
#define HTJ2K_T int32_t
#define HTJ2K_U uint32_t
#include "htj2k_decode_wavelet_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_T
#undef HTJ2K_U
#define HTJ2K_PATH(name) name##_portable_16
#define HTJ2K_T int16_t
#define HTJ2K_U uint16_t
#include "htj2k_decode_wavelet_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#if HTJ2K_X86
#define HTJ2K_PATH(name) name##_sse41_16
#define HTJ2K_TARGET HTJ2K_SSE41
#include "htj2k_decode_wavelet_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#define HTJ2K_PATH(name) name##_avx2_16
#define HTJ2K_TARGET HTJ2K_AVX2
#include "htj2k_decode_wavelet_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#undef HTJ2K_T
#undef HTJ2K_U
#define HTJ2K_T int32_t
#define HTJ2K_U uint32_t
#define HTJ2K_PATH(name) name##_sse41_32
#define HTJ2K_TARGET HTJ2K_SSE41
#include "htj2k_decode_wavelet_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#define HTJ2K_PATH(name) name##_avx2_32
#define HTJ2K_TARGET HTJ2K_AVX2
#include "htj2k_decode_wavelet_template.h"
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
#endif
#undef HTJ2K_T
#undef HTJ2K_U

#if HTJ2K_X86
#define HTJ2K_CHOOSE(name, arguments)                                               \
    do {                                                                            \
        if (htj2k_path >= HTJ2K_PATH_AVX2) {                                        \
            if (narrow) name##_avx2_16 arguments; else name##_avx2_32 arguments;    \
        } else if (htj2k_path == HTJ2K_PATH_SSE41) {                                \
            if (narrow) name##_sse41_16 arguments; else name##_sse41_32 arguments;  \
        } else if (narrow)                                                          \
            name##_portable_16 arguments;                                           \
        else                                                                        \
            name##_portable_32 arguments;                                           \
    } while (0)
#else
#define HTJ2K_CHOOSE(name, arguments)                                               \
    do {                                                                            \
        if (narrow) name##_portable_16 arguments; else name##_portable_32 arguments; \
    } while (0)
#endif

/* A level that is not the last. `narrow`: coefficients have 16 bits. `work`: HTJ2K_WORK_ROWS(1) rows. */
static void htj2k_synthesise(int narrow, const htj2k_level *level, void *work) {
    HTJ2K_CHOOSE(htj2k_synthesise, (level, work));
}

/* The last level of all components, to samples. `levels`: one a component, their targets unused. */
static void htj2k_finish(int narrow, const htj2k_level *levels, const htj2k_output *out, void *work) {
    HTJ2K_CHOOSE(htj2k_finish, (levels, out, work));
}

/* Where there is no level: coefficients are samples already. */
static void htj2k_emit(int narrow, const htj2k_level *levels, const htj2k_output *out) {
    HTJ2K_CHOOSE(htj2k_emit, (levels, out));
}

#endif
