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

// Splits numbers into as many parts, the largest first, as it takes to keep all of
// their digits in factors of a product.
template <typename T>
inline constexpr int kParts = 1;
template <>
inline constexpr int kParts<BFloat16> = 3;

// y[position] += rows * filters + shift. With `sums` [batch, channels of y] also adds
// to it the residuals of every image: that sum is the same product of the summed rows,
// so it costs a few rows more instead of a pass over y.
template <typename F, typename T>
void AddResidual(const Stage<F>& stage, const F* rows, const Positions& positions,
                 int64_t image_size, int64_t batch, T* y, T* sums,
                 const Workers& workers) {
  const int64_t depth = stage.filters->depth();
  const int64_t channels = stage.filters->columns();
  const int64_t num_rows = positions.size();
  const int64_t num_totals = sums == nullptr ? 0 : batch * kParts<F>;
  const T* shift = stage.after.shift;
  std::vector<T> totals(sums == nullptr ? 0 : batch * depth);
  std::vector<int64_t> counts(sums == nullptr ? 0 : batch);
  std::vector<F> parts(num_totals * depth);
  std::vector<T> products(num_totals * channels);
  if (sums != nullptr) {
    for (int64_t r = 0; r < num_rows; ++r) {
      const int64_t image = positions[r] / image_size;
      Add(rows + r * depth, depth, totals.data() + image * depth);
      ++counts[image];
    }
    for (int64_t part = 0; part < kParts<F>; ++part) {
      for (int64_t i = 0; i < batch * depth; ++i) {
        const F rounded(totals[i]);
        parts[part * batch * depth + i] = rounded;
        totals[i] -= T(rounded);
      }
    }
  }
  GatherMultiplyScatter<F>(
      num_rows + num_totals, *stage.filters,
      [&](int64_t row, int64_t k, int64_t count, F* to) {
        const F* from = row < num_rows ? rows + row * depth
                                       : parts.data() + (row - num_rows) * depth;
        Copy(from + k, count, to);
      },
      [&](int64_t row, int64_t column, int64_t count, const T* from) {
        if (row >= num_rows) {
          Copy(from, count, products.data() + (row - num_rows) * channels + column);
          return;
        }
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
  for (int64_t row = 0; row < num_totals; ++row) {
    const int64_t image = row % batch;
    T* const to = sums + image * channels;
    Add(products.data() + row * channels, channels, to);
    if (shift == nullptr || row >= batch) continue;
    const T count = T(counts[image]);
    for (int64_t c = 0; c < channels; ++c) to[c] += shift[c] * count;
  }
}

// 1x1, 3x3, 1x1 (ImageNet). `middle` is the geometry of the 3x3 convolution; the first
// runs wherever the second reads, which `known` tells, or null.
template <typename T, typename F>
void BottleneckUnit(const Geometry& middle, int64_t channels, const T* x,
                    const Transform<T>& preactivation, const Stage<F> (&stages)[3],
                    const Positions& positions, const Touched* known, T* y, T* sums,
                    const Workers& workers) {
  if (positions.empty()) return;
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
  AddResidual(stages[2], second, positions, middle.out_height * middle.out_width,
              middle.batch, y, sums, workers);
}

// sums [batch, channels] = the sums of y over the positions of every image, in an order
// that depends on nothing but the sizes.
template <typename T>
void SumPositions(const T* y, int64_t batch, int64_t image_size, int64_t channels,
                  T* sums, const Workers& workers) {
  constexpr int64_t kChunk = 256;
  const int64_t chunks = CeilDiv(image_size, kChunk);
  T* const partial = workers.NewArray<T>(batch * chunks * channels);
  workers.ForEach(batch * chunks, [&](int64_t task) {
    const int64_t image = task / chunks, first = task % chunks * kChunk;
    const int64_t last = std::min(image_size, first + kChunk);
    T* to = partial + task * channels;
    std::fill_n(to, channels, T(0));
    for (int64_t p = first; p < last; ++p) {
      Add(y + (image * image_size + p) * channels, channels, to);
    }
  });
  std::fill_n(sums, batch * channels, T(0));
  for (int64_t task = 0; task < batch * chunks; ++task) {
    Add(partial + task * channels, channels, sums + task / chunks * channels);
  }
}

// The first unit of a block, at all positions: its shortcut is a strided 1x1
// convolution of the preactivation. Also sums y over positions.
template <typename T, typename F>
void ProjectionUnit(const Geometry& middle, int64_t channels, int64_t out_channels,
                    const T* x, const Transform<T>& preactivation,
                    const Stage<F> (&stages)[3], const Stage<F>& projection, T* y,
                    T* sums, const Workers& workers) {
  std::vector<int64_t> positions(middle.num_outputs());
  std::iota(positions.begin(), positions.end(), 0);
  Geometry shortcut = Pointwise(middle, channels, out_channels);
  shortcut.stride_y = middle.stride_y;
  shortcut.stride_x = middle.stride_x;
  shortcut.out_height = middle.out_height;
  shortcut.out_width = middle.out_width;
  Convolve(
      shortcut, x, nullptr, preactivation, *projection.filters, projection.after,
      positions, nullptr, [&](int64_t r) { return y + r * out_channels; }, workers);
  BottleneckUnit(middle, channels, x, preactivation, stages, positions, nullptr, y,
                 static_cast<T*>(nullptr), workers);
  SumPositions(y, middle.batch, middle.out_height * middle.out_width, out_channels,
               sums, workers);
}

// Two 3x3 convolutions (CIFAR), `first` and `second`. `known` is what the second reads,
// or null.
template <typename T, typename F>
void BasicUnit(const Geometry& first, const Geometry& second, const T* x,
               const Transform<T>& preactivation, const Stage<F> (&stages)[2],
               const Positions& positions, const Touched* known, T* y,
               const Workers& workers) {
  if (positions.empty()) return;
  const TouchedInputs touched(second, positions, known);
  F* const inner = workers.NewArray<F>(touched.inputs.size() * first.filters);
  T* const residual = workers.NewArray<T>(positions.size() * second.filters);
  Convolve(
      first, x, nullptr, preactivation, *stages[0].filters, stages[0].after,
      touched.inputs, nullptr, [&](int64_t r) { return inner + r * first.filters; },
      workers);
  Convolve(
      second, inner, touched.row_of, Transform<T>{}, *stages[1].filters,
      stages[1].after, positions, &touched,
      [&](int64_t r) { return residual + r * second.filters; }, workers);
  for (int64_t r = 0; r < positions.size(); ++r) {
    Add(residual + r * second.filters, second.filters,
        y + positions[r] * second.filters);
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

// y[p] += weight[p] * x[p] at some positions.
template <typename T>
void Accumulate(const T* x, const float* weight, const Positions& positions,
                int64_t channels, T* y, const Workers& workers) {
  constexpr int64_t kChunk = 64;
  const int64_t count = positions.size();
  workers.ForEach(CeilDiv(count, kChunk), [&](int64_t chunk) {
    const int64_t last = std::min(count, (chunk + 1) * kChunk);
    for (int64_t r = chunk * kChunk; r < last; ++r) {
      const T* from = x + positions[r] * channels;
      T* to = y + positions[r] * channels;
      const T w = static_cast<T>(weight[positions[r]]);
      int64_t i = 0;
      for (; i + kLanes<T> <= channels; i += kLanes<T>) {
        Store(to + i, Load(to + i) + Load(from + i) * w);
      }
      for (; i < channels; ++i) to[i] += from[i] * w;
    }
  });
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_UNITS_H_
