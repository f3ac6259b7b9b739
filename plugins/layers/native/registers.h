/* Numbers of 16 bits, and what registers of each processor do with floats and pairs of integers. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* A float and its bits. */
typedef union { uint32_t bits; float value; } Word;

/* e^x for -70 <= x <= 88, to a few parts in 10^7 (Cephes' polynomial): unlike expf it vectorises. Less
 * would make products with values denormal, which take a hundred times as long. */
static inline float exponential(float x) {
    x = x < -70.0f ? -70.0f : x;
    float n = rintf(x * 1.44269504f);
    float r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float q = 1.9875691500e-4f;
    q = q * r + 1.3981999507e-3f;
    q = q * r + 8.3334519073e-3f;
    q = q * r + 4.1665795894e-2f;
    q = q * r + 1.6666665459e-1f;
    q = q * r + 5.0000001201e-1f;
    Word power = {(uint32_t)((int32_t)n + 127) << 23};
    return (q * r * r + r + 1.0f) * power.value;
}

/* The float of a finite half, and the nearest half of a float; the largest half is 65504. */
static inline float wide(uint16_t half) {
    Word x = {(uint32_t)(half & 0x7fff) << 13};
    x.value *= 0x1p112f; /* exponents start at -14 and -126 */
    x.bits |= (uint32_t)(half & 0x8000) << 16;
    return x.value;
}

static inline uint16_t narrow(float y) {
    Word x = {.value = y};
    uint32_t sign = x.bits >> 16 & 0x8000;
    x.bits &= 0x7fffffff;
    x.value = (x.value > 65504.0f ? 65504.0f : x.value) * 0x1p-112f;
    return (uint16_t)(sign | (x.bits + 0xfff + (x.bits >> 13 & 1)) >> 13);
}

/* A pair of 16-bit numbers in one of 32 bits. */
static inline int32_t both(const int16_t *x) {
    int32_t pair;
    memcpy(&pair, x, sizeof pair);
    return pair;
}

/* As many floats as a register holds, and the operations on them. ``totals`` sums up as many registers
 * as one has lanes, each sum in one lane and all in the same order. A ``Pairs`` holds two 16-bit numbers
 * for each lane; ``add_pairs`` multiplies them and adds both products to a lane's 32 bits. */
#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
typedef __m512 Floats;
static inline Floats floats(const float *x) { return _mm512_loadu_ps(x); }
static inline void store(float *x, Floats y) { _mm512_storeu_ps(x, y); }
static inline Floats same(float x) { return _mm512_set1_ps(x); }
static inline Floats add_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
static inline Floats merged(Floats a, Floats b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}
static inline Floats quarters(const Floats *x) {
    __m512d a = _mm512_castps_pd(merged(x[0], x[1])), b = _mm512_castps_pd(merged(x[2], x[3]));
    return _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
}
static inline Floats halved(Floats a, Floats b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
static inline Floats totals(const Floats *x) {
    return halved(halved(quarters(x), quarters(x + 4)), halved(quarters(x + 8), quarters(x + 12)));
}
typedef __m512i Ints, Pairs;
static inline Ints zeros(void) { return _mm512_setzero_si512(); }
static inline Pairs pairs(const int8_t *codes) {
    return _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)codes));
}
static inline Pairs same_pair(const int16_t *x) {
    return _mm512_set1_epi32(both(x));
}
static inline Ints add_pairs(Ints sum, Pairs a, Pairs b) {
#ifdef __AVX512VNNI__
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
#endif
}
static inline Floats converted(Ints x) { return _mm512_cvtepi32_ps(x); }
static inline Floats widened(const uint16_t *halves) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)halves));
}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#define LANES 8
typedef __m256 Floats;
static inline Floats floats(const float *x) { return _mm256_loadu_ps(x); }
static inline void store(float *x, Floats y) { _mm256_storeu_ps(x, y); }
static inline Floats same(float x) { return _mm256_set1_ps(x); }
static inline Floats add_product(Floats sum, Floats a, Floats b) { return _mm256_fmadd_ps(a, b, sum); }
static inline Floats totals(const Floats *x) {
    __m256 a = _mm256_hadd_ps(_mm256_hadd_ps(x[0], x[1]), _mm256_hadd_ps(x[2], x[3]));
    __m256 b = _mm256_hadd_ps(_mm256_hadd_ps(x[4], x[5]), _mm256_hadd_ps(x[6], x[7]));
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
typedef __m256i Ints, Pairs;
static inline Ints zeros(void) { return _mm256_setzero_si256(); }
static inline Pairs pairs(const int8_t *codes) {
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)codes));
}
static inline Pairs same_pair(const int16_t *x) {
    return _mm256_set1_epi32(both(x));
}
static inline Ints add_pairs(Ints sum, Pairs a, Pairs b) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}
static inline Floats converted(Ints x) { return _mm256_cvtepi32_ps(x); }
static inline Floats widened(const uint16_t *halves) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)halves));
}
#else
#define LANES 4
typedef float Floats __attribute__((vector_size(16)));
static inline Floats floats(const float *x) {
    Floats y;
    memcpy(&y, x, sizeof y);
    return y;
}
static inline void store(float *x, Floats y) { memcpy(x, &y, sizeof y); }
static inline Floats same(float x) { return (Floats){x, x, x, x}; }
static inline Floats add_product(Floats sum, Floats a, Floats b) { return sum + a * b; }
static inline float one_total(Floats x) { return (x[0] + x[1]) + (x[2] + x[3]); }
static inline Floats totals(const Floats *x) {
    return (Floats){one_total(x[0]), one_total(x[1]), one_total(x[2]), one_total(x[3])};
}
/* Without instructions for pairs, floats are as fast; the order of sums is the same everywhere. */
typedef Floats Ints;
typedef struct { Floats even, odd; } Pairs;
typedef int32_t Words __attribute__((vector_size(16)));
static inline Ints zeros(void) { return same(0.0f); }
static inline Pairs split(Words x) {
    return (Pairs){__builtin_convertvector((x << 16) >> 16, Floats), __builtin_convertvector(x >> 16, Floats)};
}
static inline Pairs pairs(const int8_t *codes) {
    typedef int8_t Bytes __attribute__((vector_size(8)));
    typedef int16_t Shorts __attribute__((vector_size(16)));
    Bytes bytes;
    memcpy(&bytes, codes, sizeof bytes);
    Shorts shorts = __builtin_convertvector(bytes, Shorts);
    Words both;
    memcpy(&both, &shorts, sizeof both);
    return split(both);
}
static inline Pairs same_pair(const int16_t *x) {
    return split((Words){0} + both(x));
}
static inline Ints add_pairs(Ints sum, Pairs a, Pairs b) { return sum + a.even * b.even + a.odd * b.odd; }
static inline Floats converted(Ints x) { return x; }
static inline Floats widened(const uint16_t *halves) {
    return (Floats){wide(halves[0]), wide(halves[1]), wide(halves[2]), wide(halves[3])};
}
#endif
