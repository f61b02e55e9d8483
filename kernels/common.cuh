// What the kernels share: storage types, vector loads and stores, warp sums.
//
// Activations are stored as float, f16 or bf16; all arithmetic is in float.  The two 16-bit types are defined
// here rather than taken from cuda_fp16.h, so that NVRTC needs no header of the CUDA toolkit: a CuPy wheel
// brings none, and compiling takes a fraction of the time.
#pragma once

struct f16 {
  unsigned short bits;
};

struct bf16 {
  unsigned short bits;
};

#ifndef HOST_CUDA  // the tests' CPU target brings its own
__device__ inline float f16_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ inline unsigned short float_to_f16(float x) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(f16 x) { return f16_to_float(x.bits); }
__device__ inline float to_float(bf16 x) { return __uint_as_float((unsigned)x.bits << 16); }

// Rounded to nearest, ties to even.
template <class T>
__device__ inline T from_float(float x);

template <>
__device__ inline float from_float<float>(float x) {
  return x;
}

template <>
__device__ inline f16 from_float<f16>(float x) {
  return {float_to_f16(x)};
}

template <>
__device__ inline bf16 from_float<bf16>(float x) {
  const unsigned bits = __float_as_uint(x);
  if (x != x) return {(unsigned short)(bits >> 16 | 0x40)};  // rounding must not turn a NaN into infinity
  return {(unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// N neighbouring elements, moved by one instruction: 16 bytes for four floats.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];
};

template <int N, class T>
__device__ inline void load(const T* from, float (&x)[N]) {
  const Pack<T, N> pack = *reinterpret_cast<const Pack<T, N>*>(from);
#pragma unroll
  for (int i = 0; i < N; ++i) x[i] = to_float(pack.v[i]);
}

template <int N, class T>
__device__ inline void store(T* to, const float (&x)[N]) {
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = from_float<T>(x[i]);
  *reinterpret_cast<Pack<T, N>*>(to) = pack;
}

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

// Sum and maximum over `WIDTH` neighbouring lanes, the result in each of them.  The order is fixed, so two
// runs agree to the bit.
template <int WIDTH = 32>
__device__ inline float warp_sum(float x) {
#pragma unroll
  for (int distance = WIDTH / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(~0u, x, distance);
  return x;
}

template <int WIDTH = 32>
__device__ inline float warp_max(float x) {
#pragma unroll
  for (int distance = WIDTH / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, distance));
  return x;
}
