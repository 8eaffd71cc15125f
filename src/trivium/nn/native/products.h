/* Products with weights in blocks.
 *
 * A block is 32 weights of a row: w = d·q (Q8_0), d·(q − 8) (Q4_0) or d·q + m (Q4_1). Blocks of LANES
 * rows stand together as a panel, four codes of each row in turn, so that one instruction multiplies
 * four columns of all of them with the same four activations:
 *
 *     d of each row | m of each row (Q4_1) | codes 0-3 (with 16-19 in the high nibbles) of each row | …
 *
 * With one lane that is the layout of a GGUF file. Activations are rounded to 8 bits by blocks of 32
 * with a scale of their own; where that costs too much precision ("fine"), what the rounding left is
 * rounded too, and multiplied as well: 16 bits in all. Every row of the result is summed in the same
 * order whatever the number of rows: alone or in a batch, the same bits.
 */
enum { Q4_0 = 2, Q4_1 = 3, Q8_0 = 8 };

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && defined(__AVX512F__)
#define LANES 16
#define TILE 8 /* rows of activations that share one reading of the weights */
#else
#define LANES 8
#define TILE 4
#endif

typedef struct { float d, s; int32_t n, unused; int8_t q[32]; } Act; /* x ≈ d·q, n = −8·Σq, s = d·Σq */

typedef struct {
    const uint8_t *data; /* panels, the last one filled up with zeros */
    const float *bias; /* or NULL */
    int32_t type, rows, cols; /* cols: a multiple of 32 */
    int32_t parts; /* of the activations: 1, or 2 for fine ones */
} Matrix;

static inline int block_bytes(int type) { return type == Q8_0 ? 34 : type == Q4_1 ? 20 : 18; }
static inline int head_bytes(int type) { return type == Q4_1 ? 4 : 2; }
static inline int panels(const Matrix *m) { return (m->rows + LANES - 1) / LANES; }
static inline const uint8_t *panel(const Matrix *m, int i) {
    return m->data + (size_t)i * (size_t)(m->cols / 32) * (size_t)(LANES * block_bytes(m->type));
}

/* ---- activations ------------------------------------------------------------------------------- */

static inline void quantise_block(const float *x, Act *out) {
#if defined(__AVX512F__) && defined(__AVX512BW__)
    const __m512 low = _mm512_loadu_ps(x), high = _mm512_loadu_ps(x + 16);
    const float top = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(low), _mm512_abs_ps(high)));
    const __m512 inverse = _mm512_set1_ps(top > 0 ? 127 / top : 0);
    const __m512i a = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
    const __m512i c = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
    _mm_storeu_si128((__m128i *)out->q, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i *)(out->q + 16), _mm512_cvtepi32_epi8(c));
    const int n = _mm512_reduce_add_epi32(_mm512_add_epi32(a, c));
#else
    float top = 0;
    int n = 0;
#pragma omp simd reduction(max : top)
    for (int i = 0; i < 32; i++) { float size = fabsf(x[i]); top = size > top ? size : top; }
    const float inverse = top > 0 ? 127 / top : 0;
#pragma omp simd reduction(+ : n)
    for (int i = 0; i < 32; i++) {
        int q = (int)nearbyintf(x[i] * inverse);
        out->q[i] = (int8_t)q; n += q;
    }
#endif
    out->d = top / 127; out->s = out->d * (float)n; out->n = -8 * n;
}

/* x (K) → out (parts, K / 32) */
static void quantise(const float *x, Act *out, int K, int parts) {
    const int blocks = K / 32;
    for (int b = 0; b < blocks; b++) {
        quantise_block(x + 32 * b, out + b);
        if (parts == 1) continue;
        float rest[32];
        for (int i = 0; i < 32; i++) rest[i] = x[32 * b + i] - out[b].d * (float)out[b].q[i];
        quantise_block(rest, out + blocks + b);
    }
}

/* ---- one panel times some rows of activations --------------------------------------------------
 * x (M, parts, blocks). `type` and M are constants wherever these are called: the loops unroll. */

#if LANES == 16
typedef __m512 Lane;
#define FROM_HALVES(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(p)))

INLINE void times_panel(const uint8_t *w, int type, const Act *x, int blocks, int parts, int M, Lane *y) {
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) y[m] = _mm512_setzero_ps();
    for (int b = 0; b < blocks; b++, w += LANES * block_bytes(type)) {
        const __m512 d = FROM_HALVES(w);
        const __m512i *at = (const __m512i *)(w + LANES * head_bytes(type));
        __m512i q[8]; /* codes without sign */
        if (type == Q8_0) {
            for (int j = 0; j < 8; j++) q[j] = _mm512_xor_si512(_mm512_loadu_si512(at + j), _mm512_set1_epi8(-128));
        } else {
            const __m512i mask = _mm512_set1_epi8(15);
            for (int j = 0; j < 4; j++) {
                const __m512i both = _mm512_loadu_si512(at + j);
                q[j] = _mm512_and_si512(both, mask);
                q[j + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
            }
        }
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) for (int part = 0; part < parts; part++) {
            const Act *a = x + (m * parts + part) * blocks + b;
            __m512i total = type == Q4_1 ? _mm512_setzero_si512() : _mm512_set1_epi32(a->n);
            if (type == Q8_0) total = _mm512_slli_epi32(total, 4);
            for (int j = 0; j < 8; j++) {
                int32_t four; memcpy(&four, a->q + 4 * j, 4);
                total = _mm512_dpbusd_epi32(total, q[j], _mm512_set1_epi32(four));
            }
            const __m512 size = _mm512_mul_ps(d, _mm512_set1_ps(a->d));
            y[m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(total), size, y[m]);
            if (type == Q4_1) y[m] = _mm512_fmadd_ps(FROM_HALVES(w + 2 * LANES), _mm512_set1_ps(a->s), y[m]);
        }
    }
}
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
typedef __m256 Lane;
#define FROM_HALVES(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p)))

INLINE void times_panel(const uint8_t *w, int type, const Act *x, int blocks, int parts, int M, Lane *y) {
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) y[m] = _mm256_setzero_ps();
    for (int b = 0; b < blocks; b++, w += LANES * block_bytes(type)) {
        const __m256 d = FROM_HALVES(w);
        const __m256i *at = (const __m256i *)(w + LANES * head_bytes(type));
        const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) for (int part = 0; part < parts; part++) {
            const Act *a = x + (m * parts + part) * blocks + b;
            __m256i total = _mm256_set1_epi32(type == Q4_0 ? a->n : 0);
            for (int j = 0; j < 8; j++) {
                int32_t four; memcpy(&four, a->q + 4 * j, 4);
                const __m256i v = _mm256_set1_epi32(four);
                __m256i pairs; /* a sum of two products must fit 16 bits: the first factor ≤ 127 */
                if (type == Q8_0) {
                    pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(v), _mm256_sign_epi8(_mm256_loadu_si256(at + j), v));
                } else {
                    __m256i both = _mm256_loadu_si256(at + (j & 3));
                    pairs = _mm256_maddubs_epi16(_mm256_and_si256(j < 4 ? both : _mm256_srli_epi16(both, 4), mask), v);
                }
                total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, ones));
            }
            const __m256 size = _mm256_mul_ps(d, _mm256_set1_ps(a->d));
            y[m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total), size, y[m]);
            if (type == Q4_1) y[m] = _mm256_fmadd_ps(FROM_HALVES(w + 2 * LANES), _mm256_set1_ps(a->s), y[m]);
        }
    }
}
#else
typedef struct { float of[LANES]; } Lane;

INLINE void times_panel(const uint8_t *w, int type, const Act *x, int blocks, int parts, int M, Lane *y) {
    memset(y, 0, (size_t)M * sizeof(Lane));
    for (int b = 0; b < blocks; b++, w += LANES * block_bytes(type)) {
        const uint8_t *at = w + LANES * head_bytes(type);
#pragma GCC unroll 16
        for (int m = 0; m < M; m++) for (int part = 0; part < parts; part++) {
            const Act *a = x + (m * parts + part) * blocks + b;
            for (int r = 0; r < LANES; r++) {
                int total = type == Q4_0 ? a->n : 0;
                for (int i = 0; i < 32; i++) {
                    const int j = type == Q8_0 ? i / 4 : i / 4 & 3;
                    const uint8_t code = at[(j * LANES + r) * 4 + i % 4];
                    total += (type == Q8_0 ? (int8_t)code : i < 16 ? code & 15 : code >> 4) * a->q[i];
                }
                y[m].of[r] += (float)total * (from_half(half_at(w + 2 * r)) * a->d);
                if (type == Q4_1) y[m].of[r] += from_half(half_at(w + 2 * (LANES + r))) * a->s;
            }
        }
    }
}
#endif

/* y (M rows, `stride` floats apart) of one panel, whose first row of weights is `first` */
INLINE void tile(const Matrix *w, int first, const uint8_t *data, int type, const Act *x, int M, float *y, int stride) {
    Lane lanes[TILE];
    times_panel(data, type, x, w->cols / 32, w->parts, M, lanes);
    const int count = w->rows - first < LANES ? w->rows - first : LANES;
#pragma GCC unroll 16
    for (int m = 0; m < M; m++) {
        float *out = y + (size_t)m * (size_t)stride + first;
        const float *from = (const float *)(lanes + m);
        if (w->bias) for (int i = 0; i < count; i++) out[i] = from[i] + w->bias[first + i];
        else memcpy(out, from, (size_t)count * sizeof(float));
    }
}

INLINE void tiles(const Matrix *w, int i, int type, const Act *x, int B, float *y) {
    const uint8_t *data = panel(w, i);
    const int blocks = w->cols / 32 * w->parts;
    int b = 0;
#define ROWS(M) for (; b + (M) <= B; b += (M)) \
        tile(w, i * LANES, data, type, x + (size_t)b * (size_t)blocks, M, y + (size_t)b * (size_t)w->rows, w->rows)
    ROWS(TILE);
#if TILE > 4
    ROWS(4);
#endif
    ROWS(2); ROWS(1);
#undef ROWS
}

enum { NEAR = 128 }; /* rows of activations that stay in the cache while the panels pass */
typedef struct { const Matrix *m; const Act *x; float *y; int B; } Product;

static void product_panels(void *context, int first, int last) {
    const Product *p = context;
    const size_t blocks = (size_t)p->m->cols / 32 * (size_t)p->m->parts, rows = (size_t)p->m->rows;
    for (int b = 0; b < p->B; b += NEAR) {
        const Act *x = p->x + (size_t)b * blocks;
        float *y = p->y + (size_t)b * rows;
        const int B = p->B - b < NEAR ? p->B - b : NEAR;
        for (int i = first; i < last; i++) {
            if (p->m->type == Q4_1) tiles(p->m, i, Q4_1, x, B, y);
            else if (p->m->type == Q4_0) tiles(p->m, i, Q4_0, x, B, y);
            else tiles(p->m, i, Q8_0, x, B, y);
        }
    }
}

/* y (B, N) = x Wᵀ + bias, of x (B, parts, K / 32) in blocks */
static void product(const Matrix *m, const Act *x, float *y, int B) {
    Product p = {m, x, y, B};
    int grain = 32768 / (m->cols * B) + 1;
    parallel(product_panels, &p, panels(m), grain < 2 ? 2 : grain);
}

typedef struct { const float *x; Act *out; int K, parts; } Rounding;

static void quantise_rows(void *context, int first, int last) {
    const Rounding *r = context;
    for (int b = first; b < last; b++)
        quantise(r->x + (size_t)b * (size_t)r->K, r->out + (size_t)b * (size_t)(r->K / 32 * r->parts), r->K, r->parts);
}

/* y (B, N) = x (B, K) Wᵀ + bias; `scratch` holds B·parts·K/32 blocks */
void trivium_matmul(const Matrix *m, const float *x, float *y, int B, Act *scratch) {
    Rounding r = {x, scratch, m->cols, m->parts};
    parallel(quantise_rows, &r, B, 8);
    product(m, scratch, y, B);
}

/* ---- between files, panels and numbers ---------------------------------------------------------- */

int trivium_lanes(void) { return LANES; }

typedef struct { const uint8_t *from; uint8_t *to; int type, rows, blocks; } Arranging;

static void arrange(void *context, int first, int last) {
    const Arranging *a = context;
    const int size = block_bytes(a->type), head = head_bytes(a->type);
    for (int i = first; i < last; i++) {
        uint8_t *to = a->to + (size_t)i * (size_t)a->blocks * (size_t)(LANES * size);
        for (int r = 0; r < LANES; r++) {
            const int row = i * LANES + r;
            const uint8_t *from = a->from + (size_t)row * (size_t)(a->blocks * size);
            for (int b = 0; b < a->blocks; b++) {
                uint8_t *block = to + (size_t)b * (size_t)(LANES * size);
                for (int h = 0; h < head; h += 2) {
                    if (row < a->rows) memcpy(block + h * LANES + 2 * r, from + b * size + h, 2);
                    else memset(block + h * LANES + 2 * r, 0, 2);
                }
                for (int j = 0; j < (size - head) / 4; j++) {
                    uint8_t *four = block + head * LANES + (j * LANES + r) * 4;
                    if (row < a->rows) memcpy(four, from + b * size + head + 4 * j, 4);
                    else memset(four, 0, 4);
                }
            }
        }
    }
}

/* Blocks in the order of a file (rows, cols/32) → panels */
void trivium_panels(const uint8_t *from, uint8_t *to, int type, int rows, int cols) {
    Arranging a = {from, to, type, rows, cols / 32};
    parallel(arrange, &a, (rows + LANES - 1) / LANES, 16);
}

/* Some rows of the weights (count, K) as numbers, as an embedding reads them */
void trivium_rows(const Matrix *m, const int64_t *index, int count, float *y) {
    const int size = block_bytes(m->type), head = head_bytes(m->type);
    for (int k = 0; k < count; k++) {
        const int r = (int)(index[k] % LANES);
        const uint8_t *w = panel(m, (int)(index[k] / LANES));
        for (int b = 0; b < m->cols / 32; b++, w += LANES * size, y += 32) {
            const float d = from_half(half_at(w + 2 * r));
            const float low = m->type == Q4_1 ? from_half(half_at(w + 2 * (LANES + r))) : m->type == Q4_0 ? -8 * d : 0;
            const uint8_t *codes = w + LANES * head + 4 * r;
            for (int i = 0; i < 32; i++) {
                const uint8_t code = codes[(m->type == Q8_0 ? i / 4 : i / 4 & 3) * 4 * LANES + i % 4];
                const int q = m->type == Q8_0 ? (int8_t)code : i < 16 ? code & 15 : code >> 4;
                y[i] = d * (float)q + low;
            }
        }
    }
}
