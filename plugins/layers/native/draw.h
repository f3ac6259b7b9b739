/* Several steps of a codebook pattern in one call: embed the codes of a column of the grid, take the
 * step, multiply with the heads and draw the codes that the next column reads.
 *
 * Shapes: R rows computed, of which the first B are drawn; the others know less of the same, and
 * guidance moves away from them. Q levels, S columns, V codebook size; Matrix, Plan and D as elsewhere.
 */
#pragma once

typedef struct {
    int64_t rows, levels, columns; /* B, Q, S */
    int64_t entries;      /* of a level in the table */
    const Matrix *heads;  /* [Q] of [V, D] */
    const float *table;   /* [Q * entries, D] */
    const float *context; /* [R, S, D], added to the embedded codes; or NULL */
    const float *guides;  /* [R / B - 1] */
    int64_t *grid;        /* [R, Q, S] */
    float temperature;    /* 0 for the likeliest */
    float *stream, *hidden, *logits; /* [R, D], [R, D], [R, Q, V] */
} Drawing;

/* The inputs of a step: the sum of the embedded codes of one column. */
static void embed(const Drawing *d, int64_t D, int64_t column, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; row++) {
        float *x = d->stream + row * D;
        const float *context = d->context + (row * d->columns + column) * D;
        memset(x, 0, sizeof(float) * D);
        for (int64_t q = 0; q < d->levels; q++) {
            const int64_t code = d->grid[(row * d->levels + q) * d->columns + column];
            const float *embedded = d->table + (q * d->entries + code) * D;
            for (int64_t i = 0; i < D; i++) x[i] += embedded[i];
        }
        for (int64_t i = 0; d->context && i < D; i++) x[i] += context[i];
    }
}

/* Move logits away from those of rows that know less; ``apart`` floats lie between two kinds of rows. */
static void guide(float *own, const float *guides, int64_t kinds, int64_t apart, int64_t V) {
    for (int64_t i = 0; i < V; i++) {
        float known = own[i], sum = known;
        for (int64_t k = 1; k < kinds; k++) {
            float other = own[k * apart + i];
            float moved = other + guides[k - 1] * (known - other);
            sum = k == 1 ? moved : sum + (moved - known);
        }
        own[i] = sum;
    }
}

/* The index of the largest of logits / temperature + noise, relative to the largest logit so that even
 * a very low temperature does not overflow. With noise it overwrites the logits. */
static int64_t likeliest(float *logits, float temperature, const float *noise, int64_t V) {
    float largest = logits[0];
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < V; i++) largest = logits[i] > largest ? logits[i] : largest;
    if (noise) {
#pragma omp simd
        for (int64_t i = 0; i < V; i++) logits[i] = (logits[i] - largest) / temperature + noise[i];
    }
    int64_t best = 0;
    for (int64_t i = 1; i < V; i++) best = logits[i] > logits[best] ? i : best;
    return best;
}

/* Draw ``some`` levels from ``low`` on, of one row, into the next column of all kinds of it. */
static void choose(const Drawing *d, int64_t kinds, int64_t row, int64_t low, int64_t some, int64_t column,
                   const float *noise) {
    int64_t V = d->heads->rows;
    for (int64_t k = 0; k < some; k++) {
        float *logits = d->logits + (row * d->levels + k) * V;
        if (kinds > 1) guide(logits, d->guides, kinds, d->rows * d->levels * V, V);
        int64_t code = likeliest(logits, d->temperature, noise ? noise + k * V : NULL, V);
        for (int64_t kind = 0; kind < kinds; kind++)
            d->grid[((kind * d->rows + row) * d->levels + low + k) * d->columns + column + 1] = code;
    }
}

/* ``count`` steps from ``column`` on.
 *
 * spans: [count, 2] first level that each step draws, and the first behind them. known: whether
 * ``hidden`` holds the first step's already. cosine, sine: [count - known, R, d]. position: how many
 * positions are stored. noise: [B, all levels that are drawn, V], or NULL for the likeliest. Threads with
 * rows of their own are in different steps at a time: each row has a place of its own in all memory.
 */
void draw(const Plan *p, const Drawing *d, int64_t column, int64_t count, const int64_t *spans, int64_t known,
          const float *cosine, const float *sine, int64_t position, const float *noise) {
    int64_t D = p->width, R = p->batch, kinds = R / d->rows, V = d->heads->rows, all_levels = 0;
    for (int64_t s = 0; s < count; s++) all_levels += spans[2 * s + 1] - spans[2 * s];
#pragma omp parallel num_threads(p->threads)
    {
        Share share = own_share(p);
        int64_t start = share.start, rows = share.rows, at = 0;
        /* All kinds of a row are needed to draw it. */
        Share drawn = kinds > 1 ? (Share){0, d->rows, everyone()} : share;
        for (int64_t s = 0; s < count; s++) {
            int64_t low = spans[2 * s], some = spans[2 * s + 1] - low, taken = s - known;
            if (taken >= 0) {
                int64_t angles = taken * R * (D / p->heads);
                embed(d, D, column + s, start + first_of(rows, share.team), start + end_of(rows, share.team));
                meet(share.team);
                layers(p, d->stream, cosine + angles, sine + angles, position + taken, share, d->hidden);
                meet(share.team);
            }
            for (int64_t k = 0; k < some; k++)
                multiply(d->heads + low + k, d->hidden + start * D, D, d->logits + (start * d->levels + k) * V,
                         d->levels * V, rows, 0, inputs_of(p), share.team);
            meet(drawn.team);
            for (int64_t i = first_of(drawn.rows, drawn.team); i < end_of(drawn.rows, drawn.team); i++) {
                int64_t row = drawn.start + i;
                choose(d, kinds, row, low, some, column + s, noise ? noise + (row * all_levels + at) * V : NULL);
            }
            meet(drawn.team);
            at += some;
        }
    }
}
