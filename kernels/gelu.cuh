// GELU by its tanh approximation, as every model that this project knows uses it.
#pragma once
#include "common.cuh"

__device__ inline float gelu(float x) {
  const float inner = 0.797884560802865f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
  return 0.5f * x * (1.0f + tanhf(inner));
}
