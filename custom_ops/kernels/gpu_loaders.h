// From global to shared memory: how the factors of a product are gathered, tile by
// tile.
//
// A loader brings one chunk of a tile per step. Where the bytes are as they should be
// in shared memory, CanCopy() says so, and Find() tells where they are, null for zeros;
// else Next() reads and changes them. Either is of the current step; Advance() goes on
// to the next.

#ifndef CUSTOM_OPS_KERNELS_GPU_LOADERS_H_
#define CUSTOM_OPS_KERNELS_GPU_LOADERS_H_

#include <cstdint>
#include <type_traits>

#include "gpu.h"
#include "gpu_device.h"
#include "gpu_positions.h"

namespace perforated {
namespace gpu {

constexpr int kTile = 64;       // rows and columns of the product that a block computes
constexpr int kThreads = 128;   // of such a block: 2 x 2 warps of 32 rows and columns
constexpr int kStepBytes = 64;  // of each row and column in shared memory at a time

template <typename T>
constexpr int kChunk = kChunkBytes / static_cast<int>(sizeof(T));
// Elements of those, along the depth of the product.
template <typename T>
constexpr int kDepth = kStepBytes / static_cast<int>(sizeof(T));

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

// --------------------------------------------------------------------------------
// chunks

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

// --------------------------------------------------------------------------------
// patches

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

// Where the elements of a patch are from a cursor on; null where they are zeros.
// `offset` gives the index in `base` of a tap's first element, or -1 where the tap
// reads zeros.
template <typename T, typename Offset>
__device__ inline const T* FindPatch(const T* base, const Cursor& cursor,
                                     int kernel_height, const Offset& offset) {
  if (cursor.tap_y >= kernel_height) return nullptr;
  const int64_t from = offset(cursor.tap_y, cursor.tap_x);
  return from < 0 ? nullptr : base + from + cursor.inner;
}

// Those elements, changed by `transform` unless they are zeros of the padding. Only if
// `aligned` may they be loaded at once.
template <typename T, typename Change, typename Offset>
__device__ inline Chunk<T> GatherChunk(const T* base, Cursor cursor, int kernel_height,
                                       bool aligned, const Change& transform,
                                       const Offset& offset) {
  if (aligned) {
    const T* const from = FindPatch(base, cursor, kernel_height, offset);
    if (from == nullptr) return ZeroChunk<T>();
    Chunk<T> chunk = LoadChunk(from);
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
    const T* const from = FindPatch(base, cursor, kernel_height, offset);
    if (from != nullptr) {
      chunk.values[i] = FromFloat<T>(transform(ToFloat(*from), cursor.inner));
    }
    cursor.Advance(1);
  }
  return chunk;
}

// ----------------------------------------------------------------------------------
// tiles

// A factor's part in shared memory: kTile rows (columns of the right factor) times
// kDepth<T>. Whichever of the two is contiguous in global memory is so here.
// The lines of both layouts are a chunk longer than needed: neighbours begin in
// different banks.
template <typename T, bool kDepthInner>
struct Tile {
  static constexpr bool kIsDepthInner = kDepthInner;
  static constexpr int kLine = kDepthInner ? kDepth<T> : kTile;
  static constexpr int kStride = kLine + kChunk<T>;
  static constexpr int kLines = kDepthInner ? kTile : kDepth<T>;
  static constexpr int kSize = kLines * kStride;
  static constexpr int kChunksPerLine = kLine / kChunk<T>;

  __host__ __device__ static constexpr int At(int row, int depth) {
    return kDepthInner ? row * kStride + depth : depth * kStride + row;
  }
  // Where the chunk is that begins at an element of a line.
  __device__ static T* ChunkAt(T* tile, int line, int element) {
    return tile + line * kStride + element;
  }
};

// The same tile as wgmma wants it. Lines are as long as needed, and 64 or 128 bytes:
// the chunks of each are permuted, in another way in each of 8 lines, then again. Tiles
// must begin where this pattern does, at a multiple of kPatternBytes.
template <typename T, bool kDepthInner>
struct SwizzledTile {
  using Plain = Tile<T, kDepthInner>;
  using Element = T;
  static constexpr int kChunksPerLine = Plain::kChunksPerLine;
  static constexpr int kLineBytes = Plain::kLine * static_cast<int>(sizeof(T));
  static constexpr int kPatternBytes = 8 * kLineBytes;
  static constexpr int kSize = Plain::kLines * Plain::kLine;
  static_assert(kLineBytes == 64 || kLineBytes == 128, "there are two such patterns");

  // The bits of an address that number a chunk, exclusive or those 3 bits further on.
  __host__ __device__ static constexpr int Permute(int line, int element) {
    const int byte = line * kLineBytes + element * static_cast<int>(sizeof(T));
    const int changed = byte ^ (byte >> 3 & (kLineBytes - kChunkBytes));
    return changed / static_cast<int>(sizeof(T));
  }
  __device__ static T* ChunkAt(T* tile, int line, int element) {
    return tile + Permute(line, element);
  }

  // The descriptor of the tile from a depth on: address, distance between patterns, and
  // which pattern. The second distance (of what lies beyond a line) is not used, and
  // the same.
  __device__ static uint64_t Describe(const T* tile, int depth) {
    constexpr uint64_t kDistance = kPatternBytes >> 4;
    constexpr uint64_t kPattern = kLineBytes == 128 ? 1 : 2;
    const uint32_t address =
        SharedAddress(tile) + depth * (kDepthInner ? sizeof(T) : kLineBytes);
    return (address & 0x3ffff) >> 4 | kDistance << 16 | kDistance << 32 |
           kPattern << 62;
  }
};

// Whether 8 threads that write to shared memory together, 16 bytes each, write to
// different banks.
template <typename Tile>
constexpr bool UsesAllBanks() {
  using T = typename Tile::Element;
  for (int first = 0; first < kTile * kStepBytes / kChunkBytes; first += 8) {
    unsigned banks = 0;
    for (int i = first; i < first + 8; ++i) {
      const int chunk =
          Tile::Permute(i / Tile::kChunksPerLine, i % Tile::kChunksPerLine * kChunk<T>);
      banks |= 1u << (chunk / kChunk<T> % 8);
    }
    if (banks != 0xff) return false;
  }
  return true;
}
static_assert(UsesAllBanks<SwizzledTile<__half, true>>() &&
                  UsesAllBanks<SwizzledTile<__half, false>>(),
              "no chunk waits for another one");

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

// What a block computes: a tile of the product, over a part of the depth.
struct Job {
  int64_t row;
  int column;
  int64_t first_depth, end_depth;
  int split;
};

// --------------------------------------------------------------------------------
// loaders

// A left factor whose rows are places, and whose depth runs through their patches. The
// op tells what it reads: source, aligned_source, inner() elements per tap, change(),
// and Offset(row, place, tap_y, tap_x).
template <typename Op>
struct PatchLoader {
  using T = typename Op::T;
  __device__ PatchLoader(const Op& op, const Job& job,
                         ChunkPlace<typename Op::Left, T> at)
      : op(op),
        cursor(at.element, op.inner(), op.shape.kernel_width),
        row(job.row + at.line),
        is_row(row < op.num_rows()),
        place(is_row ? op.places.data[row] : Place{0, 0, 0, 0}) {}

  __device__ bool CanCopy() const {
    return op.aligned_source && op.change().IsIdentity();
  }
  __device__ const T* Find() const {
    return FindPatch(op.source, cursor, height(), Offset());
  }
  __device__ Chunk<T> Next() const {
    return GatherChunk(op.source, cursor, height(), op.aligned_source, op.change(),
                       Offset());
  }
  __device__ void Advance() { cursor.Advance(kDepth<T>); }

  __device__ int height() const { return is_row ? op.shape.kernel_height : 0; }
  __device__ auto Offset() const {
    return [this](int tap_y, int tap_x) { return op.Offset(row, place, tap_y, tap_x); };
  }
  const Op& op;
  Cursor cursor;
  int64_t row;
  bool is_row;
  Place place;
};

// The same transposed: the depth runs through places, the rows through patches.
template <typename Op>
struct TransposedPatchLoader {
  using T = typename Op::T;
  __device__ TransposedPatchLoader(const Op& op, const Job& job,
                                   ChunkPlace<typename Op::Left, T> at)
      : op(op),
        cursor(job.row + at.element, op.inner(), op.shape.kernel_width),
        index(job.first_depth + at.line),
        end(job.end_depth) {}

  __device__ bool CanCopy() const { return op.aligned_source; }
  __device__ const T* Find() const {
    return FindPatch(op.source, cursor, height(), Offset());
  }
  __device__ Chunk<T> Next() const {
    return GatherChunk(op.source, cursor, height(), op.aligned_source, Identity(),
                       Offset());
  }
  __device__ void Advance() { index += kDepth<T>; }

  __device__ int height() const { return index < end ? op.shape.kernel_height : 0; }
  __device__ auto Offset() const {
    return [this](int tap_y, int tap_x) {
      return op.Offset(index, op.places.data[index], tap_y, tap_x);
    };
  }
  const Op& op;
  Cursor cursor;
  int64_t index, end;
};

// A right factor that is a matrix; the op tells which of its rows comes at a depth:
// matrix, aligned_matrix, RightRow(depth).
template <typename Op>
struct MatrixLoader {
  using T = typename Op::T;
  __device__ MatrixLoader(const Op& op, const Job& job,
                          ChunkPlace<typename Op::Right, T> at)
      : op(op),
        depth(job.first_depth + at.line),
        end(job.end_depth),
        column(job.column + at.element) {}

  __device__ bool CanCopy() const { return op.aligned_matrix; }
  __device__ const T* Find() const {
    return depth < end && column < op.num_columns() ? Row() + column : nullptr;
  }
  __device__ Chunk<T> Next() const {
    return depth < end ? LoadRow(Row(), column, op.num_columns(), op.aligned_matrix)
                       : ZeroChunk<T>();
  }
  __device__ void Advance() { depth += kDepth<T>; }

  __device__ const T* Row() const {
    return op.matrix + op.RightRow(depth) * op.num_columns();
  }
  const Op& op;
  int64_t depth, end;
  int column;
};

// The filters as the input gradient multiplies them: a column is a channel, and the
// depth runs through taps and filters.
template <typename Op>
struct FilterLoader {
  using T = typename Op::T;
  __device__ FilterLoader(const Op& op, const Job& job,
                          ChunkPlace<typename Op::Right, T> at)
      : op(op),
        cursor(at.element, op.shape.filters, op.shape.kernel_width),
        channel(job.column + at.line) {}

  __device__ bool CanCopy() const { return op.aligned_matrix; }
  __device__ const T* Find() const {
    return FindPatch(op.matrix, cursor, height(), Offset());
  }
  __device__ Chunk<T> Next() const {
    return GatherChunk(op.matrix, cursor, height(), op.aligned_matrix, Identity(),
                       Offset());
  }
  __device__ void Advance() { cursor.Advance(kDepth<T>); }

  __device__ int height() const {
    return channel < op.shape.channels ? op.shape.kernel_height : 0;
  }
  __device__ auto Offset() const {
    return [this](int tap_y, int tap_x) {
      const int tap = tap_y * op.shape.kernel_width + tap_x;
      return (static_cast<int64_t>(tap) * op.shape.channels + channel) *
             op.shape.filters;
    };
  }
  const Op& op;
  Cursor cursor;
  int channel;
};

// Whether rows of `width` elements from `data` on can be read in chunks.
template <typename T>
bool Aligned(const T* data, int64_t width) {
  return width % kChunk<T> == 0 && reinterpret_cast<uintptr_t>(data) % kChunkBytes == 0;
}

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_LOADERS_H_
