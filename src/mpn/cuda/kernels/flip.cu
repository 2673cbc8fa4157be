// Flip TTA: flip crops horizontally, and average outputs with flipped outputs.
#include "device.cuh"

namespace {

template <typename T>
__device__ __forceinline__ void flip_rows(const T* __restrict__ values, int rows, int width,
                                            T* __restrict__ flipped) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= width) return;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const long long first = static_cast<long long>(row) * width;
    store(flipped, first + x, load(values, first + width - 1 - x));
  }
}

template <typename T>
__device__ __forceinline__ void average_flipped(const T* __restrict__ flipped, int rows,
                                                 int width, T* __restrict__ values) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  if (x >= width) return;
  for (int row = blockIdx.y; row < rows; row += gridDim.y) {
    const long long first = static_cast<long long>(row) * width;
    const float other = load(flipped, first + width - 1 - x);
    store(values, first + x, (load(values, first + x) + other) * 0.5f);
  }
}

}  // namespace

// Reverse each of `rows` rows of `width` values.
// launch: block 128; grid ceil(width,128) min(rows,4096)
extern "C" __global__ void __launch_bounds__(128) flip_rows_f32(
    const float* __restrict__ values, int rows, int width, float* __restrict__ flipped) {
  flip_rows(values, rows, width, flipped);
}

// The same for half precision.
// launch: block 128; grid ceil(width,128) min(rows,4096)
extern "C" __global__ void __launch_bounds__(128) flip_rows_f16(
    const Half* __restrict__ values, int rows, int width, Half* __restrict__ flipped) {
  flip_rows(values, rows, width, flipped);
}

// Replace `values` by the mean of `values` and the reversed rows of `flipped`.
// launch: block 128; grid ceil(width,128) min(rows,4096)
extern "C" __global__ void __launch_bounds__(128) average_flipped_f32(
    const float* __restrict__ flipped, int rows, int width, float* __restrict__ values) {
  average_flipped(flipped, rows, width, values);
}

// The same for half precision, summed in float32.
// launch: block 128; grid ceil(width,128) min(rows,4096)
extern "C" __global__ void __launch_bounds__(128) average_flipped_f16(
    const Half* __restrict__ flipped, int rows, int width, Half* __restrict__ values) {
  average_flipped(flipped, rows, width, values);
}
