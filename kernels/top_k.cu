// The k largest of each row, largest first: one thread a row, as a router has few columns.
#include "common.cuh"

// x [rows, columns] -> ids [rows, k].  Of equal entries the first is taken.
template <class T>
__global__ void top_k(const T* __restrict__ x, int* __restrict__ ids, int rows, int columns, int k) {
  const int row = blockIdx.x * blockDim.x + threadIdx.x;
  if (row >= rows) return;
  const T* from = x + (long long)row * columns;
  int* to = ids + (long long)row * k;
  for (int slot = 0; slot < k; ++slot) {
    int best = -1;
    for (int i = 0; i < columns; ++i) {
      bool taken = false;
      for (int earlier = 0; earlier < slot; ++earlier) taken = taken || to[earlier] == i;
      if (!taken && (best < 0 || to_float(from[i]) > to_float(from[best]))) best = i;
    }
    to[slot] = best;
  }
}
