// Area, box and confidence of each object from the labels, without downloading them.
#include "reduce.cuh"

namespace {

// Probabilities are summed in fixed point of 2^-24, the step of a float32 near 1, so that the order
// of the additions does not matter and each run gives the same confidence.
constexpr float FIXED_ONE = 16777216.0f;

}  // namespace

// Add each object's pixels in the labels to its area and box, and their probability, in units of
// 2^-24, to `prob_sums`; reset_boxes empties all three. The confidence is sum / 2^24 / area.
// launch: block 256; grid ceil(height*width,1024) 1 objects
extern "C" __global__ void __launch_bounds__(256) track_stats(
    const uint8* __restrict__ labels, const float* __restrict__ prob,
    const uint8* __restrict__ object_ids, int objects, int height, int width,
    int* __restrict__ boxes, int* __restrict__ areas, uint64* __restrict__ prob_sums) {
  __shared__ uint64 block_sum;
  const int pixels = height * width;
  const int first = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  const int k = blockIdx.z;
  if (threadIdx.x == 0) block_sum = 0;
  __syncthreads();
  const int object_id = object_ids[k];
  const float* plane = prob + static_cast<long long>(k) * pixels;
  Hits hits = Hits::none();
  uint64 sum = 0;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int at = first + i;
    if (at >= pixels || labels[at] != object_id) continue;
    hits.add(at % width, at / width);
    sum += static_cast<uint64>(plane[at] * FIXED_ONE + 0.5f);
  }
  if (sum != 0) atomicAdd(&block_sum, sum);
  add_hits(hits, boxes + 4 * k, areas + k);  // its barriers separate the sum from the read
  if (threadIdx.x == 0 && block_sum != 0) atomicAdd(prob_sums + k, block_sum);
}
