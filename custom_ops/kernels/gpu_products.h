// Products of two matrices that are gathered on the way into shared memory, tile by
// tile, so that nothing is ever copied into patches in global memory.

#ifndef CUSTOM_OPS_KERNELS_GPU_PRODUCTS_H_
#define CUSTOM_OPS_KERNELS_GPU_PRODUCTS_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "gpu_device.h"
#include "gpu_loaders.h"
#include "gpu_positions.h"

namespace perforated {
namespace gpu {

// What the kernel below asks of a product whose sums are there when Add returns.
template <typename Op>
struct ProductAtOnce {
  using LeftTile = typename Op::Left;
  using RightTile = typename Op::Right;
  static constexpr int kAlignment = 128;  // of tiles, in bytes
  static constexpr int kInFlight = 0;     // steps that Wait leaves unfinished
  // Between copies and the barrier after which they are multiplied.
  __device__ static void Show() {}
  // Until no more than kInFlight steps, or none, read their tiles.
  __device__ void Wait() {}
  __device__ void WaitForAll() {}
};

// A thread's 8 x 4 elements of a tile's product, in plain float arithmetic.
template <typename Op>
struct PlainProduct : ProductAtOnce<Op> {
  using T = typename Op::T;
  using Left = typename Op::Left;
  using Right = typename Op::Right;
  static constexpr int kRows = 8, kColumns = 4;
  static constexpr int kRowStep = kTile / kRows, kColumnStep = kTile / kColumns;

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

// Types of the factors on tensor cores, and the depth of one multiplication.
template <typename T>
struct Fragment {
  using Type = T;
  static constexpr int kDepth = 16;
};
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
template <>
struct Fragment<float> {
  using Type = nvcuda::wmma::precision::tf32;
  static constexpr int kDepth = 8;
};
#endif

// Rounds factors as the tensor cores want them.
template <typename Factor>
__device__ inline void Round(Factor* factor) {
#pragma unroll
  for (int i = 0; i < factor->num_elements; ++i) {
    factor->x[i] = nvcuda::wmma::__float_to_tf32(factor->x[i]);
  }
}

// A warp's 32 x 32 elements of a tile's product, on tensor cores.
template <typename Op>
struct TensorCoreProduct : ProductAtOnce<Op> {
  using T = typename Op::T;
  using Left = typename Op::Left;
  using Right = typename Op::Right;
  using Factor = Fragment<T>;
  static constexpr int kSide = 16, kSides = 2, kWarpsPerRow = 2;
  using LeftOrder =
      std::conditional_t<std::is_same_v<Left, Tile<T, true>>, nvcuda::wmma::row_major,
                         nvcuda::wmma::col_major>;
  using RightOrder =
      std::conditional_t<std::is_same_v<Right, Tile<T, true>>, nvcuda::wmma::col_major,
                         nvcuda::wmma::row_major>;

  __device__ TensorCoreProduct() {
#pragma unroll
    for (int i = 0; i < kSides; ++i) {
#pragma unroll
      for (int j = 0; j < kSides; ++j) nvcuda::wmma::fill_fragment(sums[i][j], 0.0f);
    }
  }

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
        nvcuda::wmma::load_matrix_sync(b[i], right + Right::At(column() + i * kSide, k),
                                       Right::kStride);
        if constexpr (std::is_same_v<T, float>) {
          Round(&a[i]);
          Round(&b[i]);
        }
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

// A thread's 32 elements of a tile's product that all four warps multiply together, by
// wgmma: it reads both factors from shared memory once, without registers, while the
// threads go on. The tiles of one step may still be read while those of the next are
// waited for.
template <typename Op>
struct WarpgroupProduct {
  using T = typename Op::T;
  using LeftTile = SwizzledTile<T, Op::Left::kIsDepthInner>;
  using RightTile = SwizzledTile<T, Op::Right::kIsDepthInner>;
  static constexpr int kAlignment = 1024, kInFlight = 1;
  static constexpr int kInstructionDepth = 16;
  static_assert(LeftTile::kSize * sizeof(T) % kAlignment == 0 &&
                    RightTile::kSize * sizeof(T) % kAlignment == 0 &&
                    kAlignment % LeftTile::kPatternBytes == 0 &&
                    kAlignment % RightTile::kPatternBytes == 0,
                "every tile begins where a pattern does");

  __device__ static void Show() { ShowWrites(); }
  __device__ void Wait() { WaitMultiplications<kInFlight>(sums); }
  __device__ void WaitForAll() { WaitMultiplications<0>(sums); }

  __device__ void Add(const T* left, const T* right) {
    BeginMultiplications();
#pragma unroll
    for (int k = 0; k < kDepth<T>; k += kInstructionDepth) {
      MultiplyAsync<T, !Op::Left::kIsDepthInner, !Op::Right::kIsDepthInner>(
          sums, LeftTile::Describe(left, k), RightTile::Describe(right, k));
    }
    CommitMultiplications();
  }
  __device__ void Store(float* to, int stride) const {
    const int lane = threadIdx.x % kWarp;
    to += (threadIdx.x / kWarp * 16 + lane / 4) * stride + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < kSumsPerThread; ++i) {
      to[i / 2 % 2 * 8 * stride + i / 4 * 8 + i % 2] = sums[i];
    }
  }

  float sums[kSumsPerThread] = {};
};
static_assert(kThreads == 128 && kTile * kTile == kThreads * kSumsPerThread,
              "one multiplication of four warps per tile");

// Whether the device that is compiled for has tensor cores for a type.
template <typename T>
constexpr bool kHasTensorCores = kIsAmpere || std::is_same_v<T, __half>;

// Not tf32: of that wgmma wants the depth of both factors contiguous, which that of the
// filters is in no convolution, and it cuts off the last bits of what it finds in
// shared memory, where TensorCoreProduct rounds.
template <typename T>
constexpr bool kHasWarpgroups = kIsHopper && sizeof(T) == 2;

template <typename Op, bool kTensorCores, typename T = typename Op::T>
using Product =
    std::conditional_t<kTensorCores && kHasWarpgroups<T>, WarpgroupProduct<Op>,
                       std::conditional_t<kTensorCores && kHasTensorCores<T>,
                                          TensorCoreProduct<Op>, PlainProduct<Op>>>;

// Steps whose tiles are on their way to shared memory while one is multiplied. Copies
// through registers allow for one; asynchronous ones hide more of the memory's latency
// the more of them there are.
constexpr int kAhead = kIsAmpere ? 2 : 1;

// A thread's chunk of a factor on its way to shared memory.
template <typename Loader, typename Tile, typename SharedTile>
struct ChunkOnItsWay {
  using T = typename Loader::T;
  __device__ ChunkOnItsWay(const Loader& loader, ChunkPlace<Tile, T> at, T* tiles)
      : loader(loader),
        to(SharedTile::ChunkAt(tiles, at.line, at.element)),
        copies(kIsAmpere && loader.CanCopy()) {}

  // Sets out for a tile.
  __device__ void Load(const T* base, int buffer) {
    if (copies) {
      const T* const from = loader.Find();
      CopyAsync(to + buffer * SharedTile::kSize, from == nullptr ? base : from,
                from == nullptr);
    } else {
      chunk = loader.Next();
    }
    loader.Advance();
  }
  // Arrives there.
  __device__ void Store(int buffer) const {
    if (copies) return;
    StoreShared(to + buffer * SharedTile::kSize,
                *reinterpret_cast<const uint4*>(&chunk));
  }
  Loader loader;
  T* to;
  bool copies;
  Chunk<T> chunk;
};

// The product of an op. Blocks run over columns first, then rows, then splits of the
// depth: those that run at the same time read the same rows.
template <typename Op, bool kTensorCores>
__global__ void __launch_bounds__(kThreads)
    Multiply(Op op, int column_tiles, int row_tiles, int splits) {
  using T = typename Op::T;
  using Left = typename Op::Left;
  using Right = typename Op::Right;
  using Product = gpu::Product<Op, kTensorCores>;
  using LeftTile = typename Product::LeftTile;
  using RightTile = typename Product::RightTile;
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

  // Some tiles of each factor: one is multiplied while others are on their way, and
  // some may still be read. In the end the memory takes the product.
  constexpr int kStages = kAhead + 1 + Product::kInFlight;
  constexpr int kFactorBytes =
      kStages * (LeftTile::kSize + RightTile::kSize) * sizeof(T);
  constexpr int kProductStride = kTile + 4;
  constexpr int kProductBytes = kTile * kProductStride * sizeof(float);
  constexpr int kBytes = kFactorBytes > kProductBytes ? kFactorBytes : kProductBytes;
  __shared__ __align__(Product::kAlignment) unsigned char memory[kBytes];
  T* const left = reinterpret_cast<T*>(memory);
  T* const right = left + kStages * LeftTile::kSize;
  static_assert(kTile * kDepth<T> == kChunksPerThread * kThreads * kChunk<T>,
                "every thread loads the same number of chunks");
  static_assert(
      LeftTile::kSize * sizeof(T) % 32 == 0 && RightTile::kSize * sizeof(T) % 32 == 0,
      "tensor cores want tiles aligned to 32 bytes");

  const ChunkPlace<Left, T> left_places[kChunksPerThread] = {0, 1};
  const ChunkPlace<Right, T> right_places[kChunksPerThread] = {0, 1};
  ChunkOnItsWay<typename Op::LeftLoader, Left, LeftTile> left_chunks[kChunksPerThread] =
      {{{op, job, left_places[0]}, left_places[0], left},
       {{op, job, left_places[1]}, left_places[1], left}};
  ChunkOnItsWay<typename Op::RightLoader, Right, RightTile>
      right_chunks[kChunksPerThread] = {
          {{op, job, right_places[0]}, right_places[0], right},
          {{op, job, right_places[1]}, right_places[1], right}};
  const int64_t steps = job.end_depth > job.first_depth
                            ? CeilDiv(job.end_depth - job.first_depth, kDepth<T>)
                            : 0;
  const auto load = [&](int64_t step) {
    if (step < steps) {
#pragma unroll
      for (int i = 0; i < kChunksPerThread; ++i) {
        left_chunks[i].Load(op.source, step % kStages);
        right_chunks[i].Load(op.matrix, step % kStages);
      }
    }
    CommitCopies();  // an empty group at the end, so that all steps wait for as many
  };
  const auto store = [&](int64_t step) {
    if (step >= steps) return;
#pragma unroll
    for (int i = 0; i < kChunksPerThread; ++i) {
      left_chunks[i].Store(step % kStages);
      right_chunks[i].Store(step % kStages);
    }
  };

  Product product;
  for (int step = 0; step < kAhead; ++step) {
    load(step);
    store(step);
  }
  for (int64_t step = 0; step < steps; ++step) {
    WaitCopies<kAhead - 1>();
    product.Wait();
    Product::Show();
    __syncthreads();  // this step's tiles are there, those to be filled next used up
    const int64_t next = step + kAhead;
    const auto add = [&] {
      const int buffer = step % kStages;
      product.Add(left + buffer * LeftTile::kSize, right + buffer * RightTile::kSize);
    };
    if constexpr (Product::kInFlight > 0) add();
    load(next);  // on the way while the tensor cores are busy
    if constexpr (Product::kInFlight == 0) add();
    store(next);
  }
  product.WaitForAll();
  __syncthreads();

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

// Queues the product of an op. The host knows how many rows there can be.
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

// Splits of the filter gradient's depth: enough blocks for a big device, no split of
// less than 256 positions. The same on every device, so that results are too.
inline int64_t NumSplits(const Geometry& g) {
  constexpr int64_t kBlocks = 1024, kLeast = 256;
  const int64_t tiles =
      CeilDiv(Taps(g) * g.channels, kTile) * CeilDiv(g.filters, kTile);
  const int64_t most = std::max<int64_t>(1, NumOutputs(g) / kLeast);
  return std::clamp(kBlocks / std::max<int64_t>(1, tiles), int64_t{1}, most);
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

inline int64_t SizeOf(Type type) {
  return type == Type::kHalf || type == Type::kBfloat16 ? 2 : 4;
}

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_PRODUCTS_H_
