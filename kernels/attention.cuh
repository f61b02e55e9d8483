// What the two attention kernels share; attention.py says what each result is.
//
// q, out [token, head, dim]; k, v [key, kv_head, dim], of which the first *kv_len (or, where that is null,
// all max_keys) are in use and the queries are the last; scores, probs [head, query, max_keys];
// m, l [head, query]; sinks [head], scores of a key without a value; m_tiles, l_tiles [tile, head, query].  Results not asked for are null.  All but `out`
// are float whatever T is.
#pragma once
#include "common.cuh"

struct Problem {
  int tokens, heads, kv_heads, dim, max_keys, tile, causal, window;
  float scale, softcap;  // softcap 0: none
};

// `count` rows of one head, [row, stride] in memory, into shared memory [rows, pitch] as float times `scale`;
// rows past `count` and columns up to the next multiple of four become 0.
template <class T>
__device__ inline void load_rows(const T* from, long long stride, int count, int rows, int dim, int pitch,
                                 float scale, float* to) {
  const int quads = (dim + 3) / 4;
  for (int i = threadIdx.x; i < rows * quads; i += blockDim.x) {
    const int row = i / quads, column = i % quads * 4;
    float x[4] = {};
    if (row < count) {
      const T* source = from + row * stride + column;
      if (dim % 4 == 0) {
        load<4>(source, x);
      } else {
        for (int j = 0; j < min(4, dim - column); ++j) x[j] = to_float(source[j]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] *= scale;
    store<4>(to + row * pitch + column, x);
  }
}

// A raw product as softmax sees it.
__device__ inline float score(float product, int query_position, int key, const Problem& p) {
  if (p.causal && key > query_position) return -infinity();
  if (query_position - key >= p.window) return -infinity();
  return p.softcap > 0.0f ? tanhf(product / p.softcap) * p.softcap : product;
}

// exp(x - m), where m is -inf as long as a row has seen no key.
__device__ inline float weight(float x, float m) { return m == -infinity() ? 0.0f : expf(x - m); }
