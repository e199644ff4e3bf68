/* Which instructions the HTJ2K coders use: the best that the processor has, asked once.
 *
 * RADMESH_NATIVE_SIMD = portable | sse41 | avx2 | avx512 asks for less. A path is a set of functions compiled with
 * HTJ2K_SSE41, HTJ2K_AVX2 or HTJ2K_AVX512 before them, so one module runs on any processor. Each module that includes
 * this has a choice of its own.
 */
#ifndef RADMESH_HTJ2K_CPU_H
#define RADMESH_HTJ2K_CPU_H

#include <stdlib.h>
#include <string.h>

enum { HTJ2K_PATH_PORTABLE, HTJ2K_PATH_SSE41, HTJ2K_PATH_AVX2, HTJ2K_PATH_AVX512, HTJ2K_PATHS };

static const char *const HTJ2K_PATH_NAMES[HTJ2K_PATHS] = {"portable", "sse41", "avx2", "avx512"};

#if (defined(__x86_64__) || defined(__i386__)) && defined(__GNUC__)
#define HTJ2K_X86 1
#include <cpuid.h>
#include <immintrin.h>
#define HTJ2K_SSE41 __attribute__((target("sse4.1,popcnt")))
#define HTJ2K_AVX2 __attribute__((target("avx2,bmi,bmi2,lzcnt,popcnt")))
#define HTJ2K_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512cd,avx2,bmi,bmi2,lzcnt,popcnt")))
#else
#define HTJ2K_X86 0
#endif

#if defined(__GNUC__)
#define HTJ2K_INLINE static inline __attribute__((always_inline))
#define HTJ2K_LIKELY(x) __builtin_expect(!!(x), 1)
#define HTJ2K_UNLIKELY(x) __builtin_expect(!!(x), 0)
#else
#define HTJ2K_INLINE static inline
#define HTJ2K_LIKELY(x) (x)
#define HTJ2K_UNLIKELY(x) (x)
#endif

#if HTJ2K_X86
/* Clang has no name for it before 18. */
static int htj2k_has_lzcnt(void) {
    unsigned a, b, c, d;
    return __get_cpuid(0x80000001, &a, &b, &c, &d) && c >> 5 & 1;
}
#endif

/* The best path of this processor and operating system. */
static int htj2k_best_path(void) {
#if HTJ2K_X86
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("sse4.1") || !__builtin_cpu_supports("popcnt")) return HTJ2K_PATH_PORTABLE;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("bmi2") ||
        !htj2k_has_lzcnt())
        return HTJ2K_PATH_SSE41;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512cd"))
        return HTJ2K_PATH_AVX2;
    return HTJ2K_PATH_AVX512;
#else
    return HTJ2K_PATH_PORTABLE;
#endif
}

/* The path of a name, or -1. */
static int htj2k_path_named(const char *name) {
    int path;
    for (path = 0; path < HTJ2K_PATHS; path++)
        if (!strcmp(name, HTJ2K_PATH_NAMES[path])) return path;
    return -1;
}

/* The path in use; a module sets it at import. */
static int htj2k_path = HTJ2K_PATH_PORTABLE;

/* Use a path, or the best there is below it; return which. */
static int htj2k_use_path(int path) {
    int best = htj2k_best_path();
    htj2k_path = path < best ? path : best;
    return htj2k_path;
}

/* Use what the environment asks for, or the best; return the path, or -1 where it asks for one that there is not. */
static int htj2k_choose_path(void) {
    const char *asked = getenv("RADMESH_NATIVE_SIMD");
    int path = asked && *asked ? htj2k_path_named(asked) : HTJ2K_PATHS;
    return path < 0 ? -1 : htj2k_use_path(path);
}

#endif
