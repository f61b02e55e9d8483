/* The root-mean-square norm of kernels/rms_norm.py, row by row. */
#include <math.h>

#include "native.h"

VECTORISED void rms_norm(const float *x, const float *gain, float *out, long rows, long dim, float eps) {
  for (long row = 0; row < rows; ++row, x += dim, out += dim) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (long i = 0; i < dim; ++i) squares += x[i] * x[i];
    const float root = sqrtf(squares / (float)dim + eps);
#pragma omp simd
    for (long i = 0; i < dim; ++i) out[i] = x[i] / root * gain[i];
  }
}
