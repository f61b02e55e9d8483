/* Attention by online softmax over tiles of keys: what kernels/attention.py defines in NumPy. */
#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "native.h"
#include "softmax.h"
#include "team.h"

enum { SHARE = 1 << 15 };     /* products that a thread takes at a time: some microseconds */
enum { STRIP = 16 };          /* numbers that a processor takes at once */
enum { QUERIES = 6 };         /* whose strips are summed up in registers */
enum { BLOCK = 8 * QUERIES }; /* queries that a tile of keys serves while it is in the cache */

static long at_most(long value, long limit) { return value < limit ? value : limit; }
static long at_least(long value, long limit) { return value > limit ? value : limit; }
static long parts(long count, long size) { return (count + size - 1) / size; }

/* An attention, and the memory for what several queries read: keys [kv_head][tile][strip][dim][STRIP], of whole
 * strips, and values [kv_head][strip][key][STRIP]. */
typedef struct {
  Attention of;
  float *keys, *values;
  atomic_int *lost; /* whether memory ran out */
} Work;

/* A tile of `keys` keys from `start` on, and `rows` queries of a head from `query` on: each sees those from its
 * `first` to before its `last`, all of them together from `from` to before `to` (of the tile).  The weights of
 * a query begin `apart` after those of the one before. */
typedef struct {
  long head, query, rows, start, keys, first[QUERIES], last[QUERIES], from, to;
  float *weights;
  long apart;
} Part;

/* ---- one query: it reads each key and value once, from where they are */

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

/* ---- several queries: keys and values are first laid out in strips, which a processor takes at once */

/* Where a tile's keys begin, and a head's values. */
static float *strips_of_keys(const Work *w, long kv_head, long tile) {
  const long tiles = parts(w->of.keys, w->of.tile);
  return w->keys + (kv_head * tiles + tile) * parts(w->of.tile, STRIP) * w->of.dim * STRIP;
}

static float *strips_of_values(const Work *w, long kv_head) {
  return w->values + kv_head * parts(w->of.dim, STRIP) * w->of.keys * STRIP;
}

static void pack_tile(const Work *w, long kv_head, long tile) {
  const Attention *const t = &w->of;
  const long start = tile * t->tile, count = at_most(t->tile, t->keys - start), apart = t->kv_heads * t->dim;
  const float *const k = t->k + start * apart + kv_head * t->dim, *const v = t->v + (k - t->k);
  float *const keys = strips_of_keys(w, kv_head, tile), *const values = strips_of_values(w, kv_head);
  for (long key = 0; key < parts(count, STRIP) * STRIP; ++key)
    for (long i = 0; i < t->dim; ++i)
      keys[(key / STRIP * t->dim + i) * STRIP + key % STRIP] = key < count ? k[key * apart + i] : 0;
  for (long key = 0; key < count; ++key)
    for (long first = 0; first < t->dim; first += STRIP) {
      float *const strip = values + (first / STRIP * t->keys + start + key) * STRIP;
      for (long i = 0; i < STRIP; ++i) strip[i] = first + i < t->dim ? v[key * apart + first + i] : 0;
    }
}

static void pack_tiles(const void *loop, long first, long end) {
  const Work *const w = loop;
  for (long i = first; i < end; ++i) pack_tile(w, i % w->of.kv_heads, i / w->of.kv_heads);
}

typedef float Strips[QUERIES][STRIP]; /* of as many rows: stay in registers while they are summed up */

/* sum += a · strips, of the numbers of each row from `first` to before `end`. */
INLINE void add_product(const float *const *a, const float *strips, long first, long end, Strips sum) {
  for (long i = first; i < end; ++i)
    for (int row = 0; row < QUERIES; ++row) {
      const float factor = a[row][i];
#pragma omp simd
      for (int lane = 0; lane < STRIP; ++lane) sum[row][lane] += factor * strips[i * STRIP + lane];
    }
}

/* to = from * factor, of a strip or the `count` numbers that are left at the end of a row. */
INLINE void scaled(const float *from, float factor, long count, float *to) {
  if (count < STRIP)
    for (long lane = 0; lane < count; ++lane) to[lane] = from[lane] * factor;
  else
#pragma omp simd
    for (int lane = 0; lane < STRIP; ++lane) to[lane] = from[lane] * factor;
}

/* Rows past the last one of a part are the last one again. */
INLINE long row_of(const Part *p, int row) { return row < p->rows ? row : p->rows - 1; }

VECTORISED static void score_strips(const Attention *t, const Part *p, const float *strips) {
  const float *q[QUERIES];
  for (int row = 0; row < QUERIES; ++row)
    q[row] = t->q + ((p->query + row_of(p, row)) * t->heads + p->head) * t->dim;
  for (long first = p->from / STRIP * STRIP; first < p->to; first += STRIP) {
    Strips sum;
    for (int row = 0; row < QUERIES; ++row) scaled(strips + first * t->dim, q[row][0], STRIP, sum[row]);
    add_product(q, strips + first * t->dim, 1, t->dim, sum);
    for (int row = 0; row < QUERIES; ++row)
      scaled(sum[row], t->scale, p->keys - first, p->weights + row_of(p, row) * p->apart + first);
  }
}

VECTORISED static void add_value_strips(const Attention *t, const Part *p, const float *strips,
                                        const float *shrink) {
  const float *weights[QUERIES];
  for (int row = 0; row < QUERIES; ++row) weights[row] = p->weights + row_of(p, row) * p->apart;
  strips += p->start * STRIP;
  for (long first = 0; first < t->dim; first += STRIP, strips += t->keys * STRIP) {
    float *const out = t->out + (p->query * t->heads + p->head) * t->dim + first;
    const long left = t->dim - first, apart = t->heads * t->dim;
    Strips sum;
    for (int row = 0; row < QUERIES; ++row)
      scaled(out + row_of(p, row) * apart, shrink[row_of(p, row)], left, sum[row]);
    add_product(weights, strips, p->from, p->to, sum);
    for (int row = 0; row < QUERIES; ++row) scaled(sum[row], 1, left, out + row_of(p, row) * apart);
  }
}

/* ---- any number of them */

static void find_scores(const Work *w, const Part *p, long kv_head) {
  const Attention *const t = &w->of;
  if (t->tokens > 1) score_strips(t, p, strips_of_keys(w, kv_head, p->start / t->tile));
  else {
    const long apart = t->kv_heads * t->dim, at = (p->start + p->from) * apart + kv_head * t->dim;
    score(t->q + p->head * t->dim, t->k + at, apart, p->to - p->from, t->dim, t->scale, p->weights + p->from);
  }
  for (long row = 0; row < p->rows && t->softcap != 0; ++row)
    for (long key = p->first[row]; key < p->last[row]; ++key) {
      float *const at = p->weights + row * p->apart + key;
      *at = tanhf(*at / t->softcap) * t->softcap;
    }
}

/* Takes a tile of keys into the softmax of some queries, and its values into what they sum up. */
static void attend_part(const Work *w, const Part *p) {
  const Attention *const t = &w->of;
  const long kv_head = p->head / (t->heads / t->kv_heads), tile = p->start / t->tile;
  float shrink[QUERIES];
  if (p->from < p->to) find_scores(w, p, kv_head);
  for (long i = 0; i < p->rows; ++i) {
    const long row = p->head * t->tokens + p->query + i;
    float *const kept = t->scores ? t->scores + row * t->keys + p->start : 0;
    shrink[i] =
        fold_row(p->weights + i * p->apart, p->keys, p->first[i], p->last[i], t->m + row, t->l + row, kept);
    if (t->m_tiles) t->m_tiles[tile * t->heads * t->tokens + row] = t->m[row];
    if (t->l_tiles) t->l_tiles[tile * t->heads * t->tokens + row] = t->l[row];
  }
  if (p->from >= p->to) return;
  if (t->tokens > 1) add_value_strips(t, p, strips_of_values(w, kv_head), shrink);
  else {
    const long apart = t->kv_heads * t->dim, at = (p->start + p->from) * apart + kv_head * t->dim;
    add_values(p->weights + p->from, t->v + at, apart, p->to - p->from, t->dim, *shrink,
               t->out + p->head * t->dim);
  }
}

static Part part_of(const Attention *t, long head, long query, long end, long start, float *scratch) {
  Part p = {head, query, at_most(QUERIES, end - query), start, at_most(t->tile, t->keys - start), {0}, {0}, 0, 0,
            scratch, t->tile};
  if (t->probs) p.weights = t->probs + (head * t->tokens + query) * t->keys + start, p.apart = t->keys;
  p.from = p.keys;
  for (long row = 0; row < p.rows; ++row) {
    p.first[row] = at_most(at_least(t->first[query + row] - start, 0), p.keys);
    p.last[row] = at_most(at_least(t->last[query + row] - start, 0), p.keys);
    if (p.first[row] == p.last[row]) continue;
    p.from = at_most(p.from, p.first[row]), p.to = at_least(p.to, p.last[row]);
  }
  return p;
}

/* Divides by the sum; weights of a tile were made with the maximum of their time. */
VECTORISED static void end_row(const Attention *t, long head, long query) {
  const long row = head * t->tokens + query, rows = t->heads * t->tokens;
  float *const out = t->out + (query * t->heads + head) * t->dim;
  for (long i = 0; i < t->dim; ++i) out[i] /= t->l[row];
  if (!t->probs) return;
  float *const probs = t->probs + row * t->keys;
  for (long start = 0, tile = 0; start < t->last[query]; start += t->tile, ++tile) {
    const float factor = expf(t->m_tiles[tile * rows + row] - t->m[row]) / t->l[row];
    for (long key = start; key < at_most(start + t->tile, t->keys); ++key) probs[key] *= factor;
  }
}

static void attend_block(const Work *w, long head, long first, long end, float *scratch) {
  const Attention *const t = &w->of;
  for (long query = first; query < end; ++query) {
    const long row = head * t->tokens + query;
    t->m[row] = t->sinks ? t->sinks[head] : -INFINITY, t->l[row] = t->sinks ? 1 : 0;
    memset(t->out + (query * t->heads + head) * t->dim, 0, (size_t)t->dim * sizeof(float));
  }
  for (long start = 0; start < t->keys; start += t->tile)
    for (long query = first; query < end; query += QUERIES) {
      const Part part = part_of(t, head, query, end, start, scratch);
      attend_part(w, &part);
    }
  for (long query = first; query < end; ++query) end_row(t, head, query);
}

/* The last queries come first: under a causal mask they are the longest. */
static void take_blocks(const void *loop, long first, long end) {
  const Work *const w = loop;
  const Attention *const t = &w->of;
  float *const scratch = malloc((size_t)(QUERIES * t->tile) * sizeof(float));
  if (!scratch) atomic_store(w->lost, 1);
  for (long i = first; i < end && scratch; ++i) {
    const long begin = (parts(t->tokens, BLOCK) - 1 - i / t->heads) * BLOCK;
    attend_block(w, i % t->heads, begin, at_most(begin + BLOCK, t->tokens), scratch);
  }
  free(scratch);
}

int attend(const Attention *t) {
  const long tiles = t->kv_heads * parts(t->keys, t->tile), blocks = t->heads * parts(t->tokens, BLOCK);
  const long keys = tiles * parts(t->tile, STRIP) * t->dim * STRIP;
  const long values = t->kv_heads * parts(t->dim, STRIP) * t->keys * STRIP;
  float *const packed = t->tokens > 1 ? malloc((size_t)(keys + values) * sizeof(float)) : 0;
  atomic_int lost = t->tokens > 1 && !packed;
  const Work work = {*t, packed, packed + keys, &lost};
  if (packed) share_out(pack_tiles, &work, tiles, SHARE / (t->tile * t->dim) + 1);
  if (!lost)
    share_out(take_blocks, &work, blocks, SHARE / (at_most(t->tokens, BLOCK) * t->keys * t->dim + 1) + 1);
  free(packed);
  return !lost;
}
