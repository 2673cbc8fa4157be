// Types, half precision, guarded vector loads and stores for all kernels.
//
// No header of the CUDA toolkit is included: NVRTC compiles these files alone, and the tests compile
// them with g++ through tests/emulation/cuda_shim. They are compiled without contraction of
// multiply and add (see compile.py), so that both give the same bits.
#pragma once

typedef unsigned char uint8;
typedef unsigned short uint16;
typedef unsigned int uint32;
typedef unsigned long long uint64;

// IEEE half precision in memory; a struct, so that store() differs from that of uint16.
struct Half {
  uint16 bits;
};

#ifdef __CUDACC_RTC__
__device__ __forceinline__ Half half_from_float(float value) {
  Half half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half.bits) : "f"(value));
  return half;
}
__device__ __forceinline__ float float_from_half(Half half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half.bits));
  return value;
}
#else  // for the tests' shim, checked against NumPy
inline Half half_from_float(float value) { return Half{shim_half_from_float(value)}; }
inline float float_from_half(Half half) { return shim_float_from_half(half.bits); }
#endif

__device__ __forceinline__ void store(float* out, long long at, float value) { out[at] = value; }
__device__ __forceinline__ void store(Half* out, long long at, float value) {
  out[at] = half_from_float(value);
}
__device__ __forceinline__ float load(const float* in, long long at) { return in[at]; }
__device__ __forceinline__ float load(const Half* in, long long at) {
  return float_from_half(in[at]);
}

__device__ __forceinline__ bool is_finite(float value) {
  return fabsf(value) <= 3.402823466e+38f;  // false for NaN, too
}

__device__ __forceinline__ int clamped(int value, int low, int high) {
  return value < low ? low : (value > high ? high : value);
}

// Half-open box of a frame, a row of an (objects, 4) array; empty if x1 <= x0.
struct Box {
  int x0, y0, x1, y1;
  __device__ __forceinline__ bool is_empty() const { return x1 <= x0 || y1 <= y0; }
  __device__ __forceinline__ bool contains(int x, int y) const {
    return x >= x0 && x < x1 && y >= y0 && y < y1;
  }
};

__device__ __forceinline__ Box load_box(const int* boxes, int k) {
  const int* box = boxes + 4 * k;
  return Box{box[0], box[1], box[2], box[3]};
}

__device__ __forceinline__ void store_box(int* boxes, int k, Box box) {
  int* out = boxes + 4 * k;
  out[0] = box.x0;
  out[1] = box.y0;
  out[2] = box.x1;
  out[3] = box.y1;
}

// Load four neighbours at once if the address is aligned: the planes of a frame are not if the
// number of pixels is no multiple of 4.
template <int BYTES>
__device__ __forceinline__ bool is_aligned(const void* pointer) {
  return (reinterpret_cast<uint64>(pointer) & (BYTES - 1)) == 0;
}

__device__ __forceinline__ void load4(const float* in, int count, float (&values)[4]) {
  if (count >= 4 && is_aligned<16>(in)) {
    const float4 four = *reinterpret_cast<const float4*>(in);
    values[0] = four.x;
    values[1] = four.y;
    values[2] = four.z;
    values[3] = four.w;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) values[i] = i < count ? in[i] : 0.0f;
}

__device__ __forceinline__ void store4(float* out, int count, const float (&values)[4]) {
  if (count >= 4 && is_aligned<16>(out)) {
    *reinterpret_cast<float4*>(out) = make_float4(values[0], values[1], values[2], values[3]);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) out[i] = values[i];
  }
}

__device__ __forceinline__ void store4(Half* out, int count, const float (&values)[4]) {
  if (count >= 4 && is_aligned<8>(out)) {
    uint64 four = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      four |= static_cast<uint64>(half_from_float(values[i]).bits) << (16 * i);
    }
    *reinterpret_cast<uint64*>(out) = four;
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) store(out, i, values[i]);
  }
}

// Load twelve bytes of four pixels, as three words if the address is aligned.
__device__ __forceinline__ void load_rgb4(const uint8* in, int count, uint8 (&levels)[12]) {
  if (count >= 4 && is_aligned<4>(in)) {
    const uint32* words = reinterpret_cast<const uint32*>(in);
    const uint32 word[3] = {words[0], words[1], words[2]};
#pragma unroll
    for (int i = 0; i < 12; ++i) levels[i] = static_cast<uint8>(word[i >> 2] >> (8 * (i & 3)));
    return;
  }
#pragma unroll
  for (int i = 0; i < 12; ++i) levels[i] = i < 3 * count ? in[i] : static_cast<uint8>(0);
}
