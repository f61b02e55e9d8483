// Attention of one query, the keys split over the whole GPU.
#include "attention.cuh"

// Block (chunk, kv_head) attends the query heads of one KV head to one chunk of keys, a part of one tile, and
// leaves its own m, l and unnormalised output in `partial`; the block that finishes last for a KV head merges
// them.  The running m and l after a tile are those of its chunks and of all before.
// partial: outputs [chunk, head, dim], then m [chunk, head], then l [chunk, head], sized by gridDim.x chunks.
// finished [kv_head] is 0 before and after.
template <class T>
__global__ void __launch_bounds__(128, 4)
    attention_decode(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                     const float* __restrict__ sinks, const int* __restrict__ kv_len, T* __restrict__ out, float* scores, float* probs,
                     float* m_out, float* l_out, float* m_tiles, float* l_tiles, Problem p, int chunk,
                     float* partial, int* finished) {
  constexpr int KEYS = 32;      // keys in shared memory at a time
  constexpr int AHEAD = 8;      // scores that a thread turns into probabilities at a time
  constexpr int MERGED = 4096;  // m and l of this many chunks, over all heads, that are merged at a time
  const int kv_head = blockIdx.y, group = p.heads / p.kv_heads, first_head = kv_head * group;
  const int keys = kv_len ? *kv_len : p.max_keys;
  const int tile_chunks = (p.tile + chunk - 1) / chunk;
  const int chunks = keys / p.tile * tile_chunks + (keys % p.tile + chunk - 1) / chunk;
  if (blockIdx.x >= chunks) return;
  const int start = blockIdx.x / tile_chunks * p.tile + blockIdx.x % tile_chunks * chunk;
  const int end = min(min(start + chunk, (int)(blockIdx.x / tile_chunks + 1) * p.tile), keys);
  const int pitch = (p.dim + 3) / 4 * 4 + 4;
  const long long kv_stride = (long long)p.kv_heads * p.dim;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warps = blockDim.x / 32;
  float* all_m = partial + (long long)gridDim.x * p.heads * p.dim;  // [chunk, head]
  float* all_l = all_m + (long long)gridDim.x * p.heads;
  float* raw = scores ? scores : probs;

  extern __shared__ float shared[];
  float* q_rows = shared;                      // [group, pitch]
  float* k_rows = q_rows + group * pitch;      // [KEYS, pitch]
  float* weights = k_rows + KEYS * pitch;      // [group, chunk]: scores, then exp(score - m)
  const bool masked = keys - end >= p.window;  // the whole chunk lies before the window: read none of it
  load_rows(q + first_head * p.dim, p.dim, group, group, p.dim, pitch, p.scale, q_rows);
  for (int base = start; base < end; base += KEYS) {
    const int count = min(KEYS, end - base);
    if (!masked) {
      __syncthreads();
      load_rows(k + base * kv_stride + kv_head * p.dim, kv_stride, count, KEYS, p.dim, pitch, 1.0f, k_rows);
      __syncthreads();
    }
    const int key = base + lane;
    for (int g = warp; g < group && lane < count; g += warps) {
      float products[4] = {};  // four chains: shorter waits, and less rounding than one long sum
      for (int d = 0; d < p.dim && !masked; d += 4) {
        float a[4], b[4];
        load<4>(q_rows + g * pitch + d, a);
        load<4>(k_rows + lane * pitch + d, b);
#pragma unroll
        for (int e = 0; e < 4; ++e) products[e] += a[e] * b[e];
      }
      const float product = (products[0] + products[1]) + (products[2] + products[3]);
      const float s = score(product, keys - 1, key, p);
      weights[g * chunk + key - start] = s;
      if (raw) raw[(long long)(first_head + g) * p.max_keys + key] = s;
    }
  }
  for (int g = warp; g < group; g += warps) {  // each lane reads the scores that it wrote itself
    float m = -infinity(), l = 0.0f;
    for (int i = lane; i < end - start; i += 32) m = fmaxf(m, weights[g * chunk + i]);
    m = warp_max(m);
    for (int i = lane; i < end - start; i += 32) {
      const float w = weight(weights[g * chunk + i], m);
      weights[g * chunk + i] = w;
      l += w;
    }
    l = warp_sum(l);
    if (lane == 0) all_m[blockIdx.x * p.heads + first_head + g] = m;
    if (lane == 0) all_l[blockIdx.x * p.heads + first_head + g] = l;
  }
  __syncthreads();
  for (int i = threadIdx.x; i < group * p.dim; i += blockDim.x) {
    const int g = i / p.dim, d = i % p.dim;
    const T* values = v + start * kv_stride + kv_head * p.dim + d;
    float acc = 0.0f;
#pragma unroll 8
    for (int key = 0; key < (masked ? 0 : end - start); ++key) {
      acc += weights[g * chunk + key] * to_float(values[key * kv_stride]);
    }
    partial[((long long)blockIdx.x * p.heads + first_head + g) * p.dim + d] = acc;
  }

  // An integer counter decides only who merges; the merge itself has one order, so the result has one value.
  __threadfence();
  __syncthreads();
  int* last = (int*)shared;
  if (threadIdx.x == 0) *last = atomicAdd(finished + kv_head, 1) == chunks - 1;
  __syncthreads();
  if (!*last) return;
  __threadfence();
  __syncthreads();  // everybody has read *last
  if (threadIdx.x == 0) finished[kv_head] = 0;

  // A few heads at a time, as many as the shared memory has room for.
  const int batch = max(1, min(group, MERGED / (int)gridDim.x));
  float* ms = shared;               // [head, chunk], then exp(m of the chunk - final m)
  float* ls = ms + batch * chunks;  // [head, chunk]
  float* final_m = ls + batch * chunks;
  float* final_l = final_m + batch;
  for (int base = first_head; base < first_head + group; base += batch) {
    const int count = min(batch, first_head + group - base);
    for (int i = threadIdx.x; i < count * chunks; i += blockDim.x) {
      const int at = i % chunks * p.heads + base + i / chunks;
      ms[i] = __ldcg(all_m + at);  // written by other blocks: not through L1
      ls[i] = __ldcg(all_l + at);
    }
    __syncthreads();
    for (int h = warp; h < count; h += warps) {
      const float sink = sinks ? sinks[base + h] : -infinity();
      float m = sink, l = 0.0f;
      for (int c = lane; c < chunks; c += 32) m = fmaxf(m, ms[h * chunks + c]);
      m = warp_max(m);
      for (int c = lane; c < chunks; c += 32) l += ls[h * chunks + c] * weight(ms[h * chunks + c], m);
      l = warp_sum(l) + weight(sink, m);
      if (lane == 0) {
        final_m[h] = m;
        final_l[h] = l;
        if (m_out) m_out[base + h] = m;
        if (l_out) l_out[base + h] = l;
      }
    }
    if (m_tiles || l_tiles) {  // eight lanes for each tile of each head
      const int tiles = (keys + p.tile - 1) / p.tile, octets = blockDim.x / 8, octet_lane = threadIdx.x % 8;
      for (int first = 0; first < count * tiles; first += octets) {
        const int i = first + threadIdx.x / 8, h = min(i / tiles, count - 1), tile = i % tiles;
        const int until = min((tile + 1) * tile_chunks, chunks);
        const float sink = sinks ? sinks[base + h] : -infinity();
        float running_m = sink, running_l = 0.0f;
        for (int c = octet_lane; c < until; c += 8) running_m = fmaxf(running_m, ms[h * chunks + c]);
        running_m = warp_max<8>(running_m);
        for (int c = octet_lane; c < until; c += 8) {
          running_l += ls[h * chunks + c] * weight(ms[h * chunks + c], running_m);
        }
        running_l = warp_sum<8>(running_l) + weight(sink, running_m);
        if (i < count * tiles && octet_lane == 0) {
          if (m_tiles) m_tiles[tile * p.heads + base + h] = running_m;
          if (l_tiles) l_tiles[tile * p.heads + base + h] = running_l;
        }
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < count * chunks; i += blockDim.x) ms[i] = weight(ms[i], final_m[i / chunks]);
    __syncthreads();
    for (int i = threadIdx.x; i < count * p.dim; i += blockDim.x) {
      const int h = i / p.dim, d = i % p.dim;
      float acc = 0.0f;
#pragma unroll 8
      for (int c = 0; c < chunks; ++c) {
        acc += ms[h * chunks + c] * __ldcg(partial + ((long long)c * p.heads + base + h) * p.dim + d);
      }
      out[(base + h) * p.dim + d] = from_float<T>(acc / final_l[h]);
    }
    if (probs) {
      const int total = count * keys;
      for (int first = threadIdx.x; first < total; first += AHEAD * blockDim.x) {
        float scores_here[AHEAD];  // all on their way before the first is needed
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
          const int i = first + j * blockDim.x;
          if (i < total) scores_here[j] = __ldcg(raw + (long long)(base + i / keys) * p.max_keys + i % keys);
        }
#pragma unroll
        for (int j = 0; j < AHEAD; ++j) {
          const int i = first + j * blockDim.x, h = i / keys;
          if (i >= total) break;
          probs[(long long)(base + h) * p.max_keys + i % keys] = expf(scores_here[j] - final_m[h]) / final_l[h];
        }
      }
    }
    __syncthreads();  // the shared memory is free for the next heads
  }
}
