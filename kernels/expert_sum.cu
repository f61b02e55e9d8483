// What the chosen experts give, weighted and added up: one thread an output element.
#include "common.cuh"

// x [token, slots, dim], weights [token, slots] -> out [token, dim].
template <class T>
__global__ void expert_sum(const T* __restrict__ x, const T* __restrict__ weights, T* __restrict__ out,
                           int slots, int dim) {
  const int column = blockIdx.x * blockDim.x + threadIdx.x;
  const long long token = blockIdx.y;
  if (column >= dim) return;
  float sum = 0.0f;
  for (int slot = 0; slot < slots; ++slot) {
    const long long place = token * slots + slot;
    sum += to_float(weights[place]) * to_float(x[place * dim + column]);
  }
  out[token * dim + column] = from_float<T>(sum);
}
