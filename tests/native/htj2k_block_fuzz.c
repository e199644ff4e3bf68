/* Broken code blocks for the HT block decoder, under AddressSanitizer: every path reads and writes what is its own, and
 * all say the same of the same bytes. Arguments: how many, and the first seed; then files with good blocks. */
#include <stdio.h>
#include <stdlib.h>

#include "htj2k_decode_block.h"

static uint64_t state;

static uint32_t random_below(uint32_t bound) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(((state >> 33) * bound) >> 31);
}

static uint8_t *seeds[64];
static uint32_t lengths[64];

/* A block of `length` bytes and no more room: bytes of chance, or a good block that is cut and changed. */
static uint8_t *block(uint32_t count, uint32_t *length) {
    uint32_t which = random_below(count + 1), n, edits;
    uint8_t *data;
    *length = which == count ? 2 + random_below(300) : 2 + random_below(4) * (lengths[which] - 2) / 3;
    data = malloc(*length);
    for (n = 0; n < *length; n++)
        data[n] = which == count ? (uint8_t)(random_below(3) ? random_below(256) : 0xFF)
                                 : seeds[which][n + lengths[which] - *length];
    edits = random_below(6);
    while (edits--) data[random_below(*length)] = random_below(3) ? (uint8_t)random_below(256) : 0xFF;
    if (random_below(2)) {
        /* A good length of MEL and VLC. */
        n = 2 + random_below((*length < 4079 ? *length : 4079) - 1);
        data[*length - 1] = (uint8_t)(n >> 4);
        data[*length - 2] = (uint8_t)((data[*length - 2] & 0xF0) | (n & 15));
    }
    return data;
}

int main(int argc, char **argv) {
    long count = atol(argv[1]), n, good = 0;
    uint32_t files = 0;
    htj2k_fill_decode_tables();
    for (; (int)files + 3 < argc && files < 64; files++) {
        FILE *f = fopen(argv[files + 3], "rb");
        seeds[files] = malloc(1 << 16);
        lengths[files] = (uint32_t)fread(seeds[files], 1, 1 << 16, f);
        fclose(f);
    }
    for (n = 0; n < count; n++) {
        uint32_t length, path, x;
        int narrow, missing, width, height, whole = 0;
        uint8_t *data;
        int32_t *first = NULL;
        state = (uint64_t)(atol(argv[2]) + n) * 0x9E3779B97F4A7C15u;
        data = block(files, &length);
        missing = (int)random_below(30);
        width = 1 + (int)(random_below(4) ? random_below(64) : random_below(1024));
        height = 1 + (int)random_below(width <= 64 ? 64 : width <= 128 ? 32 : width <= 256 ? 16 : width <= 512 ? 8 : 4);
        narrow = missing < 14 && random_below(2);
        for (path = HTJ2K_PATH_PORTABLE; path <= HTJ2K_PATH_AVX2; path += HTJ2K_PATH_AVX2) {
            int32_t *samples = calloc((size_t)width * (size_t)height, narrow ? 2 : 4);
            int bad;
            htj2k_use_path((int)path);
            bad = htj2k_cleanup(narrow, data, length, missing, 0, samples, width, width, height);
            if (first == NULL) {
                first = samples;
                whole = !bad;
                good += whole;
                continue;
            }
            if (bad == whole) return fprintf(stderr, "paths differ in what is broken: %ld\n", n), 1;
            for (x = 0; whole && x < (uint32_t)(width * height); x++)
                if (narrow ? ((int16_t *)first)[x] != ((int16_t *)samples)[x] : first[x] != samples[x])
                    return fprintf(stderr, "paths differ in a sample: %ld\n", n), 1;
            free(samples);
        }
        free(first);
        free(data);
    }
    printf("%ld of %ld decoded\n", good, count);
    return 0;
}
