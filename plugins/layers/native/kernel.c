/* One decoding step of a pre-norm transformer on a CPU, for a few rows at a time.
 *
 * A step multiplies every weight once with one vector per row, so it is as fast as memory is read.
 * All layers run within one parallel region: threads meet at six barriers per layer. These are
 * OpenMP's own, which spin unless OMP_WAIT_POLICY=PASSIVE is set before libgomp is loaded. Each sum
 * is computed by one thread in a fixed order: results depend neither on the number of threads nor
 * on the other rows of the batch.
 *
 * Shapes: B rows, D width, H heads, d = D / H channels per head, F hidden width of the feed-forward,
 * C slots of the key-value cache, a ring: position p lies in slot p % C. Row-major, but for weights,
 * which lie in panels of rows.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#define GROUP 64 /* weights that share one int8 scale */
#define PANEL 64 /* rows of weights that lie side by side: [panels, columns, PANEL] */
#define EPSILON 1e-5f

/* [rows, columns] in panels, the last one filled up with rows that are not used. A weight is a number
 * of ``full`` [panels, columns, PANEL], or its code times one scale. */
typedef struct {
    const float *full;
    const int8_t *codes;        /* [panels, ceil(columns / 2), PANEL, 2]: two columns side by side */
    const float *row_scales;    /* [panels, ceil(columns / GROUP), PANEL], or NULL */
    const float *column_scales; /* [panels, columns]: of all rows of a panel, or NULL */
    int64_t rows, columns;
} Matrix;

typedef struct {
    const float *attention_norm, *feed_forward_norm; /* [D] */
    Matrix qkv, out, rise, fall; /* [3D, D], [D, D], [2F, D], [D, F] */
    void *keys, *values;         /* [B, H, C, d], floats or halves */
} Layer;

typedef struct {
    int64_t batch, width, heads, hidden, depth, capacity, threads;
    int64_t halves; /* whether keys and values are IEEE halves (uint16_t) */
    const Layer *layers;
    const float *norm;           /* [D] */
    const int64_t *first;        /* [B] first position that is no padding */
    const int64_t *known;        /* [B] row that keeps a row's first ``shared`` positions: itself or another */
    int64_t shared;              /* only where no position is ever overwritten */
    const float *bias;           /* [H, 2 * reach + 1] by distance, or NULL */
    int64_t reach;
    float *key_positions;        /* [B, C], only with bias */
    float *scratch;              /* see scratch_floats */
} Plan;

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
    int32_t both;
    memcpy(&both, x, sizeof both);
    return _mm512_set1_epi32(both);
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
    int32_t both;
    memcpy(&both, x, sizeof both);
    return _mm256_set1_epi32(both);
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
static inline Pairs split(Words both) {
    return (Pairs){__builtin_convertvector((both << 16) >> 16, Floats), __builtin_convertvector(both >> 16, Floats)};
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
    int32_t both;
    memcpy(&both, x, sizeof both);
    return split((Words){both, both, both, both});
}
static inline Ints add_pairs(Ints sum, Pairs a, Pairs b) { return sum + a.even * b.even + a.odd * b.odd; }
static inline Floats converted(Ints x) { return x; }
static inline Floats widened(const uint16_t *halves) {
    return (Floats){wide(halves[0]), wide(halves[1]), wide(halves[2]), wide(halves[3])};
}
#endif

/* A block of products is VECTORS registers of rows times up to TOGETHER inputs, whose sums stay in
 * registers. One or two inputs take as many rows as hide the latency of adding. */
#define TOGETHER 6
#define VECTORS (LANES == 16 ? 4 : 2)
#define VECTORS_PAIR 4
#define VECTORS_ALONE (LANES == 16 ? 4 : 8)
#define MIXED (LANES == 16 ? 4 : 8) /* registers of channels whose values are mixed together */
#if defined(__GNUC__)
#define INLINE static inline __attribute__((always_inline))
#else
#define INLINE static inline
#endif

/* Inputs of a matrix of codes, in 16 bits: products with codes and their sums within a group are then
 * exact, in integers. numbers: [count, ceil(columns / GROUP) * GROUP]; scales: one of each group. */
typedef struct {
    int16_t *numbers;
    float *scales;
} Inputs;

/* Inputs that are rounded together: they stay in cache while all panels are multiplied with them. */
#define CHUNK 48

static int64_t groups_of(int64_t columns) { return (columns + GROUP - 1) / GROUP; }

/* Memory of one chunk of Inputs, in floats. */
static int64_t inputs_floats(int64_t columns) {
    return CHUNK * groups_of(columns) * (GROUP / 2 + 1);
}

static Inputs inputs_at(float *memory, int64_t columns) {
    return (Inputs){(int16_t *)(memory + CHUNK * groups_of(columns)), memory};
}

/* Round a group of ``count`` numbers of x, each times its own of ``by`` if there are some. */
INLINE void round_group(const float *x, const float *by, int64_t count, int16_t *numbers, float *scale) {
    float values[GROUP] = {0.0f}, largest = 0.0f, broken = 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < count; i++) values[i] = by ? x[i] * by[i] : x[i];
#pragma omp simd reduction(max : largest) reduction(+ : broken)
    for (int64_t i = 0; i < GROUP; i++) {
        float size = fabsf(values[i]);
        largest = size > largest ? size : largest;
        broken += values[i] * 0.0f; /* NaN for what no integer stands for */
    }
    float inverse = largest > 0.0f ? 32767.0f / largest : 0.0f;
#pragma omp simd
    for (int64_t i = 0; i < GROUP; i++) numbers[i] = (int16_t)(int32_t)rintf(values[i] * inverse);
    *scale = largest / 32767.0f + broken;
}

static void round_inputs(const float *x, const float *by, int64_t stride, int64_t columns, int64_t count,
                         Inputs to) {
    int64_t groups = groups_of(columns);
    for (int64_t k = 0; k < count; k++)
        for (int64_t g = 0; g < groups; g++) {
            int64_t start = g * GROUP, size = columns - start < GROUP ? columns - start : GROUP;
            round_group(x + k * stride + start, by ? by + start : NULL, size,
                        to.numbers + (k * groups + g) * GROUP, to.scales + k * groups + g);
        }
}

/* sums += a block of floats times x[k], one column after the other: the sum of a row and an input does
 * not depend on what else is in the block. */
INLINE void add_full(const Matrix *m, int64_t panel, int64_t row, const float *x, int64_t stride,
                     Floats sums[VECTORS_ALONE][TOGETHER], int vectors, int count) {
    for (int64_t i = 0; i < m->columns; i++) {
        Floats weights[VECTORS_ALONE];
        const float *from = m->full + (panel * m->columns + i) * PANEL + row;
        for (int v = 0; v < vectors; v++) weights[v] = floats(from + v * LANES);
        for (int k = 0; k < count; k++)
            for (int v = 0; v < vectors; v++)
                sums[v][k] = add_product(sums[v][k], weights[v], same(x[k * stride + i]));
    }
}

/* sums += a block of codes times inputs ``first`` and on. */
INLINE void add_coded(const Matrix *m, int64_t panel, int64_t row, Inputs inputs, int64_t first,
                      Floats sums[VECTORS_ALONE][TOGETHER], int vectors, int count) {
    int64_t groups = groups_of(m->columns), halves = (m->columns + 1) / 2;
    const int8_t *codes = m->codes + (panel * halves * PANEL + row) * 2;
    for (int64_t g = 0; g < groups; g++) {
        Ints part[VECTORS_ALONE][TOGETHER];
        int64_t start = g * GROUP / 2, stop = start + GROUP / 2 < halves ? start + GROUP / 2 : halves;
        for (int v = 0; v < vectors; v++)
            for (int k = 0; k < count; k++) part[v][k] = zeros();
        for (int64_t i = start; i < stop; i++) {
            Pairs weights[VECTORS_ALONE];
            for (int v = 0; v < vectors; v++) weights[v] = pairs(codes + (i * PANEL + v * LANES) * 2);
            for (int k = 0; k < count; k++) {
                Pairs input = same_pair(inputs.numbers + (first + k) * groups * GROUP + 2 * i);
                for (int v = 0; v < vectors; v++) part[v][k] = add_pairs(part[v][k], weights[v], input);
            }
        }
        const float *scales = m->row_scales ? m->row_scales + (panel * groups + g) * PANEL + row : NULL;
        for (int k = 0; k < count; k++) {
            Floats scale = same(inputs.scales[(first + k) * groups + g]);
            for (int v = 0; v < vectors; v++) {
                Floats both = scale;
                if (scales) both *= floats(scales + v * LANES);
                sums[v][k] = add_product(sums[v][k], converted(part[v][k]), both);
            }
        }
    }
}

/* y[k] (+)= rows ``row`` to ``row + vectors * LANES`` of a panel times input ``first + k``. */
INLINE void block(const Matrix *m, int64_t panel, int64_t row, const float *x, int64_t stride, Inputs inputs,
                  int64_t first, float *y, int64_t y_stride, int add, int vectors, int count) {
    Floats sums[VECTORS_ALONE][TOGETHER];
    for (int v = 0; v < vectors; v++)
        for (int k = 0; k < count; k++) sums[v][k] = same(0.0f);
    if (m->full) add_full(m, panel, row, x + first * stride, stride, sums, vectors, count);
    else add_coded(m, panel, row, inputs, first, sums, vectors, count);
    for (int v = 0; v < vectors; v++)
        for (int k = 0; k < count; k++) {
            int64_t number = panel * PANEL + row + v * LANES, left = m->rows - number;
            float *output = y + (first + k) * y_stride + number;
            if (left >= LANES) {
                if (add) sums[v][k] += floats(output);
                store(output, sums[v][k]);
            } else if (left > 0) {
                float values[LANES];
                store(values, sums[v][k]);
                for (int64_t r = 0; r < left; r++) output[r] = add ? output[r] + values[r] : values[r];
            }
        }
}

/* All rows of a panel times ``count`` inputs. */
INLINE void panel_products(const Matrix *m, int64_t panel, const float *x, int64_t stride, Inputs inputs,
                           int64_t first, float *y, int64_t y_stride, int add, int vectors, int count) {
    for (int64_t row = 0; row < PANEL && panel * PANEL + row < m->rows; row += vectors * LANES)
        block(m, panel, row, x, stride, inputs, first, y, y_stride, add, vectors, count);
}

/* y[b] (+)= m x[b]: this thread's share of the rows. memory: of this thread, ``inputs_floats``. */
static void multiply(const Matrix *m, const float *x, int64_t stride, float *y, int64_t y_stride,
                     int64_t batch, int add, float *memory) {
    int64_t count = omp_get_num_threads(), id = omp_get_thread_num(), panels = (m->rows + PANEL - 1) / PANEL;
    Inputs inputs = inputs_at(memory, m->columns);
    for (int64_t start = 0; start < batch; start += CHUNK, x += CHUNK * stride, y += CHUNK * y_stride) {
        int64_t chunk = batch - start < CHUNK ? batch - start : CHUNK;
        if (m->row_scales) round_inputs(x, NULL, stride, m->columns, chunk, inputs);
        for (int64_t panel = panels * id / count; panel < panels * (id + 1) / count; panel++) {
            if (m->column_scales)
                round_inputs(x, m->column_scales + panel * m->columns, stride, m->columns, chunk, inputs);
            for (int64_t b = 0, many; b < chunk; b += many) {
                int64_t left = chunk - b;
                many = left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
                if (many == 6) panel_products(m, panel, x, stride, inputs, b, y, y_stride, add, VECTORS, 6);
                else if (many == 4) panel_products(m, panel, x, stride, inputs, b, y, y_stride, add, VECTORS, 4);
                else if (many == 2) panel_products(m, panel, x, stride, inputs, b, y, y_stride, add, VECTORS_PAIR, 2);
                else panel_products(m, panel, x, stride, inputs, b, y, y_stride, add, VECTORS_ALONE, 1);
            }
        }
    }
}

/* What a thread has for itself: normalised inputs, inputs in 16 bits, scores. */
static int64_t own_floats(const Plan *p) {
    int64_t widest = p->width > p->hidden ? p->width : p->hidden;
    return p->batch * p->width + inputs_floats(widest) + p->capacity;
}

int64_t scratch_floats(const Plan *p) {
    int64_t shared = p->batch * (3 * p->width + p->width + 2 * p->hidden);
    return shared + p->threads * own_floats(p);
}

static void normalise(const float *restrict x, const float *restrict weight, int64_t n,
                      float *restrict y) {
    float mean = 0.0f, variance = 0.0f;
#pragma omp simd reduction(+ : mean)
    for (int64_t i = 0; i < n; i++) mean += x[i];
    mean /= (float)n;
#pragma omp simd reduction(+ : variance)
    for (int64_t i = 0; i < n; i++) variance += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf(variance / (float)n + EPSILON);
#pragma omp simd
    for (int64_t i = 0; i < n; i++) y[i] = (x[i] - mean) * scale * weight[i];
}

static void normalise_all(const Plan *p, const float *x, const float *weight, float *y) {
    for (int64_t b = 0; b < p->batch; b++)
        normalise(x + b * p->width, weight, p->width, y + b * p->width);
}

/* Turn channel pairs (i, i + d/2) by the position's angle; sine of the first half is negative. */
static void turn(float *x, const float *cosine, const float *sine, int64_t d) {
    int64_t half = d / 2;
    for (int64_t i = 0; i < half; i++) {
        float low = x[i], high = x[half + i];
        x[i] = low * cosine[i] + high * sine[i];
        x[half + i] = high * cosine[half + i] + low * sine[half + i];
    }
}

/* Keys or values from number ``i`` on, as many as a register holds, and one. */
INLINE Floats stored(const void *numbers, int64_t i, int halves) {
    return halves ? widened((const uint16_t *)numbers + i) : floats((const float *)numbers + i);
}
INLINE float stored_one(const void *numbers, int64_t i, int halves) {
    return halves ? wide(((const uint16_t *)numbers)[i]) : ((const float *)numbers)[i];
}

/* sums[k] += the products of query and key ``first + k``, by register. Returns how many channels those are. */
INLINE int64_t add_scores(const float *query, const void *keys, int64_t first, int64_t count, int64_t d,
                          Floats *sums, int halves) {
    int64_t c = 0;
    for (int64_t k = 0; k < count; k++)
        for (c = 0; c + LANES <= d; c += LANES)
            sums[k] = add_product(sums[k], floats(query + c), stored(keys, (first + k) * d + c, halves));
    return c;
}

/* scores[i] = query . key ``first + i``: as many keys at a time as a register has lanes. */
INLINE void score_keys(const float *query, const void *keys, int64_t first, int64_t count,
                       int64_t d, float *scores, int halves) {
    for (int64_t i = 0; i < count; i += LANES, first += LANES) {
        Floats sums[LANES];
        float values[LANES];
        int64_t some = count - i < LANES ? count - i : LANES, c;
        for (int k = 0; k < LANES; k++) sums[k] = same(0.0f);
        if (some == LANES) c = add_scores(query, keys, first, LANES, d, sums, halves);
        else c = add_scores(query, keys, first, some, d, sums, halves);
        store(values, totals(sums));
        for (int64_t k = 0; k < some; k++) {
            for (int64_t e = c; e < d; e++) values[k] += query[e] * stored_one(keys, (first + k) * d + e, halves);
            scores[i + k] = values[k];
        }
    }
}

/* Channels ``c`` and on of output += sum of weights[i] * value ``first + i``. */
INLINE void mix_some(const float *weights, const void *values, int64_t first, int64_t count,
                     int64_t d, int64_t c, float *output, int vectors, int halves) {
    Floats sums[MIXED];
    for (int v = 0; v < vectors; v++) sums[v] = floats(output + c + v * LANES);
    for (int64_t i = 0; i < count; i++) {
        Floats weight = same(weights[i]);
        for (int v = 0; v < vectors; v++)
            sums[v] = add_product(sums[v], weight, stored(values, (first + i) * d + c + v * LANES, halves));
    }
    for (int v = 0; v < vectors; v++) store(output + c + v * LANES, sums[v]);
}

/* output += sum of weights[i] * value ``first + i``: a few channels of all values, then the next
 * ones, so that the sums stay in registers. */
INLINE void mix_values(const float *weights, const void *values, int64_t first, int64_t count,
                       int64_t d, float *output, int halves) {
    int64_t c = 0;
    for (; c + MIXED * LANES <= d; c += MIXED * LANES)
        mix_some(weights, values, first, count, d, c, output, MIXED, halves);
    for (; c + LANES <= d; c += LANES)
        mix_some(weights, values, first, count, d, c, output, 1, halves);
    for (; c < d; c++)
        for (int64_t i = 0; i < count; i++)
            output[c] += weights[i] * stored_one(values, (first + i) * d + c, halves);
}

/* Add T5's bias to the score of each key, by its distance. */
static void add_bias(const Plan *p, int64_t b, int64_t h, int64_t position, int64_t oldest,
                     int64_t count, float *scores) {
    const float *places = p->key_positions + b * p->capacity;
    const float *bias = p->bias + h * (2 * p->reach + 1) + p->reach;
    for (int64_t i = 0; i < count; i++) {
        float key = places[(oldest + i) % p->capacity];
        int64_t distance = (int64_t)rintf(places[position % p->capacity] - key);
        if (distance > p->reach) distance = p->reach;
        if (distance < -p->reach) distance = -p->reach;
        scores[i] += bias[distance];
    }
}

/* Softmax attention of one row and head over all positions that it sees, itself included. */
INLINE void attend(const Plan *p, const Layer *layer, int64_t b, int64_t h, int64_t position,
                   float *query, float *scores, float *output, int64_t d, int halves) {
    int64_t C = p->capacity, oldest = position + 1 > C ? position + 1 - C : 0;
    if (p->first[b] > oldest) oldest = p->first[b];
    int64_t count = position + 1 - oldest, slot = oldest % C;
    /* The ring from its oldest slot to its end, and on from its beginning. */
    int64_t early = count < C - slot ? count : C - slot, row = b, next = 0;
    if (p->known[b] != b) { /* or what another row knows, and on behind that */
        row = p->known[b];
        next = p->shared;
        early = next - oldest;
    }
    int64_t start = (row * p->heads + h) * C + slot;
    next += (b * p->heads + h) * C;
    float scale = 1.0f / sqrtf((float)d), largest = -3e38f, sum = 0.0f;
    for (int64_t c = 0; c < d; c++) query[c] *= scale;
    score_keys(query, layer->keys, start, early, d, scores, halves);
    score_keys(query, layer->keys, next, count - early, d, scores + early, halves);
    if (p->bias) add_bias(p, b, h, position, oldest, count, scores);
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; i++) largest = scores[i] > largest ? scores[i] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        scores[i] = exponential(scores[i] - largest);
        sum += scores[i];
    }
    memset(output, 0, sizeof(float) * d);
    mix_values(scores, layer->values, start, early, d, output, halves);
    mix_values(scores + early, layer->values, next, count - early, d, output, halves);
    for (int64_t c = 0; c < d; c++) output[c] /= sum;
}

/* Store one key or value from number ``at`` on. */
static void keep(void *numbers, int64_t at, const float *x, int64_t d, int64_t halves) {
    if (halves)
        for (int64_t c = 0; c < d; c++) ((uint16_t *)numbers)[at + c] = narrow(x[c]);
    else memcpy((float *)numbers + at, x, sizeof(float) * d);
}

/* Keys, values and attention of this thread's share of rows and heads: of one head after the other, since
 * rows that share keys find them in cache. */
static void attention(const Plan *p, const Layer *layer, const float *cosine, const float *sine,
                      int64_t position, float *qkv, float *scores, float *mixed) {
    int64_t D = p->width, d = D / p->heads, C = p->capacity, all = p->batch * p->heads;
    int64_t count = omp_get_num_threads(), id = omp_get_thread_num();
    for (int64_t i = all * id / count; i < all * (id + 1) / count; i++) {
        int64_t b = i % p->batch, h = i / p->batch;
        float *query = qkv + b * 3 * D + h * d, *key = query + D, *value = key + D;
        float *output = mixed + b * D + h * d;
        int64_t at = ((b * p->heads + h) * C + position % C) * d;
        if (cosine) {
            turn(query, cosine + b * d, sine + b * d, d);
            turn(key, cosine + b * d, sine + b * d, d);
        }
        keep(layer->keys, at, key, d, p->halves);
        keep(layer->values, at, value, d, p->halves);
        /* The compiler unrolls the loops over 64 channels. */
        if (p->halves && d == 64) attend(p, layer, b, h, position, query, scores, output, 64, 1);
        else if (p->halves) attend(p, layer, b, h, position, query, scores, output, d, 1);
        else attend(p, layer, b, h, position, query, scores, output, d, 0);
    }
}

/* SwiGLU of this thread's share, in place: the first F of 2F hold the result. */
static void gate(const Plan *p, float *rise) {
    int64_t F = p->hidden, count = omp_get_num_threads(), id = omp_get_thread_num();
    int64_t start = F * id / count, stop = F * (id + 1) / count;
    for (int64_t b = 0; b < p->batch; b++) {
        float *gates = rise + b * 2 * F, *up = gates + F;
#pragma omp simd
        for (int64_t i = start; i < stop; i++) gates[i] = gates[i] / (1.0f + exponential(gates[i] < -80.0f ? 80.0f : -gates[i])) * up[i];
    }
}

/* One position of every row.
 *
 * x: [B, D] embedded inputs, overwritten by the residual stream. cosine, sine: [B, d] or NULL.
 * positions: [B] of the new keys, only with bias. position: how many were stored before.
 * output: [B, D] hidden states.
 */
void step(const Plan *p, float *x, const float *cosine, const float *sine, const float *positions,
          int64_t position, float *output) {
    int64_t B = p->batch, D = p->width, F = p->hidden;
    float *qkv = p->scratch, *mixed = qkv + B * 3 * D, *rise = mixed + B * D;
    float *all_own = rise + B * 2 * F;
    if (p->bias)
        for (int64_t b = 0; b < B; b++)
            p->key_positions[b * p->capacity + position % p->capacity] = positions[b];
#pragma omp parallel num_threads(p->threads)
    {
        float *own = all_own + omp_get_thread_num() * own_floats(p);
        float *normed = own, *scores = own + B * D, *inputs = scores + p->capacity;
        for (int64_t l = 0; l < p->depth; l++) {
            const Layer *layer = p->layers + l;
            normalise_all(p, x, layer->attention_norm, normed);
            multiply(&layer->qkv, normed, D, qkv, 3 * D, B, 0, inputs);
#pragma omp barrier
            attention(p, layer, cosine, sine, position, qkv, scores, mixed);
#pragma omp barrier
            multiply(&layer->out, mixed, D, x, D, B, 1, inputs);
#pragma omp barrier
            normalise_all(p, x, layer->feed_forward_norm, normed);
            multiply(&layer->rise, normed, D, rise, 2 * F, B, 0, inputs);
#pragma omp barrier
            gate(p, rise);
#pragma omp barrier
            multiply(&layer->fall, rise, 2 * F, x, D, B, 1, inputs);
#pragma omp barrier
        }
        if (omp_get_thread_num() == 0) normalise_all(p, x, p->norm, output);
    }
}

/* y [B, count, rows] = x [B, columns] times each of ``count`` matrices of one shape. Returns 0, or 1 if
 * there is no memory. */
int linear(const Matrix *m, int64_t count, const float *x, float *y, int64_t batch, int64_t threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *memory = malloc(sizeof(float) * inputs_floats(m->columns));
        if (memory)
            for (int64_t i = 0; i < count; i++)
                multiply(m + i, x, m->columns, y + i * m->rows, count * m->rows, batch, 0, memory);
        failed |= memory == NULL;
        free(memory);
    }
    return failed;
}
