// Pixels of disjoint rectangles with one numbering: all regions of a CRF in one launch.
#pragma once
#include "device.cuh"

// Region of a pixel, and its column and row in it.
struct Place {
  int region, x, y, width, height;
  long long frame_at;  // its offset in the frame
};

__device__ __forceinline__ int total_pixels(const int* __restrict__ starts, int objects) {
  return starts[objects];
}

// `starts` (objects + 1) counts the pixels before each region; regions beyond the last are empty.
__device__ __forceinline__ Place place_of(int p, const int* __restrict__ regions,
                                          const int* __restrict__ starts, int frame_width) {
  int region = 0;
  while (p >= starts[region + 1]) ++region;
  const Box box = load_box(regions, region);
  const int width = box.x1 - box.x0;
  const int inside = p - starts[region];
  Place place;
  place.region = region;
  place.width = width;
  place.height = box.y1 - box.y0;
  place.y = inside / width;
  place.x = inside - place.y * width;
  place.frame_at = static_cast<long long>(box.y0 + place.y) * frame_width + box.x0 + place.x;
  return place;
}

// Small regions take all pairs of pixels instead of the lattice, see mpn.runtime.crf.kernels.
__device__ __forceinline__ bool is_exact(const Place& place, int exact_pixels) {
  return place.width * place.height <= exact_pixels;
}
