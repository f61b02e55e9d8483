/* How two rows of numbers differ, in one pass over both: what analyze/blocks.py defines in NumPy. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "native.h"

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

enum { CHUNK = 512 }; /* terms summed in float32 before they are added up in float64 */
static const double NEAR = 16, TINY = 1e-15; /* as in analyze/blocks.py */

/* The sums of one chunk.  Plain loops over floats: compilers make vector code of them for each processor. */
typedef struct {
  float dd, db, ab, bb, aa, max_abs, top_a, top_b;
  int hidden, clash;
} Sums;

VECTORISED static Sums sums_of(const float *a, const float *b, int n) {
  float dd = 0, db = 0, ab = 0, bb = 0, aa = 0, max_abs = 0;
#pragma omp simd reduction(+ : dd, db, ab, bb, aa) reduction(max : max_abs)
  for (int i = 0; i < n; ++i) {
    const float d = a[i] - b[i], size = fabsf(d);
    dd += d * d;
    db += d * b[i];
    ab += a[i] * b[i];
    bb += b[i] * b[i];
    aa += a[i] * a[i];
    max_abs = size > max_abs ? size : max_abs;
  }
  return (Sums){dd, db, ab, bb, aa, max_abs, 0, 0, 0, 0};
}

/* The same where numbers at or below `floor` stand for nothing; NaN is none of them. */
VECTORISED static Sums sums_of_unmasked(const float *a, const float *b, int n, float floor) {
  float dd = 0, db = 0, ab = 0, bb = 0, aa = 0, max_abs = 0, top_a = 0, top_b = 0;
  int hidden = 0, clash = 0;
#pragma omp simd reduction(+ : dd, db, ab, bb, aa, hidden, clash) reduction(max : max_abs, top_a, top_b)
  for (int i = 0; i < n; ++i) {
    const int mask_a = a[i] <= floor, mask_b = b[i] <= floor;
    const float x = mask_a ? 0 : a[i], y = mask_b ? 0 : b[i], d = x - y;
    const float size = fabsf(d), size_a = fabsf(x), size_b = fabsf(y);
    hidden += mask_a;
    clash += mask_a ^ mask_b;
    dd += d * d;
    db += d * y;
    ab += x * y;
    bb += y * y;
    aa += x * x;
    max_abs = size > max_abs ? size : max_abs;
    top_a = size_a > top_a ? size_a : top_a;
    top_b = size_b > top_b ? size_b : top_b;
  }
  return (Sums){dd, db, ab, bb, aa, max_abs, top_a, top_b, hidden, clash};
}

/* The sums of the norms of a's and b's vectors. */
VECTORISED static void norms_of(const float *a, const float *b, long n, long dim, double *norms) {
  for (long first = 0; first < n; first += dim) {
    float aa = 0, bb = 0;
#pragma omp simd reduction(+ : aa, bb)
    for (long i = first; i < first + dim; ++i) {
      aa += a[i] * a[i];
      bb += b[i] * b[i];
    }
    norms[0] += sqrtf(aa);
    norms[1] += sqrtf(bb);
  }
}

/* The figures of one row -> out [DIFFERENCES]; 0 where float32 does not do for it. */
static int row_figures(const Pair *p, long row, double *out) {
  const float *a = p->a + row * p->width, *b = p->b + row * p->width;
  const long end = p->valid && p->valid[row] < p->width ? (long)p->valid[row] : p->width;
  double ab = 0;
  int hidden = 0, clash = 0;
  memset(out, 0, DIFFERENCES * sizeof(double));
  for (long first = 0; first < end; first += CHUNK) {
    const int n = (int)(end - first < CHUNK ? end - first : CHUNK);
    const Sums s = p->masked ? sums_of_unmasked(a + first, b + first, n, p->floor)
                             : sums_of(a + first, b + first, n);
    out[DD] += s.dd;
    out[DB] += s.db;
    ab += s.ab;
    out[BB] += s.bb;
    out[AA] += s.aa;
    hidden += s.hidden;
    clash |= s.clash;
    if (s.max_abs > out[MAX_ABS]) out[MAX_ABS] = s.max_abs;
    if (s.top_a > out[TOP_A]) out[TOP_A] = s.top_a;
    if (s.top_b > out[TOP_B]) out[TOP_B] = s.top_b;
  }
  if (p->head_dim) norms_of(a, b, end, p->head_dim, out + NORM_A);
  if (out[DD] * NEAR > out[BB]) /* the digits of d·b and of what follows from it are lost */
    out[DB] = ab - out[BB];
  else
    out[AA] = out[BB] + 2 * out[DB] + out[DD];
  const double relative = out[DD] == 0 ? 0 : out[DD] / out[BB];
  out[ROW_ERROR2] = isfinite(relative) ? relative : 4; /* a row of zeros is one row */
  out[ROW_ERROR] = sqrt(out[ROW_ERROR2]);
  out[ROWS] = 1;
  out[COUNT] = (double)(end - hidden);
  out[VECTORS] = p->head_dim ? (double)(p->width / p->head_dim) : 0;
  out[MASKED_A] = out[MASKED_B] = hidden;
  return isfinite(out[AA] + out[BB]) && !clash && !(out[MAX_ABS] > 0 && out[MAX_ABS] < TINY);
}

/* Tell the system that the mapped pages of these numbers are done with, so that they don't pile up. */
static void give_back(const float *numbers, long count) {
#ifdef MADV_DONTNEED
  const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
  const uintptr_t first = ((uintptr_t)numbers + page - 1) / page * page, end = (uintptr_t)(numbers + count);
  if (end >= first + page) madvise((void *)first, (end - first) / page * page, MADV_DONTNEED);
#else
  (void)numbers, (void)count;
#endif
}

void differ(const Pair *p, double *out, char *lost) {
  double row_out[DIFFERENCES];
  long group = 0;
  memset(out, 0, (size_t)p->groups * DIFFERENCES * sizeof(double));
  for (long row = 0; row < p->rows; ++row) {
    const long next = group + 1;
    if (next < p->groups && row >= (p->starts ? p->starts[next] : next)) group = next;
    lost[row] = !row_figures(p, row, row_out);
    if (lost[row]) continue;
    double *sums = out + group;
    for (int i = 0; i < MAX_ABS; ++i) sums[i * p->groups] += row_out[i];
    for (int i = MAX_ABS; i < DIFFERENCES; ++i)
      if (row_out[i] > sums[i * p->groups]) sums[i * p->groups] = row_out[i];
  }
  if (p->mapped) {
    give_back(p->a, p->rows * p->width);
    give_back(p->b, p->rows * p->width);
  }
}
