// Perforated convolution and its two gradients, the functions of gpu.h. All three are
// products:
//
//                    rows               columns    depth
//   convolution      active positions   filters    taps * channels
//   input gradient   touched inputs     channels   taps * filters
//   filter gradient  taps * channels    filters    active positions, in splits
//
// The input gradient gathers too: what an input position receives through every tap is
// added up in registers and written once. Scattering would multiply fewer zeros where
// active positions are few and far apart or strides are large, but would need atomic
// additions, whose order changes from run to run, and rounds half precision every time.

#include <algorithm>
#include <cstdint>

#include "gpu.h"
#include "gpu_convolution.h"
#include "gpu_device.h"
#include "gpu_loaders.h"
#include "gpu_positions.h"
#include "gpu_products.h"

namespace perforated {
namespace gpu {
namespace {

template <typename Element>
struct ConvolveOp {
  using T = Element;
  using Left = Tile<T, true>;    // patches: depth runs along channels
  using Right = Tile<T, false>;  // filters: output channels are contiguous
  using LeftLoader = PatchLoader<ConvolveOp>;
  using RightLoader = MatrixLoader<ConvolveOp>;

  __device__ int64_t num_rows() const { return *places.count; }
  __device__ int num_columns() const { return shape.filters; }
  __device__ int64_t depth() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.kernel_width *
           shape.channels;
  }
  __device__ int inner() const { return shape.channels; }
  __device__ const Affine<T>& change() const { return before; }
  __device__ int64_t Offset(int64_t index, const Place& place, int tap_y,
                            int tap_x) const {
    int64_t row = index;
    if (!rows.is_compact_input) {
      row = ReadRow(shape, place, tap_y, tap_x);
      if (row >= 0 && rows.input_rows != nullptr) row = rows.input_rows[row];
    }
    return row < 0 ? -1 : row * shape.channels;
  }
  __device__ int64_t RightRow(int64_t depth) const { return depth; }
  __device__ void Write(const Job&, int64_t row, int column, float value) const {
    const int64_t out =
        rows.is_compact_output ? row : OutputRow(shape, places.data[row]);
    T* const to = output + out * shape.filters + column;
    value = after(value, column);
    *to = FromFloat<T>(rows.adds ? ToFloat(*to) + value : value);
  }

  Shape shape;
  Places places;  // active output positions
  Rows rows;
  const T* source;
  const T* matrix;
  bool aligned_source, aligned_matrix;
  Affine<T> before, after;
  T* output;
};

template <typename Element>
struct InputGradientOp {
  using T = Element;
  using Left = Tile<T, true>;   // output gradients: depth runs along filters
  using Right = Tile<T, true>;  // filters: the same
  using LeftLoader = PatchLoader<InputGradientOp>;
  using RightLoader = FilterLoader<InputGradientOp>;

  __device__ int64_t num_rows() const { return *places.count; }
  __device__ int num_columns() const { return shape.channels; }
  __device__ int64_t depth() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.kernel_width *
           shape.filters;
  }
  __device__ int inner() const { return shape.filters; }
  __device__ Identity change() const { return {}; }
  __device__ int64_t Offset(int64_t, const Place& place, int tap_y, int tap_x) const {
    const int64_t row = ReaderRow(shape, mask, place, tap_y, tap_x);
    return row < 0 ? -1 : row * shape.filters;
  }
  __device__ void Write(const Job&, int64_t row, int column, float value) const {
    const int64_t in = InputRow(shape, places.data[row]);
    input_gradient[in * shape.channels + column] = FromFloat<T>(value);
  }

  Shape shape;
  Places places;    // touched inputs
  const T* source;  // output gradients
  const T* matrix;  // filters
  const bool* mask;
  bool aligned_source, aligned_matrix;
  T* input_gradient;
};

template <typename Element>
struct FilterGradientOp {
  using T = Element;
  using Left = Tile<T, false>;   // patches, transposed: rows run along channels
  using Right = Tile<T, false>;  // output gradients: filters are contiguous
  using LeftLoader = TransposedPatchLoader<FilterGradientOp>;
  using RightLoader = MatrixLoader<FilterGradientOp>;

  __device__ int64_t num_rows() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.kernel_width *
           shape.channels;
  }
  __device__ int num_columns() const { return shape.filters; }
  __device__ int64_t depth() const { return *places.count; }
  __device__ int inner() const { return shape.channels; }
  __device__ int64_t Offset(int64_t, const Place& place, int tap_y, int tap_x) const {
    const int64_t row = ReadRow(shape, place, tap_y, tap_x);
    return row < 0 ? -1 : row * shape.channels;
  }
  __device__ int64_t RightRow(int64_t depth) const {
    return OutputRow(shape, places.data[depth]);
  }
  __device__ void Write(const Job& job, int64_t row, int column, float value) const {
    sums[(job.split * num_rows() + row) * shape.filters + column] = value;
  }

  Shape shape;
  Places places;    // active output positions
  const T* source;  // the input
  const T* matrix;  // output gradients
  bool aligned_source, aligned_matrix;
  float* sums;  // [splits, taps * channels, filters]
};

// Parts of the workspaces.
struct ConvolveParts {
  ConvolveParts(const Geometry& g, Allocator* allocator)
      : active(NumOutputs(g), allocator) {}
  PlaceList active;
};

struct InputGradientParts {
  InputGradientParts(const Geometry& g, Allocator* allocator)
      : list(NumInputs(g), allocator), touched(allocator->Take<bool>(NumInputs(g))) {}
  PlaceList list;
  bool* touched;
};

struct FilterGradientParts {
  FilterGradientParts(const Geometry& g, Allocator* allocator)
      : active(NumOutputs(g), allocator),
        sums(allocator->Take<float>(NumSplits(g) * Taps(g) * g.channels * g.filters)) {}
  PlaceList active;
  float* sums;
};

}  // namespace

int64_t ConvolveWorkspace(const Geometry& g) { return Measure<ConvolveParts>(g); }
int64_t InputGradientWorkspace(const Geometry& g) {
  return Measure<InputGradientParts>(g);
}
int64_t FilterGradientWorkspace(const Geometry& g) {
  return Measure<FilterGradientParts>(g);
}

const char* ConvolvePlaces(Type type, const Geometry& g, const void* input,
                           const void* filters, const Places& places,
                           int64_t most_places, const Rows& rows,
                           const Transform& before, const Transform& after,
                           void* output, void* stream) {
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(input);
    const T* const weights = static_cast<const T*>(filters);
    const ConvolveOp<T> op{Shape(g),
                           places,
                           rows,
                           from,
                           weights,
                           Aligned(from, g.channels),
                           Aligned(weights, g.filters),
                           Affine<T>(before),
                           Affine<T>(after),
                           static_cast<T*>(output)};
    return LaunchProduct<decltype(arithmetic)::kFast>(op, most_places, g.filters, 1,
                                                      stream);
  });
}

const char* Convolve(Type type, const Geometry& g, const void* input,
                     const void* filters, const bool* mask, void* found,
                     const Transform& before, const Transform& after, void* output,
                     void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckSizes(g));
  const int64_t n = NumOutputs(g);
  if (n == 0 || g.filters == 0) return nullptr;
  // The list of active positions comes first in both.
  Allocator allocator(found == nullptr ? workspace : found);
  const ConvolveParts parts(g, &allocator);
  const MaskView active = OutputMask(g, mask);
  if (found == nullptr) {
    RETURN_IF_ERROR(ListPlaces(active, n, g.out_height, g.out_width, parts.active,
                               nullptr, stream));
  }
  RETURN_IF_ERROR(ClearUnset(active, n, g.filters * SizeOf(type), output, stream));
  return ConvolvePlaces(type, g, input, filters, parts.active.places, n, Rows(), before,
                        after, output, stream);
}

const char* InputGradient(Type type, const Geometry& g, const void* output_gradient,
                          const void* filters, const bool* mask, void* input_gradient,
                          void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckSizes(g));
  const int64_t n = NumInputs(g);
  if (n == 0 || g.channels == 0) return nullptr;
  Allocator allocator(workspace);
  const InputGradientParts parts(g, &allocator);
  RETURN_IF_ERROR(MarkTouched(g, mask, parts.touched, stream));
  const MaskView touched{parts.touched, n};
  RETURN_IF_ERROR(
      ListPlaces(touched, n, g.height, g.width, parts.list, nullptr, stream));
  RETURN_IF_ERROR(
      ClearUnset(touched, n, g.channels * SizeOf(type), input_gradient, stream));
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(output_gradient);
    const T* const weights = static_cast<const T*>(filters);
    const InputGradientOp<T> op{Shape(g),
                                parts.list.places,
                                from,
                                weights,
                                mask,
                                Aligned(from, g.filters),
                                Aligned(weights, g.filters),
                                static_cast<T*>(input_gradient)};
    return LaunchProduct<decltype(arithmetic)::kFast>(op, n, g.channels, 1, stream);
  });
}

const char* FilterGradient(Type type, const Geometry& g, const void* input,
                           const void* output_gradient, const bool* mask,
                           void* filter_gradient, void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckSizes(g));
  const int64_t n = NumOutputs(g), depth = Taps(g) * g.channels;
  if (depth == 0 || g.filters == 0) return nullptr;
  Allocator allocator(workspace);
  const FilterGradientParts parts(g, &allocator);
  RETURN_IF_ERROR(ListPlaces(OutputMask(g, mask), n, g.out_height, g.out_width,
                             parts.active, nullptr, stream));
  const int64_t splits = NumSplits(g);
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(input);
    const T* const gradient = static_cast<const T*>(output_gradient);
    const FilterGradientOp<T> op{
        Shape(g),  parts.active.places,       from,
        gradient,  Aligned(from, g.channels), Aligned(gradient, g.filters),
        parts.sums};
    RETURN_IF_ERROR(LaunchProduct<decltype(arithmetic)::kFast>(op, depth, g.filters,
                                                               splits, stream));
    const int64_t size = depth * g.filters;
    return Launch(AddSplits<T>, CeilDiv(size, kScanThreads), kScanThreads, stream,
                  static_cast<const float*>(parts.sums), size, static_cast<int>(splits),
                  static_cast<T*>(filter_gradient));
  });
}

}  // namespace gpu
}  // namespace perforated
