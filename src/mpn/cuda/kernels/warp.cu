// Warp of probabilities, fused with the flow check, the threshold and the boxes.
#include "reduce.cuh"
#include "sampling.cuh"

namespace {

constexpr int PIXELS_PER_THREAD = 4;

// Four neighbouring pixels of one object: 16 taps in flight.
__device__ __forceinline__ void warp_four(
    const float* prob, const float* flow_to_prev_px, const float* flow_from_prev_px, Box wanted,
    int height, int width, float sigma_px, float sigma_frac, float threshold, float* warped,
    Hits& hits) {
  const int pixels = height * width;
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS_PER_THREAD;
  if (first >= pixels) return;
  const int count = min(pixels - first, PIXELS_PER_THREAD);
  const int k = blockIdx.z;
  const float* plane = prob + static_cast<long long>(k) * pixels;
  float* out = warped + static_cast<long long>(k) * pixels + first;
  float value[PIXELS_PER_THREAD] = {0.0f, 0.0f, 0.0f, 0.0f};
  const int first_y = first / width;
  const int last_y = (first + count - 1) / width;
  if (first_y >= wanted.y1 || last_y < wanted.y0 || wanted.is_empty()) {
    store4(out, count, value);
    return;
  }
  float flow_x[PIXELS_PER_THREAD], flow_y[PIXELS_PER_THREAD];
  load4(flow_to_prev_px + first, count, flow_x);
  load4(flow_to_prev_px + pixels + first, count, flow_y);
#pragma unroll
  for (int i = 0; i < PIXELS_PER_THREAD; ++i) {
    const int y = (first + i) / width, x = (first + i) - y * width;
    if (i >= count || !wanted.contains(x, y)) continue;
    const Position at = sample_position(flow_x[i], flow_y[i], x, y, height, width);
    value[i] = sample_zero(plane, at, height, width);
    if (flow_from_prev_px != nullptr) {
      value[i] *= confidence_at(flow_x[i], flow_y[i], at, flow_from_prev_px, height, width,
                                sigma_px, sigma_frac);
    }
    if (value[i] > threshold) hits.add(x, y);
  }
  store4(out, count, value);
}

}  // namespace

// Sample (objects, height, width) by the flow inside `reach`, 0 outside it, times the flow check
// (host/ops.flow_confidence) if there is a backward flow. Adds the pixels above the threshold to
// `boxes` and `areas`, which reach_boxes or reset_boxes has cleared.
// launch: block 256; grid ceil(height*width,1024) 1 objects
extern "C" __global__ void __launch_bounds__(256) warp_box(
    const float* __restrict__ prob, const float* __restrict__ flow_to_prev_px,
    const float* __restrict__ flow_from_prev_px, const int* __restrict__ reach, int objects,
    int height, int width, float sigma_px, float sigma_frac, float threshold,
    float* __restrict__ warped, int* __restrict__ boxes, int* __restrict__ areas) {
  const int k = blockIdx.z;
  Hits hits = Hits::none();
  warp_four(prob, flow_to_prev_px, flow_from_prev_px, load_box(reach, k), height, width, sigma_px,
            sigma_frac, threshold, warped, hits);
  add_hits(hits, boxes + 4 * k, areas + k);
}
