/* XXH3-64 without a seed, by its specification (doc/xxhash_spec.md of the xxHash project). */
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "../kernels/compiler.h"

static const uint8_t SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef,
    0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7,
    0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73,
    0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb, 0x17,
    0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16, 0xbe,
    0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f, 0x95,
    0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};
static const uint64_t P32_1 = 0x9E3779B1U, P32_2 = 0x85EBCA77U, P32_3 = 0xC2B2AE3DU;
static const uint64_t P64_1 = 0x9E3779B185EBCA87ULL, P64_2 = 0xC2B2AE3D27D4EB4FULL,
                      P64_3 = 0x165667B19E3779F9ULL, P64_4 = 0x85EBCA77C2B2AE63ULL, P64_5 = 0x27D4EB2F165667C5ULL;
static const uint64_t MIX_1 = 0x165667919E3779F9ULL, MIX_2 = 0x9FB21C651E98DF25ULL;

INLINE uint64_t word(const uint8_t *p) {
  uint64_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

INLINE uint64_t half_word(const uint8_t *p) {
  uint32_t value;
  memcpy(&value, p, sizeof value);
  return value;
}

INLINE uint64_t turned(uint64_t h, int bits) { return h << bits | h >> (64 - bits); }

INLINE uint64_t folded(uint64_t a, uint64_t b) {
  const unsigned __int128 product = (unsigned __int128)a * b;
  return (uint64_t)product ^ (uint64_t)(product >> 64);
}

INLINE uint64_t avalanche(uint64_t h) {
  h = (h ^ h >> 37) * MIX_1;
  return h ^ h >> 32;
}

INLINE uint64_t mixed(const uint8_t *p, const uint8_t *secret) {
  return folded(word(p) ^ word(secret), word(p + 8) ^ word(secret + 8));
}

static uint64_t xxh3_up_to_16(const uint8_t *p, size_t size) {
  if (size > 8) {
    const uint64_t low = word(p) ^ word(SECRET + 24) ^ word(SECRET + 32);
    const uint64_t high = word(p + size - 8) ^ word(SECRET + 40) ^ word(SECRET + 48);
    return avalanche(size + __builtin_bswap64(low) + high + folded(low, high));
  }
  if (size >= 4) {
    const uint64_t both = half_word(p + size - 4) + (half_word(p) << 32);
    uint64_t h = both ^ word(SECRET + 8) ^ word(SECRET + 16);
    h = (h ^ turned(h, 49) ^ turned(h, 24)) * MIX_2;
    h = (h ^ ((h >> 35) + size)) * MIX_2;
    return h ^ h >> 28;
  }
  uint64_t h = word(SECRET + 56) ^ word(SECRET + 64);
  if (size) {
    const uint64_t first = p[0], middle = p[size >> 1], last = p[size - 1];
    h = (first << 16 | middle << 24 | last | size << 8) ^ half_word(SECRET) ^ half_word(SECRET + 4);
  }
  h = (h ^ h >> 33) * P64_2;
  h = (h ^ h >> 29) * P64_3;
  return h ^ h >> 32;
}

static uint64_t xxh3_up_to_240(const uint8_t *p, size_t size) {
  uint64_t acc = size * P64_1;
  if (size <= 128) { /* pairs of sixteens from both ends */
    for (size_t i = (size - 1) / 32 + 1; i-- > 0;)
      acc += mixed(p + 16 * i, SECRET + 32 * i) + mixed(p + size - 16 * (i + 1), SECRET + 32 * i + 16);
    return avalanche(acc);
  }
  for (size_t i = 0; i < 8; ++i) acc += mixed(p + 16 * i, SECRET + 16 * i);
  acc = avalanche(acc);
  for (size_t i = 8; i < size / 16; ++i) acc += mixed(p + 16 * i, SECRET + 16 * (i - 8) + 3);
  return avalanche(acc + mixed(p + size - 16, SECRET + 136 - 17));
}

enum { STRIPE = 64, STRIPES = (sizeof SECRET - STRIPE) / 8 }; /* bytes; stripes of a block */

/* Adds the stripes from `first` to before `end` of what begins at p. */
#define STRIPES_OF uint64_t acc[8], const uint8_t *p, size_t first, size_t end
typedef void AddStripes(STRIPES_OF);

static void add_stripe(uint64_t acc[8], const uint8_t *stripe, const uint8_t *secret) {
  for (int i = 0; i < 8; ++i) {
    const uint64_t data = word(stripe + 8 * i), key = data ^ word(secret + 8 * i);
    acc[i ^ 1] += data;
    acc[i] += (key & 0xffffffff) * (key >> 32);
  }
}

INLINE void scramble(uint64_t acc[8]) {
  for (int i = 0; i < 8; ++i)
    acc[i] = ((acc[i] ^ acc[i] >> 47) ^ word(SECRET + sizeof SECRET - STRIPE + 8 * i)) * P32_1;
}

static void add_stripes_plainly(STRIPES_OF) {
  for (size_t n = first; n < end; ++n) {
    add_stripe(acc, p + n * STRIPE, SECRET + n % STRIPES * 8);
    if (n % STRIPES == STRIPES - 1) scramble(acc);
  }
}

#if defined(__GNUC__) && defined(__x86_64__) && !defined(WITHOUT_VECTORS)
#include <immintrin.h>

/* By hand: compilers make a 64-bit product of three, not of the one that 32-bit factors need. */
INLINE __attribute__((target("avx2"))) __m256i with_half(__m256i acc, const uint8_t *stripe, const uint8_t *secret) {
  const __m256i data = _mm256_loadu_si256((const __m256i *)stripe);
  const __m256i key = _mm256_xor_si256(data, _mm256_loadu_si256((const __m256i *)secret));
  acc = _mm256_add_epi64(acc, _mm256_shuffle_epi32(data, 0x4e)); /* the neighbour's data */
  return _mm256_add_epi64(acc, _mm256_mul_epu32(key, _mm256_srli_epi64(key, 32)));
}

static __attribute__((target("avx2"))) void add_stripes_by_fours(STRIPES_OF) {
  __m256i *const halves = (__m256i *)acc;
  while (first < end) {
    const size_t into = first % STRIPES, left = STRIPES - into, count = end - first < left ? end - first : left;
    __m256i low = _mm256_loadu_si256(halves), high = _mm256_loadu_si256(halves + 1);
    for (size_t n = 0; n < count; ++n) {
      const uint8_t *const stripe = p + (first + n) * STRIPE, *const secret = SECRET + (into + n) * 8;
      low = with_half(low, stripe, secret);
      high = with_half(high, stripe + 32, secret + 32);
    }
    _mm256_storeu_si256(halves, low);
    _mm256_storeu_si256(halves + 1, high);
    if (count == left) scramble(acc);
    first += count;
  }
}

static AddStripes *quickest(void) {
  return __builtin_cpu_supports("avx2") ? add_stripes_by_fours : add_stripes_plainly;
}
#else
static AddStripes *quickest(void) { return add_stripes_plainly; }
#endif

/* The sum of more than 240 bytes, stripe by stripe: the last one, whole or not, comes in its own way. */
typedef struct {
  const uint8_t *p;
  size_t size, added;
  uint64_t acc[8];
} Xxh3;

static Xxh3 xxh3_begin(const uint8_t *p, size_t size) {
  return (Xxh3){p, size, 0, {P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1}};
}

/* Adds what begins before byte `end`. */
static void xxh3_add(Xxh3 *sum, size_t end) {
  const size_t all = (sum->size - 1) / STRIPE, until = end / STRIPE < all ? end / STRIPE : all;
  quickest()(sum->acc, sum->p, sum->added, until);
  sum->added = until;
}

static uint64_t xxh3_end(Xxh3 *sum) {
  xxh3_add(sum, sum->size);
  uint64_t *const acc = sum->acc;
  uint64_t h = sum->size * P64_1;
  add_stripe(acc, sum->p + sum->size - STRIPE, SECRET + sizeof SECRET - STRIPE - 7);
  for (int i = 0; i < 8; i += 2)
    h += folded(acc[i] ^ word(SECRET + 11 + 8 * i), acc[i + 1] ^ word(SECRET + 19 + 8 * i));
  return avalanche(h);
}

static uint64_t xxh3(const uint8_t *p, size_t size) {
  if (size <= 240) return size <= 16 ? xxh3_up_to_16(p, size) : xxh3_up_to_240(p, size);
  Xxh3 sum = xxh3_begin(p, size);
  return xxh3_end(&sum);
}
