// Mean-field inference in a dense CRF, as runtime/crf/dense and host/crf, for all regions
// of a frame at once: Q <- softmax(-unary + sum_m compat_m K_m Q), with symmetrically normalised
// kernels.
//
// Label 0 is the background and needs no filtering: the labels sum to 1 and the kernels are linear,
// so its message is that of a plane of ones minus those of the others.
#include "regions.cuh"

namespace {

constexpr float SMALLEST_PROB = 1e-5f;  // as mpn.runtime.host.crf
constexpr float NARROWEST_SIGMA = 0.2f;  // as mpn.runtime.crf.kernels
constexpr float LEAST_EXPONENT = -80.0f;

__device__ __forceinline__ float negative_log(float prob) {
  // fmaxf maps NaN to the smallest probability, so that it does not propagate.
  return -logf(fminf(fmaxf(prob, SMALLEST_PROB), 1.0f));
}

__device__ __forceinline__ bool overlap(Box a, Box b) {
  return a.x0 < b.x1 && b.x0 < a.x1 && a.y0 < b.y1 && b.y0 < a.y1;
}

// Apply softmax over planes of stride `capacity`, in place.
__device__ __forceinline__ void softmax(float* __restrict__ logits, int labels, int capacity) {
  float largest = logits[0];
#pragma unroll 2
  for (int label = 1; label < labels; ++label) {
    largest = fmaxf(largest, logits[static_cast<long long>(label) * capacity]);
  }
  float sum = 0.0f;
#pragma unroll 2
  for (int label = 0; label < labels; ++label) {
    float* at = logits + static_cast<long long>(label) * capacity;
    *at = expf(*at - largest);
    sum += *at;
  }
#pragma unroll 2
  for (int label = 0; label < labels; ++label) {
    logits[static_cast<long long>(label) * capacity] /= sum;
  }
}

}  // namespace

// Compute disjoint rectangles, as host/crf._regions: each object's box with its margin; boxes that
// touch are united. `refined_boxes` is each object's region, its bounds afterwards. One thread,
// because objects are few and a union may touch a third box.
// launch: block 1; grid 1
extern "C" __global__ void __launch_bounds__(1) crf_regions(
    const int* __restrict__ boxes, int objects, int margin_px, int is_whole_frame, int height,
    int width, int* __restrict__ regions, int* __restrict__ starts,
    int* __restrict__ region_of_object, int* __restrict__ refined_boxes) {
  int count = 0;
#pragma unroll 1
  for (int k = 0; k < objects; ++k) {
    region_of_object[k] = -1;
    const Box box = load_box(boxes, k);
    if (box.is_empty()) continue;
    Box region{0, 0, width, height};
    if (!is_whole_frame) {
      region = Box{max(box.x0 - margin_px, 0), max(box.y0 - margin_px, 0),
                   min(box.x1 + margin_px, width), min(box.y1 + margin_px, height)};
    }
    region_of_object[k] = objects;  // not numbered yet
    for (int r = 0; r < count;) {
      const Box other = load_box(regions, r);
      if (!overlap(region, other)) {
        ++r;
        continue;
      }
      region = Box{min(region.x0, other.x0), min(region.y0, other.y0),
                   max(region.x1, other.x1), max(region.y1, other.y1)};
      --count;
      store_box(regions, r, load_box(regions, count));
      for (int j = 0; j <= k; ++j) {
        if (region_of_object[j] == r) {
          region_of_object[j] = objects;
        } else if (region_of_object[j] == count) {
          region_of_object[j] = r;
        }
      }
      r = 0;  // the union may touch an earlier one
    }
    store_box(regions, count, region);
    for (int j = 0; j <= k; ++j) {
      if (region_of_object[j] == objects) region_of_object[j] = count;
    }
    ++count;
  }
  int total = 0;
  for (int r = 0; r < objects; ++r) {
    starts[r] = total;
    if (r >= count) {
      store_box(regions, r, Box{0, 0, 0, 0});
      continue;
    }
    const Box region = load_box(regions, r);
    total += (region.x1 - region.x0) * (region.y1 - region.y0);
  }
  starts[objects] = total;
#pragma unroll 1
  for (int k = 0; k < objects; ++k) {
    const int region = region_of_object[k];
    store_box(refined_boxes, k, region < 0 ? Box{0, 0, 0, 0} : load_box(regions, region));
  }
}

// Compute -log of background and objects: (objects + 1) planes of stride `capacity`. The cost of an
// object outside the pixel's region is infinite.
// launch: block 256; grid ceil(capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_unary(
    const float* __restrict__ merged, const int* __restrict__ regions,
    const int* __restrict__ starts, const int* __restrict__ region_of_object, int objects,
    int height, int width, int capacity, float* __restrict__ unary) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const Place place = place_of(p, regions, starts, width);
  const long long pixels = static_cast<long long>(height) * width;
  float background = 1.0f;
#pragma unroll 2
  for (int k = 0; k < objects; ++k) {
    float cost = __int_as_float(0x7f800000);
    if (region_of_object[k] == place.region) {
      const float prob = merged[k * pixels + place.frame_at];
      background -= prob;
      cost = negative_log(prob);
    }
    unary[(k + 1ll) * capacity + p] = cost;
  }
  unary[p] = negative_log(background);
}

// Initialise Q: softmax(-unary).
// launch: block 256; grid ceil(capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_start(
    const float* __restrict__ unary, const int* __restrict__ starts, int objects, int labels,
    int capacity, float* __restrict__ q) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
#pragma unroll 2
  for (int label = 0; label < labels; ++label) {
    const long long at = static_cast<long long>(label) * capacity + p;
    q[at] = -unary[at];
  }
  softmax(q + p, labels, capacity);
}

// Apply the spatial kernel along rows: `taps` has reach + 1 values, the centre first; values
// outside a region are 0. Values are 1 if there are no planes; the factor is 1 if there is no norm.
// launch: block 256; grid ceil(capacity,256) channels
extern "C" __global__ void __launch_bounds__(256) crf_rows(
    const int* __restrict__ regions, const int* __restrict__ starts, int objects, int width,
    const float* __restrict__ planes, const float* __restrict__ norm,
    const float* __restrict__ taps, int reach, int channels, int capacity,
    float* __restrict__ filtered) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const Place place = place_of(p, regions, starts, width);
  const long long plane = static_cast<long long>(blockIdx.y) * capacity;
  const int first = max(-reach, -place.x), last = min(reach, place.width - 1 - place.x);
  float sum = 0.0f;
#pragma unroll 4
  for (int i = first; i <= last; ++i) {
    float value = planes == nullptr ? 1.0f : planes[plane + p + i];
    if (norm != nullptr) value *= norm[p + i];
    sum += taps[i < 0 ? -i : i] * value;
  }
  filtered[plane + p] = sum;
}

// The same along columns, on the output of crf_rows.
// launch: block 256; grid ceil(capacity,256) channels
extern "C" __global__ void __launch_bounds__(256) crf_columns(
    const int* __restrict__ regions, const int* __restrict__ starts, int objects, int width,
    const float* __restrict__ planes, const float* __restrict__ taps, int reach, int channels,
    int capacity, float* __restrict__ filtered) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const Place place = place_of(p, regions, starts, width);
  const long long plane = static_cast<long long>(blockIdx.y) * capacity;
  const int first = max(-reach, -place.y), last = min(reach, place.height - 1 - place.y);
  float sum = 0.0f;
#pragma unroll 4
  for (int i = first; i <= last; ++i) {
    sum += taps[i < 0 ? -i : i] * planes[plane + p + static_cast<long long>(i) * place.width];
  }
  filtered[plane + p] = sum;
}

// Apply the bilateral kernel in a small region, over all pairs of its pixels. Values are 1 if there
// are no planes; the factor is 1 if there is no norm.
// launch: block 256; grid ceil(capacity,256) channels
extern "C" __global__ void __launch_bounds__(256) crf_all_pairs(
    const uint8* __restrict__ rgb, const int* __restrict__ regions,
    const int* __restrict__ starts, int objects, int width, const float* __restrict__ planes,
    const float* __restrict__ norm, float sxy, float srgb, int exact_pixels, int channels,
    int capacity, float* __restrict__ filtered) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const Place place = place_of(p, regions, starts, width);
  if (!is_exact(place, exact_pixels)) return;
  const float sigma_px = fmaxf(sxy, NARROWEST_SIGMA), sigma_rgb = fmaxf(srgb, NARROWEST_SIGMA);
  const float per_px = -0.5f / (sigma_px * sigma_px), per_level = -0.5f / (sigma_rgb * sigma_rgb);
  const long long plane = static_cast<long long>(blockIdx.y) * capacity;
  const uint8* mine = rgb + 3 * place.frame_at;
  const int red = mine[0], green = mine[1], blue = mine[2];
  const uint8* corner = mine - 3 * (static_cast<long long>(place.y) * width + place.x);
  int j = p - place.y * place.width - place.x;
  float sum = 0.0f;
#pragma unroll 1
  for (int y = 0; y < place.height; ++y) {
    const uint8* row = corner + 3ll * y * width;
    float sum_of_row = 0.0f;  // two levels of sums lose fewer bits than one
#pragma unroll 2
    for (int x = 0; x < place.width; ++x, ++j) {
      const int dx = x - place.x, dy = y - place.y;
      const int dr = row[3 * x] - red, dg = row[3 * x + 1] - green, db = row[3 * x + 2] - blue;
      const float exponent = static_cast<float>(dx * dx + dy * dy) * per_px +
                             static_cast<float>(dr * dr + dg * dg + db * db) * per_level;
      float value = planes == nullptr ? 1.0f : planes[plane + j];
      if (norm != nullptr) value *= norm[j];
      sum_of_row += expf(fmaxf(exponent, LEAST_EXPONENT)) * value;
    }
    sum += sum_of_row;
  }
  filtered[plane + p] = sum;
}

// Compute D^-1/2 from D, the kernel applied to ones. D > 0, because it includes the pixel.
// launch: block 256; grid ceil(capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_norm(
    const float* __restrict__ degree, const int* __restrict__ starts, int objects, int capacity,
    float* __restrict__ norm) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p < total_pixels(starts, objects)) norm[p] = 1.0f / sqrtf(degree[p]);
}

// Add compat * norm * filtered to the message of a plane of ones, or initialise it.
// launch: block 256; grid ceil(capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_of_ones(
    const float* __restrict__ filtered, const float* __restrict__ norm,
    const int* __restrict__ starts, int objects, int capacity, float compat, int is_first,
    float* __restrict__ of_ones) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const float message = compat * (filtered[p] * norm[p]);
  of_ones[p] = is_first ? message : of_ones[p] + message;
}

// Do one mean-field update of all labels. The pointer of an unused kernel is null.
// launch: block 256; grid ceil(capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_update(
    const float* __restrict__ unary, const float* __restrict__ of_ones,
    const float* __restrict__ spatial, const float* __restrict__ spatial_norm,
    const float* __restrict__ bilateral, const float* __restrict__ bilateral_norm,
    const int* __restrict__ starts, int objects, int labels, int capacity, float spatial_compat,
    float bilateral_compat, float* __restrict__ q) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  float first = of_ones == nullptr ? 0.0f : of_ones[p];
#pragma unroll 2
  for (int label = 1; label < labels; ++label) {
    const long long from = static_cast<long long>(label - 1) * capacity + p;
    float message = 0.0f;
    if (spatial != nullptr) message += spatial_compat * (spatial[from] * spatial_norm[p]);
    if (bilateral != nullptr) message += bilateral_compat * (bilateral[from] * bilateral_norm[p]);
    first -= message;
    const long long at = static_cast<long long>(label) * capacity + p;
    q[at] = message - unary[at];
  }
  q[p] = first - unary[p];
  softmax(q + p, labels, capacity);
}

// Write the objects' marginals to the frame; `refined` keeps its values outside the regions.
// launch: block 256; grid ceil(capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_store(
    const float* __restrict__ q, const int* __restrict__ regions, const int* __restrict__ starts,
    const int* __restrict__ region_of_object, int objects, int height, int width, int capacity,
    float* __restrict__ refined) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  if (p >= total_pixels(starts, objects)) return;
  const Place place = place_of(p, regions, starts, width);
  const long long pixels = static_cast<long long>(height) * width;
#pragma unroll 2
  for (int k = 0; k < objects; ++k) {
    if (region_of_object[k] == place.region) {
      refined[k * pixels + place.frame_at] = q[(k + 1ll) * capacity + p];
    }
  }
}
