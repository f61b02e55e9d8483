/* A tile of keys goes into the online softmax of a row: what `fold` of kernels/softmax.py defines in NumPy. */
#include "softmax.h"

#include "exp.h"

/* The largest of some scores and `top`; NaN where one of them is. */
VECTORISED static float largest(const float *scores, long count, float top) {
  int lost = 0;
#pragma omp simd reduction(max : top) reduction(| : lost)
  for (long i = 0; i < count; ++i) {
    lost |= scores[i] != scores[i];
    top = scores[i] > top ? scores[i] : top;
  }
  return lost ? NAN : top;
}

/* Scores become exp(score - top); gives their sum. */
VECTORISED static float exponentials(float *scores, long count, float top) {
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (long i = 0; i < count; ++i) sum += scores[i] = exp_of(scores[i] - top);
  return sum;
}

static void fill(float *numbers, long count, float value) {
  for (long i = 0; i < count; ++i) numbers[i] = value;
}

float fold_row(float *scores, long count, long first, long last, float *m, float *l, float *kept) {
  const float before = *m;
  *m = before == before ? largest(scores + first, last - first, before) : before;
  const float safe = *m == -INFINITY ? 0 : *m; /* a row that has seen no key yet */
  if (kept) {
    fill(kept, first, -INFINITY);
    memcpy(kept + first, scores + first, (size_t)(last - first) * sizeof(float));
    fill(kept + last, count - last, -INFINITY);
  }
  fill(scores, first, 0);
  const float sum = exponentials(scores + first, last - first, safe);
  fill(scores + last, count - last, 0);
  const float shrink = exp_of(before - safe);
  *l = *l * shrink + sum;
  return shrink;
}
