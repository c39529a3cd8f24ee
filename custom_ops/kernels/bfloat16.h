// bfloat16: the upper half of a float, as a type that factors of products are kept in.

#ifndef CUSTOM_OPS_KERNELS_BFLOAT16_H_
#define CUSTOM_OPS_KERNELS_BFLOAT16_H_

#include <cstdint>
#include <cstring>

#include "vector.h"

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif

namespace perforated {

struct BFloat16 {
  BFloat16() = default;
  // The nearest, of two equally near the even one; NaN stays.
  explicit BFloat16(float value) {
    uint32_t u;
    std::memcpy(&u, &value, sizeof(u));
    bits = static_cast<uint16_t>(value != value ? u >> 16 | 0x40
                                                : (u + 0x7fff + (u >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t u = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &u, sizeof(u));
    return value;
  }
  uint16_t bits;
};

// Some of them, as many as a vector has floats.
struct HalfVectorOf {
  typedef uint16_t type __attribute__((vector_size(kVectorBytes / 2)));
};
using HalfVector = HalfVectorOf::type;

inline Vector<float> Load(const BFloat16* from) {
  HalfVector half;
  std::memcpy(&half, from, sizeof(half));
  const auto bits = __builtin_convertvector(half, Vector<uint32_t>) << 16;
  Vector<float> v;
  std::memcpy(&v, &bits, sizeof(v));
  return v;
}

// Rounds as the constructor does; the processor's own instruction takes what is smaller
// than normal numbers for zero.
inline void Store(BFloat16* to, Vector<float> v) {
#if defined(__AVX512BF16__) && defined(__AVX512F__)
  __m512 floats;
  std::memcpy(&floats, &v, sizeof(v));
  const auto half = _mm512_cvtneps_pbh(floats);
#else
  Vector<uint32_t> u;
  std::memcpy(&u, &v, sizeof(u));
  const auto is_nan = v != v;
  Vector<uint32_t> nan;
  std::memcpy(&nan, &is_nan, sizeof(nan));
  const Vector<uint32_t> rounded = (u + 0x7fff + (u >> 16 & 1)) >> 16;
  const Vector<uint32_t> bits = (nan & (u >> 16 | 0x40)) | (~nan & rounded);
  const auto half = __builtin_convertvector(bits, HalfVector);
#endif
  std::memcpy(to, &half, sizeof(half));
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_BFLOAT16_H_
