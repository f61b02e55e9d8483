/* The gated unit with SiLU of kernels/glu.py, in one pass. */
#include "exp.h"
#include "native.h"

VECTORISED void silu_glu(const float *gate, const float *up, float *out, long count) {
#pragma omp simd
  for (long i = 0; i < count; ++i) out[i] = gate[i] / (exp_of(-gate[i]) + 1) * up[i];
}
