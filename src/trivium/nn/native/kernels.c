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

enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, BF16 = 30 };

typedef struct { float d, s; int8_t q[32]; } Act;  /* x ≈ d·q, s = d·Σq */

typedef struct {
    const void *data;
    const float *bias; /* or NULL */
    int32_t type, rows, cols, row_bytes;
} Matrix;

/* ---- threads -----------------------------------------------------------------------------------
 * Work is cut into small chunks that whoever is free takes. The caller waits only for chunks that
 * somebody has taken: a helper that another process keeps off its core holds nobody up. Helpers
 * spin for some microseconds after a job, then sleep. */

typedef void (*Job)(void *, int first, int last);

static struct {
    pthread_mutex_t busy, lock;
    pthread_cond_t wake;
    atomic_int generation, sleepers;
    /* Two words decide a chunk: the ticket holds generation (high half) and next index (low half). */
    _Atomic uint64_t ticket;
    atomic_int done;
    Job job;
    void *context;
    int count, grain, helpers;
    atomic_int wanted; /* helpers that may work; the others sleep */
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void take_chunks(uint32_t generation) {
    for (;;) {
        uint64_t seen = atomic_load(&pool.ticket);
        if ((uint32_t)(seen >> 32) != generation) return;
        int first = (int)(uint32_t)seen;
        /* count and grain belong to this generation as long as the exchange below succeeds */
        int count = pool.count, grain = pool.grain;
        if (first >= count) return;
        int last = first + grain < count ? first + grain : count;
        if (!atomic_compare_exchange_weak(&pool.ticket, &seen, ((uint64_t)generation << 32) | (uint32_t)last))
            continue;
        pool.job(pool.context, first, last);
        atomic_fetch_add(&pool.done, last - first);
    }
}

static void *helper(void *number) {
    const int own = (int)(intptr_t)number;
    int known = 0;
    for (;;) {
        int spins = 0;
        while (atomic_load(&pool.generation) == known) {
            if (++spins < 4000 && own < atomic_load(&pool.wanted)) { RELAX(); continue; }
            pthread_mutex_lock(&pool.lock);
            atomic_fetch_add(&pool.sleepers, 1);
            while (atomic_load(&pool.generation) == known) pthread_cond_wait(&pool.wake, &pool.lock);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.lock);
        }
        known = atomic_load(&pool.generation);
        if (own < atomic_load(&pool.wanted)) take_chunks((uint32_t)known);
    }
    return NULL;
}

/* Let `threads` threads work, the caller among them. */
void trivium_threads(int threads) {
    while (pool.helpers < threads - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, helper, (void *)(intptr_t)pool.helpers)) break;
        pthread_detach(thread);
        pool.helpers++;
    }
    atomic_store(&pool.wanted, threads - 1);
}

/* A child of fork() has no helpers. */
void trivium_forked(void) {
    pool.helpers = 0;
    atomic_store(&pool.wanted, 0);
    atomic_store(&pool.sleepers, 0);
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
}

static void parallel(Job job, void *context, int count, int grain) {
    /* One job at a time: a second thread of the program does its own alone. */
    if (atomic_load(&pool.wanted) == 0 || count <= grain || pthread_mutex_trylock(&pool.busy)) {
        job(context, 0, count);
        return;
    }
    uint32_t generation = (uint32_t)atomic_load(&pool.generation) + 1;
    /* Close the old ticket before its job is replaced, so that a late helper takes nothing. */
    atomic_store(&pool.ticket, ((uint64_t)generation << 32) | 0x7fffffffu);
    pool.job = job; pool.context = context; pool.count = count; pool.grain = grain;
    atomic_store(&pool.done, 0);
    atomic_store(&pool.ticket, (uint64_t)generation << 32);
    atomic_store(&pool.generation, (int)generation);
    if (atomic_load(&pool.sleepers)) {
        pthread_mutex_lock(&pool.lock);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.lock);
    }
    take_chunks(generation);
    for (int spins = 0; atomic_load(&pool.done) < count; spins++)
        if (spins < 2000) RELAX(); else sched_yield();
    pthread_mutex_unlock(&pool.busy);
}

/* ---- numbers ---------------------------------------------------------------------------------- */

static inline float from_half(uint16_t h) {
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = (h >> 10) & 31, f = h & 1023, bits;
    if (e == 31) bits = sign | 0x7f800000 | f << 13;
    else if (e) bits = sign | (e + 112) << 23 | f << 13;
    else { float v = ldexpf((float)f, -24); memcpy(&bits, &v, 4); bits |= sign; }
    float v; memcpy(&v, &bits, 4); return v;
#endif
}

static inline float from_bf16(uint16_t h) {
    uint32_t bits = (uint32_t)h << 16; float v; memcpy(&v, &bits, 4); return v;
}

static inline uint16_t to_bf16(float v) { /* to nearest, ties to even */
    uint32_t bits; memcpy(&bits, &v, 4);
    if (isnan(v)) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline uint16_t half_at(const uint8_t *p) { uint16_t h; memcpy(&h, p, 2); return h; }

static void quantise(const float *x, Act *out, int K) {
    for (int b = 0; b < K / 32; b++, x += 32) {
        float top = 0;
        for (int i = 0; i < 32; i++) { float a = fabsf(x[i]); top = a > top ? a : top; }
        float d = top / 127, inverse = top > 0 ? 127 / top : 0;
        int sum = 0;
        for (int i = 0; i < 32; i++) {
            int q = (int)nearbyintf(x[i] * inverse);
            out[b].q[i] = (int8_t)q; sum += q;
        }
        out[b].d = d; out[b].s = d * (float)sum;
    }
}

/* ---- one row of weights times one row of activations ------------------------------------------- */

#define INLINE static inline __attribute__((always_inline))

#if defined(__AVX2__)
static inline float sum8(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
/* Σ over groups of four of u·v, u unsigned, v signed: eight 32-bit sums */
static inline __m256i dot4(__m256i u, __m256i v) {
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(_mm256_setzero_si256(), u, v);
#else
    return _mm256_madd_epi16(_mm256_maddubs_epi16(u, v), _mm256_set1_epi16(1));
#endif
}
static inline __m256i nibbles(const uint8_t *p) {
    __m128i q = _mm_loadu_si128((const __m128i *)p), mask = _mm_set1_epi8(15);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_and_si128(q, mask)),
                                   _mm_and_si128(_mm_srli_epi16(q, 4), mask), 1);
}
static inline __m256i codes(const Act *x) { return _mm256_loadu_si256((const __m256i *)x->q); }
#define TOGETHER 4 /* rows of activations that share one reading of the weights */

/* M is a constant where this is called, so that the inner loops unroll. The sums of one row of
 * activations are made in the same order for every M. */
INLINE void dots_q4(const uint8_t *w, const Act *x, int blocks, int with_min, int M, float *y) {
    __m256 sums[TOGETHER];
    float rest[TOGETHER];
    const int size = with_min ? 20 : 18;
    for (int m = 0; m < M; m++) { sums[m] = _mm256_setzero_ps(); rest[m] = 0; }
    for (int b = 0; b < blocks; b++, w += size) {
        const __m256i q = nibbles(w + size - 16);
        const float d = from_half(half_at(w)), low = with_min ? from_half(half_at(w + 2)) : -8 * d;
        for (int m = 0; m < M; m++) {
            const Act *a = x + m * blocks + b;
            sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dot4(q, codes(a))), _mm256_set1_ps(d * a->d), sums[m]);
            rest[m] += low * a->s;
        }
    }
    for (int m = 0; m < M; m++) y[m] = sum8(sums[m]) + rest[m];
}
INLINE void dots_q8_0(const uint8_t *w, const Act *x, int blocks, int M, float *y) {
    __m256 sums[TOGETHER];
    for (int m = 0; m < M; m++) sums[m] = _mm256_setzero_ps();
    for (int b = 0; b < blocks; b++, w += 34) {
        const __m256i q = _mm256_loadu_si256((const __m256i *)(w + 2)), size = _mm256_abs_epi8(q);
        const float d = from_half(half_at(w));
        for (int m = 0; m < M; m++) {
            const Act *a = x + m * blocks + b;
            const __m256i part = dot4(size, _mm256_sign_epi8(codes(a), q));
            sums[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), _mm256_set1_ps(d * a->d), sums[m]);
        }
    }
    for (int m = 0; m < M; m++) y[m] = sum8(sums[m]);
}
#else
#define TOGETHER 1
INLINE void dots_q4(const uint8_t *w, const Act *x, int blocks, int with_min, int M, float *y) {
    (void)M;
    *y = 0;
    for (int b = 0; b < blocks; b++) {
        float d = from_half(half_at(w)), m = with_min ? from_half(half_at(w + 2)) : -8 * d;
        const uint8_t *q = w + (with_min ? 4 : 2);
        int sum = 0;
        for (int i = 0; i < 16; i++) sum += (q[i] & 15) * x[b].q[i] + (q[i] >> 4) * x[b].q[i + 16];
        *y += d * x[b].d * (float)sum + m * x[b].s;
        w = q + 16;
    }
}
INLINE void dots_q8_0(const uint8_t *w, const Act *x, int blocks, int M, float *y) {
    (void)M;
    *y = 0;
    for (int b = 0; b < blocks; b++, w += 34) {
        int sum = 0;
        for (int i = 0; i < 32; i++) sum += ((const int8_t *)(w + 2))[i] * x[b].q[i];
        *y += from_half(half_at(w)) * x[b].d * (float)sum;
    }
}
#endif

/* y (M): a row of weights times M rows of activations */
INLINE void dots(const Matrix *m, int row, const Act *x, int M, float *y) {
    const uint8_t *w = (const uint8_t *)m->data + (size_t)row * (size_t)m->row_bytes;
    const int blocks = m->cols / 32;
    if (m->type == Q4_1) dots_q4(w, x, blocks, 1, M, y);
    else if (m->type == Q4_0) dots_q4(w, x, blocks, 0, M, y);
    else dots_q8_0(w, x, blocks, M, y);
    if (m->bias) for (int i = 0; i < M; i++) y[i] += m->bias[row];
}

typedef struct { const Matrix *m; const Act *x; float *y; int B; } Product;

static void product_rows(void *context, int first, int last) {
    Product *p = context;
    const size_t blocks = (size_t)p->m->cols / 32, rows = (size_t)p->m->rows;
    for (int row = first; row < last; row++) {
        float y[TOGETHER];
        int b = 0;
        for (; b + TOGETHER <= p->B; b += TOGETHER) {
            dots(p->m, row, p->x + (size_t)b * blocks, TOGETHER, y);
            for (int i = 0; i < TOGETHER; i++) p->y[(size_t)(b + i) * rows + (size_t)row] = y[i];
        }
        for (; b < p->B; b++) dots(p->m, row, p->x + (size_t)b * blocks, 1, p->y + (size_t)b * rows + (size_t)row);
    }
}

static void product(const Matrix *m, const Act *x, float *y, int B) {
    Product p = {m, x, y, B};
    int grain = 16384 / (m->cols * B) + 1;
    parallel(product_rows, &p, m->rows, grain < 8 ? 8 : grain);
}

/* y (B, N) = x (B, K) Wᵀ + bias; `scratch` holds B·K/32 blocks */
void trivium_matmul(const Matrix *m, const float *x, float *y, int B, Act *scratch) {
    for (int b = 0; b < B; b++)
        quantise(x + (size_t)b * (size_t)m->cols, scratch + (size_t)b * (size_t)(m->cols / 32), m->cols);
    product(m, scratch, y, B);
}

/* ---- weights as numbers ------------------------------------------------------------------------ */

static void row_to_float(const Matrix *m, int row, float *y) {
    const uint8_t *w = (const uint8_t *)m->data + (size_t)row * (size_t)m->row_bytes;
    for (int b = 0; b < m->cols / 32; b++, y += 32) {
        float d = from_half(half_at(w));
        if (m->type == Q8_0) {
            for (int i = 0; i < 32; i++) y[i] = d * (float)((const int8_t *)(w + 2))[i];
            w += 34;
            continue;
        }
        float low = m->type == Q4_1 ? from_half(half_at(w + 2)) : -8 * d;
        w += m->type == Q4_1 ? 4 : 2;
        for (int i = 0; i < 16; i++) {
            y[i] = d * (float)(w[i] & 15) + low;
            y[i + 16] = d * (float)(w[i] >> 4) + low;
        }
        w += 16;
    }
}

typedef struct { const Matrix *m; uint16_t *y; } Widened;

static void widen_rows(void *context, int first, int last) {
    Widened *p = context;
    int K = p->m->cols;
    float *line = malloc((size_t)K * sizeof(float));
    for (int row = first; row < last; row++) {
        row_to_float(p->m, row, line);
        uint16_t *y = p->y + (size_t)row * (size_t)K;
        for (int i = 0; i < K; i++) y[i] = to_bf16(line[i]);
    }
    free(line);
}

/* The weights (N, K) in bfloat16 */
void trivium_to_bf16(const Matrix *m, uint16_t *y) {
    Widened p = {m, y};
    parallel(widen_rows, &p, m->rows, 64);
}

/* Some rows of the weights in float32, as an embedding reads them */
void trivium_rows(const Matrix *m, const int64_t *index, int count, float *y) {
    for (int i = 0; i < count; i++) row_to_float(m, (int)index[i], y + (size_t)i * (size_t)m->cols);
}

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
