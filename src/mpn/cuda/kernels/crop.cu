// The propagation network's input: (slots, 4, size, size) of normalised RGB and warped probability,
// in one pass for all objects. ROIs are read from device memory, so the host need not know them.
#include "sampling.cuh"
#include "taps.cuh"

namespace {

constexpr int TILE = 32;
constexpr int BLOCK_ROWS = 8;

// One slot of the output; `probability(y, x)` is that of its object. An empty ROI gives zeros: the
// number of slots is fixed, whatever is lost.
template <int UNROLLED, typename T, typename Probability>
__device__ __forceinline__ void crop_pack(const uint8* __restrict__ rgb, Box roi, int width,
                                          int size, const float (&gain)[3],
                                          const float (&offset)[3], T* __restrict__ packed,
                                          Probability probability) {
  __shared__ TileTaps<TILE, TILE> taps;
  const int first_x = blockIdx.x * TILE, first_y = blockIdx.y * TILE;
  const int x = first_x + threadIdx.x;
  const long long plane = static_cast<long long>(size) * size;
  const bool is_lost = roi.is_empty();
  if (!is_lost) {
    fill_taps(taps, first_x, first_y, roi.x1 - roi.x0, roi.y1 - roi.y0, size, size);
  }
#pragma unroll UNROLLED
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
          lerp2(probability(upper, left), probability(upper, right), probability(lower, left),
                probability(lower, right), across, down));
  }
}

// From planes that are warped already. `objects` gives each slot's object; without it they agree.
template <typename T>
__device__ __forceinline__ void crop_warped(const uint8* rgb, const float* prob, const int* rois,
                                            const int* objects, int height, int width, int size,
                                            const float (&gain)[3], const float (&offset)[3],
                                            T* packed) {
  const int slot = blockIdx.z;
  const int k = objects == nullptr ? slot : objects[slot];
  const float* plane = prob + static_cast<long long>(k) * height * width;
  crop_pack<2>(rgb, load_box(rois, k), width, size, gain, offset, packed + 4ll * slot * size * size,
            [&](int y, int x) { return plane[static_cast<long long>(y) * width + x]; });
}

// From the previous frame's planes, each tap warped as warp_box warps it: the same numbers, without
// the warped planes between.
template <typename T>
__device__ __forceinline__ void warp_crop(const uint8* rgb, const float* prob,
                                          const float* flow_to_prev_px,
                                          const float* flow_from_prev_px, const int* reach,
                                          const int* rois, int height, int width, int size,
                                          float sigma_px, float sigma_frac,
                                          const float (&gain)[3], const float (&offset)[3],
                                          T* packed) {
  const int k = blockIdx.z;
  const float* plane = prob + static_cast<long long>(k) * height * width;
  const Box reached = load_box(reach, k);
  // A pixel alone has 24 loads in flight, and with the flow check 40 more.
  crop_pack<1>(rgb, load_box(rois, k), width, size, gain, offset, packed + 4ll * k * size * size,
            [&](int y, int x) {
              if (!reached.holds(x, y)) return 0.0f;
              return warped_at(plane, flow_to_prev_px, flow_from_prev_px, x, y, height, width,
                               sigma_px, sigma_frac);
            });
}

}  // namespace

// Ops.crop_resize_pack. `rois` and `prob` have an entry for each object.
// launch: block 32 8; grid ceil(size,32) ceil(size,32) slots
extern "C" __global__ void __launch_bounds__(256) crop_pack_f32(
    const uint8* __restrict__ rgb, const float* __restrict__ prob, const int* __restrict__ rois,
    const int* __restrict__ objects, int slots, int height, int width, int size, float gain0,
    float gain1, float gain2, float offset0, float offset1, float offset2,
    float* __restrict__ packed) {
  const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
  crop_warped(rgb, prob, rois, objects, height, width, size, gain, offset, packed);
}

// launch: block 32 8; grid ceil(size,32) ceil(size,32) slots
extern "C" __global__ void __launch_bounds__(256) crop_pack_f16(
    const uint8* __restrict__ rgb, const float* __restrict__ prob, const int* __restrict__ rois,
    const int* __restrict__ objects, int slots, int height, int width, int size, float gain0,
    float gain1, float gain2, float offset0, float offset1, float offset2,
    Half* __restrict__ packed) {
  const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
  crop_warped(rgb, prob, rois, objects, height, width, size, gain, offset, packed);
}

// Warp, flow check, crop, resize, normalisation and packing at once; a slot for every object.
// launch: block 32 8; grid ceil(size,32) ceil(size,32) slots
extern "C" __global__ void __launch_bounds__(256) warp_crop_pack_f32(
    const uint8* __restrict__ rgb, const float* __restrict__ prob,
    const float* __restrict__ flow_to_prev_px, const float* __restrict__ flow_from_prev_px,
    const int* __restrict__ reach, const int* __restrict__ rois, int slots, int height, int width,
    int size, float sigma_px, float sigma_frac, float gain0, float gain1, float gain2,
    float offset0, float offset1, float offset2, float* __restrict__ packed) {
  const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
  warp_crop(rgb, prob, flow_to_prev_px, flow_from_prev_px, reach, rois, height, width, size,
            sigma_px, sigma_frac, gain, offset, packed);
}

// launch: block 32 8; grid ceil(size,32) ceil(size,32) slots
extern "C" __global__ void __launch_bounds__(256) warp_crop_pack_f16(
    const uint8* __restrict__ rgb, const float* __restrict__ prob,
    const float* __restrict__ flow_to_prev_px, const float* __restrict__ flow_from_prev_px,
    const int* __restrict__ reach, const int* __restrict__ rois, int slots, int height, int width,
    int size, float sigma_px, float sigma_frac, float gain0, float gain1, float gain2,
    float offset0, float offset1, float offset2, Half* __restrict__ packed) {
  const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
  warp_crop(rgb, prob, flow_to_prev_px, flow_from_prev_px, reach, rois, height, width, size,
            sigma_px, sigma_frac, gain, offset, packed);
}
