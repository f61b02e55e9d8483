// Root-mean-square norm, one block a row; optionally of x + addend, whose rounded sum is written out too (the
// residual stream and the norm that follows it, in one launch).
#include "common.cuh"

// x, addend, sum, out [rows, dim]; gain [dim]; addend and sum both given or both null.
// N = 4 where dim is a multiple of four (16-byte accesses), else 1.  Shared memory: one float per warp.
template <class T, int N>
__global__ void rms_norm(const T* __restrict__ x, const T* __restrict__ addend,
                         const float* __restrict__ gain, T* __restrict__ sum, T* __restrict__ out, int dim,
                         float eps) {
  extern __shared__ float shared[];
  const long long row = blockIdx.x * (long long)dim;
  float squares = 0.0f;
  for (int i = N * threadIdx.x; i < dim; i += N * blockDim.x) {
    float a[N];
    load<N>(x + row + i, a);
    if (addend) {
      float b[N];
      load<N>(addend + row + i, b);
#pragma unroll
      for (int j = 0; j < N; ++j) a[j] = to_float(from_float<T>(a[j] + b[j]));
      store<N>(sum + row + i, a);
    }
#pragma unroll
    for (int j = 0; j < N; ++j) squares += a[j] * a[j];
  }

  squares = warp_sum(squares);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = squares;
  __syncthreads();
  squares = 0.0f;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) squares += shared[warp];
  const float inverse = 1.0f / sqrtf(squares / dim + eps);

  const T* normed = addend ? sum : x;  // each thread reads back what it wrote itself
  for (int i = N * threadIdx.x; i < dim; i += N * blockDim.x) {
    float a[N], g[N];
    load<N>(normed + row + i, a);
    load<N>(gain + i, g);
#pragma unroll
    for (int j = 0; j < N; ++j) a[j] = a[j] * inverse * g[j];
    store<N>(out + row + i, a);
  }
}
