// Rotary position embedding of q, and with it, in the same launch, of k, whose result also goes into the KV
// cache, where v is copied beside it: in decode one launch in place of four.
#include "common.cuh"

// The angle of pair i is position * base^(-2i/dims) / factor[i], of which a part that grows with i (`low`,
// `steepness`) is multiplied by `scale`; cosine and sine are multiplied by `magnitude`.
struct Scaling {
  double base, scale, low, steepness, magnitude;
  long long original;  // positions below it use the short factors
};

// Elements `first` and `second` of one head, rotated (or passed) into `out` and `cache`, where given.
template <class T>
__device__ inline void rotate(const T* in, T* out, T* cache, int first, int second, bool rotated,
                              float cosine, float sine) {
  T x = in[first], y = in[second];
  if (rotated) {
    const float a = to_float(x), b = to_float(y);
    x = from_float<T>(a * cosine - b * sine);
    y = from_float<T>(a * sine + b * cosine);
  }
  if (out) out[first] = x, out[second] = y;
  if (cache) cache[first] = x, cache[second] = y;
}

// q, q_out [token, heads, dim]; k, v, k_out [token, kv_heads, dim]; caches [max_len, kv_heads, dim], written
// from row *kv_len - tokens on.  positions [token]; factors, long_factors [dims / 2] or null.  With
// kv_heads = 0 only q is read, with heads = 0 only k and v; k_out may be null.
// Grid (token, groups of heads); block (dim / 2 pairs, heads at a time).
//
// Angles are in double: at position 100 000 a float angle is already wrong by 4e-3 rad.
template <class T, bool INTERLEAVED>
__global__ void rope(const T* __restrict__ q, const T* __restrict__ k, const T* __restrict__ v,
                     T* __restrict__ q_out, T* __restrict__ k_out, T* __restrict__ k_cache,
                     T* __restrict__ v_cache, const int* __restrict__ positions,
                     const int* __restrict__ kv_len, const float* __restrict__ factors,
                     const float* __restrict__ long_factors, Scaling scaling, int dims, int dim, int heads,
                     int kv_heads) {
  const int token = blockIdx.x, pair = threadIdx.x, half = dims / 2;
  const bool rotated = pair < half;
  int first = 2 * pair, second = 2 * pair + 1;
  float cosine = 1.0f, sine = 0.0f;
  if (rotated) {
    const bool is_long = long_factors && positions[gridDim.x - 1] >= scaling.original;
    const float* chosen = is_long ? long_factors : factors;
    double frequency = pow(scaling.base, -2.0 * pair / dims);
    if (chosen) frequency /= (double)chosen[pair];
    const double part = fmin(fmax((pair - scaling.low) * scaling.steepness, 0.0), 1.0);
    frequency *= 1.0 + (scaling.scale - 1.0) * part;
    double s, c;
    sincos(positions[token] * frequency, &s, &c);
    cosine = (float)(c * scaling.magnitude), sine = (float)(s * scaling.magnitude);
    if (!INTERLEAVED) first = pair, second = pair + half;
  }

  for (int h = blockIdx.y * blockDim.y + threadIdx.y; h < heads + 2 * kv_heads; h += gridDim.y * blockDim.y) {
    if (h < heads) {
      const long long at = ((long long)token * heads + h) * dim;
      rotate<T>(q + at, q_out + at, nullptr, first, second, rotated, cosine, sine);
      continue;
    }
    const int kv_head = (h - heads) % kv_heads, slot = *kv_len - (int)gridDim.x + token;
    const long long at = ((long long)token * kv_heads + kv_head) * dim;
    const long long cached = ((long long)slot * kv_heads + kv_head) * dim;
    if (h < heads + kv_heads) {
      rotate<T>(k + at, k_out ? k_out + at : nullptr, k_cache + cached, first, second, rotated, cosine, sine);
    } else {
      v_cache[cached + first] = v[at + first];
      v_cache[cached + second] = v[at + second];
    }
  }
}
