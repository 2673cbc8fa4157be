// Resize planes of float32.
#include "taps.cuh"

namespace {

constexpr int TILE_COLUMNS = 64;
constexpr int TILE_ROWS = 16;
constexpr int BLOCK_COLUMNS = 32;
constexpr int BLOCK_ROWS = 8;

struct Target {
  int first_x, first_y;
  __device__ __forceinline__ static Target here() {
    return Target{static_cast<int>(blockIdx.x) * TILE_COLUMNS,
                  static_cast<int>(blockIdx.y) * TILE_ROWS};
  }
};

__device__ __forceinline__ void resize_linear(const float* __restrict__ plane, int height,
                                              int width, int to_height, int to_width, float gain,
                                              float* __restrict__ out) {
  __shared__ TileTaps<TILE_COLUMNS, TILE_ROWS> taps;
  const Target target = Target::here();
  fill_taps(taps, target.first_x, target.first_y, width, height, to_width, to_height);
#pragma unroll
  for (int row = threadIdx.y; row < TILE_ROWS; row += BLOCK_ROWS) {
#pragma unroll
    for (int column = threadIdx.x; column < TILE_COLUMNS; column += BLOCK_COLUMNS) {
      const int x = target.first_x + column, y = target.first_y + row;
      if (x >= to_width || y >= to_height) continue;
      out[static_cast<long long>(y) * to_width + x] =
          sample_taps(plane, width, taps.x[column], taps.y[row]) * gain;
    }
  }
}

// Weighted mean of the covered pixels: along rows, then over the rows, as in OpenCV.
__device__ __forceinline__ void resize_area(const float* __restrict__ plane, int height, int width,
                                            int to_height, int to_width,
                                            float* __restrict__ out) {
  __shared__ TileCovers<TILE_COLUMNS, TILE_ROWS> covers;
  const Target target = Target::here();
  fill_covers(covers, target.first_x, target.first_y, width, height, to_width, to_height);
#pragma unroll 1
  for (int i = 0; i < TILE_ROWS / BLOCK_ROWS * (TILE_COLUMNS / BLOCK_COLUMNS); ++i) {
    const int row = i / 2 * BLOCK_ROWS + threadIdx.y, column = i % 2 * BLOCK_COLUMNS + threadIdx.x;
    const int x = target.first_x + column, y = target.first_y + row;
    if (x >= to_width || y >= to_height) continue;
    const Cover across = covers.x[column], down = covers.y[row];
    float mean = 0.0f;
    for (int j = 0; j < down.count; ++j) {
      const float* from = plane + static_cast<long long>(down.first + j) * width + across.first;
      float sum = 0.0f;
      for (int n = 0; n < across.count; ++n) sum += from[n] * across.weight(n);
      mean += sum * down.weight(j);
    }
    out[static_cast<long long>(y) * to_width + x] = mean;
  }
}

}  // namespace

// host/preprocess.resize_prob: INTER_AREA if both sides shrink, else bilinear.
// launch: block 32 8; grid ceil(to_width,64) ceil(to_height,16) count
extern "C" __global__ void __launch_bounds__(256) resize_planes(
    const float* __restrict__ planes, int count, int height, int width, int to_height,
    int to_width, float* __restrict__ resized) {
  const float* plane = planes + static_cast<long long>(blockIdx.z) * height * width;
  float* out = resized + static_cast<long long>(blockIdx.z) * to_height * to_width;
  if (to_height <= height && to_width <= width) {
    resize_area(plane, height, width, to_height, to_width, out);
  } else {
    resize_linear(plane, height, width, to_height, to_width, 1.0f, out);
  }
}

// Resize a network's flow to the size of the frame, bilinear, and scale its values: plane 0 by
// gain_x, plane 1 by gain_y.
// launch: block 32 8; grid ceil(to_width,64) ceil(to_height,16) 2
extern "C" __global__ void __launch_bounds__(256) resize_flow(
    const float* __restrict__ flow_px, int height, int width, int to_height, int to_width,
    float gain_x, float gain_y, float* __restrict__ resized_px) {
  resize_linear(flow_px + static_cast<long long>(blockIdx.z) * height * width, height, width,
                to_height, to_width, blockIdx.z == 0 ? gain_x : gain_y,
                resized_px + static_cast<long long>(blockIdx.z) * to_height * to_width);
}
