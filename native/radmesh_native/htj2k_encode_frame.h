/* A component of a frame to code blocks: the reversible 5/3 wavelet (Rec. ITU-T T.800 F.4), and each block as soon as
 * 64 rows of its subband are there.
 *
 * A level is one sweep over its rows, which are taken apart into even and odd columns as they are read: then both ways
 * of the wavelet work on neighbours in memory. Of the three high subbands there are never more than 64 rows, so they
 * are coded out of the cache; only the low one is kept, for the next level.
 *
 * Coefficients are int16_t where none can leave it, else int32_t. The wavelet of a frame plus a constant is that of the
 * frame, and the constant in the lowest subband: so samples are taken around their middle, and the lowest subband gets
 * back what is due to it.
 */
#ifndef RADMESH_HTJ2K_ENCODE_FRAME_H
#define RADMESH_HTJ2K_ENCODE_FRAME_H

#include <stdlib.h>

#include "htj2k_encode_block.h"

enum {
    HTJ2K_LEVELS = 32,
    /* Where samples are this far apart at the most, sums of two coefficients fit 16 bits: those of the high rows are
     * within 3 times the half of it. */
    HTJ2K_NARROW = 10000,
    /* Rows are of a multiple of this, and have as many to spare. */
    HTJ2K_ROW = 64,
    /* Rows of samples that are fetched ahead. */
    HTJ2K_AHEAD = 4
};

/* What a row of a component is read from. */
enum { HTJ2K_UINT8, HTJ2K_INT8, HTJ2K_UINT16, HTJ2K_INT16, HTJ2K_PLANE };

/* A code block: where it is in the arena, and its length; 0: all zeros. */
typedef struct {
    size_t at;
    size_t length;
} htj2k_coded;

/* What is kept of one frame to the next: nothing but room. */
typedef struct {
    /* Coded blocks. */
    uint8_t *bytes;
    size_t size, room;
    /* Rows, strips and low subbands. */
    void *space;
    size_t space_room;
    /* Colours; the code stream. */
    void *planes;
    size_t planes_room;
    uint8_t *out;
    size_t out_room;
    htj2k_block_work block;
} htj2k_arena;

/* One component. */
typedef struct {
    const void *source;
    int kind;
    int width, height, levels;
    /* Subtracted from each sample, and given back to the lowest subband. */
    int32_t middle, back;
    /* Where there are `bits`, `outside` becomes whether a sample does not fit them. */
    int bits, outside;
    /* By resolution and subband, its blocks row by row. */
    htj2k_coded *blocks[HTJ2K_LEVELS + 1][3];
} htj2k_component;

static size_t htj2k_row_room(int width) {
    return ((size_t)(width + 1) / 2 + 2 * HTJ2K_ROW - 1) / HTJ2K_ROW * HTJ2K_ROW;
}

/* Numbers of space that a component wants: six rows in halves, three strips, two low subbands. */
static size_t htj2k_space(int width, int height, int levels) {
    size_t half = htj2k_row_room(width), rows = (size_t)(height + 1) / 2;
    size_t lows = half * rows + htj2k_row_room((width + 1) / 2) * ((rows + 1) / 2);
    return 12 * half + 3 * 64 * half + (levels ? lows : (size_t)width * (size_t)height);
}

/* Memory of `bytes` at least, whatever is in it. */
static int htj2k_take_room(void **room, size_t *size, size_t bytes) {
    if (bytes > *size) {
        free(*room);
        *size = 0;
        *room = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
        if (!*room) return -1;
        *size = bytes;
    }
    return 0;
}

static int htj2k_take_bytes(htj2k_arena *arena, size_t more) {
    size_t room = arena->size + more;
    uint8_t *grown;
    if (room <= arena->room) return 0;
    room += room / 2;
    grown = (uint8_t *)realloc(arena->bytes, room);
    if (!grown) return -1;
    arena->bytes = grown;
    arena->room = room;
    return 0;
}

static void htj2k_release_arena(htj2k_arena *arena) {
    free(arena->bytes);
    free(arena->space);
    free(arena->planes);
    free(arena->out);
}

/* Code a row of blocks; returns -1 where there is no memory. */
static int htj2k_code_strip(
    htj2k_arena *arena, const void *samples, ptrdiff_t stride, int narrow, int width, int height, htj2k_coded *blocks
) {
    int x;
    for (x = 0; x < width; x += 64, blocks++) {
        if (htj2k_take_bytes(arena, HTJ2K_BLOCK_BYTES)) return -1;
        blocks->at = arena->size;
        blocks->length = (size_t)htj2k_encode_block(
            (const char *)samples + (narrow ? 2 : 4) * x, stride, narrow, width - x < 64 ? width - x : 64, height,
            &arena->block, arena->bytes + arena->size);
        arena->size += blocks->length;
    }
    return 0;
}

#define HTJ2K_PATH portable
#define HTJ2K_TARGET
#include "htj2k_encode_frame_path.h"

#if HTJ2K_X86
#define HTJ2K_PATH sse41
#define HTJ2K_TARGET HTJ2K_SSE41
#include "htj2k_encode_frame_path.h"

#define HTJ2K_PATH avx2
#define HTJ2K_TARGET HTJ2K_AVX2
#include "htj2k_encode_frame_path.h"

#define HTJ2K_PATH avx512
#define HTJ2K_TARGET HTJ2K_AVX512
#include "htj2k_encode_frame_path.h"
#endif

#if HTJ2K_X86
#define HTJ2K_CALL(name, arguments)                                                                                    \
    switch (htj2k_path) {                                                                                              \
    case HTJ2K_PATH_AVX512:                                                                                            \
        return name##_avx512 arguments;                                                                                \
    case HTJ2K_PATH_AVX2:                                                                                              \
        return name##_avx2 arguments;                                                                                  \
    case HTJ2K_PATH_SSE41:                                                                                             \
        return name##_sse41 arguments;                                                                                 \
    default:                                                                                                           \
        return name##_portable arguments;                                                                              \
    }
#else
#define HTJ2K_CALL(name, arguments) return name##_portable arguments;
#endif

/* Code a component; returns -1 where there is no memory. Where `outside` is set afterwards, what was coded is void. */
static int htj2k_encode_component(htj2k_arena *arena, htj2k_component *component, int narrow) {
    if (narrow) HTJ2K_CALL(htj2k_encode_narrow, (arena, component))
    HTJ2K_CALL(htj2k_encode_wide, (arena, component))
}

/* Least and greatest of samples of a kind. */
static void htj2k_range(const void *samples, int kind, size_t count, int32_t range[2]) {
    HTJ2K_CALL(htj2k_range, (samples, kind, count, range))
}

/* RGB, pixel by pixel, through the RCT (G.2) to three planes: of int16_t where `narrow`, else int32_t. */
static void htj2k_colours(
    const void *samples, int kind, int narrow, int32_t middle, size_t count, void *const planes[3]
) {
    HTJ2K_CALL(htj2k_colours, (samples, kind, narrow, middle, count, planes))
}

#endif
