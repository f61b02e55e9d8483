/* How two rows of numbers differ, in one pass over both: what analyze/blocks.py defines in NumPy. */
#include <math.h>

#include "native.h"

enum { CHUNK = 512 }; /* terms summed in float32 before they are added up in float64 */

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

void differ(const float *a, const float *b, long rows, long width, const long long *valid, long head_dim,
            const float *masked, double *out) {
  for (long row = 0; row < rows; ++row, a += width, b += width) {
    double figures[DIFFERENCES] = {0};
    const long end = valid ? (long)valid[row] : width;
    int clash = 0;
    for (long first = 0; first < end; first += CHUNK) {
      const int n = (int)(end - first < CHUNK ? end - first : CHUNK);
      const Sums s = masked ? sums_of_unmasked(a + first, b + first, n, *masked)
                            : sums_of(a + first, b + first, n);
      figures[DD] += s.dd;
      figures[DB] += s.db;
      figures[AB] += s.ab;
      figures[BB] += s.bb;
      figures[AA] += s.aa;
      figures[HIDDEN] += s.hidden;
      clash |= s.clash;
      if (s.max_abs > figures[MAX_ABS]) figures[MAX_ABS] = s.max_abs;
      if (s.top_a > figures[TOP_A]) figures[TOP_A] = s.top_a;
      if (s.top_b > figures[TOP_B]) figures[TOP_B] = s.top_b;
    }
    if (head_dim) norms_of(a, b, end, head_dim, figures + NORM_A);
    if (clash) figures[BB] = NAN;
    for (int i = 0; i < DIFFERENCES; ++i) out[i * rows + row] = figures[i];
  }
}
