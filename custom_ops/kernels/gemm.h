// Matrix product whose left rows are gathered and whose results are scattered.
//
// Rows come from a functor that copies a range of a row into a small tile, so that what
// a convolution multiplies never lies in main memory as a whole; results go to a
// functor that gets them block by block while they are in the nearest cache.
//
// Factors are of the type of the sums, or bfloat16 with sums in float.

#ifndef CUSTOM_OPS_KERNELS_GEMM_H_
#define CUSTOM_OPS_KERNELS_GEMM_H_

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <type_traits>

#include "bfloat16.h"
#include "multiply_bfloat16.h"
#include "vector.h"

namespace perforated {

// The threads and the memory of one call.
class Workers {
 public:
  virtual ~Workers() = default;
  virtual int num_threads() const = 0;
  // Runs fn(i) for every i in [0, n), on any thread, in any order.
  virtual void ForEach(int64_t n, const std::function<void(int64_t)>& fn) const = 0;
  // Returns memory that lives as long as this object, not initialised. For the thread
  // that makes the call; throws std::bad_alloc.
  virtual void* Allocate(std::size_t bytes) const = 0;

  template <typename T>
  T* NewArray(int64_t size) const {
    return static_cast<T*>(Allocate(size * sizeof(T)));
  }
};

// Independent work that threads do once they find nothing else to do.
struct Tasks {
  int64_t count = 0;
  std::function<void(int64_t)> run;
};

// Memory aligned to cache lines; it grows and never shrinks.
template <typename T>
class Buffer {
 public:
  T* Reserve(int64_t size) {
    if (size > size_) {
      data_.reset();
      const std::size_t bytes = (size * sizeof(T) + 63) / 64 * 64;
      void* memory = std::aligned_alloc(64, bytes);
      if (memory == nullptr) throw std::bad_alloc();
      data_.reset(static_cast<T*>(memory));
      size_ = size;
    }
    return data_.get();
  }
  T* data() { return data_.get(); }
  const T* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> data_;
  int64_t size_ = 0;
};

// Depth of a product that one tile holds; the tile's row stride is constant, so that
// the kernel reaches all its rows from one register, and not a power of two, so that
// they do not compete for the same cache set.
inline constexpr int kMaxDepth = 384;
inline constexpr int kTileStride = kMaxDepth + 16;
inline constexpr int kTileGroups = 8;
inline constexpr int kTileRows = kTileGroups * kBlockRows;
// Rows of a panel that are fetched ahead: about what a farther cache takes to answer.
inline constexpr int kPrefetch = 24;
// Columns whose partial sums stay in the cache while the depth is walked.
inline constexpr int kMaxColumns = 512;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// How products of factors T are computed, block by block.
template <typename T>
struct Blocks {
  using Sum = T;
  static constexpr int kRows = kBlockRows;     // of a block
  static constexpr int kGroups = kTileGroups;  // blocks of rows in a tile
  static constexpr int kDepth = kMaxDepth;     // of a tile, at most
  static constexpr int kStride = kTileStride;  // of a tile's rows
  static constexpr int kDepthUnit = 1;         // that depths are filled up to
  static constexpr int kPair = 1;              // what stands together of a column
};

// Tiles of twice the rows, and most depths in one piece: what is multiplied so fast
// waits for memory, and then rows had better be read from end to end.
template <>
struct Blocks<BFloat16> {
  using Sum = float;
  static constexpr int kRows = kHalfBlockRows;
  static constexpr int kGroups = 4;
  static constexpr int kDepth = 1152;
  static constexpr int kStride = kDepth + 32;  // an odd number of cache lines
  static constexpr int kDepthUnit = kHalfDepthUnit;
  static constexpr int kPair = 2;
};

// A matrix [depth, columns] in panels [depth, kPanelColumns], padded with zeros; of
// bfloat16 [depth / 2, kPanelColumns, 2].
template <typename T>
class PackedMatrix {
 public:
  using Sum = typename Blocks<T>::Sum;

  // element(k, n) gives the matrix.
  template <typename Element>
  void PackElements(int64_t depth, int64_t columns, const Element& element) {
    depth_ = depth;
    columns_ = columns;
    constexpr int kUnit = Blocks<T>::kDepthUnit, kPair = Blocks<T>::kPair;
    padded_depth_ = CeilDiv(depth, kUnit) * kUnit;
    const int64_t panels = CeilDiv(columns, kWidth);
    T* to = buffer_.Reserve(panels * padded_depth_ * kWidth);
    for (int64_t p = 0; p < panels; ++p) {
      for (int64_t first = 0; first < padded_depth_; first += kPair) {
        for (int64_t n = p * kWidth; n < (p + 1) * kWidth; ++n) {
          for (int64_t k = first; k < first + kPair; ++k) {
            *to++ = T(n < columns && k < depth ? element(k, n) : Sum(0));
          }
        }
      }
    }
  }
  // Of a row-major matrix.
  void Pack(int64_t depth, int64_t columns, const Sum* matrix) {
    PackElements(depth, columns,
                 [=](int64_t k, int64_t n) { return matrix[k * columns + n]; });
  }
  int64_t depth() const { return depth_; }
  int64_t columns() const { return columns_; }
  const T* Panel(int64_t panel, int64_t k) const {
    return buffer_.data() + (panel * padded_depth_ + k) * kWidth;
  }
  // What multiplies it, if it is of bfloat16; the processor must have them.
  Instructions instructions() const { return instructions_; }
  void set_instructions(Instructions instructions) { instructions_ = instructions; }

 private:
  static constexpr int kWidth = kPanelColumns<Sum>;
  int64_t depth_ = 0, padded_depth_ = 0, columns_ = 0;
  Instructions instructions_ = BestInstructions();
  Buffer<T> buffer_;
};

// block [kRows, kPanelColumns] (+)= rows [kRows, depth] * panel [depth, kPanelColumns];
// row r of the left side at depth k is left[r * kRowStride + k * kDepthStride].
template <typename T, int kRows, int kVectors, int kRowStride, int kDepthStride>
void Multiply(const T* left, const T* panel, int64_t depth, bool accumulate, T* block) {
  constexpr int kWidth = kPanelColumns<T>;
  Vector<T> sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = accumulate ? Load(block + r * kWidth + v * kLanes<T>) : Vector<T>{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    // The panel comes from a farther cache once per tile, and is in no hurry otherwise.
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      __builtin_prefetch(panel + kPrefetch * kWidth + v * kLanes<T>);
    }
    Vector<T> right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) right[v] = Load(panel + v * kLanes<T>);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const T scalar = left[r * kRowStride];
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sums[r][v] += scalar * right[v];
    }
    left += kDepthStride;
    panel += kWidth;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      Store(block + r * kWidth + v * kLanes<T>, sums[r][v]);
    }
  }
}

// The same for any number of rows from 1 to kBlockRows (an odd number computes one row
// more, which the tile and the block have room for) and columns up to kPanelColumns.
template <typename T, int kRowStride, int kDepthStride, int kRows = kBlockRows>
void MultiplyRows(int rows, int columns, const T* left, const T* panel, int64_t depth,
                  bool accumulate, T* block) {
  if constexpr (kRows > 2) {
    if (rows <= kRows - 2) {
      return MultiplyRows<T, kRowStride, kDepthStride, kRows - 2>(
          rows, columns, left, panel, depth, accumulate, block);
    }
  }
  if (columns > kLanes<T>) {
    Multiply<T, kRows, 2, kRowStride, kDepthStride>(left, panel, depth, accumulate,
                                                    block);
  } else {
    Multiply<T, kRows, 1, kRowStride, kDepthStride>(left, panel, depth, accumulate,
                                                    block);
  }
}

// How a product is cut into tasks: tiles of rows, ranges of panels.
struct Partition {
  // Args: groups of rows that are computed as one, and how many a tile holds.
  Partition(int64_t groups, int tile_groups, int64_t columns, int panel_columns,
            int num_threads) {
    const int64_t panels = CeilDiv(columns, panel_columns);
    // At least so many tasks that no thread waits long for the last one.
    const int64_t wanted = num_threads == 1 ? 1 : 2 * num_threads;
    row_tiles = CeilDiv(groups, tile_groups);
    column_tiles = CeilDiv(panels * panel_columns, kMaxColumns);
    if (row_tiles * column_tiles < wanted) {
      // Few rows. Every tile of rows reads all of the matrix, so cut its columns first.
      column_tiles = std::min(panels, CeilDiv(wanted, row_tiles));
      row_tiles = std::max(row_tiles, std::min(groups, CeilDiv(wanted, column_tiles)));
    } else {
      row_tiles = std::min(groups, CeilDiv(row_tiles, num_threads) * num_threads);
    }
  }
  int64_t row_tiles, column_tiles;
};

// A factor of a product: gather(row, k, count, to) writes elements [k, k + count) of a
// row to `to`.
template <typename T, typename Gather>
struct Product {
  const PackedMatrix<T>& matrix;
  const Gather& gather;
};

// Computes rows [0, rows) times the matrices of one product or more, and their sum.
//
// scatter(row, column, count, from) receives results, each exactly once, and all that
// one task has of a row in sequence. `last` is done at the end, by whoever is free.
template <typename T, typename Scatter, typename... Gathers>
void SumProducts(int64_t rows, int64_t total_columns, const Scatter& scatter,
                 const Workers& workers, const Tasks& last,
                 const Product<T, Gathers>&... products) {
  using Sum = typename Blocks<T>::Sum;
  constexpr int kRows = Blocks<T>::kRows, kStride = Blocks<T>::kStride;
  constexpr int kDepthUnit = Blocks<T>::kDepthUnit;
  constexpr int kWidth = kPanelColumns<Sum>;
  constexpr int kBlock = kRows * kWidth;
  constexpr bool kIsHalf = std::is_same_v<T, BFloat16>;
  if (rows == 0 || total_columns == 0) {
    workers.ForEach(last.count, last.run);
    return;
  }
  const int64_t panels = CeilDiv(total_columns, kWidth);
  const int64_t groups = CeilDiv(rows, kRows);
  const Partition partition(groups, Blocks<T>::kGroups, total_columns, kWidth,
                            workers.num_threads());
  const int64_t tasks = partition.row_tiles * partition.column_tiles;
  workers.ForEach(tasks + last.count, [&](int64_t task) {
    if (task >= tasks) return last.run(task - tasks);
    const int64_t row_tile = task / partition.column_tiles;
    const int64_t column_tile = task % partition.column_tiles;
    const int64_t first_row = groups * row_tile / partition.row_tiles * kRows;
    const int64_t last_row =
        std::min(rows, groups * (row_tile + 1) / partition.row_tiles * kRows);
    const int64_t first_panel = panels * column_tile / partition.column_tiles;
    const int64_t last_panel = panels * (column_tile + 1) / partition.column_tiles;
    const int64_t num_rows = last_row - first_row;
    const int64_t num_groups = CeilDiv(num_rows, kRows);
    const auto num_columns = [&](int64_t panel) {
      return std::min<int64_t>(kWidth, total_columns - panel * kWidth);
    };
    static thread_local Buffer<T> tile_buffer;
    static thread_local Buffer<Sum> sums_buffer;
    T* const tile = tile_buffer.Reserve(Blocks<T>::kGroups * kRows * kStride);
    Sum* const sums =
        sums_buffer.Reserve(num_groups * (last_panel - first_panel) * kBlock);
    std::optional<TileConfiguration> tiles;
    const bool has_tiles =
        ((products.matrix.instructions() == Instructions::kTiles) || ...);
    if (kIsHalf && has_tiles) tiles.emplace();
    bool accumulate = false;
    const auto multiply = [&](const auto& product) {
      const PackedMatrix<T>& matrix = product.matrix;
      const int64_t depth = matrix.depth();
      const int64_t steps = std::max<int64_t>(1, CeilDiv(depth, Blocks<T>::kDepth));
      constexpr int kStepUnit = std::max(16, kDepthUnit);
      const int64_t step = CeilDiv(CeilDiv(depth, steps), kStepUnit) * kStepUnit;
      for (int64_t k = 0, s = 0; s < steps; ++s, k += step) {
        const int64_t count = std::max<int64_t>(0, std::min(step, depth - k));
        const int64_t padded = CeilDiv(count, kDepthUnit) * kDepthUnit;
        for (int64_t r = 0; r < num_rows; ++r) {
          T* const to = tile + r * kStride;
          product.gather(first_row + r, k, count, to);
          std::fill(to + count, to + padded, T(0));
        }
        Sum* block = sums;
        for (int64_t p = first_panel; p < last_panel; ++p) {
          for (int64_t r = 0; r < num_rows; r += kRows, block += kBlock) {
            const int n = static_cast<int>(std::min<int64_t>(kRows, num_rows - r));
            const int columns = static_cast<int>(num_columns(p));
            const T* const left = tile + r * kStride;
            const T* const panel = matrix.Panel(p, k);
            if constexpr (kIsHalf) {
              MultiplyHalfRows<kStride>(matrix.instructions(), n, columns, left, panel,
                                        padded, accumulate, block);
            } else {
              MultiplyRows<T, kStride, 1>(n, columns, left, panel, count, accumulate,
                                          block);
            }
          }
        }
        accumulate = true;
      }
    };
    (multiply(products), ...);
    // Row by row: results that are far apart in memory would compete for cache sets.
    // Blocks of a panel lie one after the other.
    for (int64_t r = 0; r < num_rows; ++r) {
      const Sum* from = sums + r * kWidth;
      for (int64_t p = first_panel; p < last_panel; ++p) {
        scatter(first_row + r, p * kWidth, num_columns(p), from);
        from += num_groups * kBlock;
      }
    }
  });
}

// The same of one product.
template <typename T, typename Gather, typename Scatter>
void GatherMultiplyScatter(int64_t rows, const PackedMatrix<T>& matrix,
                           const Gather& gather, const Scatter& scatter,
                           const Workers& workers, const Tasks& last = {}) {
  SumProducts(rows, matrix.columns(), scatter, workers, last,
              Product<T, Gather>{matrix, gather});
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GEMM_H_
