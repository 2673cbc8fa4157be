// Checks for non-finite values; the host reads the flag once, at the end of a frame.
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

// Set `flag` to 1 if a value is not finite; otherwise leave it unchanged.
// launch: block 256; grid min(ceil(count,1024),512)
extern "C" __global__ void __launch_bounds__(256) flag_not_finite_f32(
    const float* __restrict__ values, int count, int* __restrict__ flag) {
  flag_not_finite(values, count, flag);
}

// The same for half precision.
// launch: block 256; grid min(ceil(count,1024),512)
extern "C" __global__ void __launch_bounds__(256) flag_not_finite_f16(
    const Half* __restrict__ values, int count, int* __restrict__ flag) {
  flag_not_finite(values, count, flag);
}
