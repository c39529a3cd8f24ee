// Gradients of convolutions at chosen positions, and of chains of them: residual units
// and halting heads.
//
// Conventions are those of convolution.h. Additions happen in an order that depends on
// nothing but the sizes and the number of threads.

#ifndef CUSTOM_OPS_KERNELS_GRADIENTS_H_
#define CUSTOM_OPS_KERNELS_GRADIENTS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "convolution.h"

namespace perforated {

// Gathers what the outputs that read an input passed back to it: for every tap the
// gradient [filters] of the output that reads the input by this tap, or zeros.
class Readers {
 public:
  // Args: positions of the outputs that there are.
  Readers(const Geometry& g, const Positions& positions)
      : g_(g), row_of_(g.num_outputs(), -1) {
    for (int64_t r = 0; r < positions.size(); ++r) row_of_[positions[r]] = r;
  }
  // gradient_row(r) is the gradient of the r-th output.
  template <typename T, typename GradientRow>
  void Gather(int64_t input, const GradientRow& gradient_row, T* to) const {
    const int64_t x = input % g_.width, row = input / g_.width;
    const int64_t y = row % g_.height, image = row / g_.height;
    for (int64_t tap_y = 0; tap_y < g_.kernel_height; ++tap_y) {
      const int64_t out_y =
          Output(y + g_.pad_top - tap_y * g_.dilation_y, g_.stride_y, g_.out_height);
      for (int64_t tap_x = 0; tap_x < g_.kernel_width; ++tap_x, to += g_.filters) {
        const int64_t out_x =
            Output(x + g_.pad_left - tap_x * g_.dilation_x, g_.stride_x, g_.out_width);
        const int64_t r =
            out_y < 0 || out_x < 0
                ? -1
                : row_of_[(image * g_.out_height + out_y) * g_.out_width + out_x];
        if (r < 0) {
          std::fill_n(to, g_.filters, T(0));
        } else {
          std::copy_n(gradient_row(r), g_.filters, to);
        }
      }
    }
  }

 private:
  static int64_t Output(int64_t corner, int64_t stride, int64_t size) {
    if (corner < 0 || corner % stride != 0 || corner / stride >= size) return -1;
    return corner / stride;
  }
  const Geometry g_;
  std::vector<int64_t> row_of_;
};

// Gradients with respect to the inputs at `inputs`, which hold all that are read:
// scatter(row, channel, count, from) receives those of the row-th, each once.
//
// For few filters: what the outputs of an input pass back is less than its channels.
template <typename T, typename GradientRow, typename Scatter>
void InputGradientOfFew(const Geometry& g, const Positions& positions,
                        const GradientRow& gradient_row, const T* filters,
                        const Positions& inputs, const Scatter& scatter,
                        const Workers& workers) {
  const int64_t channels = g.channels, filters_count = g.filters;
  PackedMatrix<T> transposed;
  transposed.PackElements(g.taps() * g.filters, channels, [=](int64_t k, int64_t c) {
    const int64_t tap = k / filters_count;
    return filters[(tap * channels + c) * filters_count + k % filters_count];
  });
  const Readers readers(g, positions);
  GatherMultiplyScatter<T>(
      inputs.size(), transposed,
      [&](int64_t row, int64_t k, int64_t count, T* to) {
        if (k == 0 && count == g.taps() * g.filters) {
          readers.Gather(inputs[row], gradient_row, to);
          return;
        }
        std::vector<T> all(g.taps() * g.filters);
        readers.Gather(inputs[row], gradient_row, all.data());
        std::copy_n(all.data() + k, count, to);
      },
      scatter, workers);
}

// The same of a 1x1 convolution that keeps size; the r-th input is the r-th output.
template <typename T, typename GradientRow, typename Scatter>
void InputGradientOfPointwise(const Geometry& g, int64_t rows,
                              const GradientRow& gradient_row, const T* filters,
                              const Scatter& scatter, const Workers& workers) {
  const int64_t filters_count = g.filters;
  PackedMatrix<T> transposed;
  transposed.PackElements(g.filters, g.channels, [=](int64_t f, int64_t c) {
    return filters[c * filters_count + f];
  });
  GatherMultiplyScatter<T>(
      rows, transposed,
      [&](int64_t row, int64_t k, int64_t count, T* to) {
        Copy(gradient_row(row) + k, count, to);
      },
      scatter, workers);
}

// Gradient with respect to the input: adds dy * filters^T to `input_gradient`, which
// begins as zeros. Its rows are those of the input, or `row_of` maps them to rows.
// gradient_row(r) is the gradient of the r-th window's output. Tasks own images and
// ranges of channels, so no two write to the same place.
template <typename T, typename Windows, typename GradientRow>
void ConvolveInputGradientAt(const Geometry& g, const Windows& windows,
                             const GradientRow& gradient_row, const T* filters,
                             const int64_t* row_of, T* input_gradient,
                             const Workers& workers) {
  constexpr int kWidth = kPanelColumns<T>;
  if (windows.size() == 0 || g.channels == 0 || g.filters == 0) return;
  const int64_t chunks = CeilDiv(g.channels, kWidth);
  const int64_t steps = CeilDiv(g.filters, kMaxDepth);
  // Panel tap * chunks + c holds [filters, channels of chunk c].
  std::vector<PackedMatrix<T>> panels(g.taps() * chunks);
  workers.ForEach(static_cast<int64_t>(panels.size()), [&](int64_t p) {
    const int64_t tap = p / chunks, channel = p % chunks * kWidth;
    const T* from = filters + (tap * g.channels + channel) * g.filters;
    panels[p].PackElements(
        g.filters, std::min<int64_t>(kWidth, g.channels - channel),
        [=](int64_t f, int64_t c) { return from[c * g.filters + f]; });
  });
  const int64_t ranges = std::min<int64_t>(
      chunks, CeilDiv(2 * workers.num_threads(), std::max<int64_t>(1, g.batch)));
  workers.ForEach(g.batch * ranges, [&](int64_t task) {
    const int64_t image = task / ranges, range = task % ranges;
    static thread_local Buffer<T> tile_buffer;
    T* tile = tile_buffer.Reserve(kTileRows * kTileStride);
    alignas(64) T block[kBlockRows * kWidth];
    const int64_t end = windows.First(image + 1);
    for (int64_t row = windows.First(image); row < end; row += kTileRows) {
      const int64_t num_rows = std::min<int64_t>(kTileRows, end - row);
      for (int64_t s = 0; s < steps; ++s) {
        const int64_t k = s * kMaxDepth;
        const int64_t count = std::min<int64_t>(kMaxDepth, g.filters - k);
        for (int64_t r = 0; r < num_rows; ++r) {
          std::memcpy(tile + r * kTileStride, gradient_row(row + r) + k,
                      count * sizeof(T));
        }
        for (int64_t chunk = chunks * range / ranges;
             chunk < chunks * (range + 1) / ranges; ++chunk) {
          const int64_t channel = chunk * kWidth;
          const int columns =
              static_cast<int>(std::min<int64_t>(kWidth, g.channels - channel));
          for (int64_t tap = 0; tap < g.taps(); ++tap) {
            for (int64_t r = 0; r < num_rows; r += kBlockRows) {
              const int n =
                  static_cast<int>(std::min<int64_t>(kBlockRows, num_rows - r));
              MultiplyRows<T, kTileStride, 1>(n, columns, tile + r * kTileStride,
                                              panels[tap * chunks + chunk].Panel(0, k),
                                              count, false, block);
              for (int i = 0; i < n; ++i) {
                const int64_t input = windows.Input(row + r + i, tap);
                if (input < 0) continue;
                const int64_t to = row_of == nullptr ? input : row_of[input];
                Add(block + i * kWidth, columns,
                    input_gradient + to * g.channels + channel);
              }
            }
          }
        }
      }
    }
  });
}

// The same at positions.
template <typename T, typename GradientRow>
void ConvolveInputGradient(const Geometry& g, const GradientRow& gradient_row,
                           const T* filters, const Positions& positions,
                           const int64_t* row_of, T* input_gradient,
                           const Workers& workers) {
  ConvolveInputGradientAt(g, Windows(g, positions), gradient_row, filters, row_of,
                          input_gradient, workers);
}

// result [left_columns, right_columns] = left^T * right, over `rows` of both.
//
// left(row, k, count, to) writes elements [k, k + count) of a row, as does right. Tasks
// own ranges of left columns, or with `split_right` of right ones.
template <typename T, typename Left, typename Right>
void MultiplyTransposed(int64_t rows, int64_t left_columns, int64_t right_columns,
                        bool split_right, const Left& left, const Right& right,
                        T* result, const Workers& workers) {
  constexpr int kWidth = kPanelColumns<T>;
  constexpr int kBlock = kBlockRows * kWidth;
  std::fill_n(result, left_columns * right_columns, T(0));
  if (rows == 0 || left_columns == 0 || right_columns == 0) return;
  const int64_t threads = workers.num_threads();
  const int64_t units = split_right ? CeilDiv(right_columns, kWidth)
                                    : CeilDiv(left_columns, kBlockRows);
  const int64_t max_units = split_right ? 8 : kMaxDepth / kBlockRows;
  // As many tasks for each thread as for any other.
  const int64_t wanted = std::max(CeilDiv(units, max_units), 2 * threads);
  const int64_t tasks = std::min(units, CeilDiv(wanted, threads) * threads);
  workers.ForEach(tasks, [&](int64_t task) {
    const int64_t first = units * task / tasks, last = units * (task + 1) / tasks;
    const int64_t first_left = split_right ? 0 : first * kBlockRows;
    const int64_t last_left =
        split_right ? left_columns : std::min(left_columns, last * kBlockRows);
    const int64_t first_right = split_right ? first * kWidth : 0;
    const int64_t last_right =
        split_right ? std::min(right_columns, last * kWidth) : right_columns;
    const int64_t groups = CeilDiv(last_left - first_left, kBlockRows);
    const int64_t panels = CeilDiv(last_right - first_right, kWidth);
    static thread_local Buffer<T> tile_buffer, panel_buffer, row_buffer, sums_buffer;
    T* const tile = tile_buffer.Reserve(kTileRows * kTileStride);
    T* const packed = panel_buffer.Reserve(panels * kTileRows * kWidth);
    T* const one_row = row_buffer.Reserve(panels * kWidth);
    T* const sums = sums_buffer.Reserve(groups * panels * kBlock);
    std::fill_n(one_row, panels * kWidth, T(0));
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t num_rows = std::min<int64_t>(kTileRows, rows - row);
      for (int64_t r = 0; r < num_rows; ++r) {
        left(row + r, first_left, last_left - first_left, tile + r * kTileStride);
        right(row + r, first_right, last_right - first_right, one_row);
        for (int64_t p = 0; p < panels; ++p) {
          std::memcpy(packed + (p * num_rows + r) * kWidth, one_row + p * kWidth,
                      kWidth * sizeof(T));
        }
      }
      for (int64_t group = 0; group < groups; ++group) {
        const int n = static_cast<int>(std::min<int64_t>(
            kBlockRows, last_left - first_left - group * kBlockRows));
        for (int64_t p = 0; p < panels; ++p) {
          const int columns = static_cast<int>(
              std::min<int64_t>(kWidth, last_right - first_right - p * kWidth));
          MultiplyRows<T, 1, kTileStride>(
              n, columns, tile + group * kBlockRows, packed + p * num_rows * kWidth,
              num_rows, row > 0, sums + (group * panels + p) * kBlock);
        }
      }
    }
    for (int64_t k = first_left; k < last_left; ++k) {
      const int64_t group = (k - first_left) / kBlockRows;
      const int64_t r = (k - first_left) % kBlockRows;
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t column = first_right + p * kWidth;
        std::memcpy(result + k * right_columns + column,
                    sums + (group * panels + p) * kBlock + r * kWidth,
                    std::min<int64_t>(kWidth, last_right - column) * sizeof(T));
      }
    }
  });
}

// Gradient with respect to the filters: patches^T * dy over some windows, where patches
// are of `rows` [rows of the input, or as `row_of` says; channels] after `before`.
template <typename T, typename Windows, typename GradientRow>
void ConvolveFilterGradientAt(const Geometry& g, const Windows& windows, const T* rows,
                              const int64_t* row_of, const Transform<T>& before,
                              const GradientRow& gradient_row, T* filter_gradient,
                              const Workers& workers) {
  MultiplyTransposed<T>(
      windows.size(), g.depth(), g.filters, false,
      [&](int64_t row, int64_t k, int64_t count, T* to) {
        GatherPatch(g, windows, rows, row_of, before, row, k, count, to);
      },
      [&](int64_t row, int64_t k, int64_t count, T* to) {
        Copy(gradient_row(row) + k, count, to);
      },
      filter_gradient, workers);
}

// The same over the positions, where patches are of `rows` [positions of the input, or as `row_of` says; channels] after
// `before`. `known` is what is read at the positions, or null.
template <typename T, typename GradientRow>
void ConvolveFilterGradient(const Geometry& g, const T* rows, const int64_t* row_of,
                            const Transform<T>& before, const GradientRow& gradient_row,
                            const Positions& positions, const Touched* known,
                            T* filter_gradient, const Workers& workers) {
  if (g.taps() > 1 && g.taps() * g.filters <= kPanelColumns<T>) {
    // Few filters: what outputs pass back to an input takes the place of a patch.
    const TouchedInputs touched(g, positions, known);
    const Readers readers(g, positions);
    const int64_t count = g.taps() * g.filters;
    T* const transposed = workers.NewArray<T>(count * g.channels);
    MultiplyTransposed<T>(
        touched.inputs.size(), count, g.channels, true,
        [&](int64_t row, int64_t, int64_t, T* to) {
          readers.Gather(touched.inputs[row], gradient_row, to);
        },
        [&](int64_t row, int64_t k, int64_t n, T* to) {
          const int64_t input = touched.inputs[row];
          const int64_t from = row_of == nullptr ? input : row_of[input];
          before.Apply(rows + from * g.channels + k, k, n, to);
        },
        transposed, workers);
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      for (int64_t c = 0; c < g.channels; ++c) {
        for (int64_t f = 0; f < g.filters; ++f) {
          *filter_gradient++ = transposed[(tap * g.filters + f) * g.channels + c];
        }
      }
    }
    return;
  }
  ConvolveFilterGradientAt(g, Windows(g, positions), rows, row_of, before, gradient_row,
                           filter_gradient, workers);
}

// A convolution of a chain that keeps size, and what its gradients go to.
template <typename T>
struct Link {
  Geometry geometry;
  const T* filters;
  const PackedMatrix<T>* packed;  // the same; null in the last link, which is not run
  Transform<T> before;            // of its input
  T *filter_gradient, *scale_gradient, *shift_gradient;
};

// Sums per channel that tasks add to, each to its own, put together in their order.
template <typename T>
class PartialSums {
 public:
  static constexpr int64_t kMost = 64;
  PartialSums(int64_t rows, int64_t channels, const Workers& workers)
      : rows_(rows),
        size_(std::max<int64_t>(64, CeilDiv(rows, kMost))),
        channels_(channels),
        workers_(workers) {
    const int64_t count = CeilDiv(rows, size_) * channels;
    sums_ = workers.NewArray<T>(count);
    std::fill_n(sums_, count, T(0));
  }
  // Calls work(row, sums of the task that the row belongs to).
  template <typename Work>
  void ForEachRow(const Work& work) const {
    workers_.ForEach(CeilDiv(rows_, size_), [&](int64_t task) {
      const int64_t last = std::min(rows_, (task + 1) * size_);
      for (int64_t row = task * size_; row < last; ++row) {
        work(row, sums_ + task * channels_);
      }
    });
  }
  // Writes `count` totals, those of channels from `first` on.
  void Total(int64_t first, int64_t count, T* to) const {
    std::fill_n(to, count, T(0));
    for (int64_t task = 0; task < CeilDiv(rows_, size_); ++task) {
      Add(sums_ + task * channels_ + first, count, to);
    }
  }

 private:
  int64_t rows_, size_, channels_;
  const Workers& workers_;
  T* sums_;
};

// v = activation(scale * z + shift): turns the gradient of v, [channels] of a row, into
// that of z, and adds to those of scale and shift.
template <typename T>
inline void TransformGradient(const Transform<T>& transform, const T* z,
                              int64_t channels, T* gradient, T* scale_sums,
                              T* shift_sums) {
  int64_t c = 0;
  const auto step = [&](auto value, auto&& load, auto&& store) {
    using V = decltype(value);
    const V input = load(z + c);
    const V scale = transform.scale == nullptr ? V{} + T(1) : load(transform.scale + c);
    V before = input * scale;
    if (transform.shift != nullptr) before += load(transform.shift + c);
    V passed = load(gradient + c);
    if (transform.slope != T(1)) passed = before > V{} ? passed : passed * transform.slope;
    store(shift_sums + c, load(shift_sums + c) + passed);
    store(scale_sums + c, load(scale_sums + c) + passed * input);
    store(gradient + c, passed * scale);
  };
  for (; c + kLanes<T> <= channels; c += kLanes<T>) {
    step(
        Vector<T>{}, [](const T* from) { return Load(from); },
        [](T* to, Vector<T> v) { Store(to, v); });
  }
  for (; c < channels; ++c) {
    step(
        T{}, [](const T* from) { return *from; }, [](T* to, T v) { *to = v; });
  }
}

// Gradients of a chain of convolutions whose last one runs at `positions`, and each one
// before wherever the next reads. `known` is what a 3x3 convolution reads at the
// positions, or null.
//
// Inner features are computed again, which takes less than to keep them for all units.
// `gradient` [image, channels] is that of the chain's output; that of an image's sums
// over positions, [batch, channels], may be added to it. The bias follows the last
// convolution. The gradient of x is added to x_gradient [image, channels].
template <typename T>
void ChainGradient(const std::vector<Link<T>>& links, const T* x,
                   const Positions& positions, const Touched* known, const T* gradient,
                   const T* sums_gradient, T* bias_gradient, T* x_gradient,
                   const Workers& workers) {
  const int64_t n = static_cast<int64_t>(links.size());
  const auto is_pointwise = [&](int64_t i) { return links[i].geometry.taps() == 1; };
  // outputs[i] are where link i runs; reads[i] is what it reads there, in its rows.
  std::vector<Positions> outputs(n + 1);
  std::vector<std::unique_ptr<TouchedInputs>> reads(n);
  outputs[n] = positions;
  for (int64_t i = n - 1; i >= 0; --i) {
    outputs[i] = outputs[i + 1];
    if (is_pointwise(i)) continue;
    const bool is_known = outputs[i].begin() == positions.begin() && known != nullptr &&
                          links[i].geometry.IsSame3x3();
    reads[i] = std::make_unique<TouchedInputs>(links[i].geometry, outputs[i],
                                               is_known ? known : nullptr);
    outputs[i] = reads[i]->inputs;
  }
  std::vector<int64_t> all;  // of the rows of a link, where these are compact
  for (int64_t i = 0; i < n; ++i) {
    if (static_cast<int64_t>(all.size()) < outputs[i].size()) all.resize(outputs[i].size());
  }
  std::iota(all.begin(), all.end(), 0);
  // How a link sees its input: x itself, or rows of what it reads.
  struct View {
    Geometry geometry;
    Positions positions;
    const int64_t* row_of;
    const Touched* touched;
  };
  const auto view = [&](int64_t i) {
    View v{links[i].geometry, outputs[i + 1], nullptr, nullptr};
    if (!is_pointwise(i)) {
      v.touched = reads[i].get();
      if (i > 0) v.row_of = reads[i]->row_of;
    } else if (i > 0) {
      const int64_t rows = outputs[i].size();
      v.geometry.batch = v.geometry.height = v.geometry.out_height = 1;
      v.geometry.width = v.geometry.out_width = rows;
      v.positions = {all.data(), rows};
    }
    return v;
  };
  std::vector<const T*> rows(n);  // inputs of links, before their transforms
  rows[0] = x;
  for (int64_t i = 0; i + 1 < n; ++i) {
    const View v = view(i);
    const int64_t filters = links[i].geometry.filters;
    T* const to = workers.NewArray<T>(outputs[i + 1].size() * filters);
    Convolve(
        v.geometry, rows[i], v.row_of, links[i].before, *links[i].packed,
        Transform<T>{}, v.positions, v.touched,
        [=](int64_t r) { return to + r * filters; }, workers);
    rows[i + 1] = to;
  }

  const Geometry& last = links[n - 1].geometry;
  T* passed = workers.NewArray<T>(positions.size() * last.filters);
  const PartialSums<T> bias_sums(positions.size(), last.filters, workers);
  const int64_t image_size = last.out_height * last.out_width;
  bias_sums.ForEachRow([&](int64_t r, T* sums) {
    T* const to = passed + r * last.filters;
    Copy(gradient + positions[r] * last.filters, last.filters, to);
    if (sums_gradient != nullptr) {
      Add(sums_gradient + positions[r] / image_size * last.filters, last.filters, to);
    }
    Add(to, last.filters, sums);
  });
  if (bias_gradient != nullptr) bias_sums.Total(0, last.filters, bias_gradient);

  for (int64_t i = n - 1; i >= 0; --i) {
    const Link<T>& link = links[i];
    const View v = view(i);
    const int64_t channels = link.geometry.channels, filters = link.geometry.filters;
    const int64_t num_rows = outputs[i].size();
    const auto gradient_row = [=](int64_t r) -> const T* {
      return passed + r * filters;
    };
    ConvolveFilterGradient(v.geometry, rows[i], v.row_of, link.before, gradient_row,
                           v.positions, v.touched, link.filter_gradient, workers);
    T* const next = workers.NewArray<T>(num_rows * channels);
    const auto scatter = [=](int64_t row, int64_t c, int64_t count, const T* from) {
      Copy(from, count, next + row * channels + c);
    };
    if (is_pointwise(i)) {
      InputGradientOfPointwise(v.geometry, num_rows, gradient_row, link.filters,
                               scatter, workers);
    } else if (link.geometry.taps() * filters <= kPanelColumns<T>) {
      InputGradientOfFew(link.geometry, outputs[i + 1], gradient_row, link.filters,
                         outputs[i], scatter, workers);
    } else {
      std::fill_n(next, num_rows * channels, T(0));
      ConvolveInputGradient(link.geometry, gradient_row, link.filters, outputs[i + 1],
                            reads[i]->row_of, next, workers);
    }
    const PartialSums<T> sums(num_rows, 2 * channels, workers);
    sums.ForEachRow([&](int64_t r, T* to) {
      const T* const z = rows[i] + (i == 0 ? outputs[0][r] : r) * channels;
      TransformGradient(link.before, z, channels, next + r * channels, to,
                        to + channels);
      if (i == 0) {
        Add(next + r * channels, channels, x_gradient + outputs[0][r] * channels);
      }
    });
    if (link.scale_gradient != nullptr) sums.Total(0, channels, link.scale_gradient);
    if (link.shift_gradient != nullptr) {
      sums.Total(channels, channels, link.shift_gradient);
    }
    passed = next;
  }
}

// y[p] = total[p] + weight[p] * x[p] everywhere; y may be the total.
template <typename T>
void AccumulateAll(const T* total, const T* x, const float* weight, int64_t positions,
                   int64_t channels, T* y, const Workers& workers) {
  constexpr int64_t kChunk = 256;
  workers.ForEach(CeilDiv(positions, kChunk), [&](int64_t chunk) {
    const int64_t last = std::min(positions, (chunk + 1) * kChunk);
    for (int64_t p = chunk * kChunk; p < last; ++p) {
      const T* const before = total + p * channels;
      T* const to = y + p * channels;
      if (weight[p] == 0.0f) {
        if (to != before) Copy(before, channels, to);
        continue;
      }
      const T* const from = x + p * channels;
      const T w = static_cast<T>(weight[p]);
      int64_t c = 0;
      for (; c + kLanes<T> <= channels; c += kLanes<T>) {
        Store(to + c, Load(before + c) + Load(from + c) * w);
      }
      for (; c < channels; ++c) to[c] = before[c] + from[c] * w;
    }
  });
}

// Gradients of y[p] += weight[p] * x[p], zero where the weight is.
template <typename T>
void AccumulateGradient(const T* gradient, const T* x, const float* weight,
                        int64_t positions, int64_t channels, T* x_gradient,
                        float* weight_gradient, const Workers& workers) {
  constexpr int64_t kChunk = 256;
  workers.ForEach(CeilDiv(positions, kChunk), [&](int64_t chunk) {
    const int64_t last = std::min(positions, (chunk + 1) * kChunk);
    for (int64_t p = chunk * kChunk; p < last; ++p) {
      const T* const dy = gradient + p * channels;
      const T* const from = x + p * channels;
      T* const to = x_gradient + p * channels;
      const T w = static_cast<T>(weight[p]);
      weight_gradient[p] = 0.0f;
      if (weight[p] == 0.0f) {
        std::fill_n(to, channels, T(0));
        continue;
      }
      Vector<T> sums{};
      int64_t c = 0;
      for (; c + kLanes<T> <= channels; c += kLanes<T>) {
        const Vector<T> passed = Load(dy + c);
        sums += passed * Load(from + c);
        Store(to + c, passed * w);
      }
      T sum(0);
      for (int lane = 0; lane < kLanes<T>; ++lane) sum += sums[lane];
      for (; c < channels; ++c) {
        sum += dy[c] * from[c];
        to[c] = dy[c] * w;
      }
      weight_gradient[p] = static_cast<float>(sum);
    }
  });
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GRADIENTS_H_
