// Residual addition: x + scale * y, four elements a thread.
#include "common.cuh"

// x, y, out [n]
template <class T>
__global__ void add(const T* __restrict__ x, const T* __restrict__ y, T* __restrict__ out, long long n,
                    float scale) {
  const long long i = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
  if (i + 4 <= n) {
    float a[4], b[4];
    load<4>(x + i, a);
    load<4>(y + i, b);
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] += scale * b[j];
    store<4>(out + i, a);
  } else {
    for (long long j = i; j < n; ++j) out[j] = from_float<T>(to_float(x[j]) + scale * to_float(y[j]));
  }
}
