/* Products of packed matrices with a few inputs at a time. */
#pragma once
#include <stdlib.h>
#ifdef _OPENMP
#include <omp.h>
#else
static int omp_get_thread_num(void) { return 0; }
static int omp_get_num_threads(void) { return 1; }
#endif

#include "registers.h"

/* One of the threads that share some work, and how many they are. */
typedef struct { int64_t id, count; } Team;

static Team everyone(void) { return (Team){omp_get_thread_num(), omp_get_num_threads()}; }

/* A thread's share of ``all``. */
static int64_t first_of(int64_t all, Team team) { return all * team.id / team.count; }
static int64_t end_of(int64_t all, Team team) { return all * (team.id + 1) / team.count; }

/* Wait for all threads of a team: for all of a parallel region, or for none. */
static void meet(Team team) {
    if (team.count > 1) {
#pragma omp barrier
    }
}

#define GROUP 64 /* weights that share one int8 scale */
#define PANEL 64 /* rows of weights that lie side by side: [panels, columns, PANEL] */

/* [rows, columns] in panels, the last one filled up with rows that are not used. A weight is a number
 * of ``full`` [panels, columns, PANEL], or its code times one scale. */
typedef struct {
    const float *full;
    const int8_t *codes;        /* [panels, ceil(columns / 2), PANEL, 2]: two columns side by side */
    const float *row_scales;    /* [panels, ceil(columns / GROUP), PANEL], or NULL */
    const float *column_scales; /* [panels, columns]: of all rows of a panel, or NULL */
    int64_t rows, columns;
} Matrix;

/* A block of products is VECTORS registers of rows times up to TOGETHER inputs, whose sums stay in
 * registers. One or two inputs take as many rows as hide the latency of adding. */
#define TOGETHER 6
#define VECTORS (LANES == 16 ? 4 : 2)
#define VECTORS_PAIR 4
#define VECTORS_ALONE (LANES == 16 ? 4 : 8)

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
                     int64_t batch, int add, float *memory, Team team) {
    int64_t panels = (m->rows + PANEL - 1) / PANEL;
    Inputs inputs = inputs_at(memory, m->columns);
    for (int64_t start = 0; start < batch; start += CHUNK, x += CHUNK * stride, y += CHUNK * y_stride) {
        int64_t chunk = batch - start < CHUNK ? batch - start : CHUNK;
        if (m->row_scales) round_inputs(x, NULL, stride, m->columns, chunk, inputs);
        for (int64_t panel = first_of(panels, team); panel < end_of(panels, team); panel++) {
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
