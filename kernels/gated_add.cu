// x + sigmoid(h . gate) * y: the expert that all tokens share, as much of it as each token wants.
#include "common.cuh"

// x, y [token, dim]; h [token, columns]; gate [columns] -> out [token, dim].  One block a token; shared memory:
// one float per warp.
template <class T>
__global__ void gated_add(const T* __restrict__ x, const T* __restrict__ y, const T* __restrict__ h,
                          const float* __restrict__ gate, T* __restrict__ out, int columns, int dim) {
  extern __shared__ float shared[];
  const long long token = blockIdx.x;
  float sum = 0.0f;
  for (int i = threadIdx.x; i < columns; i += blockDim.x) sum += to_float(h[token * columns + i]) * gate[i];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = 0.0f;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += shared[warp];
  const float part = 1.0f / (1.0f + expf(-sum));
  for (long long i = token * dim + threadIdx.x; i < (token + 1) * dim; i += blockDim.x) {
    out[i] = from_float<T>(to_float(x[i]) + part * to_float(y[i]));
  }
}
