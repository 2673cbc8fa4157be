// Permutohedral lattice of the bilateral kernel, built by hashing, for crf_filter.cu.
//
// Source: Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
// Eurographics 2010. A point in d dimensions lies in a simplex of d + 1 vertices. The numbers of
// the vertices depend on the order of threads; the results do not.
#include "regions.cuh"

namespace {

constexpr int DIMENSIONS = 5;  // x, y, red, green, blue
constexpr int AXES = DIMENSIONS + 1;

// A key: 8 bits of the region, 3 of the class (a vertex's coordinates modulo 6), 52 of the cell.
constexpr int CELL_BITS = 52;
constexpr int CLASS_BITS = 3;
constexpr uint64 CELL_MASK = (1ull << CELL_BITS) - 1;
constexpr uint64 EMPTY = ~0ull;  // no key has its highest bit

constexpr int REMAINDER_ONE = 1 << 26;  // as mpn.runtime.crf.permutohedral
constexpr float NARROWEST_SIGMA = 0.2f;  // as mpn.runtime.crf.kernels

// Slots in use: a power of two, at least twice the largest number of vertices if that fits.
__device__ __forceinline__ uint32 used_slots(int pixels, uint32 slots) {
  uint32 used = 256;
  while (used < slots && used < 2ull * AXES * pixels) used <<= 1;
  return used;
}

__device__ __forceinline__ uint32 first_slot(uint64 key, uint32 used) {
  // The finaliser of splitmix64: each bit of the key affects each bit of the slot.
  key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9ull;
  key = (key ^ (key >> 27)) * 0x94d049bb133111ebull;
  return static_cast<uint32>(key ^ (key >> 31)) & (used - 1);
}

__device__ __forceinline__ int number_of(uint64 key, const uint64* __restrict__ keys,
                                         const int* __restrict__ numbers, uint32 used) {
  for (uint32 slot = first_slot(key, used);; slot = (slot + 1) & (used - 1)) {
    if (keys[slot] == key) return numbers[slot];
    if (keys[slot] == EMPTY) return -1;
  }
}

// Cells (coordinates over 6, rounded down to a class) and weights of a point's six vertices.
struct Simplex {
  int cell[AXES];     // of the vertex of class 0
  int rank[AXES];     // the axis comes before classes 6 - rank and up
  float weight[AXES];  // of the vertex of each class
};

__device__ __forceinline__ Simplex simplex_of(const float (&feature)[DIMENSIONS],
                                              const float* __restrict__ scale) {
  // Project into the plane of six coordinates with sum 0 (Adams et al., p. 5).
  float elevated[AXES];
  float total = 0.0f;
#pragma unroll
  for (int i = DIMENSIONS; i > 0; --i) {
    const float scaled = feature[i - 1] * scale[i - 1];
    elevated[i] = total - i * scaled;
    total += scaled;
  }
  elevated[0] = total;
  Simplex simplex;
  int turns = 0;
  int remainder[AXES];
#pragma unroll
  for (int i = 0; i < AXES; ++i) {
    simplex.cell[i] = __float2int_rn(elevated[i] * (1.0f / AXES));
    turns += simplex.cell[i];
    elevated[i] -= static_cast<float>(simplex.cell[i] * AXES);
    // In fixed point with the axis in the low bits there are no ties, and the order is that of
    // the CPU. The order decides which vertices exist, also those without weight.
    remainder[i] = (static_cast<int>(elevated[i] * REMAINDER_ONE) & ~7) | i;
  }
#pragma unroll
  for (int i = 0; i < AXES; ++i) {
    simplex.rank[i] = turns;
#pragma unroll
    for (int j = 0; j < AXES; ++j) simplex.rank[i] += remainder[i] < remainder[j];
  }
#pragma unroll
  for (int i = 0; i < AXES; ++i) {
    // Rounding may leave the plane by `turns` cells: correct the axes with the largest error.
    const int back = simplex.rank[i] < 0 ? 1 : (simplex.rank[i] > DIMENSIONS ? -1 : 0);
    simplex.rank[i] += back * AXES;
    simplex.cell[i] += back;
    remainder[i] -= back * AXES * REMAINDER_ONE;
  }
  // The weight of a class is the gap between two neighbours in that order. The code sums selected
  // values, because a register array needs indices known at compile time.
  int before = -AXES * REMAINDER_ONE;
#pragma unroll
  for (int i = 0; i < AXES; ++i) before += simplex.rank[i] == 0 ? remainder[i] : 0;
#pragma unroll
  for (int r = 0; r < AXES; ++r) {
    int here = 0;
#pragma unroll
    for (int i = 0; i < AXES; ++i) {
      here += simplex.rank[i] == DIMENSIONS - r ? remainder[i] : 0;
    }
    simplex.weight[r] = static_cast<float>(here - before) * (1.0f / (AXES * REMAINDER_ONE));
    before = here;
  }
  return simplex;
}

__device__ __forceinline__ uint64 key_of(int region, int vertex_class, long long cell) {
  return static_cast<uint64>(region) << (CELL_BITS + CLASS_BITS) |
         static_cast<uint64>(vertex_class) << CELL_BITS | (static_cast<uint64>(cell) & CELL_MASK);
}

}  // namespace

// Clear the part of the table that this frame's pixels can fill, and the vertex count.
// launch: block 256; grid blocks
extern "C" __global__ void __launch_bounds__(256) crf_clear(
    const int* __restrict__ starts, int objects, int slots, int blocks, uint64* __restrict__ keys,
    int* __restrict__ vertices) {
  const uint32 used = used_slots(total_pixels(starts, objects), slots);
  const uint32 thread = blockIdx.x * blockDim.x + threadIdx.x;
  for (uint32 slot = thread; slot < used; slot += blocks * blockDim.x) keys[slot] = EMPTY;
  if (thread == 0) vertices[0] = 0;
}

// Insert the six vertices of each pixel: their slots in the table, and their weights. `lowest` and
// `steps` (5 and 6 values) pack the cells, `scale` (5) makes the lattice's blur one deviation wide;
// all are from mpn.runtime.device.lattice. Pixels of a small region get slot -1.
// launch: block 256; grid ceil(capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_insert(
    const uint8* __restrict__ rgb, const int* __restrict__ regions,
    const int* __restrict__ starts, int objects, int width, int capacity, float sxy, float srgb,
    const float* __restrict__ scale, const int* __restrict__ lowest,
    const uint64* __restrict__ steps, int exact_pixels, int slots, uint64* keys,
    int* __restrict__ corners, float* __restrict__ weights) {
  const int p = blockIdx.x * blockDim.x + threadIdx.x;
  const int total = total_pixels(starts, objects);
  if (p >= total) return;
  int* corner = corners + static_cast<long long>(AXES) * p;
  float* weight = weights + static_cast<long long>(AXES) * p;
  const Place place = place_of(p, regions, starts, width);
  if (is_exact(place, exact_pixels)) {
    for (int r = 0; r < AXES; ++r) corner[r] = -1;
    return;
  }
  const float sigma_px = fmaxf(sxy, NARROWEST_SIGMA), sigma_rgb = fmaxf(srgb, NARROWEST_SIGMA);
  const uint8* pixel = rgb + 3 * place.frame_at;
  const float feature[DIMENSIONS] = {place.x / sigma_px, place.y / sigma_px,
                                     pixel[0] / sigma_rgb, pixel[1] / sigma_rgb,
                                     pixel[2] / sigma_rgb};
  const Simplex simplex = simplex_of(feature, scale);
  long long origin = 0;
#pragma unroll
  for (int i = 0; i < DIMENSIONS; ++i) {
    origin += (simplex.cell[i] - lowest[i]) * static_cast<long long>(steps[i]);
  }
  const uint32 used = used_slots(total, slots);
#pragma unroll 1
  for (int r = 0; r < AXES; ++r) {
    long long cell = origin;
#pragma unroll
    for (int i = 0; i < DIMENSIONS; ++i) {
      if (simplex.rank[i] > DIMENSIONS - r) cell -= static_cast<long long>(steps[i]);
    }
    const uint64 key = key_of(place.region, r, cell);
    uint32 slot = first_slot(key, used);
    // The table has a slot for each possible vertex, so the loop ends.
    for (;; slot = (slot + 1) & (used - 1)) {
      const uint64 found = atomicCAS(keys + slot, EMPTY, key);
      if (found == EMPTY || found == key) break;
    }
    corner[r] = static_cast<int>(slot);
  }
#pragma unroll
  for (int r = 0; r < AXES; ++r) weight[r] = simplex.weight[r];
}

// Number the vertices from 0 in any order, and clear their sums (`channels` each).
// launch: block 256; grid blocks
extern "C" __global__ void __launch_bounds__(256) crf_number(
    const uint64* __restrict__ keys, const int* __restrict__ starts, int objects, int slots,
    int channels, int blocks, int* __restrict__ numbers, uint64* __restrict__ vertex_keys,
    int* __restrict__ vertices, uint64* __restrict__ sums) {
  __shared__ int here;
  __shared__ int first;
  const uint32 used = used_slots(total_pixels(starts, objects), slots);
  for (uint32 base = blockIdx.x * blockDim.x; base < used; base += blocks * blockDim.x) {
    const uint32 slot = base + threadIdx.x;  // `used` is a multiple of the block
    const uint64 key = keys[slot];
    if (threadIdx.x == 0) here = 0;
    __syncthreads();
    const int rank = key == EMPTY ? -1 : atomicAdd(&here, 1);
    __syncthreads();
    if (threadIdx.x == 0) first = atomicAdd(vertices, here);
    __syncthreads();
    if (rank >= 0) {
      const int vertex = first + rank;
      numbers[slot] = vertex;
      vertex_keys[vertex] = key;
      for (int c = 0; c < channels; ++c) {
        sums[static_cast<long long>(vertex) * channels + c] = 0;
      }
    }
    __syncthreads();
  }
}

// Convert each pixel's slots to vertex numbers.
// launch: block 256; grid ceil(6*capacity,256)
extern "C" __global__ void __launch_bounds__(256) crf_renumber(
    const int* __restrict__ starts, int objects, const int* __restrict__ numbers, int capacity,
    int* __restrict__ corners) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= AXES * total_pixels(starts, objects)) return;
  const int slot = corners[i];
  if (slot >= 0) corners[i] = numbers[slot];
}

// Find the vertices before and after each vertex per direction, or -1: (vertices, 6, 2).
// A step along axis j adds 1 to all coordinates and subtracts 6 from coordinate j: from class r to
// class r + 1, and from the last class to class 0 of the next cell.
// launch: block 256; grid blocks
extern "C" __global__ void __launch_bounds__(256) crf_neighbours(
    const uint64* __restrict__ vertex_keys, const int* __restrict__ vertices,
    const uint64* __restrict__ keys, const int* __restrict__ numbers,
    const int* __restrict__ starts, int objects, int slots, const uint64* __restrict__ steps,
    int blocks, int* __restrict__ neighbours) {
  const uint32 used = used_slots(total_pixels(starts, objects), slots);
  long long all = 0;
#pragma unroll
  for (int i = 0; i < DIMENSIONS; ++i) all += static_cast<long long>(steps[i]);
  const int count = AXES * vertices[0];
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += blocks * blockDim.x) {
    const int vertex = i / AXES, axis = i - vertex * AXES;
    const uint64 key = vertex_keys[vertex];
    const int region = static_cast<int>(key >> (CELL_BITS + CLASS_BITS));
    const int here = static_cast<int>(key >> CELL_BITS & ((1 << CLASS_BITS) - 1));
    const long long cell = static_cast<long long>(key & CELL_MASK);
    const long long step = static_cast<long long>(steps[axis]);
    const bool is_last = here == DIMENSIONS, is_first = here == 0;
    const uint64 after =
        key_of(region, is_last ? 0 : here + 1, is_last ? cell + all - step : cell - step);
    const uint64 before =
        key_of(region, is_first ? DIMENSIONS : here - 1, is_first ? cell - all + step : cell + step);
    neighbours[2ll * i] = number_of(before, keys, numbers, used);
    neighbours[2ll * i + 1] = number_of(after, keys, numbers, used);
  }
}
