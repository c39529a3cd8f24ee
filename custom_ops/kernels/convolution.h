// Convolution at chosen output positions.
//
// Tensors are contiguous and row-major: images [batch, height, width, channels],
// filters [height, width, in channels, out channels]. Positions are flat indices into
// [batch, out height, out width], ascending.

#ifndef CUSTOM_OPS_KERNELS_CONVOLUTION_H_
#define CUSTOM_OPS_KERNELS_CONVOLUTION_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "gemm.h"
#include "vector.h"

namespace perforated {

struct Geometry {
  int64_t batch, height, width, channels;  // input
  int64_t kernel_height, kernel_width;     // filters
  int64_t out_height, out_width, filters;  // output
  int64_t stride_y = 1, stride_x = 1;
  int64_t dilation_y = 1, dilation_x = 1;
  int64_t pad_top = 0, pad_left = 0;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t depth() const { return taps() * channels; }
  int64_t num_inputs() const { return batch * height * width; }
  int64_t num_outputs() const { return batch * out_height * out_width; }
  // Whether every output reads the input at its own position and no other.
  bool IsPointwise() const {
    return kernel_height == 1 && kernel_width == 1 && stride_y == 1 && stride_x == 1 &&
           pad_top == 0 && pad_left == 0 && out_height == height && out_width == width;
  }
  // Whether it is 3x3 and keeps size, as in residual units and halting heads.
  bool IsSame3x3() const {
    return kernel_height == 3 && kernel_width == 3 && stride_y == 1 && stride_x == 1 &&
           dilation_y == 1 && dilation_x == 1 && pad_top == 1 && pad_left == 1 &&
           out_height == height && out_width == width;
  }
};

// Some positions, ascending. Owns nothing.
class Positions {
 public:
  Positions() = default;
  Positions(const int64_t* data, int64_t size) : data_(data), size_(size) {}
  Positions(const std::vector<int64_t>& positions)
      : Positions(positions.data(), static_cast<int64_t>(positions.size())) {}

  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + size_; }
  int64_t operator[](int64_t index) const { return data_[index]; }

 private:
  const int64_t* data_ = nullptr;
  int64_t size_ = 0;
};

// Where the windows of some output positions lie in the input. Positions ascend, so no
// division is needed to find their coordinates.
class Windows {
 public:
  Windows(const Geometry& g, const Positions& positions)
      : height_(g.height), width_(g.width) {
    for (int64_t y = 0; y < g.kernel_height; ++y) {
      for (int64_t x = 0; x < g.kernel_width; ++x) {
        taps_.push_back({y * g.dilation_y, x * g.dilation_x});
      }
    }
    corners_.reserve(positions.size());
    int64_t image = 0, y = 0, row_end = g.out_width;
    for (const int64_t position : positions) {
      while (position >= row_end) {
        row_end += g.out_width;
        if (++y == g.out_height) {
          y = 0;
          ++image;
        }
      }
      corners_.push_back(
          {image * g.height, y * g.stride_y - g.pad_top,
           (position - row_end + g.out_width) * g.stride_x - g.pad_left});
    }
  }
  // Flat input position of a tap of the index-th position, or -1 in the padding.
  int64_t Input(int64_t index, int64_t tap) const {
    const Corner& corner = corners_[index];
    const int64_t y = corner.y + taps_[tap].y;
    const int64_t x = corner.x + taps_[tap].x;
    const bool inside = static_cast<uint64_t>(y) < static_cast<uint64_t>(height_) &&
                        static_cast<uint64_t>(x) < static_cast<uint64_t>(width_);
    return inside ? (corner.first_row + y) * width_ + x : -1;
  }

 private:
  struct Tap {
    int64_t y, x;
  };
  struct Corner {
    int64_t first_row, y, x;  // the image's first row; the window's corner in the image
  };
  int64_t height_, width_;
  std::vector<Tap> taps_;
  std::vector<Corner> corners_;
};

// A mask's bytes, each 0 or 1.
inline const uint8_t* Bytes(const bool* mask) {
  return reinterpret_cast<const uint8_t*>(mask);
}

// Lists the `count` set bytes of a mask, as flat indices from `first` on. Does not
// branch on them, because nothing can guess them.
inline void ListSet(const uint8_t* mask, int64_t count, int64_t first, int64_t* to) {
  for (int64_t i = 0, n = 0; n < count; ++i) {
    to[n] = first + i;
    n += mask[i];
  }
}

// Flat indices of the set elements of a mask; of one image's mask, in every image.
inline std::vector<int64_t> ActivePositions(const bool* mask, int64_t size,
                                            int64_t copies = 1) {
  const int64_t count = std::count(mask, mask + size, true);
  std::vector<int64_t> positions(count * copies);
  for (int64_t copy = 0; copy < copies; ++copy) {
    ListSet(Bytes(mask), count, copy * size, positions.data() + copy * count);
  }
  return positions;
}

// The input positions that a convolution reads at some output positions, and the way
// back: row_of[input position] is its index among them, or -1.
struct Touched {
  Positions inputs;
  const int64_t* row_of = nullptr;
};

// Which inputs [batch, height, width] a convolution reads at a mask of its outputs.
class TouchedMask {
 public:
  TouchedMask(const Geometry& g, const uint8_t* active) : touched_(g.num_inputs()) {
    // First spread along the rows of the output, then along its columns.
    const int64_t num_rows = g.batch * g.out_height;
    std::vector<uint8_t> rows(num_rows * g.width);
    for (int64_t row = 0; row < num_rows; ++row) {
      Spread(g.kernel_width, g.stride_x, g.dilation_x, g.pad_left, g.out_width, g.width,
             1, active + row * g.out_width, rows.data() + row * g.width);
    }
    for (int64_t image = 0; image < g.batch; ++image) {
      Spread(g.kernel_height, g.stride_y, g.dilation_y, g.pad_top, g.out_height,
             g.height, g.width, rows.data() + image * g.out_height * g.width,
             touched_.data() + image * g.height * g.width);
    }
    count_ = std::count(touched_.begin(), touched_.end(), 1);
  }
  int64_t count() const { return count_; }
  // Writes what `Touched` refers to: [count] and [number of inputs].
  void List(int64_t* inputs, int64_t* row_of) const {
    ListSet(touched_.data(), count_, 0, inputs);
    std::fill_n(row_of, touched_.size(), -1);
    for (int64_t row = 0; row < count_; ++row) row_of[inputs[row]] = row;
  }

 private:
  // Sets what a one-dimensional window reads; elements are `width` bytes wide.
  static void Spread(int64_t kernel, int64_t stride, int64_t dilation, int64_t pad,
                     int64_t out_size, int64_t in_size, int64_t width,
                     const uint8_t* from, uint8_t* to) {
    for (int64_t tap = 0; tap < kernel; ++tap) {
      const int64_t offset = tap * dilation - pad;
      const int64_t first = offset >= 0 ? 0 : CeilDiv(-offset, stride);
      const int64_t last =
          in_size <= offset ? 0 : std::min(out_size, CeilDiv(in_size - offset, stride));
      if (stride == 1) {
        for (int64_t i = first * width; i < last * width; ++i) {
          to[i + offset * width] |= from[i];
        }
        continue;
      }
      for (int64_t i = first; i < last; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          to[(i * stride + offset) * width + j] |= from[i * width + j];
        }
      }
    }
  }
  std::vector<uint8_t> touched_;
  int64_t count_;
};

// What a convolution reads at some positions: as it is known already, or found now.
class TouchedInputs : public Touched {
 public:
  TouchedInputs(const Geometry& g, const Positions& positions, const Touched* known) {
    if (known != nullptr) {
      Touched::operator=(*known);
      return;
    }
    std::vector<uint8_t> active(g.num_outputs());
    for (const int64_t position : positions) active[position] = 1;
    const TouchedMask mask(g, active.data());
    inputs_.resize(mask.count());
    row_of_.resize(g.num_inputs());
    mask.List(inputs_.data(), row_of_.data());
    inputs = inputs_;
    row_of = row_of_.data();
  }
  TouchedInputs(const TouchedInputs&) = delete;
  TouchedInputs& operator=(const TouchedInputs&) = delete;

 private:
  std::vector<int64_t> inputs_, row_of_;
};

// Asks for memory that is going to be read (or written, too): rows lie in pages of
// their own, where the processor does not guess what comes next.
template <bool kWrites = false, typename T>
inline void Prefetch(const T* from, int64_t count) {
  constexpr int kLine = 64 / static_cast<int>(sizeof(T));
  for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, kWrites);
}

// How many rows ahead.
inline constexpr int kPrefetchRows = 2;

// Inline, because it is called for a few hundred bytes at a time.
template <typename T>
inline void Copy(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) Store(to + i, Load(from + i));
  for (; i < count; ++i) to[i] = from[i];
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
// index-th of some output positions: taps in order, channels within. `row_of` maps an
// input position to its row in `rows` (compact), or is null where they are the same.
template <typename T, typename Row, typename To>
inline void GatherPatch(const Geometry& g, const Windows& windows, const Row* rows,
                        const int64_t* row_of, const Transform<T>& transform,
                        int64_t index, int64_t k, int64_t count, To* to) {
  if (count == 0) return;
  int64_t tap = 0, channel = k;
  for (; channel >= g.channels; ++tap) channel -= g.channels;
  while (count > 0) {
    const int64_t n = std::min(count, g.channels - channel);
    const int64_t input = windows.Input(index, tap);
    const int64_t row = input < 0 || row_of == nullptr ? input : row_of[input];
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
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kColumns; ++n) {
      T lanes[kLanes<T>];
      Store(lanes, sums[r][n]);
      for (int half = kLanes<T> / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      products[r][n] = lanes[0];
    }
  }
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

// `Convolve` where there are few filters.
template <typename T, typename Output>
void ConvolveFew(const Geometry& g, const T* rows, const int64_t* row_of,
                 const Transform<T>& before, const PackedMatrix<T>& packed,
                 const Transform<T>& after, const Positions& positions,
                 const Touched* known, const Output& output_row, const Workers& workers,
                 const Tasks& last) {
  constexpr int64_t kInputs = 64, kOutputs = 512;
  const int64_t num_positions = positions.size();
  const Windows windows(g, positions);
  const TouchedInputs touched(g, positions, known);
  const int64_t num_inputs = touched.inputs.size();
  const int64_t columns = packed.depth();
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
        const int64_t input = touched.inputs[row + i];
        from[i] = rows + (row_of == nullptr ? input : row_of[input]) * g.channels;
        to[i] = products + (row + i) * columns;
      }
      MultiplyFewColumns(count, columns, from, before, packed.Panel(0, 0), stride,
                         g.channels, to);
    }
  });
  workers.ForEach(CeilDiv(num_positions, kOutputs), [&](int64_t chunk) {
    const int64_t end = std::min(num_positions, (chunk + 1) * kOutputs);
    for (int64_t r = chunk * kOutputs; r < end; ++r) {
      T* to = output_row(r);
      std::fill(to, to + g.filters, T(0));
      for (int64_t tap = 0; tap < g.taps(); ++tap) {
        const int64_t input = windows.Input(r, tap);
        const int64_t row = input < 0 ? -1 : touched.row_of[input];
        if (row < 0) continue;
        const T* product = products + row * columns + tap * g.filters;
        for (int64_t f = 0; f < g.filters; ++f) to[f] += product[f];
      }
      after.Apply(to, 0, g.filters, to);
    }
  });
}

// Writes output rows output_row(r) [filters] for every r-th active position, and does
// `last` besides. `known` is what the convolution reads at them, or null. Factors are
// of type F, sums of type T; `rows` may be of either, and so may the output.
template <typename T, typename F, typename Row, typename Output>
void Convolve(const Geometry& g, const Row* rows, const int64_t* row_of,
              const Transform<T>& before, const PackedMatrix<F>& packed,
              const Transform<T>& after, const Positions& positions,
              const Touched* known, const Output& output_row, const Workers& workers,
              const Tasks& last = {}) {
  if constexpr (std::is_same_v<F, T>) {
    if (FewFilters<F>(g)) {
      ConvolveFew(g, rows, row_of, before, packed, after, positions, known, output_row,
                  workers, last);
      return;
    }
  }
  const auto scatter = [&](int64_t row, int64_t column, int64_t count, const T* from) {
    after.Apply(from, column, count, output_row(row) + column);
  };
  if (g.IsPointwise() && row_of == nullptr) {
    GatherMultiplyScatter<F>(
        positions.size(), packed,
        [&](int64_t row, int64_t k, int64_t count, F* to) {
          const int64_t next = std::min(row + kPrefetchRows, positions.size() - 1);
          Prefetch(rows + positions[next] * g.channels + k, count);
          before.Apply(rows + positions[row] * g.channels + k, k, count, to);
        },
        scatter, workers, last);
    return;
  }
  const Windows windows(g, positions);
  GatherMultiplyScatter<F>(
      positions.size(), packed,
      [&](int64_t row, int64_t k, int64_t count, F* to) {
        GatherPatch(g, windows, rows, row_of, before, row, k, count, to);
      },
      scatter, workers, last);
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_CONVOLUTION_H_
