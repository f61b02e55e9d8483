// Products of each token with the matrices of the experts that it goes to: one warp an output element, the
// weights in their GGUF type.
#include "quants.cuh"

// x [token, width, columns], where width is 1 or slots; ids [token, slots]; weight [expert, rows, columns] in
// GGUF type W; bias [expert, rows] or null -> out [token, slots, rows].  Grid: (warps of rows, token * slot).
template <class T, class W>
__global__ void expert_linear(const T* __restrict__ x, const int* __restrict__ ids,
                              const u8* __restrict__ weight, const float* __restrict__ bias,
                              T* __restrict__ out, int columns, int rows, int slots, int width) {
  const int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;  // a whole warp leaves
  const int place = blockIdx.y, token = place / slots, slot = place % slots;
  const T* input = x + ((long long)token * width + (width == 1 ? 0 : slot)) * columns;
  const long long expert_row = (long long)ids[place] * rows + row;
  const u8* weights = weight + expert_row * (columns / W::BLOCK * W::BYTES);
  float low_sum = 0.0f, high_sum = 0.0f;
#pragma unroll 4
  for (int octet = lane; octet < columns / 8; octet += 32) {
    int first, second;
    float low[4], high[4], a[4], b[4];
    decode_octet<W>(weights, octet, first, second, low, high);
    load<4>(input + first, a);
    load<4>(input + second, b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low_sum += low[i] * a[i];
      high_sum += high[i] * b[i];
    }
  }
  const float sum = warp_sum(low_sum + high_sum);
  if (lane == 0) out[(long long)place * rows + row] = from_float<T>(bias ? sum + bias[expert_row] : sum);
}
