/* The compiled kernels, as native.c gives them to Python.  No function here knows Python. */
#pragma once

#include "compiler.h"

/* The figures of rows, as kernels/difference.py names them: those before MAX_ABS add up. */
enum {
  COUNT, ROWS, DD, DB, BB, AA, ROW_ERROR2, VECTORS, NORM_A, NORM_B, MASKED_A, MASKED_B,
  MAX_ABS, ROW_ERROR, TOP_A, TOP_B,
  DIFFERENCES
};

/* Two matrices a, b [rows][width].  Rows from one of `starts` [groups] to the next belong together (null: each
 * by itself).  Of a row the first valid[row] numbers count (null: all); head_dim > 0 splits it into vectors;
 * where `masked`, numbers at or below `floor` stand for nothing.  `mapped`: both are pages of files. */
typedef struct {
  const float *a, *b;
  long rows, width, groups, head_dim;
  const long long *starts, *valid;
  int masked, mapped;
  float floor;
} Pair;

/* The figures of a pair -> out [DIFFERENCES][groups], but for rows that are to be measured in float64: these
 * are marked in lost [rows], which is all 0 before.  Pages of files are given back. */
void differ(const Pair *pair, double *out, char *lost);

/* How a weight type of GGUF is stored: weights and bytes of a block, weights that share a scale. */
typedef struct {
  const char *name;
  int block, bytes, group;
} Format;

/* The format of that name; null where there is no product for it. */
const Format *format_of(const char *name);

/* w [rows] of blocks times x [columns] -> out [rows], on all cores; `sums` has room for columns / group. */
void multiply(const Format *format, const unsigned char *w, long rows, long columns, const float *x,
              float *sums, float *out);

/* Attention: q [tokens][heads][dim], k and v [keys][kv_heads][dim], sinks [heads] or null.  A query sees the keys
 * from `first` to before `last` [tokens].  Softmax goes by tiles of `tile` keys; softcap 0 is none.  Null may
 * be `scores`, `l_tiles`, `probs`, and without these `m_tiles`. */
typedef struct {
  const float *q, *k, *v, *sinks;
  const int *first, *last;
  long tokens, heads, kv_heads, keys, dim, tile;
  float scale, softcap;
  float *out, *scores, *probs; /* [tokens][heads][dim], [heads][tokens][keys] twice */
  float *m, *l;                /* [heads][tokens] */
  float *m_tiles, *l_tiles;    /* [tiles][heads][tokens] */
} Attention;

/* Everything that attention.py names, on all cores where it is worth it; 0 where memory runs out. */
int attend(const Attention *attention);

/* gate / (1 + exp(-gate)) * up -> out, of `count` numbers each. */
void silu_glu(const float *gate, const float *up, float *out, long count);

/* x [rows][dim] / sqrt(mean of its squares + eps) * gain [dim] -> out. */
void rms_norm(const float *x, const float *gain, float *out, long rows, long dim, float eps);

/* Vectors [tokens][heads][dim], of which the first 2 * pairs numbers are turned. */
typedef struct {
  long tokens, heads, dim, pairs;
} Heads;

/* Every pair of x turned by its angle, of which the cosines and sines [tokens][pairs] are given -> out.  Pairs
 * are neighbours where `interleaved`, half of the turned numbers apart where not. */
void rotate(const float *x, const float *cosines, const float *sines, float *out, const Heads *shape,
            int interleaved);
