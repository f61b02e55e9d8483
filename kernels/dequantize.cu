// A weight of GGUF type W as numbers of type T, one octet a thread: what cuBLAS multiplies many rows with.
#include "quants.cuh"

// blocks: `octets` octets without gaps -> out [8 * octets]
template <class T, class W>
__global__ void dequantize(const u8* __restrict__ blocks, T* __restrict__ out, long long octets) {
  const long long octet = blockIdx.x * (long long)blockDim.x + threadIdx.x;
  if (octet >= octets) return;
  long long first, second;
  float low[4], high[4];
  decode_octet<W>(blocks, octet, first, second, low, high);
  store<4>(out + first, low);
  store<4>(out + second, high);
}
