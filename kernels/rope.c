/* The rotation of pairs of kernels/rope.py. */
#include "native.h"

/* One head vector; the members of pair i are `step` * i and that + `apart`. */
INLINE void turn(const float *x, const float *cosines, const float *sines, float *out, long pairs, long step,
                 long apart) {
#pragma omp simd
  for (long i = 0; i < pairs; ++i) {
    const float a = x[step * i], b = x[step * i + apart];
    out[step * i] = a * cosines[i] - b * sines[i];
    out[step * i + apart] = a * sines[i] + b * cosines[i];
  }
}

VECTORISED void rotate(const float *x, const float *cosines, const float *sines, float *out,
                       const Heads *shape, int interleaved) {
  const long pairs = shape->pairs, dim = shape->dim;
  for (long token = 0; token < shape->tokens; ++token, cosines += pairs, sines += pairs)
    for (long head = 0; head < shape->heads; ++head, x += dim, out += dim) {
      if (interleaved) turn(x, cosines, sines, out, pairs, 2, 1);
      else turn(x, cosines, sines, out, pairs, 1, pairs);
      for (long i = 2 * pairs; i < dim; ++i) out[i] = x[i];
    }
}
