// Outputs of OSVOS at the size of the frame: recalibration, and agreement with propagation.
#include "device.cuh"

namespace {

constexpr float FIXED_ONE = 16777216.0f;  // fixed-point sums: see tracks.cu
constexpr int BINS = 8192;
constexpr float LARGEST_RATIO = 2.0f;  // host/reliability bounds its tables by it

}  // namespace

// host/osvos.recalibrate in place: less * p / (less * p + (1 - p)). Four pixels per thread.
// launch: block 256; grid ceil(pixels,1024)
extern "C" __global__ void __launch_bounds__(256) shift_odds(
    int pixels, float less, float* __restrict__ plane) {
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (first >= pixels) return;
  const int count = min(pixels - first, 4);
  float value[4];
  load4(plane + first, count, value);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    value[i] = less * value[i] / (less * value[i] + (1.0f - value[i]));
  }
  store4(plane + first, count, value);
}

// Sum over the pixels of each warped object: their number, their OSVOS probability and their colour
// ratio. `plane_of` is each object's plane of OSVOS, or -1, which is skipped. `sums` is
// (objects, 3), zeroed by the caller: pixels, OSVOS in 2^-24, colour ratio + 2 in 2^-24.
// launch: block 256; grid ceil(pixels,1024) 1 objects
extern "C" __global__ void __launch_bounds__(256) osvos_agreement(
    const float* __restrict__ candidates, const float* __restrict__ planes,
    const int* __restrict__ plane_of, const uint16* __restrict__ bins,
    const float* __restrict__ tables, int objects, int pixels, float threshold,
    uint64* __restrict__ sums) {
  __shared__ uint64 block_sums[3];
  if (threadIdx.x < 3) block_sums[threadIdx.x] = 0;
  __syncthreads();
  const int k = blockIdx.z, plane_index = plane_of[k];
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  uint64 count = 0, given = 0, ratio = 0;
  if (plane_index >= 0) {
    const float* candidate = candidates + static_cast<long long>(k) * pixels;
    const float* plane = planes + static_cast<long long>(plane_index) * pixels;
    const float* table = tables + static_cast<long long>(k) * BINS;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = first + i;
      if (at >= pixels || !(candidate[at] > threshold)) continue;
      ++count;
      given += static_cast<uint64>(plane[at] * FIXED_ONE + 0.5f);
      ratio += static_cast<uint64>((table[bins[at]] + LARGEST_RATIO) * FIXED_ONE + 0.5f);
    }
  }
  if (count != 0) {
    atomicAdd(&block_sums[0], count);
    atomicAdd(&block_sums[1], given);
    atomicAdd(&block_sums[2], ratio);
  }
  __syncthreads();
  if (threadIdx.x < 3 && block_sums[threadIdx.x] != 0) {
    atomicAdd(sums + 3 * k + threadIdx.x, block_sums[threadIdx.x]);
  }
}
