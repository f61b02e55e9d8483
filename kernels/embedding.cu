// Embedding lookup: the table's row of each token, dequantised and scaled.
#include "quants.cuh"

// ids [token]; table [vocab, row_bytes] in GGUF type W -> out [token, dim].  A block takes one token; the row
// of an id outside the vocabulary is NaN, which no later op hides.
template <class T, class W>
__global__ void embedding(const int* __restrict__ ids, const u8* __restrict__ table, T* __restrict__ out,
                          int vocab, int dim, float scale) {
  const int id = ids[blockIdx.x];
  const bool known = 0 <= id && id < vocab;
  const long long row_bytes = dim / W::BLOCK * W::BYTES;
  T* row = out + (long long)blockIdx.x * dim;
  for (int octet = threadIdx.x; octet < dim / 8; octet += blockDim.x) {
    int first, second;
    float low[4], high[4];
    decode_octet<W>(table + (known ? id * row_bytes : 0), octet, first, second, low, high);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] = known ? low[i] * scale : infinity() - infinity();
      high[i] = known ? high[i] * scale : infinity() - infinity();
    }
    store<4>(row + first, low);
    store<4>(row + second, high);
  }
}
