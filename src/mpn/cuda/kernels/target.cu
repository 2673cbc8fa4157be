// Scores of the target model: logistic regression on the features, warp, ROIs, crop, and resampling
// to the frame. The grid has a point at each multiple of 8 px of the features engine's input.
#include "reduce.cuh"
#include "sampling.cuh"

namespace {

constexpr int POINTS = 32;   // grid points of a block
constexpr int SLICES = 8;    // parts of the channels, summed separately
constexpr int OBJECTS = 4;   // of a block, which loads each feature once for all of them
constexpr float MAX_LOGIT = 30.0f;
constexpr float STRIDE = 8.0f;
constexpr float NO_SCORE = 0.5f;
constexpr float OBJECT_SCORE = 0.5f;  // a grid point belongs to the object above it

// The sums of the slices are added in a fixed order.
template <typename T>
__device__ __forceinline__ void target_scores(
    const T* __restrict__ features, const float* __restrict__ weights,
    const float* __restrict__ biases, int objects, int channels, int points,
    float* __restrict__ scores) {
  __shared__ float sums[OBJECTS][SLICES][POINTS];
  const int point = blockIdx.x * POINTS + threadIdx.x;
  const int first = blockIdx.z * OBJECTS;
  const int count = min(objects - first, OBJECTS);
  float sum[OBJECTS] = {0.0f, 0.0f, 0.0f, 0.0f};
  if (point < points) {
#pragma unroll 4
    for (int channel = threadIdx.y; channel < channels; channel += SLICES) {
      const float feature = load(features, static_cast<long long>(channel) * points + point);
#pragma unroll
      for (int i = 0; i < OBJECTS; ++i) {
        if (i < count) {
          sum[i] += weights[static_cast<long long>(first + i) * channels + channel] * feature;
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < OBJECTS; ++i) sums[i][threadIdx.y][threadIdx.x] = sum[i];
  __syncthreads();
  const int i = threadIdx.y;
  if (i >= count || point >= points) return;
  float logit = 0.0f;
#pragma unroll
  for (int slice = 0; slice < SLICES; ++slice) logit += sums[i][slice][threadIdx.x];
  logit = fminf(fmaxf(logit + biases[first + i], -MAX_LOGIT), MAX_LOGIT);
  scores[static_cast<long long>(first + i) * points + point] = 1.0f / (1.0f + expf(-logit));
}

// host/target._grid_from_frame along one axis.
__device__ __forceinline__ float grid_from_frame(float pixel, float scale) {
  return ((pixel + 0.5f) * scale - 0.5f) / STRIDE;
}

// host/target._frame_from_grid along one axis.
__device__ __forceinline__ float frame_from_grid(int at, float scale) {
  return (static_cast<float>(at) * STRIDE + 0.5f) * scale - 0.5f;
}

// Channel `channels` - 1 of one slot.
template <typename T>
__device__ __forceinline__ void crop_scores(
    const float* __restrict__ scores, const int* __restrict__ rois,
    const int* __restrict__ objects, int channels, int grid_height, int grid_width, float scale_x,
    float scale_y, int size, T* __restrict__ packed) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= size || y >= size) return;
  const int slot = blockIdx.z;
  const int k = objects == nullptr ? slot : objects[slot];
  const Box roi = load_box(rois, k);
  float score = NO_SCORE;
  if (roi.is_empty()) {
    score = 0.0f;
  } else if (scores != nullptr) {
    const float step_x = static_cast<float>(roi.x1 - roi.x0) / static_cast<float>(size);
    const float step_y = static_cast<float>(roi.y1 - roi.y0) / static_cast<float>(size);
    const float pixel_x =
        (static_cast<float>(roi.x0) - 0.5f) + (static_cast<float>(x) + 0.5f) * step_x;
    const float pixel_y =
        (static_cast<float>(roi.y0) - 0.5f) + (static_cast<float>(y) + 0.5f) * step_y;
    const Position at{grid_from_frame(pixel_x, scale_x), grid_from_frame(pixel_y, scale_y)};
    score = sample_border(scores + static_cast<long long>(k) * grid_height * grid_width, at,
                          grid_height, grid_width);
  }
  const long long plane = static_cast<long long>(size) * size;
  const long long channel = static_cast<long long>(slot) * channels + channels - 1;
  store(packed, channel * plane + static_cast<long long>(y) * size + x, score);
}

}  // namespace

// runtime/target.target_scores: sigmoid(weights @ features + biases), logits limited to +-30.
// `features` is (channels, points), `weights` (objects, channels), `scores` (objects, points).
// launch: block 32 8; grid ceil(points,32) 1 ceil(objects,4)
extern "C" __global__ void __launch_bounds__(256) target_scores_f32(
    const float* __restrict__ features, const float* __restrict__ weights,
    const float* __restrict__ biases, int objects, int channels, int points,
    float* __restrict__ scores) {
  target_scores(features, weights, biases, objects, channels, points, scores);
}

// The same for features in half precision; sums are float32.
// launch: block 32 8; grid ceil(points,32) 1 ceil(objects,4)
extern "C" __global__ void __launch_bounds__(256) target_scores_f16(
    const Half* __restrict__ features, const float* __restrict__ weights,
    const float* __restrict__ biases, int objects, int channels, int points,
    float* __restrict__ scores) {
  target_scores(features, weights, biases, objects, channels, points, scores);
}

// host/target.warp_scores. The flow is sampled at the grid points with its border repeated; taps
// outside the scores count as 0. `scale` is frame over input, `step` grid cells per frame pixel.
// launch: block 32 8; grid ceil(grid_width,32) ceil(grid_height,8) objects
extern "C" __global__ void __launch_bounds__(256) warp_scores(
    const float* __restrict__ scores, const float* __restrict__ flow_to_prev_px, int objects,
    int height, int width, int grid_height, int grid_width, float scale_x, float scale_y,
    float step_x, float step_y, float* __restrict__ warped) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= grid_width || y >= grid_height) return;
  const long long pixels = static_cast<long long>(height) * width;
  const long long first = static_cast<long long>(blockIdx.z) * grid_height * grid_width;
  const Position pixel{frame_from_grid(x, scale_x), frame_from_grid(y, scale_y)};
  const float flow_x = sample_border(flow_to_prev_px, pixel, height, width) * step_x;
  const float flow_y = sample_border(flow_to_prev_px + pixels, pixel, height, width) * step_y;
  const Position from = sample_position(flow_x, flow_y, x, y, grid_height, grid_width);
  warped[first + static_cast<long long>(y) * grid_width + x] =
      sample_zero(scores + first, from, grid_height, grid_width);
}

// host/target.exclusive_scores: a thread per grid point. `scale` is frame over input.
// launch: block 32 8; grid ceil(grid_width,32) ceil(grid_height,8)
extern "C" __global__ void __launch_bounds__(256) exclude_others(
    const float* __restrict__ scores, const float* __restrict__ prob, int objects, int height,
    int width, int grid_height, int grid_width, float scale_x, float scale_y,
    float* __restrict__ exclusive) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= grid_width || y >= grid_height) return;
  const Position at{frame_from_grid(x, scale_x), frame_from_grid(y, scale_y)};
  const long long pixels = static_cast<long long>(height) * width;
  int first = 0;
  float highest = 0.0f, second = 0.0f;
  for (int k = 0; k < objects; ++k) {
    const float value = sample_border(prob + k * pixels, at, height, width);
    if (value > highest) {
      second = highest;
      highest = value;
      first = k;
    } else {
      second = fmaxf(second, value);
    }
  }
  const long long points = static_cast<long long>(grid_height) * grid_width;
  for (int k = 0; k < objects; ++k) {
    const long long point = k * points + static_cast<long long>(y) * grid_width + x;
    exclusive[point] = scores[point] * (1.0f - (k == first ? second : highest));
  }
}

// host/target.grown_rois: a block per object. `scale` is frame over input, `cell` the distance of
// grid points in pixels of the frame. An empty ROI stays empty.
// launch: block 256; grid objects
extern "C" __global__ void __launch_bounds__(256) grow_rois(
    const float* __restrict__ scores, int objects, int height, int width, int grid_height,
    int grid_width, float scale_x, float scale_y, float cell_x, float cell_y, double growth,
    int* __restrict__ rois) {
  __shared__ int found[4];
  __shared__ int count;
  const int k = blockIdx.x;
  const Box roi = load_box(rois, k);
  if (threadIdx.x == 0) {
    found[0] = grid_width;
    found[1] = grid_height;
    found[2] = found[3] = count = 0;
  }
  __syncthreads();
  const double reach_x = floor(growth * (roi.x1 - roi.x0));
  const double reach_y = floor(growth * (roi.y1 - roi.y0));
  const int points = grid_height * grid_width;
  const float* plane = scores + static_cast<long long>(k) * points;
  Hits hits = Hits::none();
  for (int point = threadIdx.x; point < points && !roi.is_empty(); point += blockDim.x) {
    const int row = point / grid_width, column = point - row * grid_width;
    const double x = frame_from_grid(column, scale_x), y = frame_from_grid(row, scale_y);
    if (x >= roi.x0 - reach_x && x < roi.x1 + reach_x && y >= roi.y0 - reach_y &&
        y < roi.y1 + reach_y && plane[point] > OBJECT_SCORE) {
      hits.add(column, row);
    }
  }
  add_hits(hits, found, &count);
  __syncthreads();
  if (threadIdx.x != 0 || count == 0) return;
  const int x0 = static_cast<int>(floorf(frame_from_grid(found[0], scale_x) - cell_x));
  const int y0 = static_cast<int>(floorf(frame_from_grid(found[1], scale_y) - cell_y));
  const int x1 = static_cast<int>(ceilf(frame_from_grid(found[2] - 1, scale_x) + cell_x));
  const int y1 = static_cast<int>(ceilf(frame_from_grid(found[3] - 1, scale_y) + cell_y));
  store_box(rois, k, Box{min(max(x0, 0), roi.x0), min(max(y0, 0), roi.y0),
                         max(min(x1, width), roi.x1), max(min(y1, height), roi.y1)});
}

// host/target.crop_scores: the last of `channels` channels of each slot, its border repeated. An
// empty ROI gives 0; without scores each pixel is 0.5. `scale` is input over frame.
// launch: block 32 8; grid ceil(size,32) ceil(size,8) slots
extern "C" __global__ void __launch_bounds__(256) crop_scores_f32(
    const float* __restrict__ scores, const int* __restrict__ rois,
    const int* __restrict__ objects, int slots, int channels, int grid_height, int grid_width,
    float scale_x, float scale_y, int size, float* __restrict__ packed) {
  crop_scores(scores, rois, objects, channels, grid_height, grid_width, scale_x, scale_y, size,
              packed);
}

// The same for half precision.
// launch: block 32 8; grid ceil(size,32) ceil(size,8) slots
extern "C" __global__ void __launch_bounds__(256) crop_scores_f16(
    const float* __restrict__ scores, const int* __restrict__ rois,
    const int* __restrict__ objects, int slots, int channels, int grid_height, int grid_width,
    float scale_x, float scale_y, int size, Half* __restrict__ packed) {
  crop_scores(scores, rois, objects, channels, grid_height, grid_width, scale_x, scale_y, size,
              packed);
}

// host/target.scores_at_frame for all objects: `planes` is (objects, height, width).
// launch: block 32 8; grid ceil(width,32) ceil(height,8) objects
extern "C" __global__ void __launch_bounds__(256) scores_at_frame(
    const float* __restrict__ scores, int objects, int grid_height, int grid_width,
    float scale_x, float scale_y, int height, int width, float* __restrict__ planes) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  const float* plane = scores + static_cast<long long>(blockIdx.z) * grid_height * grid_width;
  const Position at{grid_from_frame(static_cast<float>(x), scale_x),
                    grid_from_frame(static_cast<float>(y), scale_y)};
  planes[(static_cast<long long>(blockIdx.z) * height + y) * width + x] =
      sample_border(plane, at, grid_height, grid_width);
}
