// Convolution at chosen outputs, and its two gradients.
//
// Tensors are contiguous and row-major: images [batch, height, width, channels], of
// which a pixel's channels are a row; filters [height, width, in channels, out
// channels].

#ifndef CUSTOM_OPS_KERNELS_CONVOLUTION_H_
#define CUSTOM_OPS_KERNELS_CONVOLUTION_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gemm.h"
#include "positions.h"
#include "vector.h"

namespace perforated {

// Inline, because it is called for a few hundred bytes at a time.
template <typename T>
inline void Copy(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) Store(to + i, Load(from + i));
  for (; i < count; ++i) to[i] = from[i];
}

// v -> activation(scale * v + shift) per channel; a null pointer leaves its part out.
template <typename T>
struct Transform {
  const T* scale = nullptr;
  const T* shift = nullptr;
  T slope = T(1);  // of the activation max(v, slope * v)

  // `count` channels from `channel` on; from and to may be the same.
  void Apply(const T* from, int64_t channel, int64_t count, T* to) const {
    if (scale == nullptr && shift == nullptr && slope == T(1)) {
      Copy(from, count, to);
      return;
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
      to[i] = slope == T(1) ? v : Activate(v, slope);
    }
  }
};

// to[i] += from[i].
template <typename T>
inline void Add(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    Store(to + i, Load(to + i) + Load(from + i));
  }
  for (; i < count; ++i) to[i] += from[i];
}

// Copies elements [k, k + count) of the patch that a convolution multiplies at the
// index-th of some windows: taps in order, channels within. `row_of` maps what the
// windows call a row of the input to its row in `rows` (compact), or is null where they
// are the same.
template <typename T, typename Windows>
inline void GatherPatch(const Geometry& g, const Windows& windows, const T* rows,
                        const int64_t* row_of, const Transform<T>& transform,
                        int64_t index, int64_t k, int64_t count, T* to) {
  if (count == 0) return;
  int64_t tap = 0, channel = k;
  for (; channel >= g.channels; ++tap) channel -= g.channels;
  while (count > 0) {
    const int64_t n = std::min(count, g.channels - channel);
    const int64_t input = windows.Input(index, tap);
    const int64_t row = input < 0 || row_of == nullptr ? input : row_of[input];
    if (row < 0) {
      std::fill(to, to + n, T(0));
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
template <typename T>
bool FewFilters(const Geometry& g) {
  return g.taps() > 1 && g.taps() * g.filters <= kPanelColumns<T>;
}

// Packs filters for `Convolve`: [depth, filters], or [channels, taps * filters] where
// there are few.
template <typename T>
void PackFilters(const Geometry& g, const T* filters, PackedMatrix<T>* packed) {
  if (FewFilters<T>(g)) {
    const int64_t filters_count = g.filters, channels = g.channels;
    packed->PackElements(channels, g.taps() * filters_count, [=](int64_t c, int64_t n) {
      const int64_t tap = n / filters_count;
      return filters[(tap * channels + c) * filters_count + n % filters_count];
    });
  } else {
    packed->Pack(g.depth(), g.filters, filters);
  }
}

// Writes output rows output_row(r) [filters] for every r-th window, and does `last`
// besides. `find_touched` gives the inputs that they read, where that is needed.
template <typename T, typename Windows, typename FindTouched, typename Output>
void ConvolveAt(const Geometry& g, const Windows& windows, const T* rows,
                const int64_t* row_of, const Transform<T>& before,
                const PackedMatrix<T>& packed, const Transform<T>& after,
                const FindTouched& find_touched, const Output& output_row,
                const Workers& workers, const Tasks& last) {
  const int64_t num_windows = windows.size();
  if (FewFilters<T>(g)) {
    const auto touched = find_touched();
    const int64_t columns = g.taps() * g.filters;
    T* const products = workers.NewArray<T>(touched.size() * columns);
    GatherMultiplyScatter<T>(
        touched.size(), packed,
        [&](int64_t row, int64_t k, int64_t count, T* to) {
          const int64_t input = touched.Input(row);
          const int64_t from = row_of == nullptr ? input : row_of[input];
          before.Apply(rows + from * g.channels + k, k, count, to);
        },
        [&](int64_t row, int64_t column, int64_t count, const T* from) {
          Copy(from, count, products + row * columns + column);
        },
        workers, last);
    constexpr int64_t kChunk = 512;
    workers.ForEach(CeilDiv(num_windows, kChunk), [&](int64_t chunk) {
      const int64_t end = std::min(num_windows, (chunk + 1) * kChunk);
      for (int64_t r = chunk * kChunk; r < end; ++r) {
        T* to = output_row(r);
        std::fill(to, to + g.filters, T(0));
        for (int64_t tap = 0; tap < g.taps(); ++tap) {
          const int64_t input = windows.Input(r, tap);
          const int64_t row = input < 0 ? -1 : touched.Row(input);
          if (row < 0) continue;
          const T* product = products + row * columns + tap * g.filters;
          for (int64_t f = 0; f < g.filters; ++f) to[f] += product[f];
        }
        after.Apply(to, 0, g.filters, to);
      }
    });
    return;
  }
  GatherMultiplyScatter<T>(
      num_windows, packed,
      [&](int64_t row, int64_t k, int64_t count, T* to) {
        GatherPatch(g, windows, rows, row_of, before, row, k, count, to);
      },
      [&](int64_t row, int64_t column, int64_t count, const T* from) {
        after.Apply(from, column, count, output_row(row) + column);
      },
      workers, last);
}

// The same at positions. `known` is what the convolution reads at them, or null.
template <typename T, typename Output>
void Convolve(const Geometry& g, const T* rows, const int64_t* row_of,
              const Transform<T>& before, const PackedMatrix<T>& packed,
              const Transform<T>& after, const Positions& positions,
              const Touched* known, const Output& output_row, const Workers& workers,
              const Tasks& last = {}) {
  ConvolveAt(
      g, Windows(g, positions), rows, row_of, before, packed, after,
      [&] { return TouchedInputs(g, positions, known); }, output_row, workers, last);
}

// Gradient with respect to the input: adds dy * filters^T to `input_gradient`, which
// begins as zeros. Tasks own images and ranges of channels, so no two write to the same
// place and the order of additions is always the same.
template <typename T, typename Windows>
void ConvolveInputGradient(const Geometry& g, const Windows& windows,
                           const T* output_gradient, const T* filters,
                           T* input_gradient, const Workers& workers) {
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
          std::memcpy(tile + r * kTileStride,
                      output_gradient + windows.Output(row + r) * g.filters + k,
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
                Add(block + i * kWidth, columns,
                    input_gradient + input * g.channels + channel);
              }
            }
          }
        }
      }
    }
  });
}

// Gradient with respect to the filters: patches^T * dy over the windows. Tasks
// own ranges of the filters' depth.
template <typename T, typename Windows>
void ConvolveFilterGradient(const Geometry& g, const Windows& windows, const T* input,
                            const T* output_gradient, T* filter_gradient,
                            const Workers& workers) {
  constexpr int kWidth = kPanelColumns<T>;
  std::fill(filter_gradient, filter_gradient + g.depth() * g.filters, T(0));
  const int64_t num_windows = windows.size();
  if (num_windows == 0 || g.depth() == 0 || g.filters == 0) return;
  const int64_t groups = CeilDiv(g.depth(), kBlockRows);
  const int64_t max_groups = kMaxDepth / kBlockRows;
  const int64_t tasks = std::min(groups, std::max<int64_t>(CeilDiv(groups, max_groups),
                                                           2 * workers.num_threads()));
  workers.ForEach(tasks, [&](int64_t task) {
    const int64_t first = groups * task / tasks * kBlockRows;
    const int64_t last = std::min(g.depth(), groups * (task + 1) / tasks * kBlockRows);
    static thread_local Buffer<T> tile_buffer, sums_buffer;
    static thread_local PackedMatrix<T> packed;
    T* tile = tile_buffer.Reserve(kTileRows * kTileStride);
    const int64_t panels = CeilDiv(g.filters, kWidth);
    const int64_t task_groups = CeilDiv(last - first, kBlockRows);
    T* sums = sums_buffer.Reserve(panels * task_groups * kBlockRows * kWidth);
    for (int64_t row = 0; row < num_windows; row += kTileRows) {
      const int64_t num_rows = std::min<int64_t>(kTileRows, num_windows - row);
      for (int64_t r = 0; r < num_rows; ++r) {
        GatherPatch(g, windows, input, nullptr, Transform<T>{}, row + r, first,
                    last - first, tile + r * kTileStride);
      }
      packed.PackElements(num_rows, g.filters, [&](int64_t r, int64_t f) {
        return output_gradient[windows.Output(row + r) * g.filters + f];
      });
      for (int64_t p = 0; p < panels; ++p) {
        const int columns =
            static_cast<int>(std::min<int64_t>(kWidth, g.filters - p * kWidth));
        for (int64_t group = 0; group < task_groups; ++group) {
          const int n = static_cast<int>(
              std::min<int64_t>(kBlockRows, last - first - group * kBlockRows));
          MultiplyRows<T, 1, kTileStride>(
              n, columns, tile + group * kBlockRows, packed.Panel(p, 0), num_rows,
              row > 0, sums + (p * task_groups + group) * kBlockRows * kWidth);
        }
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t columns = std::min<int64_t>(kWidth, g.filters - p * kWidth);
      for (int64_t k = first; k < last; ++k) {
        std::memcpy(filter_gradient + k * g.filters + p * kWidth,
                    sums + (p * task_groups * kBlockRows + (k - first)) * kWidth,
                    columns * sizeof(T));
      }
    }
  });
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_CONVOLUTION_H_
