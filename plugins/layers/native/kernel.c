/* One decoding step of a pre-norm transformer on a CPU, for a few rows at a time.
 *
 * A step multiplies every weight once with one vector per row, so it is as fast as memory is read.
 * All layers run within one parallel region. Threads share the matrices and meet at six barriers per
 * layer, OpenMP's own, which spin unless OMP_WAIT_POLICY=PASSIVE is set before libgomp is loaded; or
 * each takes rows of its own through all layers and meets the others at the end. Each sum is computed
 * by one thread in a fixed order: results depend neither on the threads nor on the other rows.
 *
 * Shapes: B rows, D width, H heads, d = D / H channels per head, F hidden width of the feed-forward,
 * C slots of the key-value cache, a ring: position p lies in slot p % C. Row-major, but for weights,
 * which lie in panels of rows.
 */
#include "products.h"

#define EPSILON 1e-5f
#define MIXED (LANES == 16 ? 4 : 8) /* registers of channels whose values are mixed together */

typedef struct {
    const float *attention_norm, *feed_forward_norm; /* [D] */
    Matrix qkv, out, rise, fall; /* [3D, D], [D, D], [2F, D], [D, F] */
    void *keys, *values;         /* [B, H, C, d], floats or halves */
} Layer;

typedef struct {
    int64_t batch, width, heads, hidden, depth, capacity, threads;
    int64_t apart;  /* whether each thread takes rows of its own */
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

/* What a thread has for itself: normalised inputs, inputs in 16 bits, scores. */
static int64_t own_floats(const Plan *p) {
    int64_t widest = p->width > p->hidden ? p->width : p->hidden;
    return p->batch * p->width + inputs_floats(widest) + p->capacity;
}

static int64_t shared_floats(const Plan *p) { return p->batch * (3 * p->width + p->width + 2 * p->hidden); }

int64_t scratch_floats(const Plan *p) { return shared_floats(p) + p->threads * own_floats(p); }

static float *own_memory(const Plan *p) {
    return p->scratch + shared_floats(p) + omp_get_thread_num() * own_floats(p);
}

/* The rows that a thread computes, and the team that shares the work on them. */
typedef struct { int64_t start, rows; Team team; } Share;

static Share own_share(const Plan *p) {
    Team all = everyone();
    if (!p->apart) return (Share){0, p->batch, all};
    int64_t start = first_of(p->batch, all);
    return (Share){start, end_of(p->batch, all) - start, {0, 1}};
}

/* This thread's memory for inputs in 16 bits. */
static float *inputs_of(const Plan *p) { return own_memory(p) + p->batch * p->width + p->capacity; }

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

static void normalise_all(const Plan *p, const float *x, int64_t rows, const float *weight, float *y) {
    for (int64_t b = 0; b < rows; b++)
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

/* Keys, values and attention of a thread's part of all rows and heads of its share: of one head after the
 * other, since rows that share keys find them in cache. */
static void attention(const Plan *p, const Layer *layer, const float *cosine, const float *sine,
                      int64_t position, Share share, float *qkv, float *scores, float *mixed) {
    int64_t D = p->width, d = D / p->heads, C = p->capacity, all = share.rows * p->heads;
    for (int64_t i = first_of(all, share.team); i < end_of(all, share.team); i++) {
        int64_t b = share.start + i % share.rows, h = i / share.rows;
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
static void gate(const Plan *p, int64_t rows, Team team, float *rise) {
    int64_t F = p->hidden, start = first_of(F, team), stop = end_of(F, team);
    for (int64_t b = 0; b < rows; b++) {
        float *gates = rise + b * 2 * F, *up = gates + F;
#pragma omp simd
        for (int64_t i = start; i < stop; i++) gates[i] = gates[i] / (1.0f + exponential(gates[i] < -80.0f ? 80.0f : -gates[i])) * up[i];
    }
}

/* All layers for the rows of a share. */
static void layers(const Plan *p, float *x, const float *cosine, const float *sine, int64_t position,
                   Share share, float *output) {
    int64_t start = share.start, rows = share.rows;
    Team team = share.team;
    int64_t B = p->batch, D = p->width, F = p->hidden;
    float *qkv = p->scratch, *mixed = qkv + B * 3 * D, *all_rises = mixed + B * D;
    float *normed = own_memory(p), *scores = normed + B * D, *inputs = inputs_of(p);
    float *stream = x + start * D, *projected = qkv + start * 3 * D, *rises = all_rises + start * 2 * F;
    for (int64_t l = 0; l < p->depth; l++) {
        const Layer *layer = p->layers + l;
        normalise_all(p, stream, rows, layer->attention_norm, normed);
        multiply(&layer->qkv, normed, D, projected, 3 * D, rows, 0, inputs, team);
        meet(team);
        attention(p, layer, cosine, sine, position, share, qkv, scores, mixed);
        meet(team);
        multiply(&layer->out, mixed + start * D, D, stream, D, rows, 1, inputs, team);
        meet(team);
        normalise_all(p, stream, rows, layer->feed_forward_norm, normed);
        multiply(&layer->rise, normed, D, rises, 2 * F, rows, 0, inputs, team);
        meet(team);
        gate(p, rows, team, rises);
        meet(team);
        multiply(&layer->fall, rises, 2 * F, stream, D, rows, 1, inputs, team);
        meet(team);
    }
    if (team.id == 0) normalise_all(p, stream, rows, p->norm, output + start * D);
}

/* One position of every row.
 *
 * x: [B, D] embedded inputs, overwritten by the residual stream. cosine, sine: [B, d] or NULL.
 * positions: [B] of the new keys, only with bias. position: how many were stored before.
 * output: [B, D] hidden states.
 */
void step(const Plan *p, float *x, const float *cosine, const float *sine, const float *positions,
          int64_t position, float *output) {
    if (p->bias)
        for (int64_t b = 0; b < p->batch; b++)
            p->key_positions[b * p->capacity + position % p->capacity] = positions[b];
#pragma omp parallel num_threads(p->threads)
    layers(p, x, cosine, sine, position, own_share(p), output);
}

#include "draw.h"

/* y [B, count, rows] = x [B, columns] times each of ``count`` matrices of one shape. Returns 0, or 1 if
 * there is no memory. */
int linear(const Matrix *m, int64_t count, const float *x, float *y, int64_t batch, int64_t threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads) reduction(| : failed)
    {
        float *memory = malloc(sizeof(float) * inputs_floats(m->columns));
        if (memory)
            for (int64_t i = 0; i < count; i++)
                multiply(m + i, x, m->columns, y + i * m->rows, count * m->rows, batch, 0, memory, everyone());
        failed |= memory == NULL;
        free(memory);
    }
    return failed;
}
