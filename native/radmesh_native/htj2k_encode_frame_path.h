/* The loops of htj2k_encode_frame.h for HTJ2K_PATH and HTJ2K_TARGET, which it undefines: the compiler makes vectors of
 * them. Sums wrap around only where a sample is outside of its bits, and nothing comes of that.
 */
#define HT(name) HTJ2K_JOIN(name, HTJ2K_PATH)
#define HT_INLINE HTJ2K_TARGET HTJ2K_INLINE

#define HTJ2K_MINMAX(type)                                                                                             \
    do {                                                                                                               \
        const type *p = (const type *)samples;                                                                         \
        type least = p[0], most = p[0];                                                                                \
        size_t k;                                                                                                      \
        for (k = 0; k < count; k++) {                                                                                  \
            least = p[k] < least ? p[k] : least;                                                                       \
            most = p[k] > most ? p[k] : most;                                                                          \
        }                                                                                                              \
        range[0] = least;                                                                                              \
        range[1] = most;                                                                                               \
    } while (0)

static HTJ2K_TARGET void HT(htj2k_range)(const void *samples, int kind, size_t count, int32_t range[2]) {
    switch (kind) {
    case HTJ2K_UINT8:
        HTJ2K_MINMAX(uint8_t);
        break;
    case HTJ2K_INT8:
        HTJ2K_MINMAX(int8_t);
        break;
    case HTJ2K_UINT16:
        HTJ2K_MINMAX(uint16_t);
        break;
    default:
        HTJ2K_MINMAX(int16_t);
    }
}
#undef HTJ2K_MINMAX

/* Whether all samples fit their bits: what is above these is zero, or as the sign. */
#define HTJ2K_FITS(type, sign)                                                                                         \
    do {                                                                                                               \
        const type *p = (const type *)row;                                                                             \
        for (k = 0; k < count; k++) all |= (uint16_t)(p[k] ^ (sign));                                                  \
        return !(all >> bits);                                                                                         \
    } while (0)

static HTJ2K_TARGET int HT(htj2k_fits)(const void *row, int kind, int count, int bits) {
    uint16_t all = 0;
    int k;
    switch (kind) {
    case HTJ2K_UINT8:
        HTJ2K_FITS(uint8_t, 0);
    case HTJ2K_UINT16:
        HTJ2K_FITS(uint16_t, 0);
    case HTJ2K_INT8:
        bits--;
        HTJ2K_FITS(int8_t, p[k] >> 7);
    default:
        bits--;
        HTJ2K_FITS(int16_t, p[k] >> 15);
    }
}
#undef HTJ2K_FITS

#define HTJ2K_RCT(from, to)                                                                                            \
    do {                                                                                                               \
        const from *p = (const from *)samples;                                                                         \
        to *restrict first = (to *)planes[0], *restrict second = (to *)planes[1], *restrict third = (to *)planes[2];   \
        size_t k;                                                                                                      \
        for (k = 0; k < count; k++) {                                                                                  \
            int32_t red = p[3 * k], green = p[3 * k + 1], blue = p[3 * k + 2];                                         \
            first[k] = (to)(((red + 2 * green + blue) >> 2) - middle);                                                 \
            second[k] = (to)(blue - green);                                                                            \
            third[k] = (to)(red - green);                                                                              \
        }                                                                                                              \
    } while (0)

static HTJ2K_TARGET void HT(htj2k_colours)(
    const void *samples, int kind, int narrow, int32_t middle, size_t count, void *const planes[3]
) {
    if (kind == HTJ2K_UINT8 && narrow)
        HTJ2K_RCT(uint8_t, int16_t);
    else if (kind == HTJ2K_INT8 && narrow)
        HTJ2K_RCT(int8_t, int16_t);
    else if (kind == HTJ2K_UINT16 && narrow)
        HTJ2K_RCT(uint16_t, int16_t);
    else if (kind == HTJ2K_INT16 && narrow)
        HTJ2K_RCT(int16_t, int16_t);
    else if (kind == HTJ2K_UINT8)
        HTJ2K_RCT(uint8_t, int32_t);
    else if (kind == HTJ2K_INT8)
        HTJ2K_RCT(int8_t, int32_t);
    else if (kind == HTJ2K_UINT16)
        HTJ2K_RCT(uint16_t, int32_t);
    else
        HTJ2K_RCT(int16_t, int32_t);
}
#undef HTJ2K_RCT

#define HTJ2K_NUMBER int16_t
#define HTJ2K_UNSIGNED uint16_t
#define HTJ2K_IS_NARROW 1
#define HN(name) HTJ2K_JOIN(name##_narrow, HTJ2K_PATH)
#include "htj2k_encode_wavelet.h"

#define HTJ2K_NUMBER int32_t
#define HTJ2K_UNSIGNED uint32_t
#define HTJ2K_IS_NARROW 0
#define HN(name) HTJ2K_JOIN(name##_wide, HTJ2K_PATH)
#include "htj2k_encode_wavelet.h"

#undef HT
#undef HT_INLINE
#undef HTJ2K_PATH
#undef HTJ2K_TARGET
