// Layer norm, one block a row.
#include "common.cuh"

// The sum of `x` over the block's threads, in each of them; `shared` holds one float per warp.
__device__ inline float block_sum(float x, float* shared) {
  x = warp_sum(x);
  __syncthreads();  // nobody reads an earlier sum any more
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < blockDim.x / 32; ++warp) sum += shared[warp];
  return sum;
}

// x, out [rows, dim]; gain, bias [dim].  Two passes: the variance is that of what is left of the mean.
template <class T>
__global__ void layer_norm(const T* __restrict__ x, const float* __restrict__ gain,
                           const float* __restrict__ bias, T* __restrict__ out, int dim, float eps) {
  extern __shared__ float shared[];
  const T* row = x + blockIdx.x * (long long)dim;
  float sum = 0.0f, squares = 0.0f;
  for (int i = threadIdx.x; i < dim; i += blockDim.x) sum += to_float(row[i]);
  const float mean = block_sum(sum, shared) / dim;
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    const float centred = to_float(row[i]) - mean;
    squares += centred * centred;
  }
  const float inverse = 1.0f / sqrtf(block_sum(squares, shared) / dim + eps);
  for (int i = threadIdx.x; i < dim; i += blockDim.x) {
    const float centred = to_float(row[i]) - mean;
    out[blockIdx.x * (long long)dim + i] = from_float<T>(centred * inverse * gain[i] + bias[i]);
  }
}
