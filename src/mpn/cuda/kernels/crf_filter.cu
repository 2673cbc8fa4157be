// Gaussian filter over the permutohedral lattice of crf_lattice.cu.
//
// A pixel's value is spread over its six vertices (splat), blurred with [1/2, 1, 1/2] along each of
// the six directions, and read back (slice). Sums are in fixed point of 2^-40, so that neither the
// order of the additions nor the numbers of the vertices changes a bit of the result.
#include "regions.cuh"

namespace {

constexpr int AXES = 6;  // of a lattice in five dimensions

constexpr float FIXED_ONE = 1099511627776.0f;  // 2^40: 2^24 pixels of weight 1 still fit
constexpr float FIXED_STEP = 1.0f / FIXED_ONE;

__device__ __forceinline__ float float_from_sum(uint64 sum) {
  return static_cast<float>(sum) * FIXED_STEP;
}

}  // namespace

// Splat values onto the vertices: `channels` planes of stride `capacity`, times `norm`. The value
// is 1 if there are no planes; the factor is 1 if there is no norm.
// launch: block 256; grid ceil(capacity,256) channels
extern "C" __global__ void __launch_bounds__(256) crf_splat(
    const int* __restrict__ starts, int objects, const int* __restrict__ corners,
    const float* __restrict__ weights, const float* __restrict__ planes,
    const float* __restrict__ norm, int channels, int capacity, uint64* __restrict__ sums) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const int c = blockIdx.y;
  const int* corner = corners + static_cast<long long>(AXES) * p;
  const float* weight = weights + static_cast<long long>(AXES) * p;
  if (corner[0] < 0) return;
  float value = planes == nullptr ? 1.0f : planes[static_cast<long long>(c) * capacity + p];
  if (norm != nullptr) value *= norm[p];
  if (value == 0.0f) return;
#pragma unroll
  for (int r = 0; r < AXES; ++r) {
    atomicAdd(sums + static_cast<long long>(corner[r]) * channels + c,
              __float2ull_rn(weight[r] * value * FIXED_ONE));
  }
}

// Blur along the first direction; reads the sums.
// launch: block 256; grid blocks
extern "C" __global__ void __launch_bounds__(256) crf_blur_sums(
    const int* __restrict__ vertices, const int* __restrict__ neighbours,
    const uint64* __restrict__ sums, int channels, int blocks, float* __restrict__ blurred) {
  const long long count = static_cast<long long>(vertices[0]) * channels;
  const long long stride = static_cast<long long>(blocks) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const int vertex = static_cast<int>(i / channels);
    const int c = static_cast<int>(i - static_cast<long long>(vertex) * channels);
    const int* near = neighbours + 2ll * AXES * vertex;
    const int before = near[0], after = near[1];
    float sides = 0.0f;
    if (before >= 0) sides += float_from_sum(sums[static_cast<long long>(before) * channels + c]);
    if (after >= 0) sides += float_from_sum(sums[static_cast<long long>(after) * channels + c]);
    blurred[i] = float_from_sum(sums[i]) + 0.5f * sides;
  }
}

// Blur along another direction. Clears the sums for the next splat, if they are given.
// launch: block 256; grid blocks
extern "C" __global__ void __launch_bounds__(256) crf_blur(
    const int* __restrict__ vertices, const int* __restrict__ neighbours, int axis,
    const float* __restrict__ values, int channels, int blocks, float* __restrict__ blurred,
    uint64* __restrict__ sums) {
  const long long count = static_cast<long long>(vertices[0]) * channels;
  const long long stride = static_cast<long long>(blocks) * blockDim.x;
  for (long long i = static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += stride) {
    const int vertex = static_cast<int>(i / channels);
    const int c = static_cast<int>(i - static_cast<long long>(vertex) * channels);
    const int* near = neighbours + 2ll * (AXES * static_cast<long long>(vertex) + axis);
    const int before = near[0], after = near[1];
    float sides = 0.0f;
    if (before >= 0) sides += values[static_cast<long long>(before) * channels + c];
    if (after >= 0) sides += values[static_cast<long long>(after) * channels + c];
    blurred[i] = values[i] + 0.5f * sides;
    if (sums != nullptr) sums[i] = 0;
  }
}

// Slice the blurred values: `channels` planes. The lattice's constant factor is left out, because
// it cancels in the normalisation. crf_all_pairs computes the pixels of small regions.
// launch: block 256; grid ceil(capacity,256) channels
extern "C" __global__ void __launch_bounds__(256) crf_slice(
    const int* __restrict__ starts, int objects, const int* __restrict__ corners,
    const float* __restrict__ weights, const float* __restrict__ values, int channels,
    int capacity, float* __restrict__ planes) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const int c = blockIdx.y;
  const int* corner = corners + static_cast<long long>(AXES) * p;
  const float* weight = weights + static_cast<long long>(AXES) * p;
  if (corner[0] < 0) return;
  float sum = 0.0f;
#pragma unroll
  for (int r = 0; r < AXES; ++r) {
    sum += weight[r] * values[static_cast<long long>(corner[r]) * channels + c];
  }
  planes[static_cast<long long>(c) * capacity + p] = sum;
}
