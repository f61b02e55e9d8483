/* GGUF's weight types as small integers and the numbers they are multiplied by.
 *
 * A block holds BLOCK weights in BYTES bytes.  weight i = scale[g] * code[i] + offset[g], with g = i / 16 or
 * i / 32 (GROUP).  ggml-quants.h names the fields.  Codes are centred on 0 in every type: the minimum of those
 * that have one is moved there, as sums over codes of one sign would lose digits. */
#pragma once
#include <stdint.h>
#include <string.h>

#include "compiler.h"

/* X(name, its function below, BLOCK, BYTES, GROUP) */
#define QUANTS(X)            \
  X(Q4_0, q4_0, 32, 18, 32)  \
  X(Q4_1, q4_1, 32, 20, 32)  \
  X(Q5_0, q5_0, 32, 22, 32)  \
  X(Q5_1, q5_1, 32, 24, 32)  \
  X(Q8_0, q8_0, 32, 34, 32)  \
  X(Q4_K, q4_K, 256, 144, 32) \
  X(Q5_K, q5_K, 256, 176, 32) \
  X(Q6_K, q6_K, 256, 210, 16)

typedef struct {
  int8_t code[256];
  float scale[16], offset[16];
} Block;

INLINE float from_f16(const uint8_t *p) {
#ifdef __FLT16_MAX__ /* the compiler knows the type, and an instruction for it where there is one */
  _Float16 half;
  memcpy(&half, p, sizeof half);
  return (float)half;
#else
  uint16_t half;
  memcpy(&half, p, sizeof half);
  uint32_t bits = (uint32_t)(half & 0x7fff) << 13;
  float value;
  memcpy(&value, &bits, sizeof value);
  value *= 0x1p112f; /* the exponents' biases differ by 112 */
  memcpy(&bits, &value, sizeof bits);
  if ((half & 0x7c00) == 0x7c00) bits |= 0x7f800000; /* infinity, NaN */
  bits |= (uint32_t)(half & 0x8000) << 16;
  memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

typedef uint8_t Bytes __attribute__((vector_size(16)));

INLINE Bytes load(const uint8_t *p) {
  Bytes bytes;
  memcpy(&bytes, p, sizeof bytes);
  return bytes;
}

INLINE void store(int8_t *p, Bytes bytes) { memcpy(p, &bytes, sizeof bytes); }

/* 16 where the bit of 16 is set, 0 elsewhere. */
INLINE Bytes sixteens(uint8_t a, uint8_t b) {
  const Bytes mine = {a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b};
  const Bytes bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return (Bytes)((mine & bit) != 0) & 16;
}

/* d, then 32 int8 */
INLINE void q8_0(const uint8_t *p, Block *b) {
  b->scale[0] = from_f16(p);
  b->offset[0] = 0;
  memcpy(b->code, p + 2, 32);
}

/* Blocks of 32 in 4 or 5 bits: d, m where there is a minimum, the fifth bits, then byte j with weights j and
 * j + 16. */
INLINE void small(const uint8_t *p, Block *b, int minimum, int five) {
  const uint8_t *fifths = p + (minimum ? 4 : 2), *q = fifths + (five ? 4 : 0);
  const uint8_t centre = five ? 16 : 8;
  const Bytes packed = load(q);
  Bytes low = packed & 15, high = packed >> 4;
  if (five) {
    low |= sixteens(fifths[0], fifths[1]);
    high |= sixteens(fifths[2], fifths[3]);
  }
  store(b->code, low - centre);
  store(b->code + 16, high - centre);
  b->scale[0] = from_f16(p);
  b->offset[0] = minimum ? from_f16(p + 2) + centre * b->scale[0] : 0;
}

INLINE void q4_0(const uint8_t *p, Block *b) { small(p, b, 0, 0); }
INLINE void q4_1(const uint8_t *p, Block *b) { small(p, b, 1, 0); }
INLINE void q5_0(const uint8_t *p, Block *b) { small(p, b, 0, 1); }
INLINE void q5_1(const uint8_t *p, Block *b) { small(p, b, 1, 1); }

/* Blocks of 256 in 4 or 5 bits: d, dmin, a 6-bit scale and minimum for each 32 packed in 12 bytes, 32 bytes of
 * fifth bits (bit s belongs to sub-block s), then 32 bytes for each two sub-blocks. */
INLINE void large(const uint8_t *p, Block *b, int five) {
  const uint8_t centre = five ? 16 : 8;
  const float d = from_f16(p), least = from_f16(p + 2);
  const uint8_t *packed = p + 4, *fifths = p + 16, *q = p + 16 + (five ? 32 : 0);
  for (int s = 0; s < 8; ++s) {
    const int a = s < 4 ? packed[s] & 63 : (packed[s + 4] & 15) | (packed[s - 4] >> 6 << 4);
    const int m = s < 4 ? packed[s + 4] & 63 : (packed[s + 4] >> 4) | (packed[s] >> 6 << 4);
    b->scale[s] = d * (float)a;
    b->offset[s] = centre * b->scale[s] - least * (float)m;
  }
  for (int pair = 0; pair < 4; ++pair)
    for (int j = 0; j < 32; j += 16) {
      const Bytes packed = load(q + 32 * pair + j);
      Bytes low = packed & 15, high = packed >> 4;
      if (five) {
        const Bytes bits = load(fifths + j) >> (2 * pair);
        low |= (bits & 1) << 4;
        high |= (bits & 2) << 3;
      }
      store(b->code + 64 * pair + j, low - centre);
      store(b->code + 64 * pair + 32 + j, high - centre);
    }
}

INLINE void q4_K(const uint8_t *p, Block *b) { large(p, b, 0); }
INLINE void q5_K(const uint8_t *p, Block *b) { large(p, b, 1); }

/* Blocks of 256 in 6 bits: 128 bytes of low 4 bits, 64 of high 2 bits, an int8 scale for each 16, d. */
INLINE void q6_K(const uint8_t *p, Block *b) {
  const float d = from_f16(p + 208);
  for (int s = 0; s < 16; ++s) {
    b->scale[s] = d * (float)(int8_t)p[192 + s];
    b->offset[s] = 0;
  }
  for (int half = 0; half < 2; ++half)
    for (int j = 0; j < 32; j += 16) {
      const Bytes first = load(p + 64 * half + j), second = load(p + 64 * half + 32 + j);
      const Bytes high = load(p + 128 + 32 * half + j);
      int8_t *code = b->code + 128 * half + j;
      store(code, ((first & 15) | (high & 3) << 4) - 32);
      store(code + 32, ((second & 15) | (high & 12) << 2) - 32);
      store(code + 64, ((first >> 4) | (high & 48)) - 32);
      store(code + 96, ((second >> 4) | (high >> 6) << 4) - 32);
    }
}
