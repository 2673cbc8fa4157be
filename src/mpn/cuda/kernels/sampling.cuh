// Sample positions and samples of a warp.
#pragma once
#include "device.cuh"

struct Position {
  float x, y;
};

// Absolute position in the previous frame of a pixel of the current one. NaN is mapped to one pixel
// outside, where each tap counts as 0; so is a position whose conversion to int would overflow.
__device__ __forceinline__ Position sample_position(
    float flow_x, float flow_y, int x, int y, int height, int width) {
  float px = flow_x + static_cast<float>(x);
  float py = flow_y + static_cast<float>(y);
  if (!is_finite(px) || !is_finite(py)) px = py = -1.0f;
  return Position{fminf(fmaxf(px, -1.0f), static_cast<float>(width)),
                  fminf(fmaxf(py, -1.0f), static_cast<float>(height))};
}

__device__ __forceinline__ float bilinear(
    float a, float b, float c, float d, float part_x, float part_y) {
  const float top = a * (1.0f - part_x) + b * part_x;
  const float bottom = c * (1.0f - part_x) + d * part_x;
  return top * (1.0f - part_y) + bottom * part_y;
}

// Taps outside the image count as 0.
__device__ __forceinline__ float sample_zero(
    const float* __restrict__ plane, Position at, int height, int width) {
  const float floor_x = floorf(at.x), floor_y = floorf(at.y);
  const int x = static_cast<int>(floor_x), y = static_cast<int>(floor_y);
  const bool left = x >= 0 && x < width, right = x + 1 >= 0 && x + 1 < width;
  const bool upper = y >= 0 && y < height, lower = y + 1 >= 0 && y + 1 < height;
  const float* from = plane + static_cast<long long>(y) * width + x;
  const float a = upper && left ? from[0] : 0.0f;
  const float b = upper && right ? from[1] : 0.0f;
  const float c = lower && left ? from[width] : 0.0f;
  const float d = lower && right ? from[width + 1] : 0.0f;
  return bilinear(a, b, c, d, at.x - floor_x, at.y - floor_y);
}

// Taps outside the image repeat its border.
__device__ __forceinline__ float sample_border(
    const float* __restrict__ plane, Position at, int height, int width) {
  const float floor_x = floorf(at.x), floor_y = floorf(at.y);
  const int x = static_cast<int>(floor_x), y = static_cast<int>(floor_y);
  const int x0 = clamped(x, 0, width - 1), x1 = clamped(x + 1, 0, width - 1);
  const float* upper = plane + static_cast<long long>(clamped(y, 0, height - 1)) * width;
  const float* lower = plane + static_cast<long long>(clamped(y + 1, 0, height - 1)) * width;
  return bilinear(
      upper[x0], upper[x1], lower[x0], lower[x1], at.x - floor_x, at.y - floor_y);
}

// Forward-backward confidence of a pixel: exp(-d^2 / (2 s^2)), see host/ops.flow_confidence. 0 for
// NaN.
__device__ __forceinline__ float confidence_at(
    float flow_x, float flow_y, Position at, const float* __restrict__ flow_from_prev_px,
    int height, int width, float sigma_px, float sigma_frac) {
  const long long pixels = static_cast<long long>(height) * width;
  const float trip_x = flow_x + sample_border(flow_from_prev_px, at, height, width);
  const float trip_y = flow_y + sample_border(flow_from_prev_px + pixels, at, height, width);
  const float sigma = sqrtf(flow_x * flow_x + flow_y * flow_y) * sigma_frac + sigma_px;
  const float miss = sqrtf(trip_x * trip_x + trip_y * trip_y) / sigma;
  const float confidence = expf(miss * miss * -0.5f);
  return is_finite(confidence) ? confidence : 0.0f;
}

// Probability of the previous frame at the position of a current pixel, times the flow check if
// there is a backward flow.
__device__ __forceinline__ float warped_at(
    const float* __restrict__ plane, const float* __restrict__ flow_to_prev_px,
    const float* __restrict__ flow_from_prev_px, int x, int y, int height, int width,
    float sigma_px, float sigma_frac) {
  const long long at = static_cast<long long>(y) * width + x;
  const float flow_x = flow_to_prev_px[at];
  const float flow_y = flow_to_prev_px[static_cast<long long>(height) * width + at];
  const Position from = sample_position(flow_x, flow_y, x, y, height, width);
  const float value = sample_zero(plane, from, height, width);
  if (flow_from_prev_px == nullptr) return value;
  return value * confidence_at(flow_x, flow_y, from, flow_from_prev_px, height, width, sigma_px,
                               sigma_frac);
}
