/* One token's product with a quantised weight, straight from its blocks (kernels/linear.py).
 *
 * A row's product is the sum over groups of scale * (codes · x) + offset * sum(x).  The codes' product is the
 * hot part; it is written for AVX2 by hand, as compilers make slow code of it. */
#include "native.h"
#include "quants.h"

enum { SHARE = 1 << 16 }; /* weights that a thread takes at a time: a few microseconds */
enum { SPAN = 256 };      /* terms added up in a row: rounding grows with the root of their number */

typedef void Unpack(const uint8_t *p, Block *b);
#define ROWS const uint8_t *w, long rows, long columns, const float *x, const float *sums, float *out

#define FORMAT(NAME, UNPACK, SIZE, BYTES, GROUP) {#NAME, SIZE, BYTES, GROUP},
static const Format FORMATS[] = {QUANTS(FORMAT)};

const Format *format_of(const char *name) {
  for (unsigned i = 0; i < sizeof FORMATS / sizeof *FORMATS; ++i)
    if (!strcmp(FORMATS[i].name, name)) return &FORMATS[i];
  return 0;
}

INLINE void plainly(Unpack *unpack, int size, int bytes, int group, ROWS) {
  for (long row = 0; row < rows; ++row) {
    float sum = 0;
    for (long first = 0; first < columns; first += size, w += bytes) {
      Block b;
      unpack(w, &b);
      for (int g = 0; g < size / group; ++g) {
        float part = 0;
#pragma omp simd reduction(+ : part)
        for (int i = 0; i < group; ++i) part += b.code[g * group + i] * x[first + g * group + i];
        sum += b.scale[g] * part + b.offset[g] * sums[first / group + g];
      }
    }
    out[row] = sum;
  }
}

#define CASE(HOW, NAME, UNPACK, SIZE, BYTES, GROUP) \
  if (!strcmp(name, #NAME)) HOW(UNPACK, SIZE, BYTES, GROUP, w, rows, columns, x, sums, out);

#define PLAINLY(...) CASE(plainly, __VA_ARGS__)
static void multiply_plainly(const char *name, ROWS) { QUANTS(PLAINLY) }

#if defined(__GNUC__) && defined(__x86_64__) && !defined(WITHOUT_AVX2)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))

INLINE AVX2 __m256 eight(const int8_t *code) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)code)));
}

INLINE AVX2 float total(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

INLINE AVX2 void by_eights(Unpack *unpack, int size, int bytes, int group, ROWS) {
  for (long row = 0; row < rows; ++row) {
    __m256 sum = _mm256_setzero_ps();
    float offsets = 0;
    for (long first = 0; first < columns;) {
      __m256 span = _mm256_setzero_ps();
      float span_offsets = 0;
      for (const long end = first + SPAN < columns ? first + SPAN : columns; first < end; first += size, w += bytes) {
        Block b;
        unpack(w, &b);
        for (int g = 0; g < size / group; ++g) {
          const float *at = x + first + g * group;
          const int8_t *code = b.code + g * group;
          __m256 part = _mm256_mul_ps(eight(code), _mm256_loadu_ps(at));
          for (int i = 8; i < group; i += 8)
            part = _mm256_fmadd_ps(eight(code + i), _mm256_loadu_ps(at + i), part);
          span = _mm256_fmadd_ps(_mm256_set1_ps(b.scale[g]), part, span);
          span_offsets += b.offset[g] * sums[first / group + g];
        }
      }
      sum = _mm256_add_ps(sum, span);
      offsets += span_offsets;
    }
    out[row] = total(sum) + offsets;
  }
}

#define BY_EIGHTS(...) CASE(by_eights, __VA_ARGS__)
static AVX2 void multiply_by_eights(const char *name, ROWS) { QUANTS(BY_EIGHTS) }

static int has_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
#else
#define multiply_by_eights multiply_plainly
static int has_avx2(void) { return 0; }
#endif

void multiply(const Format *format, const unsigned char *w, long rows, long columns, const float *x,
              float *sums, float *out) {
  for (long g = 0; g < columns / format->group; ++g) {
    sums[g] = 0;
    for (int i = 0; i < format->group; ++i) sums[g] += x[g * format->group + i];
  }
  const long row_bytes = columns / format->block * format->bytes, share = SHARE / (columns + 1) + 1;
#pragma omp parallel for schedule(dynamic) if (rows > 2 * share)
  for (long first = 0; first < rows; first += share) {
    const long count = rows - first < share ? rows - first : share;
    (has_avx2() ? multiply_by_eights : multiply_plainly)(format->name, w + first * row_bytes, count, columns, x,
                                                         sums, out + first);
  }
}
