// What the host is told at the end of a frame instead of being asked within it.
#include "device.cuh"

namespace {

template <typename T>
__device__ __forceinline__ void flag_not_finite(const T* __restrict__ values, int count,
                                                int* __restrict__ flag) {
  const int step = gridDim.x * blockDim.x;
  bool is_bad = false;
  for (int at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step) {
    is_bad = is_bad || !is_finite(load(values, at));
  }
  if (is_bad) atomicMax(flag, 1);
}

}  // namespace

// Sets `flag` to 1 if a value is not finite, and leaves it alone otherwise.
// launch: block 256; grid min(ceil(count,1024),512)
extern "C" __global__ void __launch_bounds__(256) flag_not_finite_f32(
    const float* __restrict__ values, int count, int* __restrict__ flag) {
  flag_not_finite(values, count, flag);
}

// The same of half precision.
// launch: block 256; grid min(ceil(count,1024),512)
extern "C" __global__ void __launch_bounds__(256) flag_not_finite_f16(
    const Half* __restrict__ values, int count, int* __restrict__ flag) {
  flag_not_finite(values, count, flag);
}
