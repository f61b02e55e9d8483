// GELU, four elements a thread.
#include "gelu.cuh"

// x, out [n]
template <class T>
__global__ void gelu_forward(const T* __restrict__ x, T* __restrict__ out, long long n) {
  const long long i = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
  if (i + 4 <= n) {
    float a[4];
    load<4>(x + i, a);
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] = gelu(a[j]);
    store<4>(out + i, a);
  } else {
    for (long long j = i; j < n; ++j) out[j] = from_float<T>(gelu(to_float(x[j])));
  }
}
