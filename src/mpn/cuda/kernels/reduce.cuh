// Bounding boxes, reduced over a block.
#pragma once
#include "device.cuh"

constexpr uint32 ALL_LANES = 0xffffffffu;

// Box and number of the pixels of one thread above a threshold.
struct Hits {
  int x0, y0, x1, y1, area;
  __device__ __forceinline__ static Hits none() {
    return Hits{0x7fffffff, 0x7fffffff, 0, 0, 0};
  }
  __device__ __forceinline__ void add(int x, int y) {
    x0 = min(x0, x);
    y0 = min(y0, y);
    x1 = max(x1, x + 1);
    y1 = max(y1, y + 1);
    ++area;
  }
};

__device__ __forceinline__ Hits warp_total(Hits hits) {
#pragma unroll
  for (int distance = 16; distance > 0; distance >>= 1) {
    hits.x0 = min(hits.x0, __shfl_xor_sync(ALL_LANES, hits.x0, distance));
    hits.y0 = min(hits.y0, __shfl_xor_sync(ALL_LANES, hits.y0, distance));
    hits.x1 = max(hits.x1, __shfl_xor_sync(ALL_LANES, hits.x1, distance));
    hits.y1 = max(hits.y1, __shfl_xor_sync(ALL_LANES, hits.y1, distance));
    hits.area += __shfl_xor_sync(ALL_LANES, hits.area, distance);
  }
  return hits;
}

// Add the hits of the threads of a block to one object's box and area. All threads of the block
// must call it; the block is a multiple of 32 threads. Minimum, maximum and sum of integers do not
// depend on their order, so the result is the same in each run.
__device__ __forceinline__ void add_hits(Hits hits, int* box, int* area) {
  __shared__ Hits block;
  const int thread = threadIdx.y * blockDim.x + threadIdx.x;
  if (thread == 0) block = Hits::none();
  __syncthreads();
  if (__ballot_sync(ALL_LANES, hits.area > 0) != 0) {  // most warps have no hit
    const Hits warp = warp_total(hits);
    if ((thread & 31) == 0) {
      atomicMin(&block.x0, warp.x0);
      atomicMin(&block.y0, warp.y0);
      atomicMax(&block.x1, warp.x1);
      atomicMax(&block.y1, warp.y1);
      atomicAdd(&block.area, warp.area);
    }
  }
  __syncthreads();
  if (thread == 0 && block.area > 0) {
    atomicMin(box + 0, block.x0);
    atomicMin(box + 1, block.y0);
    atomicMax(box + 2, block.x1);
    atomicMax(box + 3, block.y1);
    atomicAdd(area, block.area);
  }
}
