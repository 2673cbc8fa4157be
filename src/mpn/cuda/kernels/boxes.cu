// Boxes in device memory: bounds of the warped objects, their ROIs, and lost objects.
#include "reduce.cuh"

namespace {

constexpr int EXTENT_VALUES = 4;  // smallest and largest x, smallest and largest y

struct Extent {
  float low_x, high_x, low_y, high_y;
  __device__ __forceinline__ static Extent none() {
    const float infinity = __int_as_float(0x7f800000);
    return Extent{infinity, -infinity, infinity, -infinity};
  }
  __device__ __forceinline__ void add(const Extent& other) {
    low_x = fminf(low_x, other.low_x);
    high_x = fmaxf(high_x, other.high_x);
    low_y = fminf(low_y, other.low_y);
    high_y = fmaxf(high_y, other.high_y);
  }
};

__device__ __forceinline__ Extent block_extent(Extent extent) {
  __shared__ Extent warps[8];
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    Extent other;
    other.low_x = __shfl_xor_sync(ALL_LANES, extent.low_x, distance);
    other.high_x = __shfl_xor_sync(ALL_LANES, extent.high_x, distance);
    other.low_y = __shfl_xor_sync(ALL_LANES, extent.low_y, distance);
    other.high_y = __shfl_xor_sync(ALL_LANES, extent.high_y, distance);
    extent.add(other);
  }
  if ((threadIdx.x & 31) == 0) warps[threadIdx.x >> 5] = extent;
  __syncthreads();
  Extent total = warps[0];
#pragma unroll 1
  for (int warp = 1; warp < static_cast<int>(blockDim.x >> 5); ++warp) total.add(warps[warp]);
  return total;
}

__device__ __forceinline__ Box clipped(double x0, double y0, double x1, double y1, int height,
                                       int width) {
  // In double up to here: a large finite flow exceeds an int.
  const Box box{static_cast<int>(fmin(fmax(x0, 0.0), static_cast<double>(width))),
                static_cast<int>(fmin(fmax(y0, 0.0), static_cast<double>(height))),
                static_cast<int>(fmin(fmax(x1, 0.0), static_cast<double>(width))),
                static_cast<int>(fmin(fmax(y1, 0.0), static_cast<double>(height)))};
  return box.is_empty() ? Box{0, 0, 0, 0} : box;
}

// At most the frame, to which it is clipped: a large share exceeds an int.
__device__ __forceinline__ int margin(int side, double frac, int px_min, int frame_side) {
  const double share = fmin(floor(frac * side), static_cast<double>(frame_side));
  return max(static_cast<int>(share), min(px_min, frame_side));
}

__device__ __forceinline__ void reset_box(int k, int height, int width, int* boxes, int* areas) {
  store_box(boxes, k, Box{width, height, 0, 0});
  areas[k] = 0;
}

}  // namespace

// Compute the smallest and largest flow of each block: (partials, 4) float32, x before y. A flow
// that is not finite makes its block's first value NaN. Atomics would need a cleared buffer;
// reach_boxes reduces the partials instead.
// launch: block 256; grid partials
extern "C" __global__ void __launch_bounds__(256) flow_extent(
    const float* __restrict__ flow_to_prev_px, int pixels, int partials,
    float* __restrict__ extents) {
  Extent extent = Extent::none();
  bool is_known = true;
  const int stride = 4 * blockDim.x * partials;
#pragma unroll 2
  for (int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x); first < pixels; first += stride) {
    const int count = min(pixels - first, 4);
    float x[4], y[4];
    load4(flow_to_prev_px + first, count, x);
    load4(flow_to_prev_px + pixels + first, count, y);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) continue;
      is_known = is_known && is_finite(x[i]) && is_finite(y[i]);
      extent.add(Extent{x[i], x[i], y[i], y[i]});
    }
  }
  const int is_invalid = __syncthreads_or(is_known ? 0 : 1);
  const Extent total = block_extent(extent);
  if (threadIdx.x == 0) {
    float* out = extents + EXTENT_VALUES * blockIdx.x;
    out[0] = is_invalid ? __int_as_float(0x7fc00000) : total.low_x;  // NaN
    out[1] = total.high_x;
    out[2] = total.low_y;
    out[3] = total.high_y;
  }
}

// Compute the warp bounds of each object from its bounds, as host/roi.reachable_boxes does.
// Clears `boxes` and `areas` for warp_box. `reach` and `supports` may be the same array.
// launch: block 256; grid 1
extern "C" __global__ void __launch_bounds__(256) reach_boxes(
    const int* supports, const float* __restrict__ extents, int partials, int objects, int height,
    int width, int* reach, int* __restrict__ boxes, int* __restrict__ areas) {
  Extent extent = Extent::none();
  bool is_known = true;
  for (int i = threadIdx.x; i < partials; i += blockDim.x) {
    const float* partial = extents + EXTENT_VALUES * i;
    is_known = is_known && partial[0] == partial[0];  // no NaN; a block without pixels has infinity
    extent.add(Extent{partial[0], partial[1], partial[2], partial[3]});
  }
  const int is_invalid = __syncthreads_or(is_known ? 0 : 1);
  const Extent flow = block_extent(extent);
  for (int k = threadIdx.x; k < objects; k += blockDim.x) {
    const Box support = load_box(supports, k);
    Box box{0, 0, 0, 0};
    if (!support.is_empty()) {
      box = is_invalid ? Box{0, 0, width, height}
                    : clipped(floor(support.x0 - 1 - static_cast<double>(flow.high_x)),
                              floor(support.y0 - 1 - static_cast<double>(flow.high_y)),
                              ceil(support.x1 - static_cast<double>(flow.low_x)) + 1,
                              ceil(support.y1 - static_cast<double>(flow.low_y)) + 1, height,
                              width);
    }
    store_box(reach, k, box);
    reset_box(k, height, width, boxes, areas);
  }
}

// Clear boxes, areas and, if they are given, sums of probabilities.
// launch: block 256; grid ceil(objects,256)
extern "C" __global__ void __launch_bounds__(256) reset_boxes(
    int objects, int height, int width, int* __restrict__ boxes, int* __restrict__ areas,
    uint64* __restrict__ prob_sums) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= objects) return;
  reset_box(k, height, width, boxes, areas);
  if (prob_sums != nullptr) prob_sums[k] = 0;
}

// Compute each object's ROI from its box above the threshold, as host/roi.with_margin does. An
// object is lost, with empty ROI and bounds, if it has no such pixel, or fewer of them than the
// share `lost_area_frac` of its first area. `supports` and `reach` may be the same array.
// launch: block 256; grid ceil(objects,256)
extern "C" __global__ void __launch_bounds__(256) rois_from_boxes(
    const int* __restrict__ boxes, const int* __restrict__ areas,
    const double* __restrict__ first_areas_px, const int* reach, int objects, int height, int width,
    double margin_frac, int margin_px_min, double lost_area_frac, int* __restrict__ rois,
    int* supports) {
  const int k = blockIdx.x * blockDim.x + threadIdx.x;
  if (k >= objects) return;
  const Box box = load_box(boxes, k);
  Box roi{0, 0, 0, 0}, support{0, 0, 0, 0};
  if (!box.is_empty() && !(areas[k] < lost_area_frac * first_areas_px[k])) {
    const int margin_x = margin(box.x1 - box.x0, margin_frac, margin_px_min, width);
    const int margin_y = margin(box.y1 - box.y0, margin_frac, margin_px_min, height);
    roi = Box{max(box.x0 - margin_x, 0), max(box.y0 - margin_y, 0),
              min(box.x1 + margin_x, width), min(box.y1 + margin_y, height)};
    support = load_box(reach, k);
  }
  store_box(rois, k, roi);
  store_box(supports, k, support);
}

// Set the planes of lost objects to 0, so that they give no candidate.
// launch: block 256; grid ceil(pixels,1024) 1 objects
extern "C" __global__ void __launch_bounds__(256) clear_lost(
    const int* __restrict__ rois, int objects, int pixels, float* __restrict__ prob) {
  const int k = blockIdx.z;
  if (!load_box(rois, k).is_empty()) return;
  const int first = (blockIdx.x * blockDim.x + threadIdx.x) * 4;
  if (first >= pixels) return;
  const float nothing[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  store4(prob + static_cast<long long>(k) * pixels + first, min(pixels - first, 4), nothing);
}
