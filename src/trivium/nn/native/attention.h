/* Attention of new tokens over a cache in half precision, softmax(q·K·scale)·V, with the softmax taken
 * tile by tile (Milakov & Gimelshein 2018; FlashAttention: Dao et al. 2022).
 *
 * A unit of work is some neighbouring tokens of one sequence and one group of heads: they share the
 * tiles of keys and values, widened once. Every head of every token goes through its tiles in the same
 * order and with the same sums whoever shares them: read one by one or together, the same bits.
 */

enum { KEYS = 32, QUERIES = 32, WIDEST = 256, STEP = 4 }; /* STEP: queries side by side */

/* Of one sequence and layer: keys and values (groups, capacity, head_dim) */
typedef struct { uint16_t *k, *v; int64_t capacity; } Cache;

typedef struct { int32_t first, count, sequence; } Span; /* neighbouring rows of one sequence */

typedef struct {
    const float *qkv; /* (rows, heads + 2·groups, D), turned */
    float *y; /* (rows, heads, D) */
    const Cache *cache; /* of this layer, by sequence */
    const int32_t *position; /* by row */
    const Span *span;
    int heads, groups, D, window; /* window 0: everything */
    float scale;
} Attention;

typedef struct {
    float k[WIDEST][KEYS], v[KEYS * WIDEST]; /* a tile of keys (D, KEYS) and of values (KEYS, D) */
    float q[QUERIES * WIDEST], y[QUERIES * WIDEST]; /* (queries, D) */
    float p[QUERIES][KEYS];
    float top[QUERIES], total[QUERIES];
} Work;

#if defined(__AVX512F__)
/* Four bytes of each of 16 rows → 16 columns of 16 */
INLINE void transpose(__m512i *r) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}
#endif

/* Keys (count, D) → k (D, KEYS), filled up with zeros */
static void widen_keys(Work *w, const uint16_t *k, int count, int D) {
    int i = 0;
    if (count < KEYS) for (int c = 0; c < D; c++) memset(w->k[c], 0, sizeof w->k[c]);
#if defined(__AVX512F__)
    for (; i + 16 <= D; i += 16)
        for (int s = 0; s < count; s += 16) {
            __m512i rows[16];
            for (int r = 0; r < 16; r++)
                rows[r] = s + r < count ? (__m512i)from_halves(k + (size_t)(s + r) * (size_t)D + i) : _mm512_setzero_si512();
            transpose(rows);
            for (int c = 0; c < 16; c++) _mm512_storeu_si512(&w->k[i + c][s], rows[c]);
        }
#endif
    for (; i < D; i++)
        for (int s = 0; s < count; s++) w->k[i][s] = from_half(k[(size_t)s * (size_t)D + (size_t)i]);
}

static void widen_values(Work *w, const uint16_t *v, int count, int D) {
    for (int s = 0; s < KEYS; s++)
        for (int i = 0; i < D; i += V)
            store(w->v + s * D + i, s < count ? from_halves(v + (size_t)s * (size_t)D + (size_t)i) : (Floats){0});
}

/* p ← q·K of `n` queries */
INLINE void scores(Work *w, int q, int n, int D) {
    Floats a[STEP], b[STEP];
    for (int j = 0; j < n; j++) a[j] = b[j] = (Floats){0};
    for (int i = 0; i < D; i++) {
        const Floats low = load(w->k[i]), high = load(w->k[i] + V);
        for (int j = 0; j < n; j++) {
            const Floats x = all(w->q[(q + j) * D + i]);
            a[j] = multiply_add(x, low, a[j]);
            b[j] = multiply_add(x, high, b[j]);
        }
    }
    for (int j = 0; j < n; j++) { store(w->p[q + j], a[j]); store(w->p[q + j] + V, b[j]); }
}

/* y ← y + p·V of `n` queries, `wide` vectors from channel `i` on */
INLINE void values(Work *w, int q, int n, int D, int i, int wide) {
    Floats y[STEP][4];
    for (int j = 0; j < n; j++)
        for (int c = 0; c < wide; c++) y[j][c] = load(w->y + (q + j) * D + i + c * V);
    for (int s = 0; s < KEYS; s++)
        for (int c = 0; c < wide; c++) {
            const Floats v = load(w->v + s * D + i + c * V);
            for (int j = 0; j < n; j++) y[j][c] = multiply_add(all(w->p[q + j][s]), v, y[j][c]);
        }
    for (int j = 0; j < n; j++)
        for (int c = 0; c < wide; c++) store(w->y + (q + j) * D + i + c * V, y[j][c]);
}

/* Scores → e^(score − top), with what came before scaled to the new top. Query `q` sees the keys
 * from `first` up to, not including, `last` of this tile. */
static void soften(Work *w, int q, int first, int last, int D) {
    float *p = w->p[q];
    const Floats never = all(-INFINITY);
    const Ints index = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, next = index + V;
    Floats low = load(p), high = load(p + V);
    const Ints seen = (index >= first) & (index < last), beyond = (next >= first) & (next < last);
    low = (Floats)(((Ints)low & seen) | ((Ints)never & ~seen));
    high = (Floats)(((Ints)high & beyond) | ((Ints)never & ~beyond));
    const float before = w->top[q], here = largest(larger(low, high)), top = here > before ? here : before;
    low = exponential(low - top);
    high = exponential(high - top);
    store(p, low); store(p + V, high);
    if (top > before) {
        const float shrink = before == -INFINITY ? 0 : exponential(all(before - top))[0];
        w->total[q] *= shrink;
        for (int i = q * D; i < q * D + D; i += V) store(w->y + i, load(w->y + i) * shrink);
    }
    w->top[q] = top;
    w->total[q] += sum(low + high);
}

INLINE void attend_some(Work *w, int q, int n, int D, const int *first, const int *last) {
    scores(w, q, n, D);
    for (int j = 0; j < n; j++) soften(w, q + j, first[q + j], last[q + j], D);
    int i = 0;
    for (; i + 4 * V <= D; i += 4 * V) values(w, q, n, D, i, 4);
    for (; i < D; i += V) values(w, q, n, D, i, 1);
}

static void attend(const Attention *a, int unit) {
    Work work, *w = &work;
    const Span span = a->span[unit / a->groups];
    const int group = unit % a->groups, share = a->heads / a->groups, D = a->D, queries = span.count * share;
    const Cache *cache = a->cache + span.sequence;
    const size_t at = (size_t)group * (size_t)cache->capacity * (size_t)D;
    const int row = a->heads + 2 * a->groups, end = a->position[span.first + span.count - 1] + 1;
    int start[QUERIES], seen[QUERIES], first[QUERIES], last[QUERIES];
    for (int q = 0; q < queries; q++) {
        const int r = span.first + q / share, head = group * share + q % share;
        const float *from = a->qkv + ((size_t)r * (size_t)row + (size_t)head) * (size_t)D;
        for (int i = 0; i < D; i++) { w->q[q * D + i] = from[i] * a->scale; w->y[q * D + i] = 0; }
        w->top[q] = -INFINITY; w->total[q] = 0;
        seen[q] = a->position[r] + 1;
        start[q] = a->window && seen[q] > a->window ? seen[q] - a->window : 0;
    }
    for (int s = start[0] / KEYS * KEYS; s < end; s += KEYS) {
        const int count = end - s < KEYS ? end - s : KEYS;
        widen_keys(w, cache->k + at + (size_t)s * (size_t)D, count, D);
        widen_values(w, cache->v + at + (size_t)s * (size_t)D, count, D);
        for (int q = 0; q < queries; q++) { first[q] = start[q] - s; last[q] = seen[q] - s; }
        int q = 0;
        for (; q + STEP <= queries; q += STEP) attend_some(w, q, STEP, D, first, last);
        if (queries - q == 3) attend_some(w, q, 3, D, first, last);
        else for (; q < queries; q++) attend_some(w, q, 1, D, first, last);
    }
    for (int q = 0; q < queries; q++) {
        const int r = span.first + q / share, head = group * share + q % share;
        float *y = a->y + ((size_t)r * (size_t)a->heads + (size_t)head) * (size_t)D;
        for (int i = 0; i < D; i++) y[i] = w->y[q * D + i] / w->total[q];
    }
}

static void attend_units(void *context, int first, int last) {
    for (int unit = first; unit < last; unit++) attend(context, unit);
}
