// GGUF's weight types, decoded eight weights at a time.
//
// A row is a sequence of blocks of BLOCK weights in BYTES bytes.  Its octets, numbered from the row's start,
// are the unit of work of a thread: octet p of a block holds the four weights from first(p) and the four from
// second(p) of the block, which is how the 4-bit types pack them.  ggml-quants.h names the fields; the values
// are those of gguf.quants, to the bit.
#pragma once
#include "common.cuh"

typedef unsigned char u8;

__device__ inline unsigned load16(const u8* p) { return *reinterpret_cast<const unsigned short*>(p); }

// Where the bytes of a block are no multiple of four (Q4_0: 18), a block may begin at any even address.
template <int BLOCK_BYTES>
__device__ inline unsigned load32(const u8* p) {
  if (BLOCK_BYTES % 4 == 0) return *reinterpret_cast<const unsigned*>(p);
  return load16(p) | load16(p + 2) << 16;
}

__device__ inline unsigned byte_of(unsigned word, int i) { return word >> 8 * i & 0xff; }

// F32, F16, BF16: eight neighbours.
template <class T>
struct Plain {
  static constexpr int BLOCK = 8, BYTES = 8 * sizeof(T);
  static __device__ int first(int) { return 0; }
  static __device__ int second(int) { return 4; }
  static __device__ void decode(const u8* block, int, float (&low)[4], float (&high)[4]) {
    load<4>(reinterpret_cast<const T*>(block), low);
    load<4>(reinterpret_cast<const T*>(block) + 4, high);
  }
};
typedef Plain<float> F32;
typedef Plain<f16> F16;
typedef Plain<bf16> BF16;

// d, then 32 int8.
struct Q8_0 {
  static constexpr int BLOCK = 32, BYTES = 34;
  static __device__ int first(int p) { return 8 * p; }
  static __device__ int second(int p) { return 8 * p + 4; }
  static __device__ void decode(const u8* block, int p, float (&low)[4], float (&high)[4]) {
    const float d = f16_to_float(load16(block));
    const unsigned a = load32<BYTES>(block + 2 + 8 * p), b = load32<BYTES>(block + 6 + 8 * p);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] = d * (signed char)byte_of(a, i);
      high[i] = d * (signed char)byte_of(b, i);
    }
  }
};

// Blocks of 32 in 4 or 5 bits: d, m where MINIMUM, the fifth bits, then byte j with weights j and j + 16.
template <int BITS, bool MINIMUM>
struct Small {
  static constexpr int HEADER = MINIMUM ? 4 : 2, FIFTHS = BITS == 5 ? 4 : 0;
  static constexpr int BLOCK = 32, BYTES = HEADER + FIFTHS + 16;
  static __device__ int first(int p) { return 4 * p; }
  static __device__ int second(int p) { return 16 + 4 * p; }
  static __device__ void decode(const u8* block, int p, float (&low)[4], float (&high)[4]) {
    const unsigned header = MINIMUM ? load32<BYTES>(block) : load16(block);
    const float d = f16_to_float(header), m = MINIMUM ? f16_to_float(header >> 16) : 0.0f;
    const unsigned q = load32<BYTES>(block + HEADER + FIFTHS + 4 * p);
    const unsigned fifths = BITS == 5 ? load32<BYTES>(block + HEADER) >> 4 * p : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int a = (byte_of(q, i) & 15) | (fifths >> i & 1) << 4;
      const int b = byte_of(q, i) >> 4 | (fifths >> (16 + i) & 1) << 4;
      low[i] = MINIMUM ? d * a + m : d * (a - (1 << (BITS - 1)));
      high[i] = MINIMUM ? d * b + m : d * (b - (1 << (BITS - 1)));
    }
  }
};
typedef Small<4, false> Q4_0;
typedef Small<4, true> Q4_1;
typedef Small<5, false> Q5_0;
typedef Small<5, true> Q5_1;

// Blocks of 256 in 4 or 5 bits: d, dmin, a 6-bit scale and minimum for each 32 packed in 12 bytes, 32 bytes
// of fifth bits (bit s belongs to sub-block s), then 32 bytes for each two sub-blocks.
template <int BITS>
struct Large {
  static constexpr int FIFTHS = BITS == 5 ? 32 : 0;
  static constexpr int BLOCK = 256, BYTES = 16 + FIFTHS + 128;
  static __device__ int first(int p) { return p / 8 * 64 + p % 8 * 4; }
  static __device__ int second(int p) { return first(p) + 32; }
  static __device__ void scale_and_minimum(const u8* block, int s, float& scale, float& minimum) {
    const u8* packed = block + 4;
    const int a = s < 4 ? packed[s] & 63 : (packed[s + 4] & 15) | packed[s - 4] >> 6 << 4;
    const int b = s < 4 ? packed[s + 4] & 63 : packed[s + 4] >> 4 | packed[s] >> 6 << 4;
    const unsigned header = load32<BYTES>(block);
    scale = f16_to_float(header) * a;
    minimum = f16_to_float(header >> 16) * b;
  }
  static __device__ void decode(const u8* block, int p, float (&low)[4], float (&high)[4]) {
    const int pair = p / 8, at = p % 8 * 4;
    float d0, m0, d1, m1;
    scale_and_minimum(block, 2 * pair, d0, m0);
    scale_and_minimum(block, 2 * pair + 1, d1, m1);
    const unsigned q = load32<BYTES>(block + 16 + FIFTHS + 32 * pair + at);
    const unsigned fifths = BITS == 5 ? load32<BYTES>(block + 16 + at) >> 2 * pair : 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      low[i] = d0 * (int)((byte_of(q, i) & 15) | (byte_of(fifths, i) & 1) << 4) - m0;
      high[i] = d1 * (int)(byte_of(q, i) >> 4 | (byte_of(fifths, i) >> 1 & 1) << 4) - m1;
    }
  }
};
typedef Large<4> Q4_K;
typedef Large<5> Q5_K;

// Blocks of 256 in 6 bits: 128 bytes of low 4 bits, 64 of high 2 bits, an int8 scale for each 16, d.  Each
// half of a block holds weight j of its first, second, third and fourth 32 in the low and high nibbles of
// bytes j and j + 32.
struct Q6_K {
  static constexpr int BLOCK = 256, BYTES = 210;
  static __device__ int first(int p) { return p / 16 * 128 + p / 8 % 2 * 32 + p % 8 * 4; }
  static __device__ int second(int p) { return first(p) + 64; }
  static __device__ void decode(const u8* block, int p, float (&low)[4], float (&high)[4]) {
    const int half = p / 16, odd = p / 8 % 2, at = p % 8 * 4;
    const signed char* scales = reinterpret_cast<const signed char*>(block + 192);
    const float d = f16_to_float(load16(block + 208)), d0 = d * scales[first(p) / 16],
                d1 = d * scales[second(p) / 16];
    const unsigned q = load32<BYTES>(block + 64 * half + 32 * odd + at);
    const unsigned high_bits = load32<BYTES>(block + 128 + 32 * half + at) >> 2 * odd;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int a = (byte_of(q, i) & 15) | (byte_of(high_bits, i) & 3) << 4;
      const int b = byte_of(q, i) >> 4 | (byte_of(high_bits, i) >> 4 & 3) << 4;
      low[i] = d0 * (a - 32);
      high[i] = d1 * (b - 32);
    }
  }
};

// Octet number `octet` of a row: where its two fours begin in the row, and their weights.
template <class W, class Index>
__device__ inline void decode_octet(const u8* row, Index octet, Index& first, Index& second, float (&low)[4],
                                    float (&high)[4]) {
  constexpr int OCTETS = W::BLOCK / 8;
  const Index block = octet / OCTETS;
  const int p = octet % OCTETS;
  first = block * W::BLOCK + W::first(p);
  second = block * W::BLOCK + W::second(p);
  W::decode(row + (long long)block * W::BYTES, p, low, high);
}
