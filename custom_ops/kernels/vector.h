// Vectors of the widest kind that the compiler's target has, in the compiler's own
// portable notation, so that one source serves AVX-512, AVX2, SSE and NEON.

#ifndef CUSTOM_OPS_KERNELS_VECTOR_H_
#define CUSTOM_OPS_KERNELS_VECTOR_H_

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef __SSE2__
#include <immintrin.h>
#endif

namespace perforated {

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
inline constexpr int kBlockRows = 14;  // 14 x 2 accumulators + 2 + 2 of 32 registers
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
inline constexpr int kBlockRows = 6;  // 6 x 2 accumulators + 2 + 1 of 16 registers
#else
inline constexpr int kVectorBytes = 16;
inline constexpr int kBlockRows = 6;
#endif

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};

template <typename T>
using Vector = typename VectorOf<T>::type;

template <typename T>
inline constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// Columns of a panel of packed filters: two vectors.
template <typename T>
inline constexpr int kPanelColumns = 2 * kLanes<T>;

template <typename T>
inline Vector<T> Load(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, sizeof(v));
  return v;
}

template <typename T, typename V>
inline void Store(T* to, V v) {
  std::memcpy(to, &v, sizeof(v));
}

// Writes zeros past the caches, where they would take the place of what is needed, and
// memory would be read before it is written.
inline void StreamZeros(void* to, int64_t bytes) {
#ifdef __SSE2__
  constexpr int64_t kStep = 16;
  char* next = static_cast<char*>(to);
  const int64_t unaligned =
      static_cast<int64_t>(-reinterpret_cast<std::uintptr_t>(next) % kStep);
  if (bytes < unaligned + kStep) {
    std::memset(next, 0, bytes);
    return;
  }
  std::memset(next, 0, unaligned);
  next += unaligned;
  bytes -= unaligned;
  for (; bytes >= kStep; bytes -= kStep, next += kStep) {
    _mm_stream_si128(reinterpret_cast<__m128i*>(next), _mm_setzero_si128());
  }
  std::memset(next, 0, bytes);
  _mm_sfence();
#else
  std::memset(to, 0, bytes);
#endif
}

// max(v, slope * v) for slope in [0, 1]: the identity, leaky ReLU or ReLU. NaN stays,
// and minus infinity times the slope 0 does not become one.
template <typename V, typename T>
inline V Activate(V v, T slope) {
  const V negative = slope == T(0) ? V{} : v * slope;
  return v < V{} ? negative : v;
}

// The sums of both halves of every segment of two vectors: [a0 + a1, b0 + b1] of
// segments of a whole vector, [a0 + a1, a2 + a3, b0 + b1, b2 + b3] of half of one.
template <int kSegment, typename T, int... kLane>
inline Vector<T> FoldSegments(Vector<T> a, Vector<T> b,
                              std::integer_sequence<int, kLane...>) {
  constexpr int kHalf = kSegment / 2;
#ifdef __clang__
  return __builtin_shufflevector(a, b, kLane / kHalf * kSegment + kLane % kHalf...) +
         __builtin_shufflevector(a, b,
                                 kLane / kHalf * kSegment + kLane % kHalf + kHalf...);
#else
  using Lane = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;
  constexpr Vector<Lane> kFirst = {(kLane / kHalf * kSegment + kLane % kHalf)...};
  constexpr Vector<Lane> kSecond = {
      (kLane / kHalf * kSegment + kLane % kHalf + kHalf)...};
  return __builtin_shuffle(a, b, kFirst) + __builtin_shuffle(a, b, kSecond);
#endif
}

// The sums of the lanes of every vector, in the lanes of one; at most as many as it
// has.
template <typename T, int kCount, int kSegment = kLanes<T>>
inline Vector<T> SumLanes(const Vector<T> (&v)[kCount]) {
  static_assert(kCount <= kLanes<T>);
  if constexpr (kSegment == 1) {
    return v[0];
  } else {
    Vector<T> folded[(kCount + 1) / 2];
    for (int i = 0; i < kCount; i += 2) {
      folded[i / 2] =
          FoldSegments<kSegment, T>(v[i], i + 1 < kCount ? v[i + 1] : Vector<T>{},
                                    std::make_integer_sequence<int, kLanes<T>>());
    }
    return SumLanes<T, (kCount + 1) / 2, kSegment / 2>(folded);
  }
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_VECTOR_H_
