// Input of the propagation network: (slots, channels, size, size) of normalised RGB and warped
// probability, in one pass for all objects. ROIs are read from device memory.
#include "taps.cuh"

namespace {

constexpr int TILE = 32;
constexpr int BLOCK_ROWS = 8;

// Write one slot of the output. `objects` maps slots to objects; without it slot k is object k. An
// empty ROI gives zeros, because the number of slots is fixed.
template <typename T>
__device__ __forceinline__ void crop_pack(const uint8* __restrict__ rgb,
                                          const float* __restrict__ prob,
                                          const int* __restrict__ rois,
                                          const int* __restrict__ objects, int channels,
                                          int height, int width, int size,
                                          const float (&gain)[3], const float (&offset)[3],
                                          T* __restrict__ slots) {
  __shared__ TileTaps<TILE, TILE> taps;
  const int slot = blockIdx.z;
  const int k = objects == nullptr ? slot : objects[slot];
  const Box roi = load_box(rois, k);
  const float* warped = prob + static_cast<long long>(k) * height * width;
  T* packed = slots + static_cast<long long>(slot) * channels * size * size;
  const int first_x = blockIdx.x * TILE, first_y = blockIdx.y * TILE;
  const int x = first_x + threadIdx.x;
  const long long plane = static_cast<long long>(size) * size;
  const bool is_lost = roi.is_empty();
  if (!is_lost) {
    fill_taps(taps, first_x, first_y, roi.x1 - roi.x0, roi.y1 - roi.y0, size, size);
  }
#pragma unroll 2
  for (int step = 0; step < TILE; step += BLOCK_ROWS) {
    const int row = step + threadIdx.y, y = first_y + row;
    if (x >= size || y >= size) continue;
    const long long at = static_cast<long long>(y) * size + x;
    if (is_lost) {
#pragma unroll
      for (int c = 0; c < 4; ++c) store(packed, c * plane + at, 0.0f);
      continue;
    }
    const Tap across = taps.x[threadIdx.x], down = taps.y[row];
    const int left = roi.x0 + across.low, right = roi.x0 + across.high;
    const int upper = roi.y0 + down.low, lower = roi.y0 + down.high;
    const uint8* a = rgb + 3 * (static_cast<long long>(upper) * width + left);
    const uint8* b = rgb + 3 * (static_cast<long long>(upper) * width + right);
    const uint8* c = rgb + 3 * (static_cast<long long>(lower) * width + left);
    const uint8* d = rgb + 3 * (static_cast<long long>(lower) * width + right);
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
      const float level = lerp2(a[channel], b[channel], c[channel], d[channel], across, down);
      store(packed, channel * plane + at, level * gain[channel] + offset[channel]);
    }
    store(packed, 3 * plane + at,
          lerp2(warped[static_cast<long long>(upper) * width + left],
                warped[static_cast<long long>(upper) * width + right],
                warped[static_cast<long long>(lower) * width + left],
                warped[static_cast<long long>(lower) * width + right], across, down));
  }
}

}  // namespace

// host/ops.crop_resize_pack, into the first four of `channels` channels. `rois` and `prob` have one
// entry per object.
// launch: block 32 8; grid ceil(size,32) ceil(size,32) slots
extern "C" __global__ void __launch_bounds__(256) crop_pack_f32(
    const uint8* __restrict__ rgb, const float* __restrict__ prob, const int* __restrict__ rois,
    const int* __restrict__ objects, int slots, int channels, int height, int width, int size,
    float gain0, float gain1, float gain2, float offset0, float offset1, float offset2,
    float* __restrict__ packed) {
  const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
  crop_pack(rgb, prob, rois, objects, channels, height, width, size, gain, offset, packed);
}

// launch: block 32 8; grid ceil(size,32) ceil(size,32) slots
extern "C" __global__ void __launch_bounds__(256) crop_pack_f16(
    const uint8* __restrict__ rgb, const float* __restrict__ prob, const int* __restrict__ rois,
    const int* __restrict__ objects, int slots, int channels, int height, int width, int size,
    float gain0, float gain1, float gain2, float offset0, float offset1, float offset2,
    Half* __restrict__ packed) {
  const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
  crop_pack(rgb, prob, rois, objects, channels, height, width, size, gain, offset, packed);
}
