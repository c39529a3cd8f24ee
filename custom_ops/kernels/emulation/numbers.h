// CUDA's half and bfloat16 on the host.

#ifndef CUSTOM_OPS_KERNELS_EMULATION_NUMBERS_H_
#define CUSTOM_OPS_KERNELS_EMULATION_NUMBERS_H_

#include <cmath>
#include <cstdint>
#include <cstring>

namespace emulation {

inline uint32_t BitsOf(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof(bits));
  return bits;
}

inline float FloatOf(uint32_t bits) {
  float v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

// Rounds to the nearest half; ties to even.
inline uint16_t HalfBits(float v) {
  const uint16_t sign = BitsOf(v) >> 16 & 0x8000;
  const float size = std::fabs(v);
  if (std::isnan(v)) return sign | 0x7e00;
  if (size >= 65520.0f) return sign | 0x7c00;
  // Adding a number whose last bit is the last one wanted rounds there.
  if (size < 6.103515625e-05f) {
    return sign | static_cast<uint16_t>(BitsOf(size + 0.5f) - BitsOf(0.5f));
  }
  const uint32_t bits = BitsOf(size);
  return sign |
         static_cast<uint16_t>((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
}

inline float HalfValue(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7fffu;
  if (rest >= 0x7c00) return FloatOf(sign | 0x7f800000 | (rest & 0x3ff) << 13);
  if (rest < 0x400) {
    const float size = static_cast<float>(rest) * 5.9604644775390625e-08f;
    return sign == 0 ? size : -size;
  }
  return FloatOf(sign | ((rest << 13) + (112u << 23)));
}

inline uint16_t BfloatBits(float v) {
  const uint32_t bits = BitsOf(v);
  if (std::isnan(v)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

}  // namespace emulation

struct __half {
  __half() = default;
  explicit __half(float v) : bits(emulation::HalfBits(v)) {}
  explicit operator float() const { return emulation::HalfValue(bits); }
  uint16_t bits;
};

struct __nv_bfloat16 {
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float v) : bits(emulation::BfloatBits(v)) {}
  explicit operator float() const {
    return emulation::FloatOf(static_cast<uint32_t>(bits) << 16);
  }
  uint16_t bits;
};

inline float __half2float(__half v) { return static_cast<float>(v); }
inline float __bfloat162float(__nv_bfloat16 v) { return static_cast<float>(v); }
inline __half __float2half(float v) { return __half(v); }
inline __nv_bfloat16 __float2bfloat16(float v) { return __nv_bfloat16(v); }

#endif  // CUSTOM_OPS_KERNELS_EMULATION_NUMBERS_H_
