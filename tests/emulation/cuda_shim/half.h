// Conversion to half precision as on the GPU: to nearest, ties to even. Part of shim.h.

inline uint16_t shim_half_from_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(0x7fffu);  // NaN of the cvt instruction
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);
  uint32_t shift = 13, kept = (magnitude & 0x7fffffu) | 0x800000u;
  int exponent = static_cast<int>(magnitude >> 23) - 112;
  if (exponent <= 0) {  // subnormal
    if (exponent < -10) return static_cast<uint16_t>(sign);
    shift += static_cast<uint32_t>(1 - exponent);
    exponent = 1;
  }
  const uint32_t rest = kept & ((1u << shift) - 1), half = 1u << (shift - 1);
  kept >>= shift;
  if (rest > half || (rest == half && (kept & 1))) ++kept;
  return static_cast<uint16_t>(sign | ((static_cast<uint32_t>(exponent - 1) << 10) + kept));
}

inline float shim_float_from_half(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const int exponent = bits >> 10 & 31;
  const float fraction = static_cast<float>(bits & 1023);
  float value;
  if (exponent == 31) {
    const uint32_t special = 0x7f800000u | (static_cast<uint32_t>(bits & 1023) << 13);
    memcpy(&value, &special, 4);
  } else if (exponent == 0) {
    value = ldexpf(fraction, -24);
  } else {
    value = ldexpf(fraction + 1024.0f, exponent - 25);
  }
  return sign ? -value : value;
}
