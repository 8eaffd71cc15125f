/* Products with quantised weights, and one decoding step of a Llama-like Transformer.
 *
 * Weights stay in the blocks of their GGUF file: 32 weights of a row, w = d·q (Q8_0, Q4_0) or
 * w = d·q + m (Q4_1). Activations are rounded to 8 bits by blocks of 32 with a scale of their own, so
 * that a product of two blocks is one integer dot product. Every row of the result is computed in the
 * same order whatever the number of rows in the batch: alone or in a batch, the same bits.
 *
 * Shapes: B rows of activations, N rows of weights, K columns (a multiple of 32).
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
#include "products.h"

/* ---- one decoding step -------------------------------------------------------------------------
 * x ← embedding;  x ← x + attention(norm(x));  x ← x + down(silu(gate) ⊙ up)(norm(x));  head(norm(x))
 * The stream is float32, the cache bfloat16. B sequences, each with one token and its own cache. */

typedef struct {
    const float *attention_norm, *mlp_norm, *q_norm, *k_norm; /* the last two may be NULL */
    Matrix qkv, out, gate_up, down;
} Layer;

typedef struct {
    int32_t layers, width, heads, groups, head_dim, hidden, vocab;
    float eps;
    const float *norm, *theta; /* theta: angles per position, head_dim/2 */
    const Layer *layer;
    Matrix embedding, head;
} Model;

/* Of one sequence and layer: keys and values (groups, capacity, head_dim) */
typedef struct { uint16_t *k, *v; int64_t capacity; } Cache;

static void rms_norm(const float *x, const float *weight, float *y, int n, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int i = 0; i < n; i++) sum += x[i] * x[i];
    float scale = 1 / sqrtf(sum / (float)n + eps);
    for (int i = 0; i < n; i++) y[i] = x[i] * scale * weight[i];
}

static void rotate(float *x, const float *cosine, const float *sine, int half) {
    for (int i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

typedef struct {
    const Model *m;
    const float *qkv;   /* (B, (heads + 2·groups)·head_dim), rotated */
    const Cache *cache; /* (B) of this layer */
    const int32_t *position;
    float *scores, *y; /* (B·heads, longest), (B, heads·head_dim) */
    int longest;
} Attention;

static void attention_heads(void *context, int first, int last) {
    Attention *a = context;
    const Model *m = a->m;
    const int D = m->head_dim, share = m->heads / m->groups;
    const int row = (m->heads + 2 * m->groups) * D;
    const float scale = 1 / sqrtf((float)D);
    for (int unit = first; unit < last; unit++) {
        int b = unit / m->heads, h = unit % m->heads, seen = a->position[b] + 1;
        const float *q = a->qkv + (size_t)b * (size_t)row + (size_t)(h * D);
        size_t offset = (size_t)(h / share) * (size_t)a->cache[b].capacity * (size_t)D;
        const uint16_t *k = a->cache[b].k + offset, *v = a->cache[b].v + offset;
        float *scores = a->scores + (size_t)unit * (size_t)a->longest, top = -INFINITY, sum = 0;
        for (int s = 0; s < seen; s++) {
            float score = 0;
#pragma omp simd reduction(+ : score)
            for (int i = 0; i < D; i++) score += q[i] * from_bf16(k[(size_t)s * (size_t)D + (size_t)i]);
            scores[s] = score * scale;
            top = scores[s] > top ? scores[s] : top;
        }
        for (int s = 0; s < seen; s++) { scores[s] = expf(scores[s] - top); sum += scores[s]; }
        float *y = a->y + (size_t)unit * (size_t)D;
        memset(y, 0, (size_t)D * sizeof(float));
        for (int s = 0; s < seen; s++) {
            float p = scores[s] / sum;
            for (int i = 0; i < D; i++) y[i] += p * from_bf16(v[(size_t)s * (size_t)D + (size_t)i]);
        }
    }
}

static void add(float *x, const float *y, size_t n) { for (size_t i = 0; i < n; i++) x[i] += y[i]; }

static void turn_and_store(const Model *m, const Layer *l, float *qkv, int position, Cache *c,
                           const float *cosine, const float *sine) {
    const int D = m->head_dim;
    for (int h = 0; h < m->heads + m->groups; h++) {
        float *x = qkv + h * D;
        const float *norm = h < m->heads ? l->q_norm : l->k_norm;
        if (norm) rms_norm(x, norm, x, D, m->eps);
        rotate(x, cosine, sine, D / 2);
    }
    for (int g = 0; g < m->groups; g++) {
        const float *k = qkv + (m->heads + g) * D, *v = k + m->groups * D;
        size_t at = ((size_t)g * (size_t)c->capacity + (size_t)position) * (size_t)D;
        for (int i = 0; i < D; i++) { c->k[at + (size_t)i] = to_bf16(k[i]); c->v[at + (size_t)i] = to_bf16(v[i]); }
    }
}

/* token, position: (B). caches: (layers, B). logits: (B, vocab). Returns 0, or 1 without memory. */
int trivium_step(const Model *m, int B, const int64_t *token, const int32_t *position, Cache *caches,
                 float *logits) {
    const int D = m->head_dim, C = m->width, inner = m->heads * D, row = inner + 2 * m->groups * D;
    int longest = 0;
    for (int b = 0; b < B; b++) longest = position[b] + 1 > longest ? position[b] + 1 : longest;
    const int widest = C > inner ? (C > m->hidden ? C : m->hidden) : (inner > m->hidden ? inner : m->hidden);
    size_t n = (size_t)B, floats = n * (size_t)(2 * C + row + inner + 3 * m->hidden + D)
                                   + n * (size_t)m->heads * (size_t)longest;
    float *memory = malloc(floats * sizeof(float) + n * (size_t)(widest / 32) * sizeof(Act) + 64);
    if (!memory) return 1;
    float *x = memory, *normed = x + n * (size_t)C, *qkv = normed + n * (size_t)C;
    float *y = qkv + n * (size_t)row, *gate_up = y + n * (size_t)inner, *act = gate_up + 2 * n * (size_t)m->hidden;
    float *turn = act + n * (size_t)m->hidden, *scores = turn + n * (size_t)D;
    Act *codes = (Act *)(scores + n * (size_t)m->heads * (size_t)longest);
    trivium_rows(&m->embedding, token, B, x);
    for (int b = 0; b < B; b++)
        for (int i = 0; i < D / 2; i++) {
            float angle = (float)position[b] * m->theta[i];
            turn[b * D + i] = cosf(angle); turn[b * D + D / 2 + i] = sinf(angle);
        }
    for (int i = 0; i < m->layers; i++) {
        const Layer *l = m->layer + i;
        Cache *c = caches + (size_t)i * n;
        for (int b = 0; b < B; b++) rms_norm(x + b * C, l->attention_norm, normed + b * C, C, m->eps);
        trivium_matmul(&l->qkv, normed, qkv, B, codes);
        for (int b = 0; b < B; b++)
            turn_and_store(m, l, qkv + b * row, position[b], c + b, turn + b * D, turn + b * D + D / 2);
        Attention a = {m, qkv, c, position, scores, y, longest};
        parallel(attention_heads, &a, B * m->heads, longest * B > 64 ? 1 : m->heads);
        trivium_matmul(&l->out, y, normed, B, codes);
        add(x, normed, n * (size_t)C);
        for (int b = 0; b < B; b++) rms_norm(x + b * C, l->mlp_norm, normed + b * C, C, m->eps);
        trivium_matmul(&l->gate_up, normed, gate_up, B, codes);
        for (int b = 0; b < B; b++)
            for (int j = 0; j < m->hidden; j++) {
                float gate = gate_up[b * 2 * m->hidden + j], up = gate_up[b * 2 * m->hidden + m->hidden + j];
                act[b * m->hidden + j] = gate / (1 + expf(-gate)) * up;
            }
        trivium_matmul(&l->down, act, normed, B, codes);
        add(x, normed, n * (size_t)C);
    }
    for (int b = 0; b < B; b++) rms_norm(x + b * C, m->norm, normed + b * C, C, m->eps);
    trivium_matmul(&m->head, normed, logits, B, codes);
    free(memory);
    return 0;
}
