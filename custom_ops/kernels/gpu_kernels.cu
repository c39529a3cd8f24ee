// CUDA kernels of gpu.h.
//
// All three ops are products of two matrices that are gathered on the way into shared
// memory, tile by tile, so that nothing is ever copied into patches in global memory:
//
//                    rows               columns    depth
//   convolution      active positions   filters    taps * channels
//   input gradient   touched inputs     channels   taps * filters
//   filter gradient  taps * channels    filters    active positions, in splits
//
// Active positions and touched inputs (those that an active position reads) are listed
// on the device and counted there. The host knows only how many there can be: it starts
// blocks for all of them, and those beyond the count exit at once.
//
// The input gradient gathers too: what an input position receives through every tap is
// added up in registers and written once. Scattering would multiply fewer zeros where
// active positions are few and far apart or strides are large, but would need atomic
// additions, whose order changes from run to run, and rounds half precision every time.

#include "gpu.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace perforated {
namespace gpu {
namespace {

constexpr int kTile = 64;      // rows and columns of the product that a block computes
constexpr int kThreads = 128;  // of such a block: 2 x 2 warps of 32 rows and columns
constexpr int kWarp = 32;
constexpr int kChunkBytes = 16;  // that a thread loads at once
constexpr int kStepBytes = 64;   // of each row and column in shared memory at a time

template <typename T>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
// Elements of those, along the depth of the product.
template <typename T>
constexpr int kDepth = kStepBytes / static_cast<int>(sizeof(T));

__host__ __device__ constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

__device__ inline float ToFloat(float v) { return v; }
__device__ inline float ToFloat(__half v) { return __half2float(v); }
__device__ inline float ToFloat(__nv_bfloat16 v) { return __bfloat162float(v); }
template <typename T>
__device__ inline T FromFloat(float v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half(v);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16(v);
  } else {
    return v;
  }
}

// ------------------------------------------------------------------------- geometry

// The geometry in the numbers that a GPU is fast with. Sizes and coordinates fit into
// them (`Check` sees to it); flat indices do not, and are int64_t.
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

// Ascending positions. Their number is known on the device alone.
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

// ------------------------------------------------- active positions, untouched rows

constexpr int kScanThreads = 256;
constexpr int kScanItems = 8;  // of each thread
constexpr int kScanSpan = kScanThreads * kScanItems;

// A mask of `size` elements that repeats.
struct MaskView {
  __device__ bool operator[](int64_t i) const { return data[i < size ? i : i % size]; }
  const bool* data;
  int64_t size;
};

// Sum of the values of all threads with a lower index; also the sum of all. Every
// thread of a block of kScanThreads must call it.
__device__ inline int64_t ExclusiveSum(int64_t value, int64_t* total) {
  __shared__ int64_t sums[kScanThreads];
  const int i = threadIdx.x;
  sums[i] = value;
  __syncthreads();
  for (int distance = 1; distance < kScanThreads; distance *= 2) {
    const int64_t other = i >= distance ? sums[i - distance] : 0;
    __syncthreads();
    sums[i] += other;
    __syncthreads();
  }
  *total = sums[kScanThreads - 1];
  const int64_t before = sums[i] - value;
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
                const int64_t* counts, Place* places) {
  const int64_t first =
      static_cast<int64_t>(blockIdx.x) * kScanSpan + threadIdx.x * kScanItems;
  int64_t total;
  int64_t index =
      counts[blockIdx.x] + ExclusiveSum(CountItems(mask, first, n), &total);
  for (int64_t i = first; i < first + kScanItems && i < n; ++i) {
    if (!mask[i]) continue;
    const int64_t row = i / width;
    places[index++] = {static_cast<int32_t>(row / height),
                       static_cast<int32_t>(row % height),
                       static_cast<int32_t>(i % width), 0};
  }
}

// Marks the input positions that active output positions read.
__global__ void __launch_bounds__(kScanThreads)
    MarkTouched(Shape s, const bool* mask, int64_t n, bool* touched) {
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

// ------------------------------------------------------ from global to shared memory

template <typename T>
struct alignas(kChunkBytes) Chunk {
  T values[kChunk<T>];
};

template <typename T>
__device__ inline Chunk<T> ZeroChunk() {
  Chunk<T> chunk;
  *reinterpret_cast<uint4*>(&chunk) = uint4{0, 0, 0, 0};
  return chunk;
}

template <typename T>
__device__ inline Chunk<T> LoadChunk(const T* from) {
  Chunk<T> chunk;
  *reinterpret_cast<uint4*>(&chunk) = *reinterpret_cast<const uint4*>(from);
  return chunk;
}

// Elements [column, column + kChunk) of a row of `width`. Only if `aligned` may they be
// loaded at once.
template <typename T>
__device__ inline Chunk<T> LoadRow(const T* row, int column, int width, bool aligned) {
  if (aligned) return column < width ? LoadChunk(row + column) : ZeroChunk<T>();
  Chunk<T> chunk = ZeroChunk<T>();
  for (int i = 0; i < kChunk<T> && column + i < width; ++i) {
    chunk.values[i] = row[column + i];
  }
  return chunk;
}

// A place in a patch: a tap, and one of `size` elements within. Behind the last tap,
// tap_y is the kernel's height.
struct Cursor {
  __device__ Cursor(int64_t start, int size, int kernel_width)
      : size(size), kernel_width(kernel_width) {
    const int tap = size > 0 ? static_cast<int>(start / size) : 0;
    inner = size > 0 ? static_cast<int>(start % size) : 0;
    tap_y = tap / kernel_width;
    tap_x = tap % kernel_width;
  }
  __device__ void Advance(int by) {
    inner += by;
    while (inner >= size) {
      inner -= size;
      if (++tap_x == kernel_width) {
        tap_x = 0;
        ++tap_y;
      }
    }
  }
  int size, kernel_width;
  int tap_y, tap_x, inner;
};

// v -> activation(scale * v + shift) per channel, in float.
template <typename T>
struct Affine {
  explicit Affine(const Transform& transform)
      : scale(static_cast<const T*>(transform.scale)),
        shift(static_cast<const T*>(transform.shift)),
        slope(transform.slope) {}

  __device__ bool IsIdentity() const {
    return scale == nullptr && shift == nullptr && slope == 1.0f;
  }
  __device__ float operator()(float v, int channel) const {
    if (scale != nullptr) v *= ToFloat(scale[channel]);
    if (shift != nullptr) v += ToFloat(shift[channel]);
    // NaN stays; minus infinity times the slope 0 must not become NaN.
    if (v < 0.0f && slope != 1.0f) v = slope == 0.0f ? 0.0f : slope * v;
    return v;
  }
  const T* scale;
  const T* shift;
  float slope;
};

// The same where there is nothing to do, at compile time.
struct Identity {
  __device__ bool IsIdentity() const { return true; }
  __device__ float operator()(float v, int) const { return v; }
};

// Elements of a patch from a cursor on. `offset` gives the index in `base` of a tap's
// first element, or -1 where the tap reads zeros, which `transform` does not change.
// Only if `aligned` may the elements be loaded at once.
template <typename T, typename Change, typename Offset>
__device__ inline Chunk<T> GatherChunk(const T* base, Cursor cursor, int kernel_height,
                                       bool aligned, const Change& transform,
                                       const Offset& offset) {
  const auto start = [&]() -> int64_t {
    return cursor.tap_y < kernel_height ? offset(cursor.tap_y, cursor.tap_x) : -1;
  };
  if (aligned) {
    const int64_t from = start();
    if (from < 0) return ZeroChunk<T>();
    Chunk<T> chunk = LoadChunk(base + from + cursor.inner);
    if (!transform.IsIdentity()) {
#pragma unroll
      for (int i = 0; i < kChunk<T>; ++i) {
        chunk.values[i] =
            FromFloat<T>(transform(ToFloat(chunk.values[i]), cursor.inner + i));
      }
    }
    return chunk;
  }
  Chunk<T> chunk = ZeroChunk<T>();
#pragma unroll
  for (int i = 0; i < kChunk<T>; ++i) {
    const int64_t from = start();
    if (from >= 0) {
      chunk.values[i] = FromFloat<T>(
          transform(ToFloat(base[from + cursor.inner]), cursor.inner));
    }
    cursor.Advance(1);
  }
  return chunk;
}

// A factor's part in shared memory: kTile rows (columns of the right factor) times
// kDepth<T>. Whichever of the two is contiguous in global memory is so here.
// The lines of both layouts are a chunk longer than needed: neighbours begin in
// different banks.
template <typename T, bool kDepthInner>
struct Tile {
  static constexpr int kLine = kDepthInner ? kDepth<T> : kTile;
  static constexpr int kStride = kLine + kChunk<T>;
  static constexpr int kLines = kDepthInner ? kTile : kDepth<T>;
  static constexpr int kSize = kLines * kStride;
  static constexpr int kChunksPerLine = kLine / kChunk<T>;

  __host__ __device__ static constexpr int At(int row, int depth) {
    return kDepthInner ? row * kStride + depth : depth * kStride + row;
  }
};

// Which line of a tile, and which element of it, a thread's chunk begins at. A thread
// loads kChunksPerThread of them.
constexpr int kChunksPerThread = kTile * kStepBytes / kChunkBytes / kThreads;
static_assert(kChunksPerThread == 2, "the kernel makes two loaders per factor");

template <typename Tile, typename T>
struct ChunkPlace {
  __device__ ChunkPlace(int index)
      : line((threadIdx.x + index * kThreads) / Tile::kChunksPerLine),
        element((threadIdx.x + index * kThreads) % Tile::kChunksPerLine * kChunk<T>) {}
  int line, element;
};

// -------------------------------------------------------------------- the three ops

// What a block computes: a tile of the product, over a part of the depth.
struct Job {
  int64_t row;
  int column;
  int64_t first_depth, end_depth;
  int split;
};

// Each op has two loaders, which the kernel makes one of per chunk that a thread loads:
// Next() returns the chunk of the first step, then that of the next one, and so on.

template <typename Element>
struct ConvolveOp {
  using T = Element;
  using Left = Tile<T, true>;    // patches: depth runs along channels
  using Right = Tile<T, false>;  // filters: output channels are contiguous

  __device__ int64_t num_rows() const { return *places.count; }
  __device__ int num_columns() const { return shape.filters; }
  __device__ int64_t depth() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.kernel_width *
           shape.channels;
  }

  struct LeftLoader {
    __device__ LeftLoader(const ConvolveOp& op, const Job& job, ChunkPlace<Left, T> at)
        : op(op),
          cursor(at.element, op.shape.channels, op.shape.kernel_width),
          is_row(job.row + at.line < op.num_rows()),
          place(is_row ? op.places.data[job.row + at.line] : Place{0, 0, 0, 0}) {}

    __device__ Chunk<T> Next() {
      const Chunk<T> chunk = GatherChunk(
          op.input, cursor, is_row ? op.shape.kernel_height : 0, op.aligned_input,
          op.before, [&](int tap_y, int tap_x) -> int64_t {
            const int64_t row = ReadRow(op.shape, place, tap_y, tap_x);
            return row < 0 ? -1 : row * op.shape.channels;
          });
      cursor.Advance(kDepth<T>);
      return chunk;
    }
    const ConvolveOp& op;
    Cursor cursor;
    bool is_row;
    Place place;
  };

  struct RightLoader {
    __device__ RightLoader(const ConvolveOp& op, const Job& job,
                           ChunkPlace<Right, T> at)
        : op(op), depth(at.line), column(job.column + at.element) {}

    __device__ Chunk<T> Next() {
      const Chunk<T> chunk =
          depth < op.depth() ? LoadRow(op.filters + depth * op.shape.filters, column,
                                       op.shape.filters, op.aligned_filters)
                             : ZeroChunk<T>();
      depth += kDepth<T>;
      return chunk;
    }
    const ConvolveOp& op;
    int64_t depth;
    int column;
  };

  __device__ void Write(const Job&, int64_t row, int column, float value) const {
    const int64_t out = OutputRow(shape, places.data[row]);
    output[out * shape.filters + column] = FromFloat<T>(after(value, column));
  }

  Shape shape;
  Places places;  // active output positions
  const T* input;
  const T* filters;
  bool aligned_input, aligned_filters;
  Affine<T> before, after;
  T* output;
};

template <typename Element>
struct InputGradientOp {
  using T = Element;
  using Left = Tile<T, true>;   // output gradients: depth runs along filters
  using Right = Tile<T, true>;  // filters: the same

  __device__ int64_t num_rows() const { return *places.count; }
  __device__ int num_columns() const { return shape.channels; }
  __device__ int64_t depth() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.kernel_width *
           shape.filters;
  }

  struct LeftLoader {
    __device__ LeftLoader(const InputGradientOp& op, const Job& job,
                          ChunkPlace<Left, T> at)
        : op(op),
          cursor(at.element, op.shape.filters, op.shape.kernel_width),
          is_row(job.row + at.line < op.num_rows()),
          place(is_row ? op.places.data[job.row + at.line] : Place{0, 0, 0, 0}) {}

    __device__ Chunk<T> Next() {
      const Chunk<T> chunk = GatherChunk(
          op.output_gradient, cursor, is_row ? op.shape.kernel_height : 0, op.aligned,
          Identity(), [&](int tap_y, int tap_x) -> int64_t {
            const int64_t row = ReaderRow(op.shape, op.mask, place, tap_y, tap_x);
            return row < 0 ? -1 : row * op.shape.filters;
          });
      cursor.Advance(kDepth<T>);
      return chunk;
    }
    const InputGradientOp& op;
    Cursor cursor;
    bool is_row;
    Place place;
  };

  struct RightLoader {
    __device__ RightLoader(const InputGradientOp& op, const Job& job,
                           ChunkPlace<Right, T> at)
        : op(op),
          cursor(at.element, op.shape.filters, op.shape.kernel_width),
          channel(job.column + at.line) {}

    __device__ Chunk<T> Next() {
      const bool is_channel = channel < op.shape.channels;
      const Chunk<T> chunk = GatherChunk(
          op.filters, cursor, is_channel ? op.shape.kernel_height : 0, op.aligned,
          Identity(), [&](int tap_y, int tap_x) {
            const int tap = tap_y * op.shape.kernel_width + tap_x;
            return (static_cast<int64_t>(tap) * op.shape.channels + channel) *
                   op.shape.filters;
          });
      cursor.Advance(kDepth<T>);
      return chunk;
    }
    const InputGradientOp& op;
    Cursor cursor;
    int channel;
  };

  __device__ void Write(const Job&, int64_t row, int column, float value) const {
    const int64_t in = InputRow(shape, places.data[row]);
    input_gradient[in * shape.channels + column] = FromFloat<T>(value);
  }

  Shape shape;
  Places places;  // touched inputs
  const T* output_gradient;
  const T* filters;
  const bool* mask;
  bool aligned;
  T* input_gradient;
};

template <typename Element>
struct FilterGradientOp {
  using T = Element;
  using Left = Tile<T, false>;   // patches, transposed: rows run along channels
  using Right = Tile<T, false>;  // output gradients: filters are contiguous

  __device__ int64_t num_rows() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.kernel_width *
           shape.channels;
  }
  __device__ int num_columns() const { return shape.filters; }
  __device__ int64_t depth() const { return *places.count; }

  struct LeftLoader {
    __device__ LeftLoader(const FilterGradientOp& op, const Job& job,
                          ChunkPlace<Left, T> at)
        : op(op),
          cursor(job.row + at.element, op.shape.channels, op.shape.kernel_width),
          index(job.first_depth + at.line),
          end(job.end_depth) {}

    __device__ Chunk<T> Next() {
      if (index >= end) return ZeroChunk<T>();
      const Place place = op.places.data[index];
      index += kDepth<T>;
      return GatherChunk(op.input, cursor, op.shape.kernel_height, op.aligned_input,
                         Identity(), [&](int tap_y, int tap_x) -> int64_t {
                           const int64_t row = ReadRow(op.shape, place, tap_y, tap_x);
                           return row < 0 ? -1 : row * op.shape.channels;
                         });
    }
    const FilterGradientOp& op;
    Cursor cursor;
    int64_t index, end;
  };

  struct RightLoader {
    __device__ RightLoader(const FilterGradientOp& op, const Job& job,
                           ChunkPlace<Right, T> at)
        : op(op),
          column(job.column + at.element),
          index(job.first_depth + at.line),
          end(job.end_depth) {}

    __device__ Chunk<T> Next() {
      if (index >= end) return ZeroChunk<T>();
      const int64_t row = OutputRow(op.shape, op.places.data[index]);
      index += kDepth<T>;
      return LoadRow(op.output_gradient + row * op.shape.filters, column,
                     op.shape.filters, op.aligned_gradient);
    }
    const FilterGradientOp& op;
    int column;
    int64_t index, end;
  };

  __device__ void Write(const Job& job, int64_t row, int column, float value) const {
    sums[(job.split * num_rows() + row) * shape.filters + column] = value;
  }

  Shape shape;
  Places places;  // active output positions
  const T* input;
  const T* output_gradient;
  bool aligned_input, aligned_gradient;
  float* sums;  // [splits, taps * channels, filters]
};

// gradient = the sums of all splits, always added in the same order.
template <typename T>
__global__ void __launch_bounds__(kScanThreads)
    AddSplits(const float* sums, int64_t size, int splits, T* gradient) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kScanThreads + threadIdx.x;
  if (i >= size) return;
  float sum = 0.0f;
  for (int split = 0; split < splits; ++split) sum += sums[split * size + i];
  gradient[i] = FromFloat<T>(sum);
}

// -------------------------------------------------------------------------- products

// A thread's 8 x 4 elements of a tile's product, in plain float arithmetic.
template <typename Op>
struct PlainProduct {
  using T = typename Op::T;
  using Left = typename Op::Left;
  using Right = typename Op::Right;
  static constexpr int kRows = 8, kColumns = 4;
  static constexpr int kRowStep = kTile / kRows, kColumnStep = kTile / kColumns;

  __device__ static T Round(T v) { return v; }

  __device__ void Add(const T* left, const T* right) {
#pragma unroll 4
    for (int k = 0; k < kDepth<T>; ++k) {
      float a[kRows], b[kColumns];
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        a[i] = ToFloat(left[Left::At(row() + i * kRowStep, k)]);
      }
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        b[j] = ToFloat(right[Right::At(column() + j * kColumnStep, k)]);
      }
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
#pragma unroll
        for (int j = 0; j < kColumns; ++j) sums[i][j] += a[i] * b[j];
      }
    }
  }
  __device__ void Store(float* to, int stride) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        to[(row() + i * kRowStep) * stride + column() + j * kColumnStep] = sums[i][j];
      }
    }
  }
  __device__ static int row() { return threadIdx.x / kColumnStep; }
  __device__ static int column() { return threadIdx.x % kColumnStep; }

  float sums[kRows][kColumns] = {};
};
static_assert(kThreads == kTile / 8 * (kTile / 4), "one thread per 8 x 4 elements");

// Devices before those with the first tensor cores do not even know the names.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700

// Types of the factors on tensor cores, and the depth of one multiplication.
template <typename T>
struct Fragment {
  using Type = T;
  static constexpr int kDepth = 16;
  __device__ static T Round(T v) { return v; }
};
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
template <>
struct Fragment<float> {
  using Type = nvcuda::wmma::precision::tf32;
  static constexpr int kDepth = 8;
  __device__ static float Round(float v) { return nvcuda::wmma::__float_to_tf32(v); }
};
#endif

// A warp's 32 x 32 elements of a tile's product, on tensor cores.
template <typename Op>
struct TensorCoreProduct {
  using T = typename Op::T;
  using Left = typename Op::Left;
  using Right = typename Op::Right;
  using Factor = Fragment<T>;
  static constexpr int kSide = 16, kSides = 2, kWarpsPerRow = 2;
  using LeftOrder = std::conditional_t<std::is_same_v<Left, Tile<T, true>>,
                                       nvcuda::wmma::row_major,
                                       nvcuda::wmma::col_major>;
  using RightOrder = std::conditional_t<std::is_same_v<Right, Tile<T, true>>,
                                        nvcuda::wmma::col_major,
                                        nvcuda::wmma::row_major>;

  __device__ TensorCoreProduct() {
#pragma unroll
    for (int i = 0; i < kSides; ++i) {
#pragma unroll
      for (int j = 0; j < kSides; ++j) nvcuda::wmma::fill_fragment(sums[i][j], 0.0f);
    }
  }
  __device__ static T Round(T v) { return Factor::Round(v); }

  __device__ void Add(const T* left, const T* right) {
    using nvcuda::wmma::fragment;
#pragma unroll
    for (int k = 0; k < kDepth<T>; k += Factor::kDepth) {
      fragment<nvcuda::wmma::matrix_a, kSide, kSide, Factor::kDepth,
               typename Factor::Type, LeftOrder>
          a[kSides];
      fragment<nvcuda::wmma::matrix_b, kSide, kSide, Factor::kDepth,
               typename Factor::Type, RightOrder>
          b[kSides];
#pragma unroll
      for (int i = 0; i < kSides; ++i) {
        nvcuda::wmma::load_matrix_sync(a[i], left + Left::At(row() + i * kSide, k),
                                       Left::kStride);
        nvcuda::wmma::load_matrix_sync(
            b[i], right + Right::At(column() + i * kSide, k), Right::kStride);
      }
#pragma unroll
      for (int i = 0; i < kSides; ++i) {
#pragma unroll
        for (int j = 0; j < kSides; ++j) {
          nvcuda::wmma::mma_sync(sums[i][j], a[i], b[j], sums[i][j]);
        }
      }
    }
  }
  __device__ void Store(float* to, int stride) const {
#pragma unroll
    for (int i = 0; i < kSides; ++i) {
#pragma unroll
      for (int j = 0; j < kSides; ++j) {
        nvcuda::wmma::store_matrix_sync(
            to + (row() + i * kSide) * stride + column() + j * kSide, sums[i][j],
            stride, nvcuda::wmma::mem_row_major);
      }
    }
  }
  __device__ static int row() {
    return threadIdx.x / kWarp / kWarpsPerRow * kSide * kSides;
  }
  __device__ static int column() {
    return threadIdx.x / kWarp % kWarpsPerRow * kSide * kSides;
  }

  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, kSide, kSide, Factor::kDepth, float>
      sums[kSides][kSides];
};
static_assert(kThreads / kWarp == 2 * 2, "a warp per 32 x 32 elements");

#else
template <typename Op>
struct TensorCoreProduct;
#endif  // !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 700

// Whether the device that is compiled for has tensor cores for a type.
template <typename T>
constexpr bool kHasTensorCores =
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    true;
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
    std::is_same_v<T, __half>;
#else
    false;
#endif

// The product of an op. Blocks run over columns first, then rows, then splits of the
// depth: those that run at the same time read the same rows.
template <typename Op, bool kTensorCores>
__global__ void __launch_bounds__(kThreads)
    Multiply(Op op, int column_tiles, int row_tiles, int splits) {
  using T = typename Op::T;
  using Left = typename Op::Left;
  using Right = typename Op::Right;
  using Product = std::conditional_t<kTensorCores && kHasTensorCores<T>,
                                     TensorCoreProduct<Op>, PlainProduct<Op>>;
  const int64_t num_rows = op.num_rows();
  const int column_tile = blockIdx.x % column_tiles;
  const int row_tile = blockIdx.x / column_tiles % row_tiles;
  Job job;
  job.row = static_cast<int64_t>(row_tile) * kTile;
  job.column = column_tile * kTile;
  job.split = blockIdx.x / column_tiles / row_tiles;
  if (job.row >= num_rows) return;
  const int64_t depth = op.depth();
  const int64_t split_depth = CeilDiv(CeilDiv(depth, kDepth<T>), splits) * kDepth<T>;
  job.first_depth = job.split * split_depth;
  job.end_depth = job.first_depth + split_depth;
  if (job.end_depth > depth) job.end_depth = depth;

  // Two tiles of each factor: one is multiplied while the next is written. In the end
  // the memory takes the product.
  constexpr int kFactorBytes = 2 * (Left::kSize + Right::kSize) * sizeof(T);
  constexpr int kProductStride = kTile + 4;
  constexpr int kProductBytes = kTile * kProductStride * sizeof(float);
  constexpr int kBytes = kFactorBytes > kProductBytes ? kFactorBytes : kProductBytes;
  __shared__ __align__(128) unsigned char memory[kBytes];
  T* const left = reinterpret_cast<T*>(memory);
  T* const right = left + 2 * Left::kSize;
  static_assert(kTile * kDepth<T> == kChunksPerThread * kThreads * kChunk<T>,
                "every thread loads the same number of chunks");
  static_assert(Left::kSize * sizeof(T) % 32 == 0 && Right::kSize * sizeof(T) % 32 == 0,
                "tensor cores want tiles aligned to 32 bytes");

  const ChunkPlace<Left, T> left_places[kChunksPerThread] = {0, 1};
  const ChunkPlace<Right, T> right_places[kChunksPerThread] = {0, 1};
  typename Op::LeftLoader left_loaders[kChunksPerThread] = {{op, job, left_places[0]},
                                                            {op, job, left_places[1]}};
  typename Op::RightLoader right_loaders[kChunksPerThread] = {
      {op, job, right_places[0]}, {op, job, right_places[1]}};
  Chunk<T> left_chunks[kChunksPerThread], right_chunks[kChunksPerThread];
  const auto load = [&] {
#pragma unroll
    for (int i = 0; i < kChunksPerThread; ++i) {
      left_chunks[i] = left_loaders[i].Next();
      right_chunks[i] = right_loaders[i].Next();
    }
  };
  const auto store = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < kChunksPerThread; ++i) {
#pragma unroll
      for (int j = 0; j < kChunk<T>; ++j) {
        left_chunks[i].values[j] = Product::Round(left_chunks[i].values[j]);
        right_chunks[i].values[j] = Product::Round(right_chunks[i].values[j]);
      }
      const ChunkPlace<Left, T>& left_at = left_places[i];
      const ChunkPlace<Right, T>& right_at = right_places[i];
      *reinterpret_cast<uint4*>(left + buffer * Left::kSize +
                                left_at.line * Left::kStride + left_at.element) =
          *reinterpret_cast<const uint4*>(&left_chunks[i]);
      *reinterpret_cast<uint4*>(right + buffer * Right::kSize +
                                right_at.line * Right::kStride + right_at.element) =
          *reinterpret_cast<const uint4*>(&right_chunks[i]);
    }
  };

  Product product;
  const int64_t steps = job.end_depth > job.first_depth
                            ? CeilDiv(job.end_depth - job.first_depth, kDepth<T>)
                            : 0;
  if (steps > 0) {
    load();
    store(0);
  }
  __syncthreads();
  for (int64_t step = 0; step < steps; ++step) {
    const int buffer = step % 2;
    if (step + 1 < steps) load();  // on the way while the tensor cores are busy
    product.Add(left + buffer * Left::kSize, right + buffer * Right::kSize);
    if (step + 1 < steps) store(1 - buffer);
    __syncthreads();
  }

  float* const products = reinterpret_cast<float*>(memory);
  product.Store(products, kProductStride);
  __syncthreads();
  for (int i = threadIdx.x; i < kTile * kTile; i += kThreads) {
    const int row = i / kTile, column = i % kTile;
    if (job.row + row < num_rows && job.column + column < op.num_columns()) {
      op.Write(job, job.row + row, job.column + column,
               products[row * kProductStride + column]);
    }
  }
}

// ------------------------------------------------------------------------- host side

constexpr int64_t kInt32Max = 0x7fffffff;
constexpr int64_t kAlignment = 256;

int64_t Align(int64_t bytes) { return CeilDiv(bytes, kAlignment) * kAlignment; }

int64_t Taps(const Geometry& g) { return g.kernel_height * g.kernel_width; }
int64_t NumInputs(const Geometry& g) { return g.batch * g.height * g.width; }
int64_t NumOutputs(const Geometry& g) { return g.batch * g.out_height * g.out_width; }

// Splits of the filter gradient's depth: enough blocks for a big device, no split of
// less than 256 positions. The same on every device, so that results are too.
int64_t NumSplits(const Geometry& g) {
  constexpr int64_t kBlocks = 1024, kLeast = 256;
  const int64_t tiles =
      CeilDiv(Taps(g) * g.channels, kTile) * CeilDiv(g.filters, kTile);
  const int64_t most = std::max<int64_t>(1, NumOutputs(g) / kLeast);
  return std::clamp(kBlocks / std::max<int64_t>(1, tiles), int64_t{1}, most);
}

int64_t NumSpans(int64_t n) { return CeilDiv(n, kScanSpan); }

// Hands out consecutive parts of the workspace; of null, to learn its size.
class Allocator {
 public:
  explicit Allocator(void* workspace) : base_(static_cast<char*>(workspace)) {}
  template <typename T>
  T* Take(int64_t count) {
    T* const taken = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + bytes_);
    bytes_ += Align(count * sizeof(T));
    return taken;
  }
  int64_t bytes() const { return bytes_; }

 private:
  char* base_;
  int64_t bytes_ = 0;
};

// The workspace of a list of at most n places.
struct PlaceList {
  PlaceList(int64_t n, Allocator* allocator)
      : places{allocator->Take<Place>(n), nullptr},
        counts(allocator->Take<int64_t>(NumSpans(n) + 1)) {
    if (counts != nullptr) places.count = counts + NumSpans(n);
  }
  Places places;
  int64_t* counts;
};

const char* Check(const Geometry& g) {
  for (const int64_t size :
       {g.batch, g.height, g.width, g.channels, g.kernel_height, g.kernel_width,
        g.out_height, g.out_width, g.filters, g.stride_y, g.stride_x, g.dilation_y,
        g.dilation_x, g.pad_top, g.pad_left, g.kernel_height * g.kernel_width,
        g.height + g.pad_top, g.width + g.pad_left,
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

template <typename... Parameters, typename... Arguments>
const char* Launch(void (*kernel)(Parameters...), int64_t blocks, int threads,
                   void* stream, const Arguments&... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > kInt32Max) return "the tensors are too large for one launch";
  kernel<<<static_cast<unsigned>(blocks), threads, 0,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  if (error == cudaErrorNoKernelImageForDevice) {
    return "this library is not compiled for this device (its compute capability "
           "belongs into SACT_CUDA_ARCHITECTURES)";
  }
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#define RETURN_IF_ERROR(call)                     \
  do {                                            \
    if (const char* error = (call)) return error; \
  } while (false)

// Lists the set elements of a mask of n elements as places in [height, width].
const char* ListPlaces(MaskView mask, int64_t n, int64_t height, int64_t width,
                       const PlaceList& list, void* stream) {
  const int64_t spans = NumSpans(n);
  RETURN_IF_ERROR(
      Launch(CountSpans, spans, kScanThreads, stream, mask, n, list.counts));
  RETURN_IF_ERROR(Launch(SumSpans, 1, kScanThreads, stream, spans, list.counts));
  return Launch(WritePlaces, spans, kScanThreads, stream, mask, n,
                static_cast<int32_t>(height), static_cast<int32_t>(width),
                static_cast<const int64_t*>(list.counts), list.places.data);
}

const char* ClearUnset(MaskView mask, int64_t n, int64_t row_bytes, void* to,
                       void* stream) {
  if (row_bytes == 0) return nullptr;
  return Launch(ClearRows, CeilDiv(n, kScanThreads / kWarp), kScanThreads, stream, mask,
                n, row_bytes, static_cast<char*>(to));
}

MaskView OutputMask(const Geometry& g, const bool* mask) {
  return {mask, g.out_height * g.out_width * (g.shared_mask ? 1 : g.batch)};
}

// Whether rows of `width` elements from `data` on can be read in chunks.
template <typename T>
bool Aligned(const T* data, int64_t width) {
  return width % kChunk<T> == 0 && reinterpret_cast<uintptr_t>(data) % kChunkBytes == 0;
}

template <bool kTensorCores, typename Op>
const char* LaunchProduct(const Op& op, int64_t rows, int64_t columns, int64_t splits,
                          void* stream) {
  const int64_t row_tiles = CeilDiv(rows, kTile);
  const int64_t column_tiles = CeilDiv(columns, kTile);
  if (row_tiles > kInt32Max / std::max<int64_t>(1, column_tiles) / splits) {
    return "the tensors are too large for one launch";
  }
  return Launch(Multiply<Op, kTensorCores>, row_tiles * column_tiles * splits, kThreads,
                stream, op, static_cast<int>(column_tiles), static_cast<int>(row_tiles),
                static_cast<int>(splits));
}

template <typename T, bool kTensorCores>
struct Arithmetic {
  using Type = T;
  static constexpr bool kFast = kTensorCores;
};

// Calls a function template with the type, and whether tensor cores may be used.
template <typename Function>
const char* Dispatch(Type type, const Function& function) {
  switch (type) {
    case Type::kFloat:
      return function(Arithmetic<float, false>());
    case Type::kTensorFloat32:
      return function(Arithmetic<float, true>());
    case Type::kHalf:
      return function(Arithmetic<__half, true>());
    case Type::kBfloat16:
      return function(Arithmetic<__nv_bfloat16, true>());
  }
  return "unknown type";
}

int64_t SizeOf(Type type) {
  return type == Type::kHalf || type == Type::kBfloat16 ? 2 : 4;
}

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

template <typename Parts>
int64_t Measure(const Geometry& g) {
  Allocator allocator(nullptr);
  Parts parts(g, &allocator);
  return allocator.bytes();
}

}  // namespace

int64_t ConvolveWorkspace(const Geometry& g) { return Measure<ConvolveParts>(g); }
int64_t InputGradientWorkspace(const Geometry& g) {
  return Measure<InputGradientParts>(g);
}
int64_t FilterGradientWorkspace(const Geometry& g) {
  return Measure<FilterGradientParts>(g);
}

const char* Convolve(Type type, const Geometry& g, const void* input,
                     const void* filters, const bool* mask, const Transform& before,
                     const Transform& after, void* output, void* workspace,
                     void* stream) {
  RETURN_IF_ERROR(Check(g));
  const int64_t n = NumOutputs(g);
  if (n == 0 || g.filters == 0) return nullptr;
  Allocator allocator(workspace);
  const ConvolveParts parts(g, &allocator);
  const MaskView active = OutputMask(g, mask);
  RETURN_IF_ERROR(
      ListPlaces(active, n, g.out_height, g.out_width, parts.active, stream));
  RETURN_IF_ERROR(ClearUnset(active, n, g.filters * SizeOf(type), output, stream));
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(input);
    const T* const weights = static_cast<const T*>(filters);
    const ConvolveOp<T> op{Shape(g),
                           parts.active.places,
                           from,
                           weights,
                           Aligned(from, g.channels),
                           Aligned(weights, g.filters),
                           Affine<T>(before),
                           Affine<T>(after),
                           static_cast<T*>(output)};
    return LaunchProduct<decltype(arithmetic)::kFast>(op, n, g.filters, 1, stream);
  });
}

const char* InputGradient(Type type, const Geometry& g, const void* output_gradient,
                          const void* filters, const bool* mask, void* input_gradient,
                          void* workspace, void* stream) {
  RETURN_IF_ERROR(Check(g));
  const int64_t n = NumInputs(g);
  if (n == 0 || g.channels == 0) return nullptr;
  Allocator allocator(workspace);
  const InputGradientParts parts(g, &allocator);
  RETURN_IF_ERROR(Launch(MarkTouched, CeilDiv(n, kScanThreads), kScanThreads, stream,
                         Shape(g), mask, n, parts.touched));
  const MaskView touched{parts.touched, n};
  RETURN_IF_ERROR(ListPlaces(touched, n, g.height, g.width, parts.list, stream));
  RETURN_IF_ERROR(
      ClearUnset(touched, n, g.channels * SizeOf(type), input_gradient, stream));
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(output_gradient);
    const T* const weights = static_cast<const T*>(filters);
    const bool aligned = Aligned(from, g.filters) && Aligned(weights, g.filters);
    const InputGradientOp<T> op{Shape(g), parts.list.places,
                                from,     weights,
                                mask,     aligned,
                                static_cast<T*>(input_gradient)};
    return LaunchProduct<decltype(arithmetic)::kFast>(op, n, g.channels, 1, stream);
  });
}

const char* FilterGradient(Type type, const Geometry& g, const void* input,
                           const void* output_gradient, const bool* mask,
                           void* filter_gradient, void* workspace, void* stream) {
  RETURN_IF_ERROR(Check(g));
  const int64_t n = NumOutputs(g), depth = Taps(g) * g.channels;
  if (depth == 0 || g.filters == 0) return nullptr;
  Allocator allocator(workspace);
  const FilterGradientParts parts(g, &allocator);
  RETURN_IF_ERROR(ListPlaces(OutputMask(g, mask), n, g.out_height, g.out_width,
                             parts.active, stream));
  const int64_t splits = NumSplits(g);
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(input);
    const T* const gradient = static_cast<const T*>(output_gradient);
    const FilterGradientOp<T> op{Shape(g),
                                 parts.active.places,
                                 from,
                                 gradient,
                                 Aligned(from, g.channels),
                                 Aligned(gradient, g.filters),
                                 parts.sums};
    RETURN_IF_ERROR(LaunchProduct<decltype(arithmetic)::kFast>(op, depth, g.filters,
                                                               splits, stream));
    const int64_t size = depth * g.filters;
    return Launch(AddSplits<T>, CeilDiv(size, kScanThreads), kScanThreads, stream,
                  static_cast<const float*>(parts.sums), size,
                  static_cast<int>(splits), static_cast<T*>(filter_gradient));
  });
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
