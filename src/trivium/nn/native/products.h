/* Numbers in blocks, and products with them. */
enum { F32 = 0, F16 = 1, Q4_0 = 2, Q4_1 = 3, Q8_0 = 8, BF16 = 30 };

typedef struct { float d, s; int8_t q[32]; } Act;  /* x ≈ d·q, s = d·Σq */

typedef struct {
    const void *data;
    const float *bias; /* or NULL */
    int32_t type, rows, cols, row_bytes;
} Matrix;

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
