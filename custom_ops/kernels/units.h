// Whole pre-activation residual units at chosen positions.
//
// Every stage keeps only the rows it computes. The unit's output y begins as its
// shortcut; the last stage adds the residual to it. y may be the input itself: the
// first stage has read all it needs before the last one writes. Factors may be bfloat16:
// then rows between the stages are, and x, y and all sums stay float.

#ifndef CUSTOM_OPS_KERNELS_UNITS_H_
#define CUSTOM_OPS_KERNELS_UNITS_H_

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "convolution.h"

namespace perforated {

// A convolution by its packed filters, and what follows it.
template <typename F>
struct Stage {
  const PackedMatrix<F>* filters;
  Transform<typename Blocks<F>::Sum> after;
};

// The geometry of a 1x1 convolution over all of another's input.
inline Geometry Pointwise(const Geometry& g, int64_t channels, int64_t filters) {
  Geometry p = g;
  p.channels = channels;
  p.filters = filters;
  p.kernel_height = p.kernel_width = 1;
  p.stride_y = p.stride_x = p.dilation_y = p.dilation_x = 1;
  p.pad_top = p.pad_left = 0;
  p.out_height = g.height;
  p.out_width = g.width;
  return p;
}

// How many factors it takes to keep all digits of a sum, the largest part first.
template <typename F>
inline constexpr int kParts = 1;
template <>
inline constexpr int kParts<BFloat16> = 3;

// Where the rows of every image begin among some positions, and at last their number.
inline std::vector<int64_t> FirstRows(const Positions& positions, int64_t batch,
                                      int64_t image_size) {
  std::vector<int64_t> first(batch + 1);
  for (int64_t image = 0; image <= batch; ++image) {
    first[image] =
        std::lower_bound(positions.begin(), positions.end(), image * image_size) -
        positions.begin();
  }
  return first;
}

// The sum of every image's rows as rows of a product, kParts of each image: that the
// product of a sum is the sum of products costs a few rows instead of a pass over
// results. The order of additions depends on nothing but the sizes.
template <typename F>
class Totals {
 public:
  using T = typename Blocks<F>::Sum;
  // Args: where rows of images begin; read(row, buffer) returns a row, there or in
  // memory of its own.
  template <typename Read>
  Totals(const std::vector<int64_t>& first, int64_t depth, const Read& read,
         const Workers& workers)
      : depth_(depth) {
    constexpr int64_t kChunk = 256;
    const int64_t batch = static_cast<int64_t>(first.size()) - 1;
    struct Chunk {
      int64_t image, begin, end;
    };
    std::vector<Chunk> chunks;
    for (int64_t image = 0; image < batch; ++image) {
      for (int64_t row = first[image]; row < first[image + 1]; row += kChunk) {
        chunks.push_back({image, row, std::min(row + kChunk, first[image + 1])});
      }
    }
    const int64_t count = static_cast<int64_t>(chunks.size());
    std::vector<T> partial(count * depth), totals(batch * depth);
    workers.ForEach(count, [&](int64_t c) {
      static thread_local Buffer<F> buffer;
      F* const memory = buffer.Reserve(depth);
      for (int64_t row = chunks[c].begin; row < chunks[c].end; ++row) {
        Add(read(row, memory), depth, partial.data() + c * depth);
      }
    });
    for (int64_t c = 0; c < count; ++c) {
      Add(partial.data() + c * depth, depth, totals.data() + chunks[c].image * depth);
    }
    parts_.resize(kParts<F> * batch * depth);
    for (int64_t part = 0; part < kParts<F>; ++part) {
      for (int64_t i = 0; i < batch * depth; ++i) {
        const F rounded(totals[i]);
        parts_[part * batch * depth + i] = rounded;
        totals[i] -= T(rounded);
      }
    }
  }
  const F* row(int64_t index) const { return parts_.data() + index * depth_; }

 private:
  int64_t depth_;
  std::vector<F> parts_;
};

// sums[image] += the products of its parts + its number of rows * both shifts.
template <typename F, typename T>
void AddProducts(const std::vector<T>& products, const std::vector<int64_t>& first,
                 int64_t channels, const T* shift, const T* other_shift, T* sums) {
  const int64_t batch = static_cast<int64_t>(first.size()) - 1;
  for (int64_t row = 0; row < batch * kParts<F>; ++row) {
    Add(products.data() + row * channels, channels, sums + row % batch * channels);
  }
  for (int64_t image = 0; image < batch; ++image) {
    const T count = T(first[image + 1] - first[image]);
    T* const to = sums + image * channels;
    for (const T* add : {shift, other_shift}) {
      if (add == nullptr) continue;
      for (int64_t c = 0; c < channels; ++c) to[c] += add[c] * count;
    }
  }
}

// y[position] += rows * filters + shift. With `sums` [batch, channels of y] also adds
// to it the residuals of every image.
template <typename F, typename T>
void AddResidual(const Stage<F>& stage, const F* rows, const Positions& positions,
                 int64_t image_size, int64_t batch, T* y, T* sums,
                 const Workers& workers) {
  const int64_t depth = stage.filters->depth();
  const int64_t channels = stage.filters->columns();
  const int64_t num_rows = positions.size();
  const T* shift = stage.after.shift;
  const auto first = FirstRows(positions, sums == nullptr ? 0 : batch, image_size);
  const Totals<F> totals(
      first, depth, [&](int64_t row, F*) { return rows + row * depth; }, workers);
  const int64_t num_totals = sums == nullptr ? 0 : batch * kParts<F>;
  std::vector<T> products(num_totals * channels);
  GatherMultiplyScatter<F>(
      num_rows + num_totals, *stage.filters,
      [&](int64_t row, int64_t k, int64_t count, F* to) {
        const F* from = row < num_rows ? rows + row * depth : totals.row(row - num_rows);
        Copy(from + k, count, to);
      },
      [&](int64_t row, int64_t column, int64_t count, const T* from) {
        if (row >= num_rows) {
          Copy(from, count, products.data() + (row - num_rows) * channels + column);
          return;
        }
        const int64_t next = std::min(row + kPrefetchRows, num_rows - 1);
        Prefetch<true>(y + positions[next] * channels + column, count);
        T* to = y + positions[row] * channels + column;
        int64_t i = 0;
        for (; i + kLanes<T> <= count; i += kLanes<T>) {
          Vector<T> v = Load(from + i);
          if (shift != nullptr) v += Load(shift + column + i);
          Store(to + i, Load(to + i) + v);
        }
        for (; i < count; ++i) {
          T v = from[i];
          if (shift != nullptr) v += shift[column + i];
          to[i] += v;
        }
      },
      workers);
  if (sums != nullptr) {
    AddProducts<F>(products, first, channels, shift, static_cast<const T*>(nullptr),
                   sums);
  }
}

// The first two stages of a bottleneck: what the third multiplies at some positions.
template <typename T, typename F>
F* BottleneckRows(const Geometry& middle, int64_t channels, const T* x,
                  const Transform<T>& preactivation, const Stage<F> (&stages)[3],
                  const Positions& positions, const Touched* known,
                  const Workers& workers) {
  const TouchedInputs touched(middle, positions, known);
  F* const first = workers.NewArray<F>(touched.inputs.size() * middle.channels);
  F* const second = workers.NewArray<F>(positions.size() * middle.filters);
  Convolve(
      Pointwise(middle, channels, middle.channels), x, nullptr, preactivation,
      *stages[0].filters, stages[0].after, touched.inputs, nullptr,
      [&](int64_t r) { return first + r * middle.channels; }, workers);
  Convolve(
      middle, first, touched.row_of, Transform<T>{}, *stages[1].filters,
      stages[1].after, positions, &touched,
      [&](int64_t r) { return second + r * middle.filters; }, workers);
  return second;
}

// 1x1, 3x3, 1x1 (ImageNet). `middle` is the geometry of the 3x3 convolution; the first
// runs wherever the second reads, which `known` tells, or null.
template <typename T, typename F>
void BottleneckUnit(const Geometry& middle, int64_t channels, const T* x,
                    const Transform<T>& preactivation, const Stage<F> (&stages)[3],
                    const Positions& positions, const Touched* known, T* y, T* sums,
                    const Workers& workers) {
  if (positions.empty()) return;
  const F* const rows = BottleneckRows(middle, channels, x, preactivation, stages,
                                       positions, known, workers);
  AddResidual(stages[2], rows, positions, middle.out_height * middle.out_width,
              middle.batch, y, sums, workers);
}

// The first unit of a block, at all positions: its shortcut is a strided 1x1
// convolution of the preactivation, which is one product more for the last stage to add
// up. Also sums y over positions.
template <typename T, typename F>
void ProjectionUnit(const Geometry& middle, int64_t channels, int64_t out_channels,
                    const T* x, const Transform<T>& preactivation,
                    const Stage<F> (&stages)[3], const Stage<F>& projection, T* y,
                    T* sums, const Workers& workers) {
  std::fill_n(sums, middle.batch * out_channels, T(0));
  std::vector<int64_t> positions(middle.num_outputs());
  std::iota(positions.begin(), positions.end(), 0);
  const int64_t num_rows = middle.num_outputs();
  if (num_rows == 0) return;
  const F* const rows = BottleneckRows(middle, channels, x, preactivation, stages,
                                       positions, nullptr, workers);
  const int64_t depth = middle.filters;
  Geometry shortcut = Pointwise(middle, channels, out_channels);
  shortcut.stride_y = middle.stride_y;
  shortcut.stride_x = middle.stride_x;
  shortcut.out_height = middle.out_height;
  shortcut.out_width = middle.out_width;
  const Windows windows(shortcut, positions);
  const auto read = [&](int64_t row, int64_t k, int64_t count, F* to) {
    preactivation.Apply(x + windows.Input(row, 0) * channels + k, k, count, to);
  };
  const auto first =
      FirstRows(positions, middle.batch, middle.out_height * middle.out_width);
  const Totals<F> totals(
      first, depth, [&](int64_t row, F*) { return rows + row * depth; }, workers);
  const Totals<F> shortcut_totals(
      first, channels,
      [&](int64_t row, F* buffer) {
        read(row, 0, channels, buffer);
        return buffer;
      },
      workers);
  const auto residual = [&](int64_t row, int64_t k, int64_t count, F* to) {
    const F* from = row < num_rows ? rows + row * depth : totals.row(row - num_rows);
    Copy(from + k, count, to);
  };
  const auto projected = [&](int64_t row, int64_t k, int64_t count, F* to) {
    if (row < num_rows) return read(row, k, count, to);
    Copy(shortcut_totals.row(row - num_rows) + k, count, to);
  };
  const T* const shift = stages[2].after.shift;
  const T* const other_shift = projection.after.shift;
  const int64_t num_totals = middle.batch * kParts<F>;
  std::vector<T> products(num_totals * out_channels);
  SumProducts(
      num_rows + num_totals, out_channels,
      [&](int64_t row, int64_t column, int64_t count, const T* from) {
        if (row >= num_rows) {
          Copy(from, count, products.data() + (row - num_rows) * out_channels + column);
          return;
        }
        T* const to = y + row * out_channels + column;
        Transform<T>{nullptr, shift, T(1)}.Apply(from, column, count, to);
        if (other_shift != nullptr) Add(other_shift + column, count, to);
      },
      workers, Tasks{}, Product<F, decltype(residual)>{*stages[2].filters, residual},
      Product<F, decltype(projected)>{*projection.filters, projected});
  AddProducts<F>(products, first, out_channels, shift, other_shift, sums);
}

// Two 3x3 convolutions (CIFAR), `first` and `second`. `known` is what the second reads,
// or null. With `sums` also adds to it the residuals of every image.
template <typename T, typename F>
void BasicUnit(const Geometry& first, const Geometry& second, const T* x,
               const Transform<T>& preactivation, const Stage<F> (&stages)[2],
               const Positions& positions, const Touched* known, T* y, T* sums,
               const Workers& workers) {
  constexpr int64_t kChunk = 64;
  if (positions.empty()) return;
  const int64_t channels = second.filters, count = positions.size();
  const TouchedInputs touched(second, positions, known);
  F* const inner = workers.NewArray<F>(touched.inputs.size() * first.filters);
  T* const residual = workers.NewArray<T>(count * channels);
  Convolve(
      first, x, nullptr, preactivation, *stages[0].filters, stages[0].after,
      touched.inputs, nullptr, [&](int64_t r) { return inner + r * first.filters; },
      workers);
  Convolve(
      second, inner, touched.row_of, Transform<T>{}, *stages[1].filters,
      stages[1].after, positions, &touched,
      [&](int64_t r) { return residual + r * channels; }, workers);
  workers.ForEach(CeilDiv(count, kChunk), [&](int64_t chunk) {
    const int64_t end = std::min(count, (chunk + 1) * kChunk);
    for (int64_t r = chunk * kChunk; r < end; ++r) {
      Add(residual + r * channels, channels, y + positions[r] * channels);
    }
  });
  if (sums == nullptr) return;
  const auto rows =
      FirstRows(positions, second.batch, second.out_height * second.out_width);
  const Totals<T> totals(
      rows, channels, [&](int64_t row, T*) { return residual + row * channels; },
      workers);
  for (int64_t image = 0; image < second.batch; ++image) {
    Add(totals.row(image), channels, sums + image * channels);
  }
}

// Flat indices of the weights that are not zero.
inline std::vector<int64_t> NonZero(const float* weight, int64_t size) {
  std::vector<int64_t> positions;
  for (int64_t p = 0; p < size; ++p) {
    if (weight[p] != 0.0f) positions.push_back(p);
  }
  return positions;
}

// to (+)= weight * from.
template <typename T>
inline void AddWeighted(const T* from, T weight, int64_t count, bool adds, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    const Vector<T> v = Load(from + i) * weight;
    Store(to + i, adds ? Load(to + i) + v : v);
  }
  for (; i < count; ++i) to[i] = (adds ? to[i] : T(0)) + from[i] * weight;
}

// y[p] += weight[p] * x[p] at some positions.
template <typename T>
void Accumulate(const T* x, const float* weight, const Positions& positions,
                int64_t channels, T* y, const Workers& workers) {
  constexpr int64_t kChunk = 64;
  const int64_t count = positions.size();
  workers.ForEach(CeilDiv(count, kChunk), [&](int64_t chunk) {
    const int64_t last = std::min(count, (chunk + 1) * kChunk);
    for (int64_t r = chunk * kChunk; r < last; ++r) {
      const int64_t p = positions[r];
      AddWeighted(x + p * channels, static_cast<T>(weight[p]), channels, true,
                  y + p * channels);
    }
  });
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_UNITS_H_
