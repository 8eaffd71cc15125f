/* Numbers: half precision, vectors of sixteen, and the functions that are taken of them. */

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

static inline uint16_t to_half(float v) { /* to nearest, ties to even */
#if defined(__F16C__)
    return _cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT);
#else
    uint32_t bits; memcpy(&bits, &v, 4);
    uint32_t sign = (bits >> 16) & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return (uint16_t)(sign | 0x7e00);
    if (size >= 0x477ff000) return (uint16_t)(sign | 0x7c00); /* rounds to 65536 or more */
    if (size < 0x38800000) { /* subnormal: a multiple of 2^-24 */
        float small; memcpy(&small, &size, 4);
        return (uint16_t)(sign | (uint32_t)nearbyintf(small * 16777216.0f));
    }
    return (uint16_t)(sign | ((size - 0x38000000 + 0xfff + ((size >> 13) & 1)) >> 13));
#endif
}

static inline uint16_t half_at(const uint8_t *p) { uint16_t h; memcpy(&h, p, 2); return h; }

/* ---- sixteen at once; the compiler cuts them to what the processor has ------------------------- */

#define INLINE static inline __attribute__((always_inline))
#define V 16
typedef float Floats __attribute__((vector_size(64), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(64), aligned(4), may_alias));

INLINE Floats load(const float *p) { return *(const Floats *)p; }
INLINE void store(float *p, Floats v) { *(Floats *)p = v; }
INLINE Floats all(float v) { return v - (Floats){0}; }

INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__) || defined(__aarch64__)
    Floats y;
    for (int i = 0; i < V; i++) y[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return y;
#else
    return a * b + c;
#endif
}

INLINE Floats larger(Floats a, Floats b) {
    Ints more = a > b;
    return (Floats)(((Ints)a & more) | ((Ints)b & ~more));
}

INLINE Floats smaller(Floats a, Floats b) { return -larger(-a, -b); }

INLINE Floats from_halves(const uint16_t *p) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#else
    Floats y;
    for (int i = 0; i < V; i++) y[i] = from_half(p[i]);
    return y;
#endif
}

INLINE float sum(Floats v) {
    for (int step = V / 2; step; step /= 2)
        for (int i = 0; i < step; i++) v[i] += v[i + step];
    return v[0];
}

INLINE float largest(Floats v) {
    float top = v[0];
    for (int i = 1; i < V; i++) top = v[i] > top ? v[i] : top;
    return top;
}

/* e^x to 2 units in the last place; 0 below -87, e^88 above 88 */
INLINE Floats exponential(Floats x) {
    const Floats low = all(-87), bounded = smaller(larger(x, low), all(88));
    const Ints kept = x > low;
    const Floats magic = all(12582912); /* 1.5·2^23: adding it rounds to an integer */
    const Floats shifted = bounded * 1.44269504f + magic, n = shifted - magic;
    Floats r = multiply_add(n, all(-0.693359375f), bounded);
    r = multiply_add(n, all(2.12194440e-4f), r);
    Floats y = all(1.9875691500e-4f);
    y = multiply_add(y, r, all(1.3981999507e-3f));
    y = multiply_add(y, r, all(8.3334519073e-3f));
    y = multiply_add(y, r, all(4.1665795894e-2f));
    y = multiply_add(y, r, all(1.6666665459e-1f));
    y = multiply_add(y, r, all(5.0000001201e-1f));
    y = multiply_add(y * r, r, r) + 1.0f;
    const Ints power = ((Ints)shifted << 23) + (Ints)y; /* the low bits of `shifted` hold n */
    return (Floats)(power & kept);
}
