// x * factor, or with a cap that x tends to, cap * tanh(x / cap): one element a thread.
#include "common.cuh"

// x, out [n]
template <class T>
__global__ void scale(const T* __restrict__ x, T* __restrict__ out, long long n, float factor, float cap) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float scaled = to_float(x[i]) * factor;
  out[i] = from_float<T>(cap > 0.0f ? tanhf(scaled / cap) * cap : scaled);
}
