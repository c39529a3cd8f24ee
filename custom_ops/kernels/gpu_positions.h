// Positions on the device: where a mask is set, what a convolution reads there, and in
// which order they are.
//
// They are listed on the device and counted there. The host knows only how many there
// can be: it starts blocks for all of them, and those beyond the count exit at once.

#ifndef CUSTOM_OPS_KERNELS_GPU_POSITIONS_H_
#define CUSTOM_OPS_KERNELS_GPU_POSITIONS_H_

#include <cstdint>

#include "gpu.h"
#include "gpu_device.h"

namespace perforated {
namespace gpu {

constexpr int64_t kInt32Max = 0x7fffffff;
constexpr int kWarp = 32;
constexpr int kChunkBytes = 16;  // that a thread loads at once

__host__ __device__ constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

inline int64_t Taps(const Geometry& g) { return g.kernel_height * g.kernel_width; }
inline int64_t NumInputs(const Geometry& g) { return g.batch * g.height * g.width; }
inline int64_t NumOutputs(const Geometry& g) {
  return g.batch * g.out_height * g.out_width;
}

// The geometry in the numbers that a GPU is fast with. Sizes and coordinates fit into
// them (`CheckSizes` sees to it); flat indices do not, and are int64_t.
struct Shape {
  explicit Shape(const Geometry& g)
      : height(g.height),
        width(g.width),
        channels(g.channels),
        kernel_height(g.kernel_height),
        kernel_width(g.kernel_width),
        out_height(g.out_height),
        out_width(g.out_width),
        filters(g.filters),
        stride_y(g.stride_y),
        stride_x(g.stride_x),
        dilation_y(g.dilation_y),
        dilation_x(g.dilation_x),
        pad_top(g.pad_top),
        pad_left(g.pad_left),
        shared_mask(g.shared_mask) {}

  int32_t height, width, channels;
  int32_t kernel_height, kernel_width;
  int32_t out_height, out_width, filters;
  int32_t stride_y, stride_x, dilation_y, dilation_x, pad_top, pad_left;
  bool shared_mask;
};

// A position of the output or the input; 16 bytes, to be loaded at once.
struct alignas(16) Place {
  int32_t image, y, x, unused;
};

// Ascending positions, where the device lists them. Their number is known on the device
// alone.
struct Places {
  Place* data;
  int64_t* count;
};

__device__ inline int64_t OutputRow(const Shape& s, const Place& p) {
  return (static_cast<int64_t>(p.image) * s.out_height + p.y) * s.out_width + p.x;
}

__device__ inline int64_t InputRow(const Shape& s, const Place& p) {
  return (static_cast<int64_t>(p.image) * s.height + p.y) * s.width + p.x;
}

// Flat input position that an output position reads through a tap; -1 in the padding.
__device__ inline int64_t ReadRow(const Shape& s, const Place& out, int tap_y,
                                  int tap_x) {
  const int y = out.y * s.stride_y - s.pad_top + tap_y * s.dilation_y;
  const int x = out.x * s.stride_x - s.pad_left + tap_x * s.dilation_x;
  if (y < 0 || y >= s.height || x < 0 || x >= s.width) return -1;
  return InputRow(s, {out.image, y, x, 0});
}

// Flat output position that reads an input position through a tap; -1 if there is none,
// or it is not active.
__device__ inline int64_t ReaderRow(const Shape& s, const bool* mask, const Place& in,
                                    int tap_y, int tap_x) {
  int y = in.y + s.pad_top - tap_y * s.dilation_y;
  int x = in.x + s.pad_left - tap_x * s.dilation_x;
  if (y < 0 || x < 0) return -1;
  if (s.stride_y != 1) {
    if (y % s.stride_y != 0) return -1;
    y /= s.stride_y;
  }
  if (s.stride_x != 1) {
    if (x % s.stride_x != 0) return -1;
    x /= s.stride_x;
  }
  if (y >= s.out_height || x >= s.out_width) return -1;
  const Place out{in.image, y, x, 0};
  const Place in_mask{s.shared_mask ? 0 : in.image, y, x, 0};
  return mask[OutputRow(s, in_mask)] ? OutputRow(s, out) : -1;
}

// A mask of `size` elements that repeats.
struct MaskView {
  __device__ bool operator[](int64_t i) const { return data[i < size ? i : i % size]; }
  const bool* data;
  int64_t size;
};

inline MaskView OutputMask(const Geometry& g, const bool* mask) {
  return {mask, g.out_height * g.out_width * (g.shared_mask ? 1 : g.batch)};
}

// ---------------------------------------------------------------------------- host
// side

#define RETURN_IF_ERROR(call)                     \
  do {                                            \
    if (const char* error = (call)) return error; \
  } while (false)

// Text for an error; null for none.
const char* MessageOf(cudaError_t error);

// Queues a kernel; returns an error or null.
template <typename... Parameters, typename... Arguments>
const char* Launch(void (*kernel)(Parameters...), int64_t blocks, int threads,
                   void* stream, const Arguments&... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > kInt32Max) return "the tensors are too large for one launch";
  LaunchKernel(kernel, blocks, threads, stream, arguments...);
  return MessageOf(cudaGetLastError());
}

// Hands out consecutive parts of the workspace; of null, to learn its size.
class Allocator {
 public:
  explicit Allocator(void* workspace) : base_(static_cast<char*>(workspace)) {}
  template <typename T>
  T* Take(int64_t count) {
    constexpr int64_t kAlignment = 256;
    T* const taken = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += CeilDiv(count * sizeof(T), kAlignment) * kAlignment;
    return taken;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// The memory that parts of a geometry's work take.
template <typename Parts>
int64_t Measure(const Geometry& g) {
  Allocator allocator(nullptr);
  Parts parts(g, &allocator);
  return allocator.bytes();
}

constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;  // of each thread
constexpr int kScanSpan = kScanThreads * kScanItems;

// The memory of a list of at most n places.
struct PlaceList {
  PlaceList(int64_t n, Allocator* allocator)
      : places{allocator->Take<Place>(n), nullptr},
        counts(allocator->Take<int64_t>(CeilDiv(n, kScanSpan) + 1)) {
    if (counts != nullptr) places.count = counts + CeilDiv(n, kScanSpan);
  }
  Places places;
  int64_t* counts;
};

// What FindPlaces finds: active output positions, the inputs that they read, and for
// each input its index among these, or -1.
struct FoundPlaces {
  FoundPlaces(const Geometry& g, Allocator* allocator)
      : active(NumOutputs(g), allocator),
        touched(NumInputs(g), allocator),
        rows(allocator->Take<int32_t>(NumInputs(g))),
        is_touched(allocator->Take<bool>(NumInputs(g))) {}
  PlaceList active, touched;
  int32_t* rows;
  bool* is_touched;
};

// Why a geometry is too large; null if it is not.
const char* CheckSizes(const Geometry& g);

// Lists the set elements of a mask of n elements as places in [height, width]. `rows`,
// unless null, takes the index of each element's place, or -1.
const char* ListPlaces(MaskView mask, int64_t n, int64_t height, int64_t width,
                       const PlaceList& list, int32_t* rows, void* stream);

// counts[i] of n -> the sum of those before; that of all comes behind them.
const char* SumCounts(int64_t n, int64_t* counts, void* stream);

// touched[i] = whether an active output position reads the i-th input position.
const char* MarkTouched(const Geometry& g, const bool* mask, bool* touched,
                        void* stream);

// Zeros in the rows of n whose mask is not set.
const char* ClearUnset(MaskView mask, int64_t n, int64_t row_bytes, void* to,
                       void* stream);

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_POSITIONS_H_
