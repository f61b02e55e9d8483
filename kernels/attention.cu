// Attention of many queries as online softmax over KV tiles; in one pass it gives the output and whatever is
// asked of scores, m and l (running and final) and probs.
#include "attention.cuh"

// A block of BQ queries of one head walks the keys, BK at a time and never across the end of a tile.  Sixteen
// threads share four queries: thread (tx, ty) holds the products of queries 4 ty + i with keys tx + 16 j, and
// columns 4 tx + 64 c + e of their outputs.  DIM is the head size rounded up to 64, 128 or 256.
template <class T, int DIM, int BQ, int BK>
__global__ void __launch_bounds__(BQ * 4)
    attention_prefill(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                      const float* __restrict__ sinks, const int* __restrict__ kv_len, T* __restrict__ out, float* scores, float* probs,
                      float* m_out, float* l_out, float* m_tiles, float* l_tiles, Problem p) {
  constexpr int PITCH = DIM + 4, P_PITCH = BK + 4;  // padded against bank conflicts, rows 16-byte aligned
  extern __shared__ float shared[];
  float* q_rows = shared;                 // [BQ, PITCH]
  float* kv_rows = q_rows + BQ * PITCH;   // [BK, PITCH]: keys, then values
  float* weights = kv_rows + BK * PITCH;  // [BQ, P_PITCH]
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int head = blockIdx.y, kv_head = head / (p.heads / p.kv_heads);
  const int keys = kv_len ? *kv_len : p.max_keys, before = keys - p.tokens;
  const int first = ((int)gridDim.x - 1 - (int)blockIdx.x) * BQ;  // the longest rows start first
  const int rows = min(BQ, p.tokens - first);
  const long long kv_stride = (long long)p.kv_heads * p.dim;
  float* raw = scores ? scores : probs;  // probs keeps the scores until m and l are final

  load_rows(q + ((long long)first * p.heads + head) * p.dim, (long long)p.heads * p.dim, rows, BQ, p.dim,
            PITCH, p.scale, q_rows);
  float acc[4][DIM / 64][4] = {}, m[4], l[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    m[i] = sinks ? sinks[head] : -infinity();
    l[i] = sinks ? 1.0f : 0.0f;
  }

  for (int tile = 0; tile * p.tile < keys; ++tile) {
    const int tile_end = min((tile + 1) * p.tile, keys);
    for (int start = tile * p.tile; start < tile_end; start += BK) {
      const int count = min(BK, tile_end - start);
      // the whole block of keys lies after the last query or before the first one's window
      const bool masked =
          (p.causal && start > before + first + rows - 1) || before + first - (start + count - 1) >= p.window;
      float s[4][BK / 16] = {};
      if (!masked) {
        __syncthreads();  // nobody reads the previous values any more
        load_rows(k + start * kv_stride + kv_head * p.dim, kv_stride, count, BK, p.dim, PITCH, 1.0f, kv_rows);
        __syncthreads();
        for (int d = 0; d < p.dim; d += 4) {
          float a[4][4], b[BK / 16][4];
#pragma unroll
          for (int i = 0; i < 4; ++i) load<4>(q_rows + (4 * ty + i) * PITCH + d, a[i]);
#pragma unroll
          for (int j = 0; j < BK / 16; ++j) load<4>(kv_rows + (tx + 16 * j) * PITCH + d, b[j]);
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int j = 0; j < BK / 16; ++j)
#pragma unroll
              for (int e = 0; e < 4; ++e) s[i][j] += a[i][e] * b[j][e];
        }
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int row = 4 * ty + i, query = first + row;
#pragma unroll
        for (int j = 0; j < BK / 16; ++j) {
          const int key = start + tx + 16 * j;
          s[i][j] = key < tile_end && !masked ? score(s[i][j], before + query, key, p) : -infinity();
          if (raw && row < rows && key < tile_end) {
            raw[((long long)head * p.tokens + query) * p.max_keys + key] = s[i][j];
          }
        }
      }
      if (masked) continue;

      float shrink[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float top = m[i], sum = 0.0f;
#pragma unroll
        for (int j = 0; j < BK / 16; ++j) top = fmaxf(top, s[i][j]);
        top = warp_max<16>(top);
#pragma unroll
        for (int j = 0; j < BK / 16; ++j) {
          const float w = weight(s[i][j], top);
          weights[(4 * ty + i) * P_PITCH + tx + 16 * j] = w;
          sum += w;
        }
        shrink[i] = weight(m[i], top);
        l[i] = l[i] * shrink[i] + warp_sum<16>(sum);
        m[i] = top;
      }
      __syncthreads();  // weights are written, keys no longer read
      load_rows(v + start * kv_stride + kv_head * p.dim, kv_stride, count, BK, p.dim, PITCH, 1.0f, kv_rows);
      __syncthreads();
#pragma unroll
      for (int c = 0; c < DIM / 64; ++c) {
        float sum[4][4] = {};  // of these keys alone: thousands added one by one would round too much
        for (int key = 0; key < count; key += 4) {  // rows past `count` hold zeros
          float w[4][4], x[4][4];
#pragma unroll
          for (int i = 0; i < 4; ++i) load<4>(weights + (4 * ty + i) * P_PITCH + key, w[i]);
#pragma unroll
          for (int e = 0; e < 4; ++e) load<4>(kv_rows + (key + e) * PITCH + 4 * tx + 64 * c, x[e]);
#pragma unroll
          for (int i = 0; i < 4; ++i)
#pragma unroll
            for (int e = 0; e < 4; ++e)
#pragma unroll
              for (int f = 0; f < 4; ++f) sum[i][f] += w[i][e] * x[e][f];
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
#pragma unroll
          for (int f = 0; f < 4; ++f) acc[i][c][f] = acc[i][c][f] * shrink[i] + sum[i][f];
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 4 * ty + i;
      const long long at = ((long long)tile * p.heads + head) * p.tokens + first + row;
      if (tx == 0 && row < rows && m_tiles) m_tiles[at] = m[i];
      if (tx == 0 && row < rows && l_tiles) l_tiles[at] = l[i];
    }
  }

  float* final_m = q_rows;  // the queries have served
  float* final_l = q_rows + BQ;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int row = 4 * ty + i;
    const long long at = (long long)head * p.tokens + first + row;
    if (tx == 0) final_m[row] = m[i], final_l[row] = l[i];
    if (row >= rows) continue;
    if (tx == 0 && m_out) m_out[at] = m[i];
    if (tx == 0 && l_out) l_out[at] = l[i];
#pragma unroll
    for (int c = 0; c < DIM / 64; ++c) {
      const int column = 4 * tx + 64 * c;
      T* to = out + ((long long)(first + row) * p.heads + head) * p.dim + column;
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[i][c][e] /= l[i];
      if (p.dim % 4 == 0 && column < p.dim) store<4>(to, acc[i][c]);
      if (p.dim % 4 != 0) {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (column + e < p.dim) to[e] = from_float<T>(acc[i][c][e]);
      }
    }
  }
  if (!probs) return;
  __syncthreads();  // every score of these rows is in memory
  for (int row = threadIdx.x / 32; row < rows; row += blockDim.x / 32) {
    const long long at = ((long long)head * p.tokens + first + row) * p.max_keys;
    for (int key = threadIdx.x % 32; key < keys; key += 32) {
      probs[at + key] = expf(raw[at + key] - final_m[row]) / final_l[row];
    }
  }
}
