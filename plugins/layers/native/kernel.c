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
 * of ``full``, or its code times one scale. */
typedef struct {
    const float *full;
    const int8_t *codes;
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
    const float *bias;           /* [H, 2 * reach + 1] by distance, or NULL */
    int64_t reach;
    float *key_positions;        /* [B, C], only with bias */
    float *scratch;              /* see scratch_floats */
} Plan;

int64_t scratch_floats(const Plan *p) {
    int64_t shared = p->batch * (3 * p->width + p->width + 2 * p->hidden);
    return shared + p->threads * (p->batch * p->width + p->capacity);
}

/* A float and its bits. */
typedef union { uint32_t bits; float value; } Word;

/* e^x for x <= 88, to a few parts in 10^7 (Cephes' polynomial): unlike expf it vectorises. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
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

/* As many floats as a register holds, and the operations on them. */
#if defined(__AVX512F__)
#include <immintrin.h>
#define LANES 16
typedef __m512 Floats;
static inline Floats floats(const float *x) { return _mm512_loadu_ps(x); }
static inline void store(float *x, Floats y) { _mm512_storeu_ps(x, y); }
static inline Floats same(float x) { return _mm512_set1_ps(x); }
static inline Floats add_product(Floats sum, Floats a, Floats b) { return _mm512_fmadd_ps(a, b, sum); }
static inline float total(Floats x) { return _mm512_reduce_add_ps(x); }
static inline Floats decoded(const int8_t *codes) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)codes)));
}
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
static inline float total(Floats x) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
static inline Floats decoded(const int8_t *codes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)codes)));
}
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
static inline float total(Floats x) { return (x[0] + x[1]) + (x[2] + x[3]); }
static inline Floats decoded(const int8_t *codes) {
    return (Floats){codes[0], codes[1], codes[2], codes[3]};
}
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

/* sums += columns ``start`` to ``stop`` of a block, one column after the other: the sum of a row and
 * an input does not depend on what else is in the block. */
INLINE void add_columns(const Matrix *m, int64_t panel, int64_t row, int64_t start, int64_t stop,
                        const float *x, int64_t stride, Floats sums[VECTORS_ALONE][TOGETHER],
                        int vectors, int count, int coded, int scaled) {
    for (int64_t i = start; i < stop; i++) {
        Floats weights[VECTORS_ALONE];
        int64_t at = (panel * m->columns + i) * PANEL + row;
        for (int v = 0; v < vectors; v++)
            weights[v] = coded ? decoded(m->codes + at + v * LANES) : floats(m->full + at + v * LANES);
        for (int k = 0; k < count; k++) {
            float input = x[k * stride + i];
            Floats inputs = same(scaled ? input * m->column_scales[panel * m->columns + i] : input);
            for (int v = 0; v < vectors; v++)
                sums[v][k] = add_product(sums[v][k], weights[v], inputs);
        }
    }
}

/* y[k] (+)= rows ``row`` to ``row + vectors * LANES`` of a panel times x[k]. */
INLINE void block(const Matrix *m, int64_t panel, int64_t row, const float *x, int64_t stride,
                  float *y, int64_t y_stride, int add, int vectors, int count) {
    Floats sums[VECTORS_ALONE][TOGETHER];
    int64_t n = m->columns, groups = (n + GROUP - 1) / GROUP;
    for (int v = 0; v < vectors; v++)
        for (int k = 0; k < count; k++) sums[v][k] = same(0.0f);
    if (m->full) add_columns(m, panel, row, 0, n, x, stride, sums, vectors, count, 0, 0);
    else if (m->column_scales) add_columns(m, panel, row, 0, n, x, stride, sums, vectors, count, 1, 1);
    else
        for (int64_t g = 0; g < groups; g++) {
            Floats part[VECTORS_ALONE][TOGETHER];
            int64_t start = g * GROUP, stop = start + GROUP < n ? start + GROUP : n;
            const float *scales = m->row_scales + (panel * groups + g) * PANEL + row;
            for (int v = 0; v < vectors; v++)
                for (int k = 0; k < count; k++) part[v][k] = same(0.0f);
            add_columns(m, panel, row, start, stop, x, stride, part, vectors, count, 1, 0);
            for (int v = 0; v < vectors; v++)
                for (int k = 0; k < count; k++)
                    sums[v][k] = add_product(sums[v][k], part[v][k], floats(scales + v * LANES));
        }
    for (int v = 0; v < vectors; v++)
        for (int k = 0; k < count; k++) {
            int64_t first = panel * PANEL + row + v * LANES, left = m->rows - first;
            float *output = y + k * y_stride + first;
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
INLINE void panel_products(const Matrix *m, int64_t panel, const float *x, int64_t stride, float *y,
                           int64_t y_stride, int add, int vectors, int count) {
    for (int64_t row = 0; row < PANEL && panel * PANEL + row < m->rows; row += vectors * LANES)
        block(m, panel, row, x, stride, y, y_stride, add, vectors, count);
}

/* y[b] (+)= m x[b]: this thread's share of the rows, for every b while a panel is at hand. */
static void multiply(const Matrix *m, const float *x, int64_t stride, float *y, int64_t y_stride,
                     int64_t batch, int add) {
    int64_t count = omp_get_num_threads(), id = omp_get_thread_num(), panels = (m->rows + PANEL - 1) / PANEL;
    for (int64_t panel = panels * id / count; panel < panels * (id + 1) / count; panel++)
        for (int64_t b = 0, many; b < batch; b += many) {
            const float *from = x + b * stride;
            float *to = y + b * y_stride;
            int64_t left = batch - b;
            many = left >= 6 ? 6 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            if (many == 6) panel_products(m, panel, from, stride, to, y_stride, add, VECTORS, 6);
            else if (many == 4) panel_products(m, panel, from, stride, to, y_stride, add, VECTORS, 4);
            else if (many == 2) panel_products(m, panel, from, stride, to, y_stride, add, VECTORS_PAIR, 2);
            else panel_products(m, panel, from, stride, to, y_stride, add, VECTORS_ALONE, 1);
        }
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

/* scores[k] = query . key ``first + k`` for ``together`` keys at a time. */
INLINE void score_some(const float *query, const void *keys, int64_t first, int64_t d,
                       float *scores, int together, int halves) {
    Floats sums[4];
    int64_t c = 0;
    for (int k = 0; k < together; k++) sums[k] = same(0.0f);
    for (; c + LANES <= d; c += LANES)
        for (int k = 0; k < together; k++)
            sums[k] = add_product(sums[k], floats(query + c), stored(keys, (first + k) * d + c, halves));
    for (int k = 0; k < together; k++) {
        float sum = total(sums[k]);
        for (int64_t e = c; e < d; e++) sum += query[e] * stored_one(keys, (first + k) * d + e, halves);
        scores[k] = sum;
    }
}

/* scores[i] = query . key ``first + i``. */
INLINE void score_keys(const float *query, const void *keys, int64_t first, int64_t count,
                       int64_t d, float *scores, int halves) {
    int64_t i = 0;
    for (; i + 4 <= count; i += 4) score_some(query, keys, first + i, d, scores + i, 4, halves);
    for (; i < count; i++) score_some(query, keys, first + i, d, scores + i, 1, halves);
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
                   float *query, float *scores, float *output, int halves) {
    int64_t d = p->width / p->heads, C = p->capacity, start = (b * p->heads + h) * C;
    int64_t oldest = position + 1 > C ? position + 1 - C : 0;
    if (p->first[b] > oldest) oldest = p->first[b];
    int64_t count = position + 1 - oldest, slot = oldest % C;
    /* The ring from its oldest slot to its end, and on from its beginning. */
    int64_t early = count < C - slot ? count : C - slot;
    float scale = 1.0f / sqrtf((float)d), largest = -3e38f, sum = 0.0f;
    for (int64_t c = 0; c < d; c++) query[c] *= scale;
    score_keys(query, layer->keys, start + slot, early, d, scores, halves);
    score_keys(query, layer->keys, start, count - early, d, scores + early, halves);
    if (p->bias) add_bias(p, b, h, position, oldest, count, scores);
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < count; i++) largest = scores[i] > largest ? scores[i] : largest;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < count; i++) {
        scores[i] = exponential(scores[i] - largest);
        sum += scores[i];
    }
    memset(output, 0, sizeof(float) * d);
    mix_values(scores, layer->values, start + slot, early, d, output, halves);
    mix_values(scores + early, layer->values, start, count - early, d, output, halves);
    for (int64_t c = 0; c < d; c++) output[c] /= sum;
}

/* Store one key or value from number ``at`` on. */
static void keep(void *numbers, int64_t at, const float *x, int64_t d, int64_t halves) {
    if (halves)
        for (int64_t c = 0; c < d; c++) ((uint16_t *)numbers)[at + c] = narrow(x[c]);
    else memcpy((float *)numbers + at, x, sizeof(float) * d);
}

/* Keys, values and attention of this thread's share of rows and heads. */
static void attention(const Plan *p, const Layer *layer, const float *cosine, const float *sine,
                      int64_t position, float *qkv, float *scores, float *mixed) {
    int64_t D = p->width, d = D / p->heads, C = p->capacity, all = p->batch * p->heads;
    int64_t count = omp_get_num_threads(), id = omp_get_thread_num();
    for (int64_t i = all * id / count; i < all * (id + 1) / count; i++) {
        int64_t b = i / p->heads, h = i % p->heads;
        float *query = qkv + b * 3 * D + h * d, *key = query + D, *value = key + D;
        int64_t at = ((b * p->heads + h) * C + position % C) * d;
        if (cosine) {
            turn(query, cosine + b * d, sine + b * d, d);
            turn(key, cosine + b * d, sine + b * d, d);
        }
        keep(layer->keys, at, key, d, p->halves);
        keep(layer->values, at, value, d, p->halves);
        if (p->halves) attend(p, layer, b, h, position, query, scores, mixed + b * D + h * d, 1);
        else attend(p, layer, b, h, position, query, scores, mixed + b * D + h * d, 0);
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
    float *own = rise + B * 2 * F;
    if (p->bias)
        for (int64_t b = 0; b < B; b++)
            p->key_positions[b * p->capacity + position % p->capacity] = positions[b];
#pragma omp parallel num_threads(p->threads)
    {
        float *normed = own + omp_get_thread_num() * (B * D + p->capacity), *scores = normed + B * D;
        for (int64_t l = 0; l < p->depth; l++) {
            const Layer *layer = p->layers + l;
            normalise_all(p, x, layer->attention_norm, normed);
            multiply(&layer->qkv, normed, D, qkv, 3 * D, B, 0);
#pragma omp barrier
            attention(p, layer, cosine, sine, position, qkv, scores, mixed);
#pragma omp barrier
            multiply(&layer->out, mixed, D, x, D, B, 1);
#pragma omp barrier
            normalise_all(p, x, layer->feed_forward_norm, normed);
            multiply(&layer->rise, normed, D, rise, 2 * F, B, 0);
#pragma omp barrier
            gate(p, rise);
#pragma omp barrier
            multiply(&layer->fall, rise, 2 * F, x, D, B, 1);
#pragma omp barrier
        }
        if (omp_get_thread_num() == 0) normalise_all(p, x, p->norm, output);
    }
}

/* y [B, count, rows] = x [B, columns] times each of ``count`` matrices of one shape. */
void linear(const Matrix *m, int64_t count, const float *x, float *y, int64_t batch, int64_t threads) {
#pragma omp parallel num_threads(threads)
    for (int64_t i = 0; i < count; i++)
        multiply(m + i, x, m->columns, y + i * m->rows, count * m->rows, batch, 0);
}
