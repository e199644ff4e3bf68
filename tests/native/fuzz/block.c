/* Broken code blocks for the HT block decoder, under AddressSanitizer: every path reads and writes what is its own, and
 * all say the same of the same bytes. An input is seven bytes of options and the block, with no more room.
 *
 * As it is, for libFuzzer. With ALONE it has a main of its own, for who has no clang. Arguments: how many, and the first
 * seed; then files with good inputs. */
#include <stdio.h>
#include <stdlib.h>

#include "htj2k_decode_block.h"

enum { OPTIONS = 7 };

static long taken;

int LLVMFuzzerTestOneInput(const uint8_t *input, size_t size) {
    static int ready;
    uint32_t x, length = (uint32_t)size - OPTIONS;
    int path, narrow, missing, plane, width, height, whole = 0;
    uint8_t *data;
    void *first = NULL;
    if (size < OPTIONS) return 0;
    if (!ready) htj2k_fill_decode_tables();
    ready = 1;
    /* What decode_block sees to: 30 bit planes at most. */
    missing = input[0] % 30;
    plane = input[1] % (30 - missing);
    narrow = input[2] & 1;
    width = 1 + (input[3] | input[4] << 8) % 1024;
    height = 1 + (input[5] | input[6] << 8) % (4096 / width < 1024 ? 4096 / width : 1024);
    data = malloc(length + !length);
    memcpy(data, input + OPTIONS, length);
    for (path = HTJ2K_PATH_PORTABLE; path <= HTJ2K_PATH_AVX2; path += HTJ2K_PATH_AVX2) {
        void *samples = calloc((size_t)width * (size_t)height, narrow ? 2 : 4);
        int bad;
        htj2k_use_path(path);
        bad = htj2k_cleanup(narrow, data, length, missing, plane, samples, width, width, height);
        if (first == NULL) {
            first = samples;
            whole = !bad;
            taken += whole;
            continue;
        }
        if (bad == whole) fprintf(stderr, "paths differ in what is broken\n"), abort();
        for (x = 0; whole && x < (uint32_t)(width * height); x++)
            if (narrow ? ((int16_t *)first)[x] != ((int16_t *)samples)[x] : ((int32_t *)first)[x] != ((int32_t *)samples)[x])
                fprintf(stderr, "paths differ in sample %u\n", x), abort();
        free(samples);
    }
    free(first);
    free(data);
    return 0;
}

#ifdef ALONE

static uint64_t state;

static uint32_t random_below(uint32_t bound) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(((state >> 33) * bound) >> 31);
}

static uint8_t *seeds[4096];
static uint32_t lengths[4096];

/* A good input that is changed: options of chance, the block cut to its end, a length of MEL and VLC that could be. */
static uint8_t *changed(uint32_t count, uint32_t *size) {
    uint32_t which = random_below(count), n, edits = random_below(6), length = lengths[which] - OPTIONS;
    uint8_t *input;
    length -= random_below(2) ? random_below(length) : 0;
    *size = OPTIONS + length;
    input = malloc(*size);
    memcpy(input, seeds[which], OPTIONS);
    memcpy(input + OPTIONS, seeds[which] + lengths[which] - length, length);
    if (random_below(3) == 0) input[random_below(OPTIONS)] = (uint8_t)random_below(256);
    while (edits--) input[random_below(*size)] = random_below(3) ? (uint8_t)random_below(256) : 0xFF;
    if (length > 2 && random_below(2)) {
        n = 2 + random_below((length < 4079 ? length : 4079) - 1);
        input[*size - 1] = (uint8_t)(n >> 4);
        input[*size - 2] = (uint8_t)((input[*size - 2] & 0xF0) | (n & 15));
    }
    return input;
}

int main(int argc, char **argv) {
    long count = atol(argv[1]), n;
    uint32_t files = 0;
    for (; (int)files + 3 < argc && files < 4096; files++) {
        FILE *f = fopen(argv[files + 3], "rb");
        seeds[files] = malloc(1 << 16);
        lengths[files] = (uint32_t)fread(seeds[files], 1, 1 << 16, f);
        fclose(f);
        if (lengths[files] < OPTIONS + 1) return fprintf(stderr, "too short: %s\n", argv[files + 3]), 2;
        LLVMFuzzerTestOneInput(seeds[files], lengths[files]);
    }
    for (n = 0; n < count; n++) {
        uint32_t size;
        uint8_t *input;
        state = (uint64_t)(atol(argv[2]) + n) * 0x9E3779B97F4A7C15u;
        input = changed(files, &size);
        LLVMFuzzerTestOneInput(input, size);
        free(input);
    }
    printf("%ld of %ld decoded\n", taken, count + (long)files);
    return 0;
}

#endif
