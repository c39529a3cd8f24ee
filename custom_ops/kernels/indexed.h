// Pooling of rows that a table names, and its gradients.
//
// Rows are [batch, rows, channels], tables [outputs, taps], the same for all images.

#ifndef CUSTOM_OPS_KERNELS_INDEXED_H_
#define CUSTOM_OPS_KERNELS_INDEXED_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "gemm.h"
#include "vector.h"

namespace perforated {

// Which rows every output of an image reads; -1 is not counted.
struct Table {
  const int32_t* Taps(int64_t output) const { return data + output * taps; }

  const int32_t* data;
  int64_t rows_out, taps;
};

struct RowsShape {
  int64_t batch, rows, channels;
};

enum class PoolKind { kMax, kAverage };

// to[i] = max(to[i], from[i]), NaN if either is.
template <typename T>
inline void KeepGreater(const T* from, int64_t count, T* to) {
  int64_t i = 0;
  for (; i + kLanes<T> <= count; i += kLanes<T>) {
    const Vector<T> v = Load(from + i), best = Load(to + i);
    Store(to + i, ((v > best) | (v != v)) ? v : best);
  }
  for (; i < count; ++i) {
    if (from[i] > to[i] || from[i] != from[i]) to[i] = from[i];
  }
}

// The greatest or the sum of `count` channels of an output's rows in one image, which
// begins at `rows`. Returns how many rows there are; without any, zeros.
template <typename T>
int64_t Reduce(PoolKind kind, const Table& table, int64_t output, const T* rows,
               int64_t channels, int64_t count, T* to) {
  int64_t counted = 0;
  const int32_t* const taps = table.Taps(output);
  for (int64_t tap = 0; tap < table.taps; ++tap) {
    if (taps[tap] < 0) continue;
    const T* const from = rows + taps[tap] * channels;
    if (counted++ == 0) {
      Copy(from, count, to);
    } else if (kind == PoolKind::kMax) {
      KeepGreater(from, count, to);
    } else {
      Add(from, count, to);
    }
  }
  if (counted == 0) std::fill(to, to + count, T(0));
  return counted;
}

// output [batch, outputs, channels].
template <typename T>
void Pool(PoolKind kind, const RowsShape& shape, const Table& table, const T* rows,
          T* output, const Workers& workers) {
  const int64_t outputs = shape.batch * table.rows_out, channels = shape.channels;
  if (channels == 0) return;
  // Some ten thousand additions per task.
  const int64_t per_output = channels * std::clamp<int64_t>(table.taps, 1, 16);
  const int64_t chunk = CeilDiv(1 << 14, per_output);
  workers.ForEach(CeilDiv(outputs, chunk), [&](int64_t task) {
    const int64_t end = std::min(outputs, (task + 1) * chunk);
    for (int64_t r = task * chunk; r < end; ++r) {
      T* const to = output + r * channels;
      const int64_t counted = Reduce(kind, table, r % table.rows_out,
                                     rows + r / table.rows_out * shape.rows * channels,
                                     channels, channels, to);
      if (kind == PoolKind::kMax || counted < 2) continue;
      for (int64_t c = 0; c < channels; ++c) to[c] /= static_cast<T>(counted);
    }
  });
}

// Calls run(image, channel, count) for ranges of channels of every image, so that tasks
// write to different places, each in the same order every time.
template <typename T, typename Run>
void ForEachRange(const RowsShape& shape, const Workers& workers, const Run& run) {
  const int64_t vectors = CeilDiv(shape.channels, kLanes<T>);
  const int64_t ranges = std::min<int64_t>(
      vectors, CeilDiv(2 * workers.num_threads(), std::max<int64_t>(1, shape.batch)));
  workers.ForEach(shape.batch * ranges, [&](int64_t task) {
    const int64_t range = task % ranges;
    const int64_t first = vectors * range / ranges * kLanes<T>;
    const int64_t last =
        std::min(shape.channels, vectors * (range + 1) / ranges * kLanes<T>);
    run(task / ranges, first, last - first);
  });
}

// to [batch, rows, channels] = for each row the sum of values [batch, outputs,
// channels] over all taps that name it.
template <typename T>
void AddToRows(const RowsShape& shape, const Table& table, const T* values, T* to,
               const Workers& workers) {
  const int64_t channels = shape.channels;
  ForEachRange<T>(shape, workers, [&](int64_t image, int64_t first, int64_t count) {
    T* const sums = to + image * shape.rows * channels + first;
    const T* from = values + image * table.rows_out * channels + first;
    for (int64_t row = 0; row < shape.rows; ++row) {
      std::fill_n(sums + row * channels, count, T(0));
    }
    for (int64_t output = 0; output < table.rows_out; ++output, from += channels) {
      const int32_t* const taps = table.Taps(output);
      for (int64_t tap = 0; tap < table.taps; ++tap) {
        if (taps[tap] >= 0) Add(from, count, sums + taps[tap] * channels);
      }
    }
  });
}

// sums[i] += pending[i] where from[i] is the greatest; pending[i] is then zero, so that
// only the first one gets it.
template <typename T>
inline void GiveToGreatest(const T* from, const T* greatest, int64_t count, T* pending,
                           T* sums) {
  for (int64_t i = 0; i < count; ++i) {
    const bool is_greatest = (from[i] == greatest[i]) |
                             ((from[i] != from[i]) & (greatest[i] != greatest[i]));
    sums[i] += is_greatest ? pending[i] : T(0);
    pending[i] = is_greatest ? T(0) : pending[i];
  }
}

// The gradient of a maximum goes to the first of an output's rows that has it.
template <typename T>
void MaxPoolGradient(const RowsShape& shape, const Table& table, const T* rows,
                     const T* output_gradient, T* gradient, const Workers& workers) {
  const int64_t channels = shape.channels;
  ForEachRange<T>(shape, workers, [&](int64_t image, int64_t first, int64_t count) {
    static thread_local Buffer<T> buffer;
    T* const greatest = buffer.Reserve(2 * count);
    T* const pending = greatest + count;
    const int64_t begin = image * shape.rows * channels + first;
    for (int64_t row = 0; row < shape.rows; ++row) {
      std::fill_n(gradient + begin + row * channels, count, T(0));
    }
    for (int64_t output = 0; output < table.rows_out; ++output) {
      Reduce(PoolKind::kMax, table, output, rows + begin, channels, count, greatest);
      Copy(output_gradient + (image * table.rows_out + output) * channels + first,
           count, pending);
      const int32_t* const taps = table.Taps(output);
      for (int64_t tap = 0; tap < table.taps; ++tap) {
        if (taps[tap] < 0) continue;
        const int64_t row = begin + taps[tap] * channels;
        GiveToGreatest(rows + row, greatest, count, pending, gradient + row);
      }
    }
  });
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_INDEXED_H_
