// Frames as network inputs: (height, width, 3) uint8 resized to (3, to_height, to_width).
#include "taps.cuh"

namespace {

constexpr int TILE_COLUMNS = 64;
constexpr int TILE_ROWS = 16;
constexpr int BLOCK_COLUMNS = 32;
constexpr int BLOCK_ROWS = 8;

enum class Resize { NONE, LINEAR, AREA };

// host/preprocess.resize_rgb: INTER_AREA if both sides shrink, else bilinear.
__device__ __forceinline__ Resize resize_of(int height, int width, int to_height, int to_width) {
  if (height == to_height && width == to_width) return Resize::NONE;
  return to_height <= height && to_width <= width ? Resize::AREA : Resize::LINEAR;
}

struct Colour {
  int value[3];
};

__device__ __forceinline__ Colour linear_colour(const uint8* __restrict__ rgb, int width, Tap x,
                                                Tap y) {
  const uint8* upper = rgb + 3ll * y.low * width;
  const uint8* lower = rgb + 3ll * y.high * width;
  Colour colour;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    colour.value[c] = lerp2_uint8(upper[3 * x.low + c], upper[3 * x.high + c],
                                  lower[3 * x.low + c], lower[3 * x.high + c], x, y);
  }
  return colour;
}

// Sum the covered pixels along rows, then the rows, in the order and rounding of OpenCV.
__device__ __forceinline__ Colour area_colour(const uint8* __restrict__ rgb, int width,
                                              const Cover& across, const Cover& down) {
  float mean[3] = {0.0f, 0.0f, 0.0f};
  for (int j = 0; j < down.count; ++j) {
    const uint8* from =
        rgb + 3 * (static_cast<long long>(down.first + j) * width + across.first);
    float sum[3] = {0.0f, 0.0f, 0.0f};
    for (int i = 0; i < across.count; ++i) {
      const float weight = across.weight(i);
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[c] += static_cast<float>(from[3 * i + c]) * weight;
    }
    const float weight = down.weight(j);
#pragma unroll
    for (int c = 0; c < 3; ++c) mean[c] += sum[c] * weight;
  }
  Colour colour;
#pragma unroll
  for (int c = 0; c < 3; ++c) colour.value[c] = clamped(__float2int_rn(mean[c]), 0, 255);
  return colour;
}

// The same for integer scales: integers are added, and divided once.
__device__ __forceinline__ Colour whole_area_colour(const uint8* __restrict__ rgb, int width,
                                                    int columns, int rows, int x, int y) {
  int sum[3] = {0, 0, 0};
  for (int j = 0; j < rows; ++j) {
    const uint8* from = rgb + 3 * ((static_cast<long long>(y) * rows + j) * width +
                                   static_cast<long long>(x) * columns);
    for (int i = 0; i < columns; ++i) {
#pragma unroll
      for (int c = 0; c < 3; ++c) sum[c] += from[3 * i + c];
    }
  }
  Colour colour;
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    // OpenCV rounds half up for four pixels, and half to even for other numbers.
    colour.value[c] = rows == 2 && columns == 2
                          ? (sum[c] + 2) >> 2
                          : __float2int_rn(sum[c] * (1.0f / (rows * columns)));
  }
  return colour;
}

// Call take(y, x, colour) for each pixel of the block's tile.
template <typename Take>
__device__ __forceinline__ void for_each_resized(const uint8* __restrict__ rgb, int height,
                                                 int width, int to_height, int to_width,
                                                 Take take) {
  __shared__ TileTaps<TILE_COLUMNS, TILE_ROWS> taps;
  __shared__ TileCovers<TILE_COLUMNS, TILE_ROWS> covers;
  const int first_x = blockIdx.x * TILE_COLUMNS, first_y = blockIdx.y * TILE_ROWS;
  const Resize resize = resize_of(height, width, to_height, to_width);
  if (resize == Resize::LINEAR) {
    fill_taps(taps, first_x, first_y, width, height, to_width, to_height);
  } else if (resize == Resize::AREA) {
    fill_covers(covers, first_x, first_y, width, height, to_width, to_height);
  }
#pragma unroll 1  // of four: one bilinear pixel has twelve loads in flight
  for (int i = 0; i < TILE_ROWS / BLOCK_ROWS * (TILE_COLUMNS / BLOCK_COLUMNS); ++i) {
    const int row = i / 2 * BLOCK_ROWS + threadIdx.y, column = i % 2 * BLOCK_COLUMNS + threadIdx.x;
    const int x = first_x + column, y = first_y + row;
    if (x >= to_width || y >= to_height) continue;
    Colour colour;
    if (resize == Resize::LINEAR) {
      colour = linear_colour(rgb, width, taps.x[column], taps.y[row]);
    } else if (resize == Resize::NONE) {
      const uint8* pixel = rgb + 3 * (static_cast<long long>(y) * width + x);
      colour = Colour{{pixel[0], pixel[1], pixel[2]}};
    } else if (height % to_height == 0 && width % to_width == 0) {
      colour = whole_area_colour(rgb, width, width / to_width, height / to_height, x, y);
    } else {
      colour = area_colour(rgb, width, covers.x[column], covers.y[row]);
    }
    take(y, x, colour);
  }
}

// Channel c of the output is channel c (or 2 - c) of the frame, times gain, plus offset.
template <typename T>
__device__ __forceinline__ void pack(const uint8* __restrict__ rgb, int height, int width,
                                     int to_height, int to_width, int is_bgr, float gain0,
                                     float gain1, float gain2, float offset0, float offset1,
                                     float offset2, T* __restrict__ planes) {
  const long long pixels = static_cast<long long>(to_height) * to_width;
  for_each_resized(rgb, height, width, to_height, to_width, [&](int y, int x, Colour colour) {
    const long long at = static_cast<long long>(y) * to_width + x;
    const int first = is_bgr ? colour.value[2] : colour.value[0];
    const int last = is_bgr ? colour.value[0] : colour.value[2];
    store(planes, at, first * gain0 + offset0);
    store(planes, pixels + at, colour.value[1] * gain1 + offset1);
    store(planes, 2 * pixels + at, last * gain2 + offset2);
  });
}

template <typename T>
__device__ __forceinline__ void pack_same(const uint8* __restrict__ rgb, int pixels, int is_bgr,
                                          float gain0, float gain1, float gain2, float offset0,
                                          float offset1, float offset2, T* __restrict__ planes) {
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (first >= pixels) return;
  const int count = min(pixels - first, 4);
  uint8 level[12];
  load_rgb4(rgb + 3ll * first, count, level);
  const float gain[3] = {gain0, gain1, gain2}, offset[3] = {offset0, offset1, offset2};
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    float value[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = is_bgr ? level[3 * i + 2 - c] : level[3 * i + c];
      value[i] = from * gain[c] + offset[c];
    }
    store4(planes + static_cast<long long>(c) * pixels + first, count, value);
  }
}

}  // namespace

// host/preprocess.flow_input and osvos_input: levels of 0..255 after the resize, times gain, plus
// offset, in the output's channel order.
// launch: block 32 8; grid ceil(to_width,64) ceil(to_height,16)
extern "C" __global__ void __launch_bounds__(256) pack_rgb_f32(
    const uint8* __restrict__ rgb, int height, int width, int to_height, int to_width, int is_bgr,
    float gain0, float gain1, float gain2, float offset0, float offset1, float offset2,
    float* __restrict__ planes) {
  pack(rgb, height, width, to_height, to_width, is_bgr, gain0, gain1, gain2, offset0, offset1,
       offset2, planes);
}

// The same for half precision.
// launch: block 32 8; grid ceil(to_width,64) ceil(to_height,16)
extern "C" __global__ void __launch_bounds__(256) pack_rgb_f16(
    const uint8* __restrict__ rgb, int height, int width, int to_height, int to_width, int is_bgr,
    float gain0, float gain1, float gain2, float offset0, float offset1, float offset2,
    Half* __restrict__ planes) {
  pack(rgb, height, width, to_height, to_width, is_bgr, gain0, gain1, gain2, offset0, offset1,
       offset2, planes);
}

// The same without a resize, four pixels per thread.
// launch: block 256; grid ceil(pixels,1024)
extern "C" __global__ void __launch_bounds__(256) pack_rgb_same_f32(
    const uint8* __restrict__ rgb, int pixels, int is_bgr, float gain0, float gain1, float gain2,
    float offset0, float offset1, float offset2, float* __restrict__ planes) {
  pack_same(rgb, pixels, is_bgr, gain0, gain1, gain2, offset0, offset1, offset2, planes);
}

// launch: block 256; grid ceil(pixels,1024)
extern "C" __global__ void __launch_bounds__(256) pack_rgb_same_f16(
    const uint8* __restrict__ rgb, int pixels, int is_bgr, float gain0, float gain1, float gain2,
    float offset0, float offset1, float offset2, Half* __restrict__ planes) {
  pack_same(rgb, pixels, is_bgr, gain0, gain1, gain2, offset0, offset1, offset2, planes);
}

// host/preprocess.resize_rgb: (to_height, to_width, 3) uint8.
// launch: block 32 8; grid ceil(to_width,64) ceil(to_height,16)
extern "C" __global__ void __launch_bounds__(256) resize_rgb(
    const uint8* __restrict__ rgb, int height, int width, int to_height, int to_width,
    uint8* __restrict__ resized) {
  for_each_resized(rgb, height, width, to_height, to_width, [&](int y, int x, Colour colour) {
    uint8* out = resized + 3 * (static_cast<long long>(y) * to_width + x);
#pragma unroll
    for (int c = 0; c < 3; ++c) out[c] = static_cast<uint8>(colour.value[c]);
  });
}
