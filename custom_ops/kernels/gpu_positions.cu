// Kernels of gpu_positions.h: prefix sums over masks.

#include <cstdint>

#include "gpu_positions.h"

namespace perforated {
namespace gpu {
namespace {

// Sum of the values of all threads with a lower index; also the sum of all. Every
// thread of a block of kScanThreads must call it.
__device__ inline int64_t ExclusiveSum(int64_t value, int64_t* total) {
  constexpr int kWarps = kScanThreads / kWarp;
  __shared__ int64_t sums[kWarps];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t sum = value;  // of this warp's lanes up to this one
  for (int distance = 1; distance < kWarp; distance *= 2) {
    const int64_t other = __shfl_up_sync(0xffffffffu, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  int64_t before = sum - value;
  *total = 0;
  for (int i = 0; i < kWarps; ++i) {
    if (i < warp) before += sums[i];
    *total += sums[i];
  }
  __syncthreads();  // before the next call writes
  return before;
}

__device__ inline int64_t CountItems(const MaskView& mask, int64_t first, int64_t n) {
  int64_t count = 0;
  for (int64_t i = first; i < first + kScanItems && i < n; ++i) count += mask[i];
  return count;
}

// counts[block] = number of set elements in its span.
__global__ void __launch_bounds__(kScanThreads)
    CountSpans(MaskView mask, int64_t n, int64_t* counts) {
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kScanSpan + threadIdx.x * kScanItems;
  int64_t total;
  ExclusiveSum(CountItems(mask, first, n), &total);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// counts[i] -> the sum of those before; that of all comes behind them. One block.
__global__ void __launch_bounds__(kScanThreads)
    SumSpans(int64_t num_spans, int64_t* counts) {
  int64_t sum = 0;
  for (int64_t first = 0; first < num_spans; first += kScanThreads) {
    const int64_t i = first + threadIdx.x;
    int64_t total;
    const int64_t before = ExclusiveSum(i < num_spans ? counts[i] : 0, &total);
    if (i < num_spans) counts[i] = sum + before;
    sum += total;
  }
  if (threadIdx.x == 0) counts[num_spans] = sum;
}

__global__ void __launch_bounds__(kScanThreads)
    WritePlaces(MaskView mask, int64_t n, int32_t height, int32_t width,
                const int64_t* counts, Place* places, int32_t* rows) {
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kScanSpan + threadIdx.x * kScanItems;
  int64_t total;
  int64_t index = counts[blockIdx.x] + ExclusiveSum(CountItems(mask, first, n), &total);
  for (int64_t i = first; i < first + kScanItems && i < n; ++i) {
    const bool is_set = mask[i];
    if (rows != nullptr) rows[i] = is_set ? static_cast<int32_t>(index) : -1;
    if (!is_set) continue;
    const int64_t row = i / width;
    places[index++] = {static_cast<int32_t>(row / height),
                       static_cast<int32_t>(row % height),
                       static_cast<int32_t>(i % width), 0};
  }
}

__global__ void __launch_bounds__(kScanThreads)
    MarkTouchedInputs(Shape s, const bool* mask, int64_t n, bool* touched) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kScanThreads + threadIdx.x;
  if (i >= n) return;
  const int64_t row = i / s.width;
  const Place in{static_cast<int32_t>(row / s.height),
                 static_cast<int32_t>(row % s.height),
                 static_cast<int32_t>(i % s.width), 0};
  bool found = false;
  for (int tap_y = 0; tap_y < s.kernel_height && !found; ++tap_y) {
    for (int tap_x = 0; tap_x < s.kernel_width && !found; ++tap_x) {
      found = ReaderRow(s, mask, in, tap_y, tap_x) >= 0;
    }
  }
  touched[i] = found;
}

// Zeros in the rows whose mask is not set; a warp per row.
__global__ void __launch_bounds__(kScanThreads)
    ClearRows(MaskView mask, int64_t n, int64_t row_bytes, char* to) {
  const int64_t row =
      (static_cast<int64_t>(blockIdx.x) * kScanThreads + threadIdx.x) / kWarp;
  if (row >= n || mask[row]) return;
  const int lane = threadIdx.x % kWarp;
  to += row * row_bytes;
  if (row_bytes % kChunkBytes == 0) {
    for (int64_t i = lane; i < row_bytes / kChunkBytes; i += kWarp) {
      reinterpret_cast<uint4*>(to)[i] = uint4{0, 0, 0, 0};
    }
  } else {
    for (int64_t i = lane; i < row_bytes / 2; i += kWarp) {
      reinterpret_cast<uint16_t*>(to)[i] = 0;
    }
  }
}

}  // namespace

const char* CheckSizes(const Geometry& g) {
  for (const int64_t size :
       {g.batch,
        g.height,
        g.width,
        g.channels,
        g.kernel_height,
        g.kernel_width,
        g.out_height,
        g.out_width,
        g.filters,
        g.stride_y,
        g.stride_x,
        g.dilation_y,
        g.dilation_x,
        g.pad_top,
        g.pad_left,
        g.kernel_height * g.kernel_width,
        g.height + g.pad_top,
        g.width + g.pad_left,
        g.out_height * g.stride_y + g.kernel_height * g.dilation_y,
        g.out_width * g.stride_x + g.kernel_width * g.dilation_x}) {
    if (size < 0 || size > kInt32Max) return "a size does not fit into 32 bits";
  }
  // A tile, or a step, beyond the end must not overflow either.
  for (const int64_t size : {g.channels, g.filters}) {
    if (size > kInt32Max / 2 || Taps(g) * size > kInt32Max / 2) {
      return "the filters are too large";
    }
  }
  if (Taps(g) == 0) return "the filters have no height or no width";
  return nullptr;
}

const char* MessageOf(cudaError_t error) {
  if (error == cudaErrorNoKernelImageForDevice) {
    return "this library is not compiled for this device (its compute capability "
           "belongs into SACT_CUDA_ARCHITECTURES)";
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

const char* ListPlaces(MaskView mask, int64_t n, int64_t height, int64_t width,
                       const PlaceList& list, int32_t* rows, void* stream) {
  const int64_t spans = CeilDiv(n, kScanSpan);
  RETURN_IF_ERROR(
      Launch(CountSpans, spans, kScanThreads, stream, mask, n, list.counts));
  RETURN_IF_ERROR(SumCounts(spans, list.counts, stream));
  return Launch(WritePlaces, spans, kScanThreads, stream, mask, n,
                static_cast<int32_t>(height), static_cast<int32_t>(width),
                static_cast<const int64_t*>(list.counts), list.places.data, rows);
}

const char* SumCounts(int64_t n, int64_t* counts, void* stream) {
  return Launch(SumSpans, 1, kScanThreads, stream, n, counts);
}

const char* MarkTouched(const Geometry& g, const bool* mask, bool* touched,
                        void* stream) {
  const int64_t n = NumInputs(g);
  return Launch(MarkTouchedInputs, CeilDiv(n, kScanThreads), kScanThreads, stream,
                Shape(g), mask, n, touched);
}

const char* ClearUnset(MaskView mask, int64_t n, int64_t row_bytes, void* to,
                       void* stream) {
  if (row_bytes == 0) return nullptr;
  return Launch(ClearRows, CeilDiv(n, kScanThreads / kWarp), kScanThreads, stream, mask,
                n, row_bytes, static_cast<char*>(to));
}

int64_t PlacesBytes(const Geometry& g) { return Measure<FoundPlaces>(g); }

const char* FindPlaces(const Geometry& g, const bool* mask, void* places,
                       void* stream) {
  RETURN_IF_ERROR(CheckSizes(g));
  Allocator allocator(places);
  const FoundPlaces found(g, &allocator);
  RETURN_IF_ERROR(ListPlaces(OutputMask(g, mask), NumOutputs(g), g.out_height,
                             g.out_width, found.active, nullptr, stream));
  RETURN_IF_ERROR(MarkTouched(g, mask, found.is_touched, stream));
  return ListPlaces({found.is_touched, NumInputs(g)}, NumInputs(g), g.height, g.width,
                    found.touched, found.rows, stream);
}

bool DriverFits() {
  int version = 0;
  // Without a driver the version is 0. Drivers run every program of their major version
  // of CUDA, and older ones.
  if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return true;
  return version / 1000 >= CUDART_VERSION / 1000;
}

}  // namespace gpu
}  // namespace perforated
