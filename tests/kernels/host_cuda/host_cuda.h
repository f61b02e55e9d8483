// CUDA on a CPU, as much of it as the kernels use, so that they run where there is no GPU.
//
// Blocks run one after another; the threads of a block are fibers on one CPU thread, switched only at
// barriers and warp shuffles.  A launch says in which order blocks and threads run: a kernel that lacks a
// barrier gives another result in another order.  Shared memory holds NaN when a block starts and has a guard
// behind it.
#pragma once
#define HOST_CUDA

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__  // only `extern __shared__ float shared[]`, which is the array below
#define __launch_bounds__(...)

using std::max;
using std::min;

struct dim3 {
  unsigned x, y, z;
};
dim3 gridDim, blockDim, blockIdx, threadIdx;

constexpr size_t SHARED_LIMIT = 227 * 1024, GUARD = 1024;  // bytes; the limit of a block on sm_90
alignas(128) float shared[(SHARED_LIMIT + GUARD) / sizeof(float)];

namespace host {

constexpr int WARP = 32, MAX_THREADS = 1024;
constexpr size_t STACK = 64 * 1024;
enum State { READY, AT_WARP_BARRIER, AT_BLOCK_BARRIER, DONE };

struct Fiber {
  jmp_buf context;
  ucontext_t start;
  State state;
  dim3 index;
};

std::vector<Fiber> fibers(MAX_THREADS);
int created = 0, current = 0;  // fibers that have a stack; the running one
jmp_buf scheduler;
ucontext_t main_context;
void (*body)(void*);
void* body_argument;
unsigned long long exchanged[MAX_THREADS][2];  // what each thread offers in a shuffle, in alternating slots
unsigned parity[MAX_THREADS];

inline void yield(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  if (!_setjmp(fiber.context)) _longjmp(scheduler, 1);
}

// A fiber runs one thread of one block after another, for as long as the process lives.
inline void fiber_main() {
  for (;;) {
    body(body_argument);
    yield(DONE);
  }
}

inline void resume(int thread) {
  current = thread;
  threadIdx = fibers[thread].index;
  if (_setjmp(scheduler)) return;
  if (thread < created) _longjmp(fibers[thread].context, 1);
  Fiber& fiber = fibers[created++];
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp =
      mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  fiber.start.uc_stack.ss_size = STACK;
  makecontext(&fiber.start, fiber_main, 0);
  setcontext(&fiber.start);
}

inline const char* run_warp(int begin, int end, bool backward) {
  for (;;) {
    for (int i = begin; i < end; ++i) {
      const int thread = backward ? begin + end - 1 - i : i;
      if (fibers[thread].state == READY) resume(thread);
    }
    const int waiting = std::count_if(fibers.begin() + begin, fibers.begin() + end,
                                      [](const Fiber& f) { return f.state == AT_WARP_BARRIER; });
    if (waiting == 0) return nullptr;
    if (waiting != end - begin) return "a warp barrier or shuffle that not every lane reaches";
    for (int i = begin; i < end; ++i) fibers[i].state = READY;
  }
}

inline const char* run_block(bool backward) {
  const int threads = blockDim.x * blockDim.y * blockDim.z, warps = (threads + WARP - 1) / WARP;
  for (int i = 0; i < threads; ++i) {
    fibers[i].state = READY;
    fibers[i].index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    parity[i] = 0;
  }
  for (;;) {
    for (int i = 0; i < warps; ++i) {
      const int begin = (backward ? warps - 1 - i : i) * WARP;
      if (const char* error = run_warp(begin, min(begin + WARP, threads), backward)) return error;
    }
    const int waiting = std::count_if(fibers.begin(), fibers.begin() + threads,
                                      [](const Fiber& f) { return f.state == AT_BLOCK_BARRIER; });
    if (waiting == 0) return nullptr;
    if (waiting != threads) return "a __syncthreads that not every thread reaches";
    for (int i = 0; i < threads; ++i) fibers[i].state = READY;
  }
}

inline const char* run_grid(size_t shared_bytes, bool backward) {
  const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
  if (blockDim.x * blockDim.y * blockDim.z > MAX_THREADS) return "more threads than a block can have";
  if (shared_bytes > SHARED_LIMIT) return "more shared memory than a block can have";
  char* bytes = reinterpret_cast<char*>(shared);
  for (unsigned i = 0; i < blocks; ++i) {
    const unsigned block = backward ? blocks - 1 - i : i;
    blockIdx = {block % gridDim.x, block / gridDim.x % gridDim.y, block / gridDim.x / gridDim.y};
    memset(bytes, 0xff, shared_bytes + GUARD);
    if (const char* error = run_block(backward)) return error;
    for (size_t j = shared_bytes; j < shared_bytes + GUARD; ++j) {
      if (bytes[j] != '\xff') return "a write past the end of shared memory";
    }
  }
  return nullptr;
}

// A kernel under the name by which CUDA would be asked for it, called as cuLaunchKernel calls it.
struct Entry {
  const char* name;
  std::vector<size_t> sizes;  // bytes of each parameter
  void (*call)(void* kernel, void** arguments);
  void* kernel;
};

template <class... P, size_t... I>
void call(void* kernel, void** arguments, std::index_sequence<I...>) {
  reinterpret_cast<void (*)(P...)>(kernel)(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
}

template <class... P>
Entry entry(const char* name, void (*kernel)(P...)) {
  return {name,
          {sizeof(P)...},
          [](void* k, void** arguments) { call<P...>(k, arguments, std::index_sequence_for<P...>()); },
          reinterpret_cast<void*>(kernel)};
}

// Returns null, or what is wrong.
inline const char* launch(const std::vector<Entry>& entries, const char* name, const unsigned* grid,
                          const unsigned* block, size_t shared_bytes, int count, const size_t* sizes,
                          void** arguments, bool backward) {
  for (const Entry& entry : entries) {
    if (strcmp(entry.name, name) != 0) continue;
    if (entry.sizes != std::vector<size_t>(sizes, sizes + count))
      return "arguments that do not fit the kernel";
    static std::pair<const Entry*, void**> launched;
    launched = {&entry, arguments};
    body = [](void*) { launched.first->call(launched.first->kernel, launched.second); };
    gridDim = {grid[0], grid[1], grid[2]};
    blockDim = {block[0], block[1], block[2]};
    const char* error = run_grid(shared_bytes, backward);
    if (error) created = 0;  // fibers that are stuck inside a kernel are left behind
    return error;
  }
  return "no such kernel in this file's EXPRESSIONS";
}

}  // namespace host

inline void __syncthreads() { host::yield(host::AT_BLOCK_BARRIER); }
inline void __syncwarp() { host::yield(host::AT_WARP_BARRIER); }
inline void __threadfence() {}

// Two slots in turn: nobody is two shuffles ahead of a lane of its warp.
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const int self = host::current, slot = host::parity[self]++ % 2;
  memcpy(&host::exchanged[self][slot], &value, sizeof(T));
  __syncwarp();
  T other;
  memcpy(&other, &host::exchanged[self ^ mask][slot], sizeof(T));
  return other;
}

inline int atomicAdd(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}

template <class T>
T __ldcg(const T* from) {
  return *from;
}

template <class To, class From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

inline float __int_as_float(int bits) { return bit_cast<float>(bits); }
inline float __uint_as_float(unsigned bits) { return bit_cast<float>(bits); }
inline unsigned __float_as_uint(float x) { return bit_cast<unsigned>(x); }

inline float f16_to_float(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const float sign = bits & 0x8000 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? ldexpf(1024 + fraction, exponent - 25) : ldexpf(fraction, -24));
}

// Rounded to nearest, ties to even; a fraction that rounds up to a power of two carries into the exponent.
inline unsigned short float_to_f16(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  const float a = fabsf(x);
  if (std::isnan(x)) return sign | 0x7e00;
  if (a >= 65520.0f) return sign | 0x7c00;
  if (a < ldexpf(1, -14)) return sign | (unsigned short)nearbyintf(ldexpf(a, 24));
  const int exponent = ilogbf(a);
  return sign | (unsigned short)((exponent + 14) * 1024 + nearbyintf(ldexpf(a, 10 - exponent)));
}
