// Lets g++ compile the unchanged body of a .cu file and runs each thread of a block separately.
//
// Each thread is a fibre (thread_emulation.cpp). Fibres stop at barriers, at warp operations and,
// depending on the seed, before atomic operations. The seed selects the fibre that continues. So a
// missing barrier, or a result that depends on the order of threads, differs between seeds. Blocks
// of a source without shared memory run interleaved.
//
// These end the launch with an error: a barrier that not all threads of a block reach, an access
// outside an array (guard pages), and undefined behaviour (the sanitizer's traps). Shared memory is
// poisoned, so that a read before a write changes the result.
//
// Only C headers: they keep the compile time per kernel family low.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(threads)
#define __shared__ static __attribute__((section("shim_shared")))

struct dim3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace shim {

constexpr unsigned LANES = 32;

// Indices of the current fibre; the scheduler writes them before the fibre continues.
extern dim3 thread_index, block_index, block_size, grid_size;

struct Request {
  dim3 grid, block;
  uint64_t seed;
  unsigned resident;  // blocks at a time; more than one only without shared memory
  char *shared_start, *shared_stop;
  void (*body)(void*);
  void* arguments;
};

const char* launch(const Request& request);
int barrier(int line, int value);
void warp_exchange(int line, uint32_t value, uint32_t (&all)[LANES]);
unsigned lane();
void maybe_pause();
[[noreturn]] void fail(const char* what);

}  // namespace shim

extern "C" {
extern char __start_shim_shared[] __attribute__((weak));
extern char __stop_shim_shared[] __attribute__((weak));
}

#define threadIdx (shim::thread_index)
#define blockIdx (shim::block_index)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)

#define __syncthreads() ((void)shim::barrier(__LINE__, 0))
#define __syncthreads_or(value) shim::barrier(__LINE__, (value) != 0)
#define __shfl_xor_sync(mask, value, distance) shim_shuffle_xor(__LINE__, mask, value, distance)
#define __ballot_sync(mask, value) shim_ballot(__LINE__, mask, value)

template <typename T>
T shim_shuffle_xor(int line, uint32_t mask, T value, int distance) {
  static_assert(sizeof(T) == 4, "32 bits");
  if (mask != 0xffffffffu) shim::fail("a warp operation without all of its lanes");
  uint32_t bits, all[shim::LANES];
  memcpy(&bits, &value, 4);
  shim::warp_exchange(line, bits, all);
  memcpy(&value, &all[shim::lane() ^ distance], 4);
  return value;
}

inline uint32_t shim_ballot(int line, uint32_t mask, bool value) {
  if (mask != 0xffffffffu) shim::fail("a warp operation without all of its lanes");
  uint32_t all[shim::LANES], votes = 0;
  shim::warp_exchange(line, value ? 1 : 0, all);
  for (unsigned lane = 0; lane < shim::LANES; ++lane) votes |= all[lane] << lane;
  return votes;
}

// There is one OS thread: other fibres run only before the read, not between read and write.
template <typename T>
T atomicAdd(T* at, T value) {
  shim::maybe_pause();
  const T old = *at;
  *at = old + value;
  return old;
}
template <typename T>
T atomicMin(T* at, T value) {
  shim::maybe_pause();
  const T old = *at;
  if (value < old) *at = value;
  return old;
}
template <typename T>
T atomicMax(T* at, T value) {
  shim::maybe_pause();
  const T old = *at;
  if (value > old) *at = value;
  return old;
}
template <typename T>
T atomicCAS(T* at, T expected, T value) {
  shim::maybe_pause();
  const T old = *at;
  if (old == expected) *at = value;
  return old;
}

inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline float __int_as_float(int bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline unsigned long long __float2ull_rn(float value) {
  return static_cast<unsigned long long>(nearbyintf(value));
}
inline int __float2int_rn(float value) { return static_cast<int>(nearbyintf(value)); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

#include "half.h"
