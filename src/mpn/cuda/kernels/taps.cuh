// Resize as in OpenCV 5: half-pixel centres, INTER_LINEAR and INTER_AREA.
//
// Positions are computed in double as in OpenCV (float has an error of 3e-5 of a pixel at 800). A
// block does it once for the rows and columns of its tile, so few threads compute in double.
#pragma once
#include "device.cuh"

// The two pixels around a target pixel, and the weight of the second.
struct Tap {
  int low, high;
  float part;
};

__device__ __forceinline__ Tap raw_tap(int to, int from_size, int to_size) {
  const double scale = static_cast<double>(from_size) / to_size;
  const double position = (to + 0.5) * scale - 0.5;
  const double floor_of_it = floor(position);
  const int low = static_cast<int>(floor_of_it);
  return Tap{low, low + 1, static_cast<float>(position - floor_of_it)};
}

// Columns outside the image take the border's value with weight 1.
__device__ __forceinline__ Tap column_tap(int to, int from_size, int to_size) {
  Tap tap = raw_tap(to, from_size, to_size);
  if (tap.low < 0 || tap.low >= from_size - 1) {
    tap.low = clamped(tap.low, 0, from_size - 1);
    tap.part = 0.0f;
  }
  tap.high = min(tap.low + 1, from_size - 1);
  return tap;
}

// Rows outside it are the border's row with both weights, which matters for integer values.
__device__ __forceinline__ Tap row_tap(int to, int from_size, int to_size) {
  Tap tap = raw_tap(to, from_size, to_size);
  tap.low = clamped(tap.low, 0, from_size - 1);
  tap.high = clamped(tap.high, 0, from_size - 1);
  return tap;
}

// Taps of a tile: columns first..first+COLUMNS-1 of a target of to_width, rows alike.
template <int COLUMNS, int ROWS>
struct TileTaps {
  Tap x[COLUMNS], y[ROWS];
};

// All threads of the block must call it.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ void fill_taps(TileTaps<COLUMNS, ROWS>& taps, int first_x, int first_y,
                                          int from_width, int from_height, int to_width,
                                          int to_height) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll 1
  for (int i = thread; i < COLUMNS + ROWS; i += blockDim.x * blockDim.y) {
    if (i < COLUMNS) {
      taps.x[i] = column_tap(first_x + i, from_width, to_width);
    } else {
      taps.y[i - COLUMNS] = row_tap(first_y + i - COLUMNS, from_height, to_height);
    }
  }
  __syncthreads();
}

__device__ __forceinline__ float lerp2(float a, float b, float c, float d, Tap x, Tap y) {
  const float top = a * (1.0f - x.part) + b * x.part;
  const float bottom = c * (1.0f - x.part) + d * x.part;
  return top * (1.0f - y.part) + bottom * y.part;
}

template <typename T>
__device__ __forceinline__ float sample_taps(const T* __restrict__ plane, long long stride, Tap x,
                                             Tap y) {
  const long long upper = y.low * stride, lower = y.high * stride;
  return lerp2(load(plane, upper + x.low), load(plane, upper + x.high),
               load(plane, lower + x.low), load(plane, lower + x.high), x, y);
}

// As OpenCV, interpolate uint8 in fixed point of 11 bits, bit for bit.
__device__ __forceinline__ int fixed_weight(float part) { return __float2int_rn(part * 2048.0f); }

__device__ __forceinline__ int lerp2_uint8(int a, int b, int c, int d, Tap x, Tap y) {
  const int right = fixed_weight(x.part), left = fixed_weight(1.0f - x.part);
  const int lower = fixed_weight(y.part), upper = fixed_weight(1.0f - y.part);
  const int top = a * left + b * right, bottom = c * left + d * right;
  return (((upper * (top >> 4)) >> 16) + ((lower * (bottom >> 4)) >> 16) + 2) >> 2;
}

// The pixels under a target pixel, and the weights of the first, the last and the others.
struct Cover {
  int first, count;
  float head, body, tail;
  __device__ __forceinline__ float weight(int i) const {
    return i == 0 ? head : (i == count - 1 ? tail : body);
  }
};

__device__ __forceinline__ Cover cover(int to, int from_size, int to_size) {
  const double scale = static_cast<double>(from_size) / to_size;
  const double start = to * scale, stop = start + scale;
  const double width = fmin(scale, from_size - start);
  const int last = min(static_cast<int>(floor(stop)), from_size - 1);
  const int first = min(static_cast<int>(ceil(start)), last);
  const float body = static_cast<float>(1.0 / width);
  Cover covered{first, last - first, body, body, body};
  // Less than a thousandth of a pixel does not count.
  if (stop - last > 1e-3) {
    covered.tail = static_cast<float>(fmin(fmin(stop - last, 1.0), width) / width);
    ++covered.count;
  }
  if (first - start > 1e-3) {
    covered.head = static_cast<float>((first - start) / width);
    --covered.first;
    ++covered.count;
  } else if (covered.count == 1) {
    covered.head = covered.tail;
  }
  return covered;
}

// Covers of a tile, as TileTaps.
template <int COLUMNS, int ROWS>
struct TileCovers {
  Cover x[COLUMNS], y[ROWS];
};

// All threads of the block must call it.
template <int COLUMNS, int ROWS>
__device__ __forceinline__ void fill_covers(TileCovers<COLUMNS, ROWS>& covers, int first_x,
                                            int first_y, int from_width, int from_height,
                                            int to_width, int to_height) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
#pragma unroll 1
  for (int i = thread; i < COLUMNS + ROWS; i += blockDim.x * blockDim.y) {
    const bool is_column = i < COLUMNS;
    const int to = is_column ? first_x + i : first_y + i - COLUMNS;
    const int from_size = is_column ? from_width : from_height;
    const int to_size = is_column ? to_width : to_height;
    const Cover covered = cover(min(to, to_size - 1), from_size, to_size);
    (is_column ? covers.x[i] : covers.y[i - COLUMNS]) = covered;
  }
  __syncthreads();
}
