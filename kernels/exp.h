/* exp for vector loops: within 2 units in the last place; 0 where the result would be below 2^-125. */
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "compiler.h"

/* exp(x) = 2^n exp(r) with n = round(x / ln 2); what is left of x, at most ln(2)/2, is for the power series. */
INLINE float exp_of(float x) {
  const float lowest = -86.64f, highest = 88.72f, shift = 0x1.8p23f;
  const float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f;
  const float shifted = x * 0x1.715476p0f + shift; /* n is in its last bits */
  const float n = shifted - shift, r = (x - n * ln2_high) - n * ln2_low;
  float sum = 1.0f / 5040;
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1;
  sum = sum * r + 1;
  uint32_t bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits + 126) << 23; /* of 2^(n - 1): 2^128 is no float */
  float power;
  memcpy(&power, &bits, sizeof power);
  const float result = sum * power * 2; /* of x that are within, and NaN */
  return x < lowest ? 0 : x > highest ? INFINITY : result;
}
