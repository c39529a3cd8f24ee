// Vectors of the widest kind that the compiler's target has, in the compiler's own
// portable notation, so that one source serves AVX-512, AVX2, SSE and NEON.

#ifndef CUSTOM_OPS_KERNELS_VECTOR_H_
#define CUSTOM_OPS_KERNELS_VECTOR_H_

#include <cstdint>
#include <cstring>

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

// max(v, slope * v) for slope in [0, 1]: the identity, leaky ReLU or ReLU. NaN stays,
// and minus infinity times the slope 0 does not become one.
template <typename V, typename T>
inline V Activate(V v, T slope) {
  const V negative = slope == T(0) ? V{} : v * slope;
  return v < V{} ? negative : v;
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_VECTOR_H_
