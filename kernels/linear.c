/* One token's product with a quantised weight, straight from its blocks (kernels/linear.py).
 *
 * A row's product is the sum over groups of scale * (codes · x) + offset * sum(x).  The codes' product is the
 * hot part; it is written for vectors by hand, as compilers make slow code of it. */
#include "native.h"
#include "quants.h"
#include "team.h"

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

typedef void Multiply(const char *name, ROWS);

#if defined(__GNUC__) && defined(__x86_64__) && !defined(WITHOUT_VECTORS)
#include <immintrin.h>
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,fma,f16c")))

INLINE AVX2 float total(__m256 v) {
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

#define NAME by_eights
#define TARGET AVX2
#define V __m256
#define LANES 8
#define MM(f) _mm256_##f
#define CODES(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(p))))
#define TOTAL total
#include "linear_rows.h"

#define NAME by_sixteens
#define TARGET AVX512
#define V __m512
#define LANES 16
#define MM(f) _mm512_##f
#define CODES(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(p))))
#define TOTAL _mm512_reduce_add_ps
#include "linear_rows.h"

#define BY_EIGHTS(...) CASE(by_eights, __VA_ARGS__)
static AVX2 void multiply_by_eights(const char *name, ROWS) { QUANTS(BY_EIGHTS) }
#define BY_SIXTEENS(...) CASE(by_sixteens, __VA_ARGS__)
static AVX512 void multiply_by_sixteens(const char *name, ROWS) { QUANTS(BY_SIXTEENS) }

static Multiply *quickest(void) {
#ifndef WITHOUT_AVX512
  if (__builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return multiply_by_sixteens;
#endif
  const int eights =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  return eights ? multiply_by_eights : multiply_plainly;
}
#else
static Multiply *quickest(void) { return multiply_plainly; }
#endif

/* One product, as the threads see it. */
typedef struct {
  Multiply *multiply_rows;
  const Format *format;
  const unsigned char *w;
  long columns;
  const float *x, *sums;
  float *out;
} Product;

static void take_rows(const void *loop, long first, long end) {
  const Product *const p = loop;
  const long row_bytes = p->columns / p->format->block * p->format->bytes;
  const uint8_t *const rows = p->w + first * row_bytes;
  p->multiply_rows(p->format->name, rows, end - first, p->columns, p->x, p->sums, p->out + first);
}

void multiply(const Format *format, const unsigned char *w, long rows, long columns, const float *x,
              float *sums, float *out) {
  for (long g = 0; g < columns / format->group; ++g) {
    sums[g] = 0;
    for (int i = 0; i < format->group; ++i) sums[g] += x[g * format->group + i];
  }
  const Product product = {quickest(), format, w, columns, x, sums, out};
  share_out(take_rows, &product, rows, SHARE / (columns + 1) + 1);
}
