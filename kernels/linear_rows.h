/* The product of rows of blocks in vectors of LANES numbers; linear.c includes this once for each width.
 *
 * NAME is the function made, TARGET the processor, V the vector type; CODES(p) loads LANES codes as numbers,
 * MM(f) is the processor's function f for the width, TOTAL(v) adds up the lanes. */
INLINE TARGET void NAME(Unpack *unpack, int size, int bytes, int group, ROWS) {
  for (long row = 0; row < rows; ++row) {
    V sum = MM(setzero_ps)();
    float offsets = 0;
    for (long first = 0; first < columns;) {
      V span = MM(setzero_ps)();
      float span_offsets = 0;
      const long end = first + SPAN < columns ? first + SPAN : columns;
      for (; first < end; first += size, w += bytes) {
        Block b;
        unpack(w, &b);
        for (int g = 0; g < size / group; ++g) {
          const float *at = x + first + g * group;
          const int8_t *code = b.code + g * group;
          V part = MM(mul_ps)(CODES(code), MM(loadu_ps)(at));
          for (int i = LANES; i < group; i += LANES)
            part = MM(fmadd_ps)(CODES(code + i), MM(loadu_ps)(at + i), part);
          span = MM(fmadd_ps)(MM(set1_ps)(b.scale[g]), part, span);
          span_offsets += b.offset[g] * sums[first / group + g];
        }
      }
      sum = MM(add_ps)(sum, span);
      offsets += span_offsets;
    }
    out[row] = TOTAL(sum) + offsets;
  }
}
#undef NAME
#undef TARGET
#undef V
#undef LANES
#undef MM
#undef CODES
#undef TOTAL
