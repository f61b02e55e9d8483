// A sound kernel and what becomes of it with one fault each: the CPU target must tell them apart.

// out [blockDim.x] = in [blockDim.x] in reverse
__global__ void reverse(const float* in, float* out) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void reverse_without_barrier(const float* in, float* out) {
  extern __shared__ float shared[];
  shared[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

__global__ void diverge(const float* in, float* out) {
  if (threadIdx.x < 7) __syncthreads();
  out[threadIdx.x] = in[threadIdx.x];
}

__global__ void overrun_shared(const float* in, float* out) {
  extern __shared__ float shared[];
  shared[threadIdx.x + 1] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x + 1];
}

__global__ void overrun(const float* in, float* out) {
  out[threadIdx.x + 1] = in[threadIdx.x];
  if (threadIdx.x == 0) out[0] = 0.0f;
}
