// Colour likelihood of host/reliability, fused with warp, threshold and box.
#include "reduce.cuh"
#include "sampling.cuh"

namespace {

// L, a and b of OpenCV's 8-bit CIE Lab in OpenCV's fixed point, so that a colour has the same bin
// as on the host: 12 bits of the sRGB to XYZ matrix over the white point (D65), 15 bits of the
// cube root.
constexpr int MATRIX[3][3] = {{1777, 1541, 778}, {871, 2929, 296}, {73, 448, 3575}};
constexpr int LIGHTNESS_GAIN = (116 * 255 + 50) / 100;
constexpr int LIGHTNESS_SHIFT = -((16 * 255 * (1 << 15) + 50) / 100);
constexpr int GAMMA_LEVELS = 256;
constexpr int CUBE_ROOTS = 3072;

// Bins of host/reliability: 8 of L, 32 of a and b within 64..191.
constexpr int AB_BINS = 32, AB_OFFSET = 64, AB_RANGE = 127, AB_STEP = 4, L_STEP = 32;
constexpr int BINS = 8 * AB_BINS * AB_BINS;

// Constants of the blur of the log ratios and of the odds: see host/reliability.
constexpr int BLUR_TAPS = 17, BLUR_REACH = BLUR_TAPS / 2;
constexpr float CERTAIN = 1e-3f;
constexpr float NOTHING = 0.01f;

constexpr int TILE = 32;
constexpr int BLOCK_ROWS = 8;
constexpr int WIDE = TILE + 2 * BLUR_REACH;

__device__ __forceinline__ int rounded(int value, int bits) {
  return (value + (1 << (bits - 1))) >> bits;
}

__device__ __forceinline__ int ab_bin(int level) {
  return clamped(clamped(level, 0, 255) - AB_OFFSET, 0, AB_RANGE) / AB_STEP;
}

__device__ __forceinline__ int bin_of(const uint16* gamma, const uint16* cube_root, int red,
                                      int green, int blue) {
  const int r = gamma[red], g = gamma[green], b = gamma[blue];
  int root[3];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    root[i] = cube_root[rounded(r * MATRIX[i][0] + g * MATRIX[i][1] + b * MATRIX[i][2], 12)];
  }
  const int lightness = clamped(rounded(LIGHTNESS_GAIN * root[1] + LIGHTNESS_SHIFT, 15), 0, 255);
  const int a_star = rounded(500 * (root[0] - root[1]) + (128 << 15), 15);
  const int b_star = rounded(200 * (root[1] - root[2]) + (128 << 15), 15);
  return (lightness / L_STEP * AB_BINS + ab_bin(a_star)) * AB_BINS + ab_bin(b_star);
}

// cv2.BORDER_REFLECT_101, however far outside.
__device__ __forceinline__ int reflected(int i, int size) {
  if (size == 1) return 0;
  while (i < 0 || i >= size) i = i < 0 ? -i : 2 * (size - 1) - i;
  return i;
}

// odds(out) = odds(prob) * exp(weight * ratio); 0 if that is under NOTHING, and for NaN.
__device__ __forceinline__ float weighed(float prob, float ratio, float weight) {
  const float certain = prob < CERTAIN ? CERTAIN : (prob > 1.0f - CERTAIN ? 1.0f - CERTAIN : prob);
  const float odds = certain / (1.0f - certain) * expf(weight * ratio);
  const float value = odds / (1.0f + odds);
  return value >= NOTHING ? value : 0.0f;
}

// Load the log ratios of the tile and its border for the blur, reflected at the box edges.
__device__ __forceinline__ void load_ratios(const uint16* __restrict__ bins,
                                            const float* __restrict__ table, Box box, int first_x,
                                            int first_y, int width,
                                            float (&ratio)[WIDE][WIDE]) {
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  const int box_width = box.x1 - box.x0, box_height = box.y1 - box.y0;
#pragma unroll 2
  for (int i = thread; i < WIDE * WIDE; i += TILE * BLOCK_ROWS) {
    const int row = i / WIDE, column = i % WIDE;
    const int x = first_x - BLUR_REACH + column - box.x0;
    const int y = first_y - BLUR_REACH + row - box.y0;
    // Pixels further out are in the blur of no pixel of the box.
    const bool is_needed = x >= -BLUR_REACH && x < box_width + BLUR_REACH && y >= -BLUR_REACH &&
                           y < box_height + BLUR_REACH;
    float value = 0.0f;
    if (is_needed) {
      const long long at = static_cast<long long>(box.y0 + reflected(y, box_height)) * width +
                           box.x0 + reflected(x, box_width);
      value = table[bins[at]];
    }
    ratio[row][column] = value;
  }
}

}  // namespace

// Compute the bin of each pixel's colour: (height, width) uint16. Four pixels per thread. `gamma`
// has 256 and `cube_root` 3072 values, both from mpn.runtime.device.images.
// launch: block 256; grid min(ceil(pixels,1024),1024)
extern "C" __global__ void __launch_bounds__(256) colour_bins(
    const uint8* __restrict__ rgb, int pixels, const uint16* __restrict__ gamma,
    const uint16* __restrict__ cube_root, uint16* __restrict__ bins) {
  __shared__ uint16 gamma_here[GAMMA_LEVELS];
  __shared__ uint16 cube_root_here[CUBE_ROOTS];
  for (int i = threadIdx.x; i < GAMMA_LEVELS; i += blockDim.x) gamma_here[i] = gamma[i];
  for (int i = threadIdx.x; i < CUBE_ROOTS; i += blockDim.x) cube_root_here[i] = cube_root[i];
  __syncthreads();
  const int stride = 4 * blockDim.x * gridDim.x;
#pragma unroll 1
  for (int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x); first < pixels; first += stride) {
    const int count = min(pixels - first, 4);
    uint8 level[12];
    load_rgb4(rgb + 3ll * first, count, level);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i >= count) continue;
      bins[first + i] = static_cast<uint16>(
          bin_of(gamma_here, cube_root_here, level[3 * i], level[3 * i + 1], level[3 * i + 2]));
    }
  }
}

// warp_box with host/reliability.weigh_by_colour after the flow check, in the order of
// suppress_unreliable. `tables` is (objects, 8192), `blur` has the 17 taps of the Gaussian.
// launch: block 32 8; grid ceil(width,32) ceil(height,32) objects
extern "C" __global__ void __launch_bounds__(256) warp_colour_box(
    const float* __restrict__ prob, const float* __restrict__ flow_to_prev_px,
    const float* __restrict__ flow_from_prev_px, const int* __restrict__ reach,
    const uint16* __restrict__ bins, const float* __restrict__ tables,
    const float* __restrict__ blur, int objects, int height, int width, float sigma_px,
    float sigma_frac, float weight, float threshold, float* __restrict__ warped,
    int* __restrict__ boxes, int* __restrict__ areas) {
  __shared__ float ratio[WIDE][WIDE];
  __shared__ float across[WIDE][TILE];
  const int k = blockIdx.z;
  const long long pixels = static_cast<long long>(height) * width;
  const int first_x = blockIdx.x * TILE, first_y = blockIdx.y * TILE;
  const Box box = load_box(reach, k);
  const bool is_reached = !box.is_empty() && first_x < box.x1 && first_x + TILE > box.x0 &&
                          first_y < box.y1 && first_y + TILE > box.y0;
  float* out = warped + k * pixels;
  const int x = first_x + threadIdx.x;
  if (!is_reached) {  // for the whole block
    for (int row = threadIdx.y; row < TILE; row += BLOCK_ROWS) {
      const int y = first_y + row;
      if (x < width && y < height) out[static_cast<long long>(y) * width + x] = 0.0f;
    }
    return;
  }
  load_ratios(bins, tables + static_cast<long long>(k) * BINS, box, first_x, first_y, width,
              ratio);
  float tap[BLUR_TAPS];
#pragma unroll
  for (int t = 0; t < BLUR_TAPS; ++t) tap[t] = blur[t];
  __syncthreads();
#pragma unroll 1
  for (int row = threadIdx.y; row < WIDE; row += BLOCK_ROWS) {
    float sum = 0.0f;
#pragma unroll
    for (int t = 0; t < BLUR_TAPS; ++t) sum += tap[t] * ratio[row][threadIdx.x + t];
    across[row][threadIdx.x] = sum;
  }
  __syncthreads();
  Hits hits = Hits::none();
#pragma unroll 1
  for (int step = 0; step < TILE; step += BLOCK_ROWS) {
    const int row = step + threadIdx.y, y = first_y + row;
    if (x >= width || y >= height) continue;
    float value = 0.0f;
    if (box.contains(x, y)) {
      float blurred = 0.0f;
#pragma unroll
      for (int t = 0; t < BLUR_TAPS; ++t) blurred += tap[t] * across[row + t][threadIdx.x];
      value = weighed(warped_at(prob + k * pixels, flow_to_prev_px, flow_from_prev_px, x, y,
                                height, width, sigma_px, sigma_frac),
                      blurred, weight);
      if (value > threshold) hits.add(x, y);
    }
    out[static_cast<long long>(y) * width + x] = value;
  }
  add_hits(hits, boxes + 4 * k, areas + k);
}
