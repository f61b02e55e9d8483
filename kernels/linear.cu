// Products of one vector with up to three matrices that stay in their GGUF type (q, k and v; gate and up):
// one warp an output element, so that a decode step reads each weight once, coalesced, and nothing else of
// size.
#include "quants.cuh"

// out [token, rows] += bias [rows], in place, after a product through cuBLAS.
template <class T>
__global__ void add_bias(T* __restrict__ out, const float* __restrict__ bias, long long n, int rows) {
  const long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (i < n) out[i] = from_float<T>(to_float(out[i]) + bias[i % rows]);
}

// x [columns]; weight i [rows_i, columns] in GGUF type W, bias i [rows_i] or null -> out i [rows_i].  The
// rows of the three follow each other in the grid; a matrix that is not there has no rows.
template <class T, class W>
__global__ void linear(const T* __restrict__ x, int columns, const u8* __restrict__ weight0,
                       const float* __restrict__ bias0, T* __restrict__ out0, int rows0,
                       const u8* __restrict__ weight1, const float* __restrict__ bias1, T* __restrict__ out1,
                       int rows1, const u8* __restrict__ weight2, const float* __restrict__ bias2,
                       T* __restrict__ out2, int rows2) {
  int row = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  const int lane = threadIdx.x % 32;
  const u8* weight = weight0;
  const float* bias = bias0;
  T* out = out0;
  if (row >= rows0) {
    row -= rows0, weight = weight1, bias = bias1, out = out1;
    if (row >= rows1) {
      row -= rows1, weight = weight2, bias = bias2, out = out2;
      if (row >= rows2) return;  // a whole warp leaves
    }
  }

  const u8* weights = weight + row * (long long)(columns / W::BLOCK * W::BYTES);
  float low_sum = 0.0f, high_sum = 0.0f;
#pragma unroll 4
  for (int octet = lane; octet < columns / 8; octet += 32) {
    int first, second;
    float low[4], high[4], a[4], b[4];
    decode_octet<W>(weights, octet, first, second, low, high);
    load<4>(x + first, a);
    load<4>(x + second, b);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low_sum += low[i] * a[i];
      high_sum += high[i] * b[i];
    }
  }
  const float sum = warp_sum(low_sum + high_sum);
  if (lane == 0) out[row] = from_float<T>(bias ? sum + bias[row] : sum);
}
