// Convolution at chosen outputs.
//
// Tensors are contiguous and row-major: images [batch, height, width, channels], of
// which a pixel's channels are a row; filters [height, width, in channels, out
// channels].

#ifndef CUSTOM_OPS_KERNELS_CONVOLUTION_H_
#define CUSTOM_OPS_KERNELS_CONVOLUTION_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "gemm.h"
#include "positions.h"
#include "vector.h"

namespace perforated {

// Asks for memory that is going to be read (or written, too): rows lie in pages of
// their own, where the processor does not guess what comes next.
template <bool kWrites = false, typename T>
inline void Prefetch(const T* from, int64_t count) {
  constexpr int kLine = 64 / static_cast<int>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, kWrites);
}

// How many rows ahead.
inline constexpr int kPrefetchRows = 2;

// Copies fewer than 2 * kSize elements: the first and the last kSize of them, which may
// overlap.
template <int kSize, typename T>
inline void CopyFew(const T* from, int64_t count, T* to) {
  if constexpr (kSize > 0) {
    if (count < kSize) return CopyFew<kSize / 2>(from, count, to);
    struct Piece {
      T values[kSize];
    } first, last;
    std::memcpy(&first, from, sizeof(Piece));
    std::memcpy(&last, from + count - kSize, sizeof(Piece));
    std::memcpy(to, &first, sizeof(Piece));
    std::memcpy(to + count - kSize, &last, sizeof(Piece));
  }
}

// Inline, because it is called for a few hundred bytes at a time.
template <typename T>
inline void Copy(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) Store(to + i, Load(from + i));
  CopyFew<kLanes<T> / 2>(from + i, count - i, to + i);
}

inline void Copy(const BFloat16* from, int64_t count, BFloat16* to) {
  constexpr int kStep = kVectorBytes / static_cast<int>(sizeof(BFloat16));
  int64_t i = 0;
  for (; i + kStep <= count; i += kStep) std::memcpy(to + i, from + i, kVectorBytes);
  for (; i < count; ++i) to[i] = from[i];
}

// v -> activation(scale * v + shift) per channel; a null pointer leaves its part out.
template <typename T>
struct Transform {
  const T* scale = nullptr;
  const T* shift = nullptr;
  T slope = T(1);  // of the activation max(v, slope * v)

  // `count` channels from `channel` on; from and to may be the same. The result may be
  // rounded to bfloat16.
  template <typename To>
  void Apply(const T* from, int64_t channel, int64_t count, To* to) const {
    if constexpr (std::is_same_v<T, To>) {
      if (scale == nullptr && shift == nullptr && slope == T(1)) {
        Copy(from, count, to);
        return;
      }
    }
    const T* scales = scale == nullptr ? nullptr : scale + channel;
    const T* shifts = shift == nullptr ? nullptr : shift + channel;
    int64_t i = 0;
    for (; i + kLanes<T> <= count; i += kLanes<T>) {
      Vector<T> v = Load(from + i);
      if (scales != nullptr) v *= Load(scales + i);
      if (shifts != nullptr) v += Load(shifts + i);
      Store(to + i, slope == T(1) ? v : Activate(v, slope));
    }
    for (; i < count; ++i) {
      T v = from[i];
      if (scales != nullptr) v *= scales[i];
      if (shifts != nullptr) v += shifts[i];
      to[i] = To(slope == T(1) ? v : Activate(v, slope));
    }
  }
  // The same; rows of bfloat16 are as they shall be multiplied.
  void Apply(const BFloat16* from, int64_t, int64_t count, BFloat16* to) const {
    Copy(from, count, to);
  }
};

// to[i] += from[i].
template <typename F, typename T>
inline void Add(const F* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    Store(to + i, Load(to + i) + Load(from + i));
  }
  for (; i < count; ++i) to[i] += T(from[i]);
}

// Copies elements [k, k + count) of the patch that a convolution multiplies at the
// index-th of some windows: taps in order, channels within. `row_of` maps what the
// windows call a row of the input to its row in `rows` (compact), or is null where they
// are the same. Rows of few channels, such as those of an image, are copied together
// where taps read one after the other.
template <typename T, typename Windows, typename Row, typename To>
inline void GatherPatch(const Geometry& g, const Windows& windows, const Row* rows,
                        const int64_t* row_of, const Transform<T>& transform,
                        int64_t index, int64_t k, int64_t count, To* to) {
  if (count == 0) return;
  int64_t tap = 0, channel = k;
  for (; channel >= g.channels; ++tap) channel -= g.channels;
  const bool is_narrow = g.channels < kLanes<float> && transform.scale == nullptr &&
                         transform.shift == nullptr;
  const auto row_at = [&](int64_t tap) {
    const int64_t input = windows.Input(index, tap);
    return input < 0 || row_of == nullptr ? input : row_of[input];
  };
  while (count > 0) {
    int64_t n = std::min(count, g.channels - channel);
    const int64_t row = row_at(tap);
    if (is_narrow && row >= 0) {
      for (int64_t next = row + 1; n < count && row_at(tap + 1) == next; ++next) {
        n += std::min(count - n, g.channels);
        ++tap;
      }
    }
    if (row < 0) {
      std::fill(to, to + n, To(0));
    } else {
      transform.Apply(rows + row * g.channels + channel, channel, n, to);
    }
    to += n;
    count -= n;
    channel = 0;
    ++tap;
  }
}

// Whether it is cheaper to multiply every input position with all taps at once, and to
// add up what falls on an output position, than to copy every position once per tap.
// Not of bfloat16, of which nothing has so few.
template <typename F>
bool FewFilters(const Geometry& g) {
  using Sum = typename Blocks<F>::Sum;
  return std::is_same_v<F, Sum> && g.taps() > 1 &&
         g.taps() * g.filters <= kPanelColumns<Sum>;
}

// Packs filters for `Convolve`: [depth, filters], or where there are few [taps *
// filters, channels].
template <typename F>
void PackFilters(const Geometry& g, const typename Blocks<F>::Sum* filters,
                 PackedMatrix<F>* packed) {
  if (FewFilters<F>(g)) {
    const int64_t filters_count = g.filters, channels = g.channels;
    packed->PackElements(g.taps() * filters_count, channels, [=](int64_t n, int64_t c) {
      const int64_t tap = n / filters_count;
      return filters[(tap * channels + c) * filters_count + n % filters_count];
    });
  } else {
    packed->Pack(g.depth(), g.filters, filters);
  }
}

// to[n] = the sum of the lanes of the n-th vector.
template <typename T, int kCount>
inline void StoreSums(const Vector<T> (&sums)[kCount], T* to) {
  constexpr int kNow = kCount < kLanes<T> ? kCount : kLanes<T>;
  Vector<T> some[kNow];
  for (int n = 0; n < kNow; ++n) some[n] = sums[n];
  T lanes[kLanes<T>];
  Store(lanes, SumLanes<T>(some));
  std::copy_n(lanes, kNow, to);
  if constexpr (kNow < kCount) {
    Vector<T> others[kCount - kNow];
    for (int n = kNow; n < kCount; ++n) others[n - kNow] = sums[n];
    StoreSums<T>(others, to + kNow);
  }
}

// products[r][n] = the product of kRows transformed rows and kColumns others, which are
// panels of kPanelColumns channels; `stride` leads from panel to panel.
template <int kColumns, int kRows, typename T>
void MultiplyFew(const T* const* rows, const Transform<T>& before, const T* panel,
                 int64_t stride, int64_t channels, T* const* products) {
  Vector<T> sums[kRows][kColumns] = {};
  T ends[3][kLanes<T>];
  for (int64_t c = 0; c < channels; c += kLanes<T>) {
    const bool is_whole = c + kLanes<T> <= channels;
    const auto load = [&](const T* from, int64_t end) {
      if (is_whole) return Load(from + c);
      for (int64_t i = 0; i < kLanes<T>; ++i) {
        ends[end][i] = c + i < channels ? from[c + i] : T(0);
      }
      return Load(ends[end]);
    };
    Vector<T> v[kRows];
    for (int r = 0; r < kRows; ++r) v[r] = load(rows[r], 0);
    if (before.scale != nullptr) {
      const Vector<T> scale = load(before.scale, 1);
      for (int r = 0; r < kRows; ++r) v[r] *= scale;
    }
    if (before.shift != nullptr) {
      const Vector<T> shift = load(before.shift, 2);
      for (int r = 0; r < kRows; ++r) v[r] += shift;
    }
    if (before.slope != T(1)) {
      for (int r = 0; r < kRows; ++r) v[r] = Activate(v[r], before.slope);
    }
    const T* weights = panel + c / kPanelColumns<T> * stride + c % kPanelColumns<T>;
#pragma GCC unroll 9
    for (int n = 0; n < kColumns; ++n) {
      const Vector<T> weight = Load(weights + n * kPanelColumns<T>);
      for (int r = 0; r < kRows; ++r) sums[r][n] += v[r] * weight;
    }
  }
  for (int r = 0; r < kRows; ++r) StoreSums<T>(sums[r], products[r]);
}

// The same of any number of columns and one or two rows.
template <typename T, int kColumns = 9>
void MultiplyFewColumns(int num_rows, int64_t columns, const T* const* rows,
                        const Transform<T>& before, const T* panel, int64_t stride,
                        int64_t channels, T* const* products) {
  if constexpr (kColumns > 1) {
    if (columns < kColumns) {
      return MultiplyFewColumns<T, kColumns - 1>(num_rows, columns, rows, before, panel,
                                                 stride, channels, products);
    }
  }
  T* next[2] = {products[0], products[num_rows - 1]};
  for (; columns >= kColumns; columns -= kColumns) {
    if (num_rows == 2) {
      MultiplyFew<kColumns, 2>(rows, before, panel, stride, channels, next);
    } else {
      MultiplyFew<kColumns, 1>(rows, before, panel, stride, channels, next);
    }
    for (T*& product : next) product += kColumns;
    panel += kColumns * kPanelColumns<T>;
  }
  if (columns > 0) {
    MultiplyFewColumns<T, kColumns>(num_rows, columns, rows, before, panel, stride,
                                    channels, next);
  }
}

// `ConvolveAt` where there are few filters. `touched` are the inputs that are read.
template <typename T, typename Windows, typename Inputs, typename Output>
void ConvolveFew(const Geometry& g, const Windows& windows, const T* rows,
                 const int64_t* row_of, const Transform<T>& before,
                 const PackedMatrix<T>& packed, const Transform<T>& after,
                 const Inputs& touched, const Output& output_row,
                 const Workers& workers, const Tasks& last) {
  constexpr int64_t kInputs = 64, kOutputs = 512;
  const int64_t num_windows = windows.size(), num_inputs = touched.size();
  const int64_t columns = packed.depth(), taps = g.taps(), filters = g.filters;
  const int64_t stride = columns * kPanelColumns<T>;
  T* const products = workers.NewArray<T>(num_inputs * columns);
  const int64_t chunks = CeilDiv(num_inputs, kInputs);
  workers.ForEach(chunks + last.count, [&](int64_t chunk) {
    if (chunk >= chunks) return last.run(chunk - chunks);
    const int64_t end = std::min(num_inputs, (chunk + 1) * kInputs);
    for (int64_t row = chunk * kInputs; row < end; row += 2) {
      const int count = static_cast<int>(std::min<int64_t>(2, end - row));
      const T* from[2];
      T* to[2];
      for (int i = 0; i < count; ++i) {
        const int64_t input = touched.Input(row + i);
        from[i] = rows + (row_of == nullptr ? input : row_of[input]) * g.channels;
        to[i] = products + (row + i) * columns;
      }
      MultiplyFewColumns(count, columns, from, before, packed.Panel(0, 0), stride,
                         g.channels, to);
    }
  });
  workers.ForEach(CeilDiv(num_windows, kOutputs), [&](int64_t chunk) {
    const int64_t end = std::min(num_windows, (chunk + 1) * kOutputs);
    for (int64_t r = chunk * kOutputs; r < end; ++r) {
      T* const to = output_row(r);
      const auto for_each_tap = [&](const auto& add) {
        for (int64_t tap = 0; tap < taps; ++tap) {
          const int64_t input = windows.Input(r, tap);
          const int64_t row = input < 0 ? -1 : touched.Row(input);
          if (row >= 0) add(products + row * columns + tap * filters);
        }
      };
      if (filters == 1) {  // a head's, which a register sums
        T sum = 0;
        for_each_tap([&](const T* product) { sum += *product; });
        *to = sum;
      } else {
        std::fill_n(to, filters, T(0));
        for_each_tap([&](const T* product) { Add(product, filters, to); });
      }
      after.Apply(to, 0, filters, to);
    }
  });
}

// Writes output rows output_row(r) [filters] for every r-th window, and does `last`
// besides. `find_touched` gives the inputs that they read, where that is needed.
// Factors are of type F, sums of type T; `rows` may be of either, and so may the
// output.
template <typename T, typename Windows, typename F, typename Row, typename FindTouched,
          typename Output>
void ConvolveAt(const Geometry& g, const Windows& windows, const Row* rows,
                const int64_t* row_of, const Transform<T>& before,
                const PackedMatrix<F>& packed, const Transform<T>& after,
                const FindTouched& find_touched, const Output& output_row,
                const Workers& workers, const Tasks& last = {}) {
  if constexpr (std::is_same_v<F, T>) {
    if (FewFilters<F>(g)) {
      ConvolveFew(g, windows, rows, row_of, before, packed, after, find_touched(),
                  output_row, workers, last);
      return;
    }
  }
  GatherMultiplyScatter<F>(
      windows.size(), packed,
      [&](int64_t row, int64_t k, int64_t count, F* to) {
        GatherPatch(g, windows, rows, row_of, before, row, k, count, to);
      },
      [&](int64_t row, int64_t column, int64_t count, const T* from) {
        after.Apply(from, column, count, output_row(row) + column);
      },
      workers, last);
}

// The same at positions. `known` is what the convolution reads at them, or null.
template <typename T, typename F, typename Row, typename Output>
void Convolve(const Geometry& g, const Row* rows, const int64_t* row_of,
              const Transform<T>& before, const PackedMatrix<F>& packed,
              const Transform<T>& after, const Positions& positions,
              const Touched* known, const Output& output_row, const Workers& workers,
              const Tasks& last = {}) {
  if (g.IsPointwise() && row_of == nullptr) {
    GatherMultiplyScatter<F>(
        positions.size(), packed,
        [&](int64_t row, int64_t k, int64_t count, F* to) {
          const int64_t next = std::min(row + kPrefetchRows, positions.size() - 1);
          Prefetch(rows + positions[next] * g.channels + k, count);
          before.Apply(rows + positions[row] * g.channels + k, k, count, to);
        },
        [&](int64_t row, int64_t column, int64_t count, const T* from) {
          after.Apply(from, column, count, output_row(row) + column);
        },
        workers, last);
    return;
  }
  ConvolveAt(
      g, Windows(g, positions), rows, row_of, before, packed, after,
      [&] { return TouchedInputs(g, positions, known); }, output_row, workers, last);
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_CONVOLUTION_H_
