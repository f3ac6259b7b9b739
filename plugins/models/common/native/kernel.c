/* One decoding step of a pre-norm transformer on a CPU, for a few rows at a time.
 *
 * A step multiplies every weight once with one vector per row, so it is as fast as memory is read.
 * All layers run within one parallel region: threads meet at barriers, five per layer. Sums over
 * one row never depend on the rows beside it.
 *
 * Shapes: B rows, D width, H heads, d = D / H channels per head, F hidden width of the feed-forward,
 * C slots of the key-value cache, a ring: position p lies in slot p % C. Row-major everywhere.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#define GROUP 64 /* weights that share one int8 scale */
#define EPSILON 1e-5f

typedef struct { /* [rows, columns] */
    const float *full;    /* or NULL where there are codes */
    const int8_t *codes;  /* [rows, columns] */
    const float *scales;  /* [rows, ceil(columns / GROUP)] */
    int64_t rows, columns;
} Matrix;

typedef struct {
    const float *attention_norm, *feed_forward_norm; /* [D] */
    Matrix qkv, out, rise, fall; /* [3D, D], [D, D], [2F, D], [D, F] */
    float *keys, *values;        /* [B, H, C, d] */
} Layer;

typedef struct {
    int64_t batch, width, heads, hidden, depth, capacity, threads;
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

static int thread_id(void) {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

static int thread_count(void) {
#ifdef _OPENMP
    return omp_get_num_threads();
#else
    return 1;
#endif
}

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
    union {
        int32_t bits;
        float value;
    } power = {((int32_t)n + 127) << 23};
    return (q * r * r + r + 1.0f) * power.value;
}

static inline float dot(const float *restrict a, const float *restrict b, int64_t n) {
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

/* Four rows of weights against one vector: four independent sums hide the latency of adding. */
static inline void dot4(const float *restrict w, int64_t stride, const float *restrict x, int64_t n,
                        float *restrict y) {
    const float *a = w, *b = w + stride, *c = w + 2 * stride, *d = w + 3 * stride;
    float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t i = 0; i < n; i++) {
        s0 += a[i] * x[i];
        s1 += b[i] * x[i];
        s2 += c[i] * x[i];
        s3 += d[i] * x[i];
    }
    y[0] = s0, y[1] = s1, y[2] = s2, y[3] = s3;
}

static inline float dot_codes(const int8_t *restrict w, const float *restrict scales,
                              const float *restrict x, int64_t n) {
    float sum = 0.0f;
    for (int64_t start = 0, g = 0; start < n; start += GROUP, g++) {
        int64_t count = n - start < GROUP ? n - start : GROUP;
        float part = 0.0f;
#pragma omp simd reduction(+ : part)
        for (int64_t i = 0; i < count; i++) part += (float)w[start + i] * x[start + i];
        sum += part * scales[g];
    }
    return sum;
}

static inline void dot4_codes(const Matrix *m, int64_t row, const float *restrict x,
                              float *restrict y) {
    int64_t n = m->columns, groups = (n + GROUP - 1) / GROUP;
    const int8_t *a = m->codes + row * n, *b = a + n, *c = b + n, *d = c + n;
    const float *scales = m->scales + row * groups;
    float t0 = 0, t1 = 0, t2 = 0, t3 = 0;
    for (int64_t g = 0; g < n / GROUP; g++) {
        float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
        int64_t at = g * GROUP;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
        for (int64_t i = 0; i < GROUP; i++) {
            float v = x[at + i];
            s0 += (float)a[at + i] * v;
            s1 += (float)b[at + i] * v;
            s2 += (float)c[at + i] * v;
            s3 += (float)d[at + i] * v;
        }
        t0 += s0 * scales[g];
        t1 += s1 * scales[groups + g];
        t2 += s2 * scales[2 * groups + g];
        t3 += s3 * scales[3 * groups + g];
    }
    if (n % GROUP) {
        int64_t at = n / GROUP * GROUP, g = n / GROUP;
        t0 += dot_codes(a + at, scales + g, x + at, n - at);
        t1 += dot_codes(b + at, scales + groups + g, x + at, n - at);
        t2 += dot_codes(c + at, scales + 2 * groups + g, x + at, n - at);
        t3 += dot_codes(d + at, scales + 3 * groups + g, x + at, n - at);
    }
    y[0] = t0, y[1] = t1, y[2] = t2, y[3] = t3;
}

static float row_dot(const Matrix *m, int64_t row, const float *x) {
    int64_t n = m->columns, groups = (n + GROUP - 1) / GROUP;
    if (m->full) return dot(m->full + row * n, x, n);
    return dot_codes(m->codes + row * n, m->scales + row * groups, x, n);
}

/* y[b, rows] (+)= m x[b]: this thread's share of the rows, in whole fours. */
static void multiply(const Matrix *m, const float *x, int64_t x_stride, float *y, int64_t y_stride,
                     int64_t batch, int add) {
    int64_t fours = m->rows / 4, count = thread_count(), id = thread_id();
    int64_t start = fours * id / count * 4, stop = fours * (id + 1) / count * 4;
    float four[4];
    for (int64_t row = start; row < stop; row += 4) {
        for (int64_t b = 0; b < batch; b++) {
            const float *input = x + b * x_stride;
            float *output = y + b * y_stride + row;
            if (m->full) dot4(m->full + row * m->columns, m->columns, input, m->columns, four);
            else dot4_codes(m, row, input, four);
            for (int i = 0; i < 4; i++) output[i] = add ? output[i] + four[i] : four[i];
        }
    }
    if (id != count - 1) return;
    for (int64_t row = fours * 4; row < m->rows; row++)
        for (int64_t b = 0; b < batch; b++) {
            float one = row_dot(m, row, x + b * x_stride);
            y[b * y_stride + row] = add ? y[b * y_stride + row] + one : one;
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

/* Softmax attention of one row and head over slots start .. stop - 1 of positions that are known. */
static void attend(const Plan *p, const Layer *layer, int64_t b, int64_t h, int64_t position,
                   float *restrict query, float *restrict scores, float *restrict output) {
    int64_t d = p->width / p->heads, C = p->capacity;
    const float *keys = layer->keys + (b * p->heads + h) * C * d;
    const float *values = layer->values + (b * p->heads + h) * C * d;
    int64_t oldest = position + 1 > C ? position + 1 - C : 0;
    if (p->first[b] > oldest) oldest = p->first[b];
    int64_t count = position + 1 - oldest;
    float scale = 1.0f / sqrtf((float)d), largest = -3e38f, total = 0.0f;
    for (int64_t i = 0, slot = oldest % C; i < count; i++, slot = slot + 1 == C ? 0 : slot + 1) {
        float score = dot(query, keys + slot * d, d) * scale;
        if (p->bias) {
            const float *places = p->key_positions + b * C;
            int64_t distance = (int64_t)rintf(places[position % C] - places[slot]);
            if (distance > p->reach) distance = p->reach;
            if (distance < -p->reach) distance = -p->reach;
            score += p->bias[h * (2 * p->reach + 1) + p->reach + distance];
        }
        scores[i] = score;
        if (score > largest) largest = score;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t i = 0; i < count; i++) {
        scores[i] = exponential(scores[i] - largest);
        total += scores[i];
    }
    memset(output, 0, sizeof(float) * d);
    for (int64_t i = 0, slot = oldest % C; i < count; i++, slot = slot + 1 == C ? 0 : slot + 1) {
        const float *value = values + slot * d;
        float weight = scores[i] / total;
#pragma omp simd
        for (int64_t c = 0; c < d; c++) output[c] += weight * value[c];
    }
}

/* Keys, values and attention of this thread's share of rows and heads. */
static void attention(const Plan *p, const Layer *layer, const float *cosine, const float *sine,
                      int64_t position, float *qkv, float *scores, float *mixed) {
    int64_t D = p->width, d = D / p->heads, C = p->capacity, all = p->batch * p->heads;
    int64_t count = thread_count(), id = thread_id();
    for (int64_t i = all * id / count; i < all * (id + 1) / count; i++) {
        int64_t b = i / p->heads, h = i % p->heads;
        float *query = qkv + b * 3 * D + h * d, *key = query + D, *value = key + D;
        int64_t at = ((b * p->heads + h) * C + position % C) * d;
        if (cosine) {
            turn(query, cosine + b * d, sine + b * d, d);
            turn(key, cosine + b * d, sine + b * d, d);
        }
        memcpy(layer->keys + at, key, sizeof(float) * d);
        memcpy(layer->values + at, value, sizeof(float) * d);
        attend(p, layer, b, h, position, query, scores, mixed + b * D + h * d);
    }
}

/* SwiGLU of this thread's share, in place: the first F of 2F hold the result. */
static void gate(const Plan *p, float *rise) {
    int64_t F = p->hidden, count = thread_count(), id = thread_id();
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
        float *normed = own + thread_id() * (B * D + p->capacity), *scores = normed + B * D;
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
        if (thread_id() == 0) normalise_all(p, x, p->norm, output);
    }
}

/* y [B, rows] = x [B, columns] m^T */
void linear(const Matrix *m, const float *x, float *y, int64_t batch, int64_t threads) {
#pragma omp parallel num_threads(threads)
    multiply(m, x, m->columns, y, m->rows, batch, 0);
}
