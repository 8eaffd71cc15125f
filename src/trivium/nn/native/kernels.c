/* A pass of new tokens through a Llama-like Transformer with quantised weights:
 *
 *     x ← embedding;  x ← x + attention(norm(x));  x ← x + down(f(gate) ⊙ up)(norm(x));  head(norm(x))
 *
 * (Llama: Touvron et al. 2023; Qwen 3; Gemma 3, with norms behind attention and MLP too.) The rows are
 * tokens of any number of sequences, each of which has its cache: a prompt, or one token each of a
 * batch, or both. The stream is float32. Every row is computed by the same sums whatever other rows
 * there are, so that a text read at once, in pieces or token by token gives the same bits.
 */
#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() sched_yield()
#endif

#include "threads.h"
#include "numbers.h"
#include "products.h"
#include "attention.h"

enum { SILU = 0, GELU_TANH = 1 };

typedef struct {
    const float *attention_norm, *mlp_norm;
    const float *q_norm, *k_norm, *attention_post_norm, *mlp_post_norm; /* or NULL */
    int32_t window; /* 0: everything is seen */
    Matrix qkv, out, gate_up, down;
} Layer;

typedef struct {
    int32_t layers, width, heads, groups, head_dim, hidden, vocab, activation;
    float eps, scale, embedding_scale; /* scale: of the scores */
    const float *norm;
    const float *theta, *window_theta; /* angles per position, head_dim/2: everywhere, with a window */
    const Layer *layer;
    Matrix embedding, head;
} Model;

typedef struct {
    const Model *m;
    const Layer *l;
    const Cache *cache; /* of this layer, by sequence */
    const int32_t *sequence, *position; /* by row */
    int rows;
    float *x, *part, *qkv, *y, *gate_up; /* stream, what is added to it, … */
    float *turn; /* (rows, 2, head_dim): cosines and sines, everywhere and with a window */
    Act *codes;
} Pass;

static void rms_norm(const float *x, const float *weight, float *y, int n, float eps) {
    Floats squares = {0};
    int i = 0;
    for (; i + V <= n; i += V) squares = multiply_add(load(x + i), load(x + i), squares);
    float total = sum(squares);
    for (; i < n; i++) total += x[i] * x[i];
    const float scale = 1 / sqrtf(total / (float)n + eps);
    for (i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

/* ---- what is done to each row; every job runs over rows `first` to `last` ----------------------- */

static void enter(void *context, int first, int last) {
    const Pass *p = context;
    const Model *m = p->m;
    const int half = m->head_dim / 2;
    for (int r = first; r < last; r++) {
        float *x = p->x + (size_t)r * (size_t)m->width, *turn = p->turn + (size_t)r * 4 * (size_t)half;
        for (int i = 0; i < m->width; i++) x[i] *= m->embedding_scale;
        for (int kind = 0; kind < 2; kind++, turn += 2 * half) {
            const float *theta = kind ? m->window_theta : m->theta;
            for (int i = 0; i < half; i++) {
                const float angle = (float)p->position[r] * theta[i];
                turn[i] = cosf(angle); turn[half + i] = sinf(angle);
            }
        }
    }
}

static void round_normed(const Pass *p, int r, const float *weight, const Matrix *m) {
    const int C = p->m->width;
    float *normed = p->part + (size_t)r * (size_t)C;
    rms_norm(p->x + (size_t)r * (size_t)C, weight, normed, C, p->m->eps);
    quantise(normed, p->codes + (size_t)r * (size_t)(C / 32 * m->parts), C, m->parts);
}

static void before_attention(void *context, int first, int last) {
    const Pass *p = context;
    for (int r = first; r < last; r++) round_normed(p, r, p->l->attention_norm, &p->l->qkv);
}

static void turn_and_keep(void *context, int first, int last) {
    const Pass *p = context;
    const Model *m = p->m;
    const int D = m->head_dim, half = D / 2, heads = m->heads + m->groups;
    for (int r = first; r < last; r++) {
        float *x = p->qkv + (size_t)r * (size_t)(heads + m->groups) * (size_t)D;
        const float *cosine = p->turn + (size_t)r * 2 * (size_t)D + (p->l->window ? D : 0), *sine = cosine + half;
        for (int h = 0; h < heads; h++) {
            float *part = x + h * D;
            const float *norm = h < m->heads ? p->l->q_norm : p->l->k_norm;
            if (norm) rms_norm(part, norm, part, D, m->eps);
            for (int i = 0; i < half; i++) {
                const float a = part[i], b = part[i + half];
                part[i] = a * cosine[i] - b * sine[i];
                part[i + half] = b * cosine[i] + a * sine[i];
            }
        }
        const Cache *cache = p->cache + p->sequence[r];
        for (int g = 0; g < m->groups; g++) {
            const float *k = x + (m->heads + g) * D, *v = k + m->groups * D;
            const size_t at = ((size_t)g * (size_t)cache->capacity + (size_t)p->position[r]) * (size_t)D;
            for (int i = 0; i < D; i++) {
                cache->k[at + (size_t)i] = to_half(k[i]);
                cache->v[at + (size_t)i] = to_half(v[i]);
            }
        }
    }
}

static void after_attention(void *context, int first, int last) {
    const Pass *p = context;
    const int inner = p->m->heads * p->m->head_dim, parts = p->l->out.parts;
    for (int r = first; r < last; r++)
        quantise(p->y + (size_t)r * (size_t)inner, p->codes + (size_t)r * (size_t)(inner / 32 * parts), inner, parts);
}

static void add_part(const Pass *p, int r, const float *post_norm) {
    const int C = p->m->width;
    float *x = p->x + (size_t)r * (size_t)C, *part = p->part + (size_t)r * (size_t)C;
    if (post_norm) rms_norm(part, post_norm, part, C, p->m->eps);
    for (int i = 0; i < C; i++) x[i] += part[i];
}

static void before_mlp(void *context, int first, int last) {
    const Pass *p = context;
    for (int r = first; r < last; r++) {
        add_part(p, r, p->l->attention_post_norm);
        round_normed(p, r, p->l->mlp_norm, &p->l->gate_up);
    }
}

static void activate(void *context, int first, int last) {
    const Pass *p = context;
    const int n = p->m->hidden, parts = p->l->down.parts;
    for (int r = first; r < last; r++) {
        float *gate = p->gate_up + (size_t)r * 2 * (size_t)n, *up = gate + n;
        for (int i = 0; i < n; i += V) {
            const Floats g = load(gate + i);
            Floats turned = g; /* both are g·sigmoid(…): silu of g, gelu of 2·√(2/π)·(g + 0.044715 g³) */
            if (p->m->activation == GELU_TANH) turned = (g + g * g * g * 0.044715f) * 1.5957691216f;
            store(gate + i, g / (exponential(-turned) + 1.0f) * load(up + i));
        }
        quantise(gate, p->codes + (size_t)r * (size_t)(n / 32 * parts), n, parts);
    }
}

static void after_mlp(void *context, int first, int last) {
    const Pass *p = context;
    for (int r = first; r < last; r++) add_part(p, r, p->l->mlp_post_norm);
}

/* ---- the whole ---------------------------------------------------------------------------------- */

/* Neighbouring rows of one sequence, as many as share a unit of attention */
static int spans(const Model *m, const int32_t *sequence, int rows, Span *span) {
    const int most = QUERIES / (m->heads / m->groups);
    int count = 0;
    for (int r = 0; r < rows; r++) {
        Span *now = span + count - 1;
        if (count && now->sequence == sequence[r] && now->count < most) now->count++;
        else span[count++] = (Span){r, 1, sequence[r]};
    }
    return count;
}

static void layer(Pass *p, const Span *span, int count) {
    const Model *m = p->m;
    const Layer *l = p->l;
    const int some = 4, n = p->rows;
    parallel(before_attention, p, n, some);
    product(&l->qkv, p->codes, p->qkv, n);
    parallel(turn_and_keep, p, n, some);
    Attention a = {p->qkv, p->y, p->cache, p->position, span, m->heads, m->groups, m->head_dim, l->window, m->scale};
    parallel(attend_units, &a, count * m->groups, 1);
    parallel(after_attention, p, n, some);
    product(&l->out, p->codes, p->part, n);
    parallel(before_mlp, p, n, some);
    product(&l->gate_up, p->codes, p->gate_up, n);
    parallel(activate, p, n, some);
    product(&l->down, p->codes, p->part, n);
    parallel(after_mlp, p, n, some);
}

/* token, sequence, position: (rows); a sequence's rows are neighbours with positions in order, behind
 * what its cache holds. caches: (layers, sequences). logits: (wanted, vocab), of the rows `which`.
 * Returns 0, or 1 without memory. */
int trivium_forward(const Model *m, int rows, const int64_t *token, const int32_t *sequence, const int32_t *position,
                    int sequences, const Cache *caches, int wanted, const int32_t *which, float *logits) {
    const int C = m->width, D = m->head_dim, inner = m->heads * D;
    const int widest = C > inner ? (C > m->hidden ? C : m->hidden) : (inner > m->hidden ? inner : m->hidden);
    const size_t n = (size_t)rows;
    const size_t floats = n * (size_t)(2 * C + inner + 2 * m->groups * D + inner + 2 * m->hidden + 2 * D);
    float *memory = malloc(floats * sizeof(float) + n * (size_t)(widest / 32 * 2) * sizeof(Act) + n * sizeof(Span));
    if (!memory) return 1;
    Pass p = {.m = m, .sequence = sequence, .position = position, .rows = rows, .x = memory};
    p.part = p.x + n * (size_t)C;
    p.qkv = p.part + n * (size_t)C;
    p.y = p.qkv + n * (size_t)(inner + 2 * m->groups * D);
    p.gate_up = p.y + n * (size_t)inner;
    p.turn = p.gate_up + n * 2 * (size_t)m->hidden;
    p.codes = (Act *)(p.turn + n * 2 * (size_t)D);
    Span *span = (Span *)(p.codes + n * (size_t)(widest / 32 * 2));
    const int count = spans(m, sequence, rows, span);

    trivium_rows(&m->embedding, token, rows, p.x);
    parallel(enter, &p, rows, 4);
    for (int i = 0; i < m->layers; i++) {
        p.l = m->layer + i;
        p.cache = caches + (size_t)i * (size_t)sequences;
        layer(&p, span, count);
    }
    for (int k = 0; k < wanted; k++) { /* the other rows are not needed any more */
        rms_norm(p.x + (size_t)which[k] * (size_t)C, m->norm, p.part, C, m->eps);
        quantise(p.part, p.codes + (size_t)k * (size_t)(C / 32 * m->head.parts), C, m->head.parts);
    }
    product(&m->head, p.codes, logits, wanted);
    free(memory);
    return 0;
}
