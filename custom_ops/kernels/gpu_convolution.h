// A convolution at listed places, as a part of larger ones.

#ifndef CUSTOM_OPS_KERNELS_GPU_CONVOLUTION_H_
#define CUSTOM_OPS_KERNELS_GPU_CONVOLUTION_H_

#include <cstdint>

#include "gpu.h"
#include "gpu_positions.h"

namespace perforated {
namespace gpu {

// Where a convolution reads and writes.
struct Rows {
  // The rows of the input: of all positions; or, where `input_rows` tells of each
  // position which row it has, of some; or, for a 1x1 convolution whose input has one
  // row per place, these (`is_compact`).
  const int32_t* input_rows = nullptr;
  bool is_compact_input = false;
  // The rows of the output: of all positions; or one per place.
  bool is_compact_output = false;
  bool adds = false;  // to what the output holds already
};

// output = after(before(input) * filters) at places, of which there are at most
// `most_places`. Other rows of the output stay as they are.
const char* ConvolvePlaces(Type type, const Geometry& g, const void* input,
                           const void* filters, const Places& places,
                           int64_t most_places, const Rows& rows,
                           const Transform& before, const Transform& after,
                           void* output, void* stream);

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_CONVOLUTION_H_
