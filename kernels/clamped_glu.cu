// gpt-oss's gated linear unit: g * sigmoid(alpha g) * (u + 1) of clamped g and u, one element a thread.
#include "common.cuh"

// gate, up, out [n]
template <class T>
__global__ void clamped_glu(const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ out,
                            long long n, float alpha, float limit) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float g = fminf(to_float(gate[i]), limit);
  const float u = fminf(fmaxf(to_float(up[i]), -limit), limit);
  out[i] = from_float<T>(g / (1.0f + expf(-alpha * g)) * (u + 1.0f));
}
