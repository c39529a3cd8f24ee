// The innermost loops of products of bfloat16 that are summed in float.
//
// Three of them, of which the processor and the compiler decide: matrix tiles (AMX),
// products of pairs (AVX512_BF16), and plain float arithmetic, which is right
// everywhere. All read the same panels: [pairs of depth, kPanelColumns, 2].

#ifndef CUSTOM_OPS_KERNELS_MULTIPLY_BFLOAT16_H_
#define CUSTOM_OPS_KERNELS_MULTIPLY_BFLOAT16_H_

#include <cstdint>
#include <cstring>

#include "bfloat16.h"
#include "vector.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__linux__)
#define CUSTOM_OPS_HAS_TILES 1
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#define CUSTOM_OPS_HAS_PAIRS 1
#endif

namespace perforated {

enum class Instructions { kPlain, kPairs, kTiles };

// Whether they are compiled in, and this process may use them.
inline bool Has(Instructions instructions) {
  switch (instructions) {
    case Instructions::kPlain:
      return true;
    case Instructions::kPairs:
#ifdef CUSTOM_OPS_HAS_PAIRS
      return true;
#else
      return false;
#endif
    case Instructions::kTiles:
#ifdef CUSTOM_OPS_HAS_TILES
    {
      // The system keeps tiles for those who have asked for them.
      constexpr int kRequestPermission = 0x1023, kTileData = 18;
      static const bool may =
          syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
      return may;
    }
#else
      return false;
#endif
  }
  return false;
}

inline Instructions BestInstructions() {
  static const Instructions best = Has(Instructions::kTiles)   ? Instructions::kTiles
                                   : Has(Instructions::kPairs) ? Instructions::kPairs
                                                               : Instructions::kPlain;
  return best;
}

// Rows of a block of sums, and the unit that depths are filled up to with zeros.
inline constexpr int kHalfBlockRows = 32;
inline constexpr int kHalfDepthUnit = 32;

// block [kRows, kPanelColumns] (+)= left [kRows, depth] * panel.
template <int kRows, int kVectors, int kRowStride>
void MultiplyPlain(const BFloat16* left, const BFloat16* panel, int64_t depth,
                   bool accumulate, float* block) {
  constexpr int kWidth = kPanelColumns<float>;
  Vector<float> sums[kRows][kVectors];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] =
          accumulate ? Load(block + r * kWidth + v * kLanes<float>) : Vector<float>{};
    }
  }
  for (int64_t k = 0; k < depth; k += 2) {
    Vector<float> first[kVectors], second[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      Vector<uint32_t> pairs;
      std::memcpy(&pairs, panel + v * 2 * kLanes<float>, sizeof(pairs));
      const Vector<uint32_t> low = pairs << 16, high = pairs & 0xffff0000u;
      std::memcpy(&first[v], &low, sizeof(low));
      std::memcpy(&second[v], &high, sizeof(high));
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const float a = static_cast<float>(left[r * kRowStride + k]);
      const float b = static_cast<float>(left[r * kRowStride + k + 1]);
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] += a * first[v];
        sums[r][v] += b * second[v];
      }
    }
    panel += 2 * kWidth;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      Store(block + r * kWidth + v * kLanes<float>, sums[r][v]);
    }
  }
}

#ifdef CUSTOM_OPS_HAS_PAIRS
template <int kRows, int kVectors, int kRowStride>
void MultiplyPairs(const BFloat16* left, const BFloat16* panel, int64_t depth,
                   bool accumulate, float* block) {
  constexpr int kWidth = kPanelColumns<float>;
  __m512 sums[kRows][kVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      sums[r][v] = accumulate ? _mm512_loadu_ps(block + r * kWidth + v * kLanes<float>)
                              : _mm512_setzero_ps();
    }
  }
  for (int64_t k = 0; k < depth; k += 2) {
    __m512bh right[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      std::memcpy(&right[v], panel + v * 2 * kLanes<float>, sizeof(right[v]));
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, left + r * kRowStride + k, sizeof(pair));
      const __m512i both = _mm512_set1_epi32(pair);
      __m512bh factor;
      std::memcpy(&factor, &both, sizeof(factor));
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) {
        sums[r][v] = _mm512_dpbf16_ps(sums[r][v], factor, right[v]);
      }
    }
    panel += 2 * kWidth;
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      _mm512_storeu_ps(block + r * kWidth + v * kLanes<float>, sums[r][v]);
    }
  }
}
#endif

// Rows at a time that these two loops have registers for.
inline constexpr int kPairRows = 12;
inline constexpr int kPlainRows = kVectorBytes == 64 ? 12 : 4;

// The same for any number of rows up to kRows, of which the block has room for all.
template <bool kPairs, int kRowStride, int kVectors, int kRows>
void MultiplyUpTo(int rows, const BFloat16* left, const BFloat16* panel, int64_t depth,
                  bool accumulate, float* block) {
  if constexpr (kRows > 4) {
    if (rows <= kRows - 4) {
      return MultiplyUpTo<kPairs, kRowStride, kVectors, kRows - 4>(
          rows, left, panel, depth, accumulate, block);
    }
  }
#ifdef CUSTOM_OPS_HAS_PAIRS
  if constexpr (kPairs) {
    return MultiplyPairs<kRows, kVectors, kRowStride>(left, panel, depth, accumulate,
                                                      block);
  }
#endif
  MultiplyPlain<kRows, kVectors, kRowStride>(left, panel, depth, accumulate, block);
}

template <bool kPairs, int kRowStride>
void MultiplyByVectors(int rows, int columns, const BFloat16* left,
                       const BFloat16* panel, int64_t depth, bool accumulate,
                       float* block) {
  constexpr int kStep = kPairs ? kPairRows : kPlainRows;
  for (int r = 0; r < rows; r += kStep) {
    const BFloat16* const from = left + r * kRowStride;
    float* const to = block + r * kPanelColumns<float>;
    if (columns > kLanes<float>) {
      MultiplyUpTo<kPairs, kRowStride, 2, kStep>(rows - r, from, panel, depth,
                                                 accumulate, to);
    } else {
      MultiplyUpTo<kPairs, kRowStride, 1, kStep>(rows - r, from, panel, depth,
                                                 accumulate, to);
    }
  }
}

#ifdef CUSTOM_OPS_HAS_TILES

// All tiles have 16 rows of 64 bytes while this is alive. The compiler knows nothing of
// what tile instructions read and write; hence the barriers.
class TileConfiguration {
 public:
  TileConfiguration() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    asm volatile("" ::"m"(config) : "memory");
    _tile_loadconfig(&config);
  }
  ~TileConfiguration() { _tile_release(); }
  TileConfiguration(const TileConfiguration&) = delete;
  TileConfiguration& operator=(const TileConfiguration&) = delete;
};

// One or two tiles of 16 rows times one or two of 16 columns.
template <bool kTwoRows, bool kTwoColumns, int kRowStride>
void MultiplyTiles(const BFloat16* left, const BFloat16* panel, int64_t depth,
                   bool accumulate, float* block) {
  constexpr int kWidth = kPanelColumns<float>;
  constexpr int kBlockStride = kWidth * sizeof(float);
  constexpr int kLeftStride = kRowStride * sizeof(BFloat16);
  constexpr int kPanelStride = 2 * kWidth * sizeof(BFloat16);
  float* const below = block + 16 * kWidth;
  asm volatile("" ::: "memory");
  if (accumulate) {
    _tile_loadd(0, block, kBlockStride);
    if (kTwoColumns) _tile_loadd(1, block + 16, kBlockStride);
    if (kTwoRows) _tile_loadd(2, below, kBlockStride);
    if (kTwoRows && kTwoColumns) _tile_loadd(3, below + 16, kBlockStride);
  } else {
    _tile_zero(0);
    if (kTwoColumns) _tile_zero(1);
    if (kTwoRows) _tile_zero(2);
    if (kTwoRows && kTwoColumns) _tile_zero(3);
  }
  for (int64_t k = 0; k < depth; k += 32) {
    const BFloat16* const pairs = panel + k * kWidth;
    _tile_loadd(6, pairs, kPanelStride);
    _tile_loadd(4, left + k, kLeftStride);
    _tile_dpbf16ps(0, 4, 6);
    if (kTwoRows) _tile_loadd(5, left + 16 * kRowStride + k, kLeftStride);
    if (kTwoRows) _tile_dpbf16ps(2, 5, 6);
    if (kTwoColumns) _tile_loadd(7, pairs + 32, kPanelStride);
    if (kTwoColumns) _tile_dpbf16ps(1, 4, 7);
    if (kTwoRows && kTwoColumns) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, block, kBlockStride);
  if (kTwoColumns) _tile_stored(1, block + 16, kBlockStride);
  if (kTwoRows) _tile_stored(2, below, kBlockStride);
  if (kTwoRows && kTwoColumns) _tile_stored(3, below + 16, kBlockStride);
  asm volatile("" ::: "memory");
}

template <int kRowStride>
void MultiplyByTiles(int rows, int columns, const BFloat16* left, const BFloat16* panel,
                     int64_t depth, bool accumulate, float* block) {
  static_assert(kPanelColumns<float> == 32 && kHalfBlockRows == 32);
  constexpr auto kOf = [](bool two_rows, bool two_columns) {
    if (two_rows) {
      return two_columns ? &MultiplyTiles<true, true, kRowStride>
                         : &MultiplyTiles<true, false, kRowStride>;
    }
    return two_columns ? &MultiplyTiles<false, true, kRowStride>
                       : &MultiplyTiles<false, false, kRowStride>;
  };
  kOf(rows > 16, columns > 16)(left, panel, depth, accumulate, block);
}

#else

class TileConfiguration {};

#endif  // CUSTOM_OPS_HAS_TILES

// A block of at most kHalfBlockRows rows by the instructions asked for, for which tiles
// must be configured. The block has room for all its rows.
template <int kRowStride>
void MultiplyHalfRows(Instructions instructions, int rows, int columns,
                      const BFloat16* left, const BFloat16* panel, int64_t depth,
                      bool accumulate, float* block) {
#ifdef CUSTOM_OPS_HAS_TILES
  if (instructions == Instructions::kTiles) {
    return MultiplyByTiles<kRowStride>(rows, columns, left, panel, depth, accumulate,
                                       block);
  }
#endif
  if (instructions == Instructions::kPairs) {
    return MultiplyByVectors<true, kRowStride>(rows, columns, left, panel, depth,
                                               accumulate, block);
  }
  MultiplyByVectors<false, kRowStride>(rows, columns, left, panel, depth, accumulate,
                                       block);
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_MULTIPLY_BFLOAT16_H_
