/* One token's attention by online softmax: what kernels/attention.py defines in NumPy, head by head. */
#include <math.h>

#include "native.h"
#include "softmax.h"
#include "team.h"

enum { SHARE = 1 << 15 }; /* products of a head's keys that a thread takes at a time: some microseconds */

/* scale * q·k of some keys, which lie `apart` numbers from each other.  A score of 60 that is off by a rounding
 * of float32 makes its exponential off by 30 of them, so the sum is in float64. */
VECTORISED static void score(const float *q, const float *k, long apart, long keys, long dim, float scale,
                             float *scores) {
  for (long key = 0; key < keys; ++key, k += apart) {
    double sum = 0;
#pragma omp simd reduction(+ : sum)
    for (long i = 0; i < dim; ++i) sum += (double)q[i] * k[i];
    scores[key] = (float)(sum * scale);
  }
}

/* sum = sum * shrink + weights · v */
VECTORISED static void add_values(const float *weights, const float *v, long apart, long keys, long dim,
                                  float shrink, float *sum) {
#pragma omp simd
  for (long i = 0; i < dim; ++i) sum[i] *= shrink;
  for (long key = 0; key < keys; ++key, v += apart)
#pragma omp simd
    for (long i = 0; i < dim; ++i) sum[i] += weights[key] * v[i];
}

static long at_most(long value, long limit) { return value < limit ? value : limit; }
static long at_least(long value, long limit) { return value > limit ? value : limit; }

static void attend_head(const Token *t, long head) {
  const long apart = t->kv_heads * t->dim, offset = head / (t->heads / t->kv_heads) * t->dim;
  const float *const k = t->k + offset, *const v = t->v + offset;
  float *const out = t->out + head * t->dim, *const probs = t->probs + head * t->keys;
  float m = t->sinks ? t->sinks[head] : -INFINITY, l = t->sinks ? 1 : 0;
  for (long i = 0; i < t->dim; ++i) out[i] = 0;
  for (long start = 0, row = head; start < t->keys; start += t->tile, row += t->heads) {
    const long count = at_most(t->tile, t->keys - start);
    const long first = at_most(at_least(t->first - start, 0), count);
    float *const weights = probs + start;
    score(t->q + head * t->dim, k + start * apart, apart, count, t->dim, t->scale, weights);
    for (long i = 0; i < count && t->softcap != 0; ++i)
      weights[i] = tanhf(weights[i] / t->softcap) * t->softcap;
    const float shrink = fold_row(weights, count, first, count, &m, &l, t->scores + head * t->keys + start);
    add_values(weights + first, v + (start + first) * apart, apart, count - first, t->dim, shrink, out);
    t->m_tiles[row] = m, t->l_tiles[row] = l;
  }
  for (long i = 0; i < t->dim; ++i) out[i] /= l;
  for (long start = 0, row = head; start < t->keys; start += t->tile, row += t->heads) {
    const float factor = expf(t->m_tiles[row] - m) / l; /* unseen keys have 0 */
    for (long key = start; key < at_most(start + t->tile, t->keys); ++key) probs[key] *= factor;
  }
  t->m[head] = m, t->l[head] = l;
}

static void take_heads(const void *token, long first, long end) {
  for (long head = first; head < end; ++head) attend_head(token, head);
}

void attend(const Token *t) {
  const long each = t->keys * t->dim;
  share_out(take_heads, t, t->heads, at_least(SHARE / at_least(each, 1), 1));
}
