// Whole residual units on the device, the functions of gpu.h; what they compute is in
// units.h.

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

constexpr int kThreadsPerSum = 256;
constexpr int kWarpsPerSum = kThreadsPerSum / kWarp;

// The first of `count` places whose image is not below `image`.
__device__ inline int64_t FirstOfImage(const Place* places, int64_t count, int image) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (places[middle].image < image) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// sums [batch, width] = the sums of each image's rows, always added in the same order;
// counts [batch] = their number. There is a row per place; without places (data is
// null), `image_size` rows per image. A block per image and 32 columns.
template <typename T, typename Sum>
__global__ void __launch_bounds__(kThreadsPerSum)
    SumRows(const T* rows, Places places, int64_t image_size, int width, Sum* sums,
            float* counts) {
  __shared__ float partial[kWarpsPerSum][kWarp];
  const int blocks = CeilDiv(width, kWarp);
  const int image = blockIdx.x / blocks;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int column = blockIdx.x % blocks * kWarp + lane;
  int64_t first = image * image_size, end = first + image_size;
  if (places.data != nullptr) {
    first = FirstOfImage(places.data, *places.count, image);
    end = FirstOfImage(places.data, *places.count, image + 1);
  }
  float sum = 0.0f;
  for (int64_t row = first + warp; row < end && column < width; row += kWarpsPerSum) {
    sum += ToFloat(rows[row * width + column]);
  }
  partial[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || column >= width) return;
  for (int i = 1; i < kWarpsPerSum; ++i) sum += partial[i][lane];
  sums[static_cast<int64_t>(image) * width + column] = FromFloat<Sum>(sum);
  if (counts != nullptr && column == 0) counts[image] = end - first;
}

// sums [batch, filters] += totals [batch, depth] * weights + counts * bias: what a 1x1
// convolution adds to the sums of its output. A thread per element.
template <typename T>
__global__ void __launch_bounds__(kScanThreads)
    AddProducts(const float* totals, const float* counts, int depth, const T* weights,
                const T* bias, int64_t size, int filters, T* sums) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kScanThreads + threadIdx.x;
  if (i >= size) return;
  const int64_t image = i / filters;
  const int column = i % filters;
  float sum = bias == nullptr ? 0.0f : counts[image] * ToFloat(bias[column]);
  for (int k = 0; k < depth; ++k) {
    sum += totals[image * depth + k] *
           ToFloat(weights[static_cast<int64_t>(k) * filters + column]);
  }
  sums[i] = FromFloat<T>(ToFloat(sums[i]) + sum);
}

// y += weight * x in the rows whose weight is not zero; a warp per row.
template <typename T>
__global__ void __launch_bounds__(kScanThreads)
    AddRows(const T* x, const float* weights, int64_t n, int64_t width, bool aligned,
            T* y) {
  const int64_t row =
      (static_cast<int64_t>(blockIdx.x) * kScanThreads + threadIdx.x) / kWarp;
  if (row >= n) return;
  const float weight = weights[row];
  if (weight == 0.0f) return;
  const int lane = threadIdx.x % kWarp;
  x += row * width;
  y += row * width;
  if (aligned) {
    for (int64_t i = lane * kChunk<T>; i < width; i += kWarp * kChunk<T>) {
      const Chunk<T> from = LoadChunk(x + i);
      Chunk<T> to = LoadChunk(y + i);
#pragma unroll
      for (int j = 0; j < kChunk<T>; ++j) {
        to.values[j] =
            FromFloat<T>(ToFloat(to.values[j]) + weight * ToFloat(from.values[j]));
      }
      *reinterpret_cast<uint4*>(y + i) = *reinterpret_cast<const uint4*>(&to);
    }
  } else {
    for (int64_t i = lane; i < width; i += kWarp) {
      y[i] = FromFloat<T>(ToFloat(y[i]) + weight * ToFloat(x[i]));
    }
  }
}

__global__ void __launch_bounds__(kScanThreads)
    Fold(const float* gamma, const float* beta, const float* mean,
         const float* variance, float epsilon, int64_t n, float* scale, float* shift) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kScanThreads + threadIdx.x;
  if (i >= n) return;
  const float factor = gamma[i] / sqrtf(variance[i] + epsilon);
  scale[i] = factor;
  shift[i] = beta[i] - mean[i] * factor;
}

template <typename T, typename Sum>
const char* LaunchSum(const T* rows, const Places& places, int64_t batch,
                      int64_t image_size, int64_t width, Sum* sums, float* counts,
                      void* stream) {
  return Launch(SumRows<T, Sum>, batch * CeilDiv(width, kWarp), kThreadsPerSum, stream,
                rows, places, image_size, static_cast<int>(width), sums, counts);
}

// The geometry of a 1x1 convolution over all of another's input.
Geometry Pointwise(const Geometry& g, int64_t channels, int64_t filters) {
  return {g.batch, g.height, g.width, channels, 1, 1, g.height, g.width,
          filters, 1,        1,       1,        1, 0, 0,        false};
}

// y = x, unless they are the same memory.
const char* Copy(const void* x, int64_t bytes, void* y, void* stream) {
  if (x == y || bytes == 0) return nullptr;
  return MessageOf(cudaMemcpyAsync(y, x, bytes, cudaMemcpyDeviceToDevice,
                                   static_cast<cudaStream_t>(stream)));
}

// The memory that a unit needs beside what FindPlaces found: the rows between its
// convolutions, and what the sums of its output take.
struct UnitParts {
  UnitParts(const Geometry& g, Allocator* allocator)
      : first(allocator->Take<float>(NumInputs(g) * g.channels)),
        second(allocator->Take<float>(NumOutputs(g) * g.filters)),
        totals(allocator->Take<float>(g.batch * g.filters)),
        counts(allocator->Take<float>(g.batch)) {}
  void *first, *second;
  float *totals, *counts;
};

struct ProjectionParts {
  ProjectionParts(const Geometry& g, Allocator* allocator)
      : unit(g, allocator),
        everywhere(allocator->Take<bool>(NumOutputs(g))),
        places(allocator->Take<char>(Measure<FoundPlaces>(g))) {}
  UnitParts unit;
  bool* everywhere;
  char* places;
};

// A convolution that writes one row per place.
Rows Compact() {
  Rows rows;
  rows.is_compact_output = true;
  return rows;
}

// Adds the residual to y; `middle` and `stages` as in gpu.h.
const char* AddResidual(Type type, const Geometry& middle, int64_t channels,
                        int64_t out_channels, const void* x,
                        const Transform& preactivation, const Stage (&stages)[3],
                        const FoundPlaces& found, const UnitParts& parts, void* y,
                        void* stream) {
  RETURN_IF_ERROR(ConvolvePlaces(type, Pointwise(middle, channels, middle.channels), x,
                                 stages[0].filters, found.touched.places,
                                 NumInputs(middle), Compact(), preactivation,
                                 stages[0].after, parts.first, stream));
  Rows of_touched = Compact();
  of_touched.input_rows = found.rows;
  RETURN_IF_ERROR(ConvolvePlaces(type, middle, parts.first, stages[1].filters,
                                 found.active.places, NumOutputs(middle), of_touched,
                                 Transform{nullptr, nullptr, 1.0f}, stages[1].after,
                                 parts.second, stream));
  Rows residual;
  residual.is_compact_input = true;
  residual.adds = true;
  Geometry last = Pointwise(middle, middle.filters, out_channels);
  last.out_height = middle.out_height;
  last.out_width = middle.out_width;
  return ConvolvePlaces(type, last, parts.second, stages[2].filters,
                        found.active.places, NumOutputs(middle), residual,
                        Transform{nullptr, nullptr, 1.0f}, stages[2].after, y, stream);
}

}  // namespace

int64_t BottleneckWorkspace(const Geometry& middle) {
  return Measure<UnitParts>(middle);
}
int64_t ProjectionWorkspace(const Geometry& middle) {
  return Measure<ProjectionParts>(middle);
}
int64_t BasicUnitWorkspace(const Geometry& second) {
  return Measure<UnitParts>(second);
}

const char* Bottleneck(Type type, const Geometry& middle, int64_t channels,
                       const void* x, const Transform& preactivation,
                       const Stage (&stages)[3], void* found_places, void* y,
                       const void* sums, void* new_sums, void* workspace,
                       void* stream) {
  RETURN_IF_ERROR(CheckSizes(middle));
  RETURN_IF_ERROR(CheckSizes(Pointwise(middle, channels, middle.channels)));
  RETURN_IF_ERROR(Copy(x, NumInputs(middle) * channels * SizeOf(type), y, stream));
  if (sums != nullptr) {
    RETURN_IF_ERROR(
        Copy(sums, middle.batch * channels * SizeOf(type), new_sums, stream));
  }
  if (NumInputs(middle) == 0 || channels == 0) return nullptr;
  Allocator places_allocator(found_places), allocator(workspace);
  const FoundPlaces found(middle, &places_allocator);
  const UnitParts parts(middle, &allocator);
  RETURN_IF_ERROR(AddResidual(type, middle, channels, channels, x, preactivation,
                              stages, found, parts, y, stream));
  if (sums == nullptr) return nullptr;
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    RETURN_IF_ERROR(LaunchSum(static_cast<const T*>(parts.second), found.active.places,
                              middle.batch, int64_t{0}, middle.filters, parts.totals,
                              parts.counts, stream));
    const int64_t size = middle.batch * channels;
    return Launch(AddProducts<T>, CeilDiv(size, kScanThreads), kScanThreads, stream,
                  static_cast<const float*>(parts.totals),
                  static_cast<const float*>(parts.counts),
                  static_cast<int>(middle.filters),
                  static_cast<const T*>(stages[2].filters),
                  static_cast<const T*>(stages[2].after.shift), size,
                  static_cast<int>(channels), static_cast<T*>(new_sums));
  });
}

const char* ProjectionBottleneck(Type type, const Geometry& middle, int64_t channels,
                                 int64_t out_channels, const void* x,
                                 const Transform& preactivation,
                                 const Stage (&stages)[3], const Stage& projection,
                                 void* y, void* sums, void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckSizes(middle));
  RETURN_IF_ERROR(CheckSizes(Pointwise(middle, channels, out_channels)));
  const int64_t n = NumOutputs(middle);
  if (n == 0 || out_channels == 0) return nullptr;
  Allocator allocator(workspace);
  const ProjectionParts parts(middle, &allocator);
  RETURN_IF_ERROR(MessageOf(
      cudaMemsetAsync(parts.everywhere, 1, n, static_cast<cudaStream_t>(stream))));
  RETURN_IF_ERROR(FindPlaces(middle, parts.everywhere, parts.places, stream));
  Allocator places_allocator(parts.places);
  const FoundPlaces found(middle, &places_allocator);
  Geometry shortcut = Pointwise(middle, channels, out_channels);
  shortcut.stride_y = middle.stride_y;
  shortcut.stride_x = middle.stride_x;
  shortcut.out_height = middle.out_height;
  shortcut.out_width = middle.out_width;
  RETURN_IF_ERROR(ConvolvePlaces(type, shortcut, x, projection.filters,
                                 found.active.places, n, Rows(), preactivation,
                                 projection.after, y, stream));
  RETURN_IF_ERROR(AddResidual(type, middle, channels, out_channels, x, preactivation,
                              stages, found, parts.unit, y, stream));
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    return LaunchSum(static_cast<const T*>(y), Places{nullptr, nullptr}, middle.batch,
                     middle.out_height * middle.out_width, out_channels,
                     static_cast<T*>(sums), static_cast<float*>(nullptr), stream);
  });
}

const char* BasicUnit(Type type, const Geometry& first, const Geometry& second,
                      const void* x, const Transform& preactivation,
                      const Stage (&stages)[2], void* found_places, void* y,
                      void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckSizes(first));
  RETURN_IF_ERROR(CheckSizes(second));
  RETURN_IF_ERROR(Copy(x, NumInputs(first) * first.channels * SizeOf(type), y, stream));
  if (NumInputs(first) == 0 || first.channels == 0) return nullptr;
  Allocator places_allocator(found_places), allocator(workspace);
  const FoundPlaces found(second, &places_allocator);
  const UnitParts parts(second, &allocator);
  RETURN_IF_ERROR(ConvolvePlaces(type, first, x, stages[0].filters,
                                 found.touched.places, NumInputs(second), Compact(),
                                 preactivation, stages[0].after, parts.first, stream));
  Rows residual;
  residual.input_rows = found.rows;
  residual.adds = true;
  return ConvolvePlaces(type, second, parts.first, stages[1].filters,
                        found.active.places, NumOutputs(second), residual,
                        Transform{nullptr, nullptr, 1.0f}, stages[1].after, y, stream);
}

const char* Accumulate(Type type, int64_t positions, int64_t channels,
                       const void* total, const void* x, const float* weight, void* y,
                       void* stream) {
  RETURN_IF_ERROR(Copy(total, positions * channels * SizeOf(type), y, stream));
  if (channels == 0) return nullptr;
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(x);
    T* const to = static_cast<T*>(y);
    return Launch(AddRows<T>, CeilDiv(positions, kScanThreads / kWarp), kScanThreads,
                  stream, from, weight, positions, channels,
                  Aligned(from, channels) && Aligned(to, channels), to);
  });
}

const char* FoldBatchNorm(int64_t n, const float* gamma, const float* beta,
                          const float* mean, const float* variance, float epsilon,
                          float* scale, float* shift, void* stream) {
  return Launch(Fold, CeilDiv(n, kScanThreads), kScanThreads, stream, gamma, beta, mean,
                variance, epsilon, n, scale, shift);
}

}  // namespace gpu
}  // namespace perforated
