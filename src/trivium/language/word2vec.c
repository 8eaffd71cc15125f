/* Skip-gram and CBOW with negative sampling: what one thread does with its share of a text.
 *
 * Threads write the same rows without locks (Hogwild: Recht et al. 2011). All context words of a
 * position share its negative samples (Ji et al. 2016): the scores of a position are then a small
 * matrix product, whose rows stay in the first cache, and every pair has as many negatives as if
 * each drew its own. trivium/language/negative_sampling.py has the same step written out. */
#include <math.h>
#include <stdint.h>

#define LONGEST 4096 /* words of a text that are looked at together */
#define MOST 64      /* context words of a position, or targets */
#define LANES 16

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

struct Tables {
    float *in, *out;          /* (V, stride): vectors of words, and of words as targets */
    const uint32_t *keep;     /* (V,) of 2^32: how often an occurrence is kept */
    const uint32_t *chance;   /* (V,) of 2^32, and */
    const int32_t *alias;     /* (V,): Walker's table of the noise */
    int32_t words, stride, window, negative, cbow;
};

static inline uint32_t draw(uint64_t *state) {
    *state = *state * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(*state >> 32);
}

static inline uint32_t below(uint64_t *state, uint32_t limit) {
    return (uint32_t)(((uint64_t)draw(state) * limit) >> 32);
}

static inline int32_t noise(const struct Tables *t, uint64_t *state) {
    int32_t word = (int32_t)below(state, (uint32_t)t->words);
    return draw(state) < t->chance[word] ? word : t->alias[word];
}

static inline float sum(Lanes x) {
    float total = 0;
    for (int i = 0; i < LANES; i++) total += x[i];
    return total;
}

/* e^x to about 2e-7, for |x| below 80 */
static inline float power(float x) {
    x = x > 80 ? 80 : x < -80 ? -80 : x;
    float n = __builtin_floorf(x * 1.44269504f + 0.5f);
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f; p = p * r + 8.3334519073e-3f; p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f; p = p * r + 5.0000001201e-1f;
    union { int32_t i; float f; } scale = {((int32_t)n + 127) << 23};
    return (p * r * r + r + 1) * scale.f;
}

/* Scores become rate · (label − σ(score)); the label is 1 for the first of `targets`, else 0. */
static void errors(float *scores, int rows, int targets, float rate) {
    for (int j = 0; j < rows * targets; j++) scores[j] = -rate / (1 + power(-scores[j]));
    for (int j = 0; j < rows; j++) scores[j * targets] += rate;
}

static double loss_of(const float *scores, int rows, int targets) {
    double total = 0;
    for (int j = 0; j < rows; j++)
        for (int k = 0; k < targets; k++) {
            float x = k ? -scores[j * targets + k] : scores[j * targets + k];
            total += x > -30 ? log1pf(expf(-x)) : -x;
        }
    return total / rows;
}

/* scores (rows, targets) = x · yᵀ */
static inline __attribute__((always_inline)) void
product(float **x, float **y, float *scores, int rows, int targets, int stride) {
    for (int j = 0; j < rows; j++) {
        Lanes total[MOST];
        for (int k = 0; k < targets; k++) total[k] = (Lanes){0};
        for (int d = 0; d < stride; d += LANES) {
            Lanes a = *(Lanes *)(x[j] + d);
            for (int k = 0; k < targets; k++) total[k] += a * *(Lanes *)(y[k] + d);
        }
        for (int k = 0; k < targets; k++) scores[j * targets + k] = sum(total[k]);
    }
}

/* x += e · y and y += eᵀ · x, both with what the other was before */
static inline __attribute__((always_inline)) void
update(float **x, float **y, const float *e, int rows, int targets, int stride) {
    for (int d = 0; d < stride; d += LANES) {
        Lanes old[MOST], total[MOST];
        for (int k = 0; k < targets; k++) { old[k] = *(Lanes *)(y[k] + d); total[k] = (Lanes){0}; }
        for (int j = 0; j < rows; j++) {
            Lanes a = *(Lanes *)(x[j] + d), b = a;
            for (int k = 0; k < targets; k++) {
                b += e[j * targets + k] * old[k];
                total[k] += e[j * targets + k] * a;
            }
            *(Lanes *)(x[j] + d) = b;
        }
        for (int k = 0; k < targets; k++) *(Lanes *)(y[k] + d) += total[k];
    }
}

static inline __attribute__((always_inline)) double
step(float **x, float **y, int rows, int targets, int stride, float rate, int judged) {
    float scores[MOST * MOST];
    product(x, y, scores, rows, targets, stride);
    double loss = judged ? loss_of(scores, rows, targets) : 0;
    errors(scores, rows, targets, rate);
    update(x, y, scores, rows, targets, stride);
    return loss;
}

static double position(float **x, float **y, int rows, int targets, int stride, float rate, int judged) {
    if (targets == 6) return step(x, y, rows, 6, stride, rate, judged); /* kept in registers */
    return step(x, y, rows, targets, stride, rate, judged);
}

/* The words that follow each other in ids (n,), -1 where a text ends. The rate falls from `rate` to
 * `last`. `found`: positions, the sum of losses, and over how many positions. Returns 0. */
int trivium_word2vec(const struct Tables *t, const int32_t *ids, int64_t n, float rate, float last,
                     uint64_t *state, double *found) {
    const int stride = t->stride, targets = t->negative + 1;
    float *x[MOST], *y[MOST], mean[stride], before[stride];
    int32_t text[LONGEST];
    for (int64_t at = 0; at < n;) {
        float now = rate + (last - rate) * (float)at / (float)n;
        int length = 0;
        while (at < n && length < LONGEST) {
            int32_t word = ids[at++];
            if (word < 0) break;
            if (t->keep[word] == UINT32_MAX || draw(state) < t->keep[word]) text[length++] = word;
        }
        for (int i = 0; i < length; i++) {
            int reach = 1 + (int)below(state, (uint32_t)t->window), rows = 0;
            for (int j = i - reach < 0 ? 0 : i - reach; j <= i + reach && j < length; j++)
                if (j != i) x[rows++] = t->in + (int64_t)text[j] * stride;
            y[0] = t->out + (int64_t)text[i] * stride;
            for (int k = 1; k < targets; k++) {
                int32_t other = noise(t, state);
                for (int again = 0; other == text[i] && again < 100; again++) other = noise(t, state);
                y[k] = t->out + (int64_t)other * stride;
            }
            if (!rows) continue;
            int judged = i % 16 == 0;
            double loss;
            if (t->cbow) {
                for (int d = 0; d < stride; d++) mean[d] = 0;
                for (int j = 0; j < rows; j++)
                    for (int d = 0; d < stride; d++) mean[d] += x[j][d];
                for (int d = 0; d < stride; d++) before[d] = mean[d] /= (float)rows;
                float *one = mean;
                loss = position(&one, y, 1, targets, stride, now, judged);
                for (int d = 0; d < stride; d++) mean[d] = (mean[d] - before[d]) / (float)rows;
                for (int j = 0; j < rows; j++)
                    for (int d = 0; d < stride; d++) x[j][d] += mean[d];
            } else {
                loss = position(x, y, rows, targets, stride, now, judged);
            }
            found[0] += 1;
            if (judged) { found[1] += loss; found[2] += 1; }
        }
    }
    return 0;
}
