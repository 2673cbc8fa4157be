// Paste of the crops into the frame, ensemble, merge of the objects, labels.
#include "taps.cuh"

namespace {

constexpr int TILE_COLUMNS = 128;
constexpr int TILE_ROWS = 8;
constexpr int BLOCK_COLUMNS = 32;
constexpr int PIXELS = TILE_COLUMNS / BLOCK_COLUMNS;  // per thread, in steps of 32 columns

struct Tile {
  int first_x, first_y, y;
  __device__ __forceinline__ static Tile here() {
    const int first_y = blockIdx.y * TILE_ROWS;
    return Tile{static_cast<int>(blockIdx.x) * TILE_COLUMNS, first_y,
                first_y + static_cast<int>(threadIdx.y)};
  }
  __device__ __forceinline__ int x(int i) const {
    return first_x + i * BLOCK_COLUMNS + static_cast<int>(threadIdx.x);
  }
  __device__ __forceinline__ bool intersects(Box box) const {
    return !box.is_empty() && first_x < box.x1 && first_x + TILE_COLUMNS > box.x0 &&
           first_y < box.y1 && first_y + TILE_ROWS > box.y0;
  }
};

// Sample a crop at the pixels of this thread, 0 outside its ROI. All threads of the block call it;
// the taps are free for the next object afterwards.
template <typename T>
__device__ __forceinline__ void pasted(const T* __restrict__ crop, int size, Box roi, Tile tile,
                                       TileTaps<TILE_COLUMNS, TILE_ROWS>& taps,
                                       float (&value)[PIXELS]) {
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) value[i] = 0.0f;
  if (!tile.intersects(roi)) return;  // for the whole block
  fill_taps(taps, tile.first_x - roi.x0, tile.first_y - roi.y0, size, size, roi.x1 - roi.x0,
            roi.y1 - roi.y0);
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
    if (!roi.contains(tile.x(i), tile.y)) continue;
    value[i] = sample_taps(crop, size, taps.x[i * BLOCK_COLUMNS + threadIdx.x],
                           taps.y[threadIdx.y]);
  }
  __syncthreads();
}

// host/merge.blend inside a box; 0 outside it.
__device__ __forceinline__ float blended(float prob, float other, float other_weight) {
  return (1.0f - other_weight) * prob + other_weight * other;
}

// host/osvos.blend_osvos at the pixels of this thread, in place. OSVOS counts with the probability
// that the other objects leave. Objects before k are already blended, so the product of their old
// values is kept in `left`. Background and total are recomputed.
__device__ __forceinline__ void blend_foregrounds(
    const int* __restrict__ rois, const float* __restrict__ foregrounds,
    const int* __restrict__ foreground_of, int objects, long long pixels, long long row, int width,
    Tile tile, float foreground_weight, float* prob, float (&background)[PIXELS],
    float (&total)[PIXELS]) {
#pragma unroll 1
  for (int i = 0; i < PIXELS; ++i) {
    const int x = tile.x(i);
    if (x >= width) continue;
    const long long at = row + x;
    float left = 1.0f, outside = 1.0f, sum = 0.0f;
#pragma unroll 1
    for (int k = 0; k < objects; ++k) {
      const float mine = prob[k * pixels + at];
      float value = mine;
      const int plane = foreground_of[k];
      if (plane >= 0 && load_box(rois, k).contains(x, tile.y)) {
        float theirs = foregrounds[plane * pixels + at] * left;
        for (int j = k + 1; j < objects; ++j) theirs = theirs * (1.0f - prob[j * pixels + at]);
        value = blended(mine, theirs, foreground_weight);
        prob[k * pixels + at] = value;
      }
      left *= 1.0f - mine;
      outside *= 1.0f - value;
      sum += value;
    }
    background[i] = outside;
    total[i] = sum;
  }
}

// All steps between the network and the next frame; see paste_merge_f32.
template <typename T>
__device__ __forceinline__ void paste_merge(
    const T* __restrict__ crops, const int* __restrict__ rois,
    const float* __restrict__ candidates, const float* __restrict__ foregrounds,
    const int* __restrict__ foreground_of, const uint8* __restrict__ object_ids, int objects,
    int height, int width, int size, float warped_weight, float foreground_weight,
    float* __restrict__ prob, uint8* __restrict__ labels) {
  __shared__ TileTaps<TILE_COLUMNS, TILE_ROWS> taps;
  const Tile tile = Tile::here();
  const long long pixels = static_cast<long long>(height) * width;
  const bool has_row = tile.y < height;
  const long long row = static_cast<long long>(tile.y) * width;
  float background[PIXELS], total[PIXELS];
#pragma unroll
  for (int i = 0; i < PIXELS; ++i) {
    background[i] = 1.0f;
    total[i] = 0.0f;
  }
#pragma unroll 1
  for (int k = 0; k < objects; ++k) {
    const Box roi = load_box(rois, k);
    float value[PIXELS];
    if (crops != nullptr) {
      pasted(crops + static_cast<long long>(k) * size * size, size, roi, tile, taps, value);
    }
#pragma unroll
    for (int i = 0; i < PIXELS; ++i) {
      const int x = tile.x(i);
      if (!has_row || x >= width) continue;
      const bool is_inside = roi.contains(x, tile.y);
      if (crops == nullptr) {
        value[i] = candidates[k * pixels + row + x];
      } else if (is_inside && warped_weight != 0.0f) {
        value[i] = blended(value[i], candidates[k * pixels + row + x], warped_weight);
      }
      if (foregrounds != nullptr && !is_inside) value[i] = 0.0f;
      background[i] *= 1.0f - value[i];
      total[i] += value[i];
      prob[k * pixels + row + x] = value[i];
    }
  }
  if (!has_row) return;
  if (foregrounds != nullptr) {
    blend_foregrounds(rois, foregrounds, foreground_of, objects, pixels, row, width, tile,
                      foreground_weight, prob, background, total);
  }
  // The thread reads its own writes; no other thread accesses these pixels.
#pragma unroll 1
  for (int i = 0; i < PIXELS; ++i) {
    const int x = tile.x(i);
    if (x >= width) continue;
    float best = 1.0f;
    int label = 0;
    if (objects == 1) {
      label = prob[row + x] > 0.5f ? object_ids[0] : 0;
    } else {
      const float all = background[i] + total[i];
#pragma unroll 2
      for (int k = 0; k < objects; ++k) {
        const float merged = prob[k * pixels + row + x] / all;
        prob[k * pixels + row + x] = merged;
        best -= merged;
      }
#pragma unroll 2
      for (int k = 0; k < objects; ++k) {
        const float merged = prob[k * pixels + row + x];
        if (merged > best) {
          best = merged;
          label = object_ids[k];
        }
      }
    }
    labels[row + x] = static_cast<uint8>(label);
  }
}

}  // namespace

// host/ops.paste, host/osvos.blend_osvos, host/merge.merge and labels_from_merged in one pass:
// (1 - warped_weight) * network + warped_weight * candidate inside each ROI, then the same with
// OSVOS and its weight; merged probabilities, and their argmax as ids. Crop k belongs to object k;
// an empty ROI gives 0. Without crops the candidates are merged. `foreground_of` is each object's
// plane of `foregrounds`, or -1, which is not blended; without foregrounds nothing is blended.
// launch: block 32 8; grid ceil(width,128) ceil(height,8)
extern "C" __global__ void __launch_bounds__(256) paste_merge_f32(
    const float* __restrict__ crops, const int* __restrict__ rois,
    const float* __restrict__ candidates, const float* __restrict__ foregrounds,
    const int* __restrict__ foreground_of, const uint8* __restrict__ object_ids, int objects,
    int height, int width, int size, float warped_weight, float foreground_weight,
    float* __restrict__ prob, uint8* __restrict__ labels) {
  paste_merge(crops, rois, candidates, foregrounds, foreground_of, object_ids, objects, height,
              width, size, warped_weight, foreground_weight, prob, labels);
}

// The same for crops in half precision.
// launch: block 32 8; grid ceil(width,128) ceil(height,8)
extern "C" __global__ void __launch_bounds__(256) paste_merge_f16(
    const Half* __restrict__ crops, const int* __restrict__ rois,
    const float* __restrict__ candidates, const float* __restrict__ foregrounds,
    const int* __restrict__ foreground_of, const uint8* __restrict__ object_ids, int objects,
    int height, int width, int size, float warped_weight, float foreground_weight,
    float* __restrict__ prob, uint8* __restrict__ labels) {
  paste_merge(crops, rois, candidates, foregrounds, foreground_of, object_ids, objects, height,
              width, size, warped_weight, foreground_weight, prob, labels);
}

// host/merge.labels_from_merged: a tie gives the background, then the first object. Four pixels per
// thread.
// launch: block 256; grid ceil(pixels,1024)
extern "C" __global__ void __launch_bounds__(256) labels_from_merged(
    const float* __restrict__ merged, const uint8* __restrict__ object_ids, int objects,
    int pixels, uint8* __restrict__ labels) {
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  if (first >= pixels) return;
  const int count = min(pixels - first, 4);
  float best[4] = {1.0f, 1.0f, 1.0f, 1.0f};
  int label[4] = {0, 0, 0, 0};
  if (objects == 1) {  // 1 - p is rounded, p > 0.5 is not
    best[0] = best[1] = best[2] = best[3] = 0.5f;
  } else {
#pragma unroll 2
    for (int k = 0; k < objects; ++k) {
      float value[4];
      load4(merged + static_cast<long long>(k) * pixels + first, count, value);
#pragma unroll
      for (int i = 0; i < 4; ++i) best[i] -= value[i];
    }
  }
#pragma unroll 2
  for (int k = 0; k < objects; ++k) {
    float value[4];
    load4(merged + static_cast<long long>(k) * pixels + first, count, value);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (value[i] > best[i]) {
        best[i] = value[i];
        label[i] = object_ids[k];
      }
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) labels[first + i] = static_cast<uint8>(label[i]);
  }
}
