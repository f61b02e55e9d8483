// Gated linear unit: activation(gate) * up, four elements a thread.
#include "gelu.cuh"

struct Silu {
  // x * sigmoid(x), written with exp(-|x|) so that no input overflows
  static __device__ float apply(float x) {
    const float e = expf(-fabsf(x));
    return x * (x >= 0.0f ? 1.0f : e) / (1.0f + e);
  }
};

struct Gelu {
  static __device__ float apply(float x) { return gelu(x); }
};

// gate, up, out [n]
template <class T, class Activation>
__global__ void glu(const T* __restrict__ gate, const T* __restrict__ up, T* __restrict__ out, long long n) {
  const long long i = 4 * (blockIdx.x * (long long)blockDim.x + threadIdx.x);
  if (i + 4 <= n) {
    float a[4], b[4];
    load<4>(gate + i, a);
    load<4>(up + i, b);
#pragma unroll
    for (int j = 0; j < 4; ++j) a[j] = Activation::apply(a[j]) * b[j];
    store<4>(out + i, a);
  } else {
    for (long long j = i; j < n; ++j) {
      out[j] = from_float<T>(Activation::apply(to_float(gate[j])) * to_float(up[j]));
    }
  }
}
