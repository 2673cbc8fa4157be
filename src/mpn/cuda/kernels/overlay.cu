// The masks over the frame: mpn.runtime.overlay.draw_overlay.
#include "device.cuh"

// Each object tinted in its colour, its outline (one pixel inside) opaque. `palette` is (256, 3);
// `rest` is 1 - opacity. cv2.addWeighted rounds once in float: rest * rgb is added by fma.
// launch: block 32 8; grid ceil(width,32) ceil(height,8)
extern "C" __global__ void __launch_bounds__(256) draw_overlay(
    const uint8* __restrict__ rgb, const uint8* __restrict__ labels,
    const uint8* __restrict__ palette, int height, int width, float opacity, float rest,
    uint8* __restrict__ drawn) {
  const int x = blockIdx.x * blockDim.x + threadIdx.x;
  const int y = blockIdx.y * blockDim.y + threadIdx.y;
  if (x >= width || y >= height) return;
  const long long at = static_cast<long long>(y) * width + x;
  const int label = labels[at];
  bool is_edge = false;
  if (label != 0) {
#pragma unroll
    for (int dy = -1; dy <= 1; ++dy) {
#pragma unroll
      for (int dx = -1; dx <= 1; ++dx) {
        const int near_x = clamped(x + dx, 0, width - 1), near_y = clamped(y + dy, 0, height - 1);
        is_edge = is_edge || labels[static_cast<long long>(near_y) * width + near_x] != label;
      }
    }
  }
#pragma unroll
  for (int c = 0; c < 3; ++c) {
    const int level = rgb[3 * at + c], colour = palette[3 * label + c];
    const float tinted =
        __fmaf_rn(static_cast<float>(level), rest, static_cast<float>(colour) * opacity);
    const int inside = is_edge ? colour : clamped(__float2int_rn(tinted), 0, 255);
    drawn[3 * at + c] = static_cast<uint8>(label == 0 ? level : inside);
  }
}
