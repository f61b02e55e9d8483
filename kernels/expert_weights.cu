// How much each chosen expert counts: softmax of the router's scores, one warp a token.
#include "common.cuh"

// router [token, experts], ids [token, slots] -> out [token, slots].  The sum goes over all experts or, with
// `chosen`, over those of the token's slots.
template <class T>
__global__ void expert_weights(const T* __restrict__ router, const int* __restrict__ ids, T* __restrict__ out,
                               int experts, int slots, int chosen, float scale) {
  const int lane = threadIdx.x;
  const T* row = router + (long long)blockIdx.x * experts;
  const int* mine = ids + (long long)blockIdx.x * slots;
  const float top = to_float(row[mine[0]]);  // the first slot has the largest
  float sum = 0.0f;
  for (int i = lane; i < (chosen ? slots : experts); i += 32) {
    sum += expf(to_float(row[chosen ? mine[i] : i]) - top);
  }
  sum = warp_sum(sum);
  for (int i = lane; i < slots; i += 32) {
    out[(long long)blockIdx.x * slots + i] = from_float<T>(expf(to_float(row[mine[i]]) - top) / sum * scale);
  }
}
