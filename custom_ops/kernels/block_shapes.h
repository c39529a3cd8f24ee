// How many parameters the parts of a block have.

#ifndef CUSTOM_OPS_KERNELS_BLOCK_SHAPES_H_
#define CUSTOM_OPS_KERNELS_BLOCK_SHAPES_H_

#include <cstdint>

namespace perforated {

// What comes before the parameters: features, their sums, imposed numbers of units.
inline constexpr int kBlockInputs = 3;
// A batch normalization's gamma, beta, mean and variance.
inline constexpr int kNorm = 4;
// Normalization, filters, bias; normalization, filters.
inline constexpr int kHead = 2 * kNorm + 3;

// Those of a unit, each convolution with the normalization before it and the last with
// a bias, and of a head.
constexpr int64_t ParametersPerUnit(int64_t convolutions) {
  return convolutions * (kNorm + 1) + 1 + kHead;
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_BLOCK_SHAPES_H_
