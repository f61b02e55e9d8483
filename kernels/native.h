/* The compiled kernels, as native.c gives them to Python.  No function here knows Python. */
#pragma once

/* One version of a function for each kind of x86 processor, chosen when the program is loaded. */
#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__gnu_linux__)
#define VECTORISED __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORISED
#endif

/* The figures of a row, as kernels/difference.py names them. */
enum { DD, DB, AB, BB, AA, NORM_A, NORM_B, HIDDEN, MAX_ABS, TOP_A, TOP_B, DIFFERENCES };

/* a, b [rows][width] -> out [DIFFERENCES][rows].  Of a row the first valid[row] numbers count (null: all);
 * head_dim > 0 splits it into vectors; numbers at or below *masked stand for nothing (null: all count), and
 * where only one side has one BB is NaN. */
void differ(const float *a, const float *b, long rows, long width, const long long *valid, long head_dim,
            const float *masked, double *out);

/* How a weight type of GGUF is stored: weights and bytes of a block, weights that share a scale. */
typedef struct {
  const char *name;
  int block, bytes, group;
} Format;

/* The format of that name; null where there is no product for it. */
const Format *format_of(const char *name);

/* w [rows] of blocks times x [columns] -> out [rows], on all cores; `sums` has room for columns / group. */
void multiply(const Format *format, const unsigned char *w, long rows, long columns, const float *x,
              float *sums, float *out);
