// Checks the CPU kernels by themselves against plain loops, on random cases with
// several threads; made to be run under sanitizers (from this directory):
//
//   for s in address,undefined thread; do
//     g++ -std=c++17 -O1 -g -march=native -fsanitize=$s cpu_check.cc -o check -pthread
//     &&
//     ./check 300
//   done
//
// The argument is the number of cases. Exits with 1 at the first result that is wrong.

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "convolution.h"
#include "indexed.h"
#include "units.h"

namespace perforated {
namespace {

using Values = std::vector<double>;

class Threads : public Workers {
 public:
  explicit Threads(int count) : count_(count) {}
  int num_threads() const override { return count_; }
  void ForEach(int64_t n, const std::function<void(int64_t)>& fn) const override {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      for (int64_t i; (i = next.fetch_add(1)) < n;) fn(i);
    };
    std::vector<std::thread> threads;
    for (int i = 1; i < count_; ++i) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  }
  void* Allocate(std::size_t bytes) const override {
    memory_.push_back(std::make_unique<char[]>(bytes));
    return memory_.back().get();
  }

 private:
  int count_;
  mutable std::vector<std::unique_ptr<char[]>> memory_;
};

class Random {
 public:
  explicit Random(int seed) : engine_(seed) {}
  int64_t Integer(int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(engine_);
  }
  Values Numbers(int64_t size) {
    Values values(size);
    for (double& value : values) value = std::normal_distribution<>()(engine_);
    return values;
  }
  std::vector<int64_t> Positions(int64_t size) {
    const int64_t percent = Integer(0, 4) * 25;
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < size; ++i) {
      if (Integer(0, 99) < percent) positions.push_back(i);
    }
    return positions;
  }

 private:
  std::mt19937 engine_;
};

void Expect(const char* what, const Values& got, const Values& expected) {
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(got[i] - expected[i]) <= 1e-9 * (1 + std::abs(expected[i]))) continue;
    std::printf("%s: element %zu is %g, expected %g\n", what, i, got[i], expected[i]);
    std::exit(1);
  }
}

// Calls visit(output element, input element, filter element) for every product.
template <typename Visit>
void ForEachProduct(const Geometry& g, const std::vector<int64_t>& positions,
                    const Visit& visit) {
  for (const int64_t position : positions) {
    const int64_t x = position % g.out_width, y = position / g.out_width % g.out_height;
    const int64_t image = position / g.out_width / g.out_height;
    for (int64_t tap = 0; tap < g.taps(); ++tap) {
      const int64_t in_y =
          y * g.stride_y - g.pad_top + tap / g.kernel_width * g.dilation_y;
      const int64_t in_x =
          x * g.stride_x - g.pad_left + tap % g.kernel_width * g.dilation_x;
      if (in_y < 0 || in_y >= g.height || in_x < 0 || in_x >= g.width) continue;
      const int64_t input = (image * g.height + in_y) * g.width + in_x;
      for (int64_t c = 0; c < g.channels; ++c) {
        for (int64_t f = 0; f < g.filters; ++f) {
          visit(position * g.filters + f, input * g.channels + c,
                (tap * g.channels + c) * g.filters + f);
        }
      }
    }
  }
}

Geometry RandomGeometry(Random* random) {
  Geometry g;
  g.batch = random->Integer(0, 3);
  g.height = random->Integer(1, 14);
  g.width = random->Integer(1, 14);
  g.channels = random->Integer(0, 40);
  g.filters = random->Integer(1, 4) == 1 ? 1 : random->Integer(0, 50);
  g.kernel_height = random->Integer(1, 3);
  g.kernel_width = random->Integer(1, 3);
  g.stride_y = random->Integer(1, 2);
  g.stride_x = random->Integer(1, 2);
  g.dilation_y = random->Integer(1, 2);
  g.dilation_x = random->Integer(1, 2);
  g.pad_top = random->Integer(0, 2);
  g.pad_left = random->Integer(0, 2);
  g.out_height = random->Integer(1, 9);
  g.out_width = random->Integer(1, 9);
  return g;
}

void CheckConvolution(Random* random, const Workers& workers) {
  const Geometry g = RandomGeometry(random);
  const Values input = random->Numbers(g.num_inputs() * g.channels);
  const Values filters = random->Numbers(g.depth() * g.filters);
  const Values gradient = random->Numbers(g.num_outputs() * g.filters);
  const std::vector<int64_t> positions = random->Positions(g.num_outputs());
  Values output(gradient.size()), input_gradient(input.size()),
      filter_gradient(filters.size());
  Values expected[] = {output, input_gradient, filter_gradient};
  ForEachProduct(g, positions, [&](int64_t o, int64_t i, int64_t f) {
    expected[0][o] += input[i] * filters[f];
    expected[1][i] += gradient[o] * filters[f];
    expected[2][f] += gradient[o] * input[i];
  });
  PackedMatrix<double> packed;
  PackFilters(g, filters.data(), &packed);
  Convolve(
      g, input.data(), nullptr, Transform<double>{}, packed, Transform<double>{},
      positions, nullptr,
      [&](int64_t r) { return output.data() + positions[r] * g.filters; }, workers);
  Expect("output", output, expected[0]);
  const Windows windows(g, positions);
  ConvolveInputGradient(g, windows, gradient.data(), filters.data(),
                        input_gradient.data(), workers);
  Expect("input gradient", input_gradient, expected[1]);
  ConvolveFilterGradient(g, windows, input.data(), gradient.data(),
                         filter_gradient.data(), workers);
  Expect("filter gradient", filter_gradient, expected[2]);
}

// Calls visit(row of the output, tap, row of the input) for every tap that reads one.
template <typename Visit>
void ForEachTap(const RowsShape& shape, const Table& table, const Visit& visit) {
  for (int64_t out = 0; out < shape.batch * table.rows_out; ++out) {
    for (int64_t tap = 0; tap < table.taps; ++tap) {
      const int32_t row = table.Taps(out % table.rows_out)[tap];
      if (row >= 0) visit(out, tap, out / table.rows_out * shape.rows + row);
    }
  }
}

void CheckPooling(Random* random, const RowsShape& shape, const Table& table,
                  const Workers& workers) {
  const int64_t channels = shape.channels;
  Values rows = random->Numbers(shape.batch * shape.rows * channels);
  for (double& value : rows) value = std::round(2 * value);  // often equal
  const Values gradient = random->Numbers(shape.batch * table.rows_out * channels);
  Values greatest(gradient.size()), average(gradient.size()), row_gradient(rows.size()),
      sums(rows.size()), counts(gradient.size());
  std::vector<int64_t> first(gradient.size(), -1);
  ForEachTap(shape, table, [&](int64_t out, int64_t, int64_t in) {
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = out * channels + c, from = in * channels + c;
      if (first[i] < 0 || rows[from] > rows[first[i]]) first[i] = from;
      average[i] += rows[from];
      ++counts[i];
      sums[from] += gradient[i];
    }
  });
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    if (first[i] < 0) continue;
    greatest[i] = rows[first[i]];
    average[i] /= counts[i];
    row_gradient[first[i]] += gradient[i];
  }
  Values got(gradient.size()), got_rows(rows.size());
  Pool(PoolKind::kMax, shape, table, rows.data(), got.data(), workers);
  Expect("maxima", got, greatest);
  Pool(PoolKind::kAverage, shape, table, rows.data(), got.data(), workers);
  Expect("averages", got, average);
  MaxPoolGradient(shape, table, rows.data(), gradient.data(), got_rows.data(), workers);
  Expect("gradient of maxima", got_rows, row_gradient);
  AddToRows(shape, table, gradient.data(), got_rows.data(), workers);
  Expect("sums of rows", got_rows, sums);
}

void CheckIndexed(Random* random, const Workers& workers) {
  const RowsShape shape{random->Integer(0, 3), random->Integer(0, 30),
                        random->Integer(0, 40)};
  std::vector<int32_t> taps(random->Integer(0, 60) * random->Integer(1, 9));
  for (int32_t& row : taps) row = random->Integer(-1, shape.rows - 1);
  Table table{taps.data(), static_cast<int64_t>(taps.size()), 1};
  for (int64_t n = 9; n > 1; --n) {
    if (table.taps > 1 || taps.size() % n != 0) continue;
    table = {taps.data(), table.rows_out / n, n};
  }
  CheckPooling(random, shape, table, workers);

  Geometry g;
  g.batch = shape.batch;
  g.height = shape.rows;
  g.channels = shape.channels;
  g.out_height = table.rows_out;
  g.kernel_height = table.taps;
  g.width = g.out_width = g.kernel_width = 1;
  g.filters = random->Integer(0, 2) == 0 ? 1 : random->Integer(0, 50);
  const Values input = random->Numbers(g.num_inputs() * g.channels);
  const Values filters = random->Numbers(g.depth() * g.filters);
  const Values gradient = random->Numbers(g.num_outputs() * g.filters);
  Values output(gradient.size()), input_gradient(input.size()),
      filter_gradient(filters.size());
  Values expected[] = {output, input_gradient, filter_gradient};
  ForEachTap(shape, table, [&](int64_t out, int64_t tap, int64_t in) {
    for (int64_t c = 0; c < g.channels; ++c) {
      for (int64_t f = 0; f < g.filters; ++f) {
        const int64_t weight = (tap * g.channels + c) * g.filters + f;
        const int64_t o = out * g.filters + f, i = in * g.channels + c;
        expected[0][o] += input[i] * filters[weight];
        expected[1][i] += gradient[o] * filters[weight];
        expected[2][weight] += gradient[o] * input[i];
      }
    }
  });
  const TableWindows windows(g.batch, g.height, table.rows_out, table.taps, table.data);
  PackedMatrix<double> packed;
  PackFilters(g, filters.data(), &packed);
  ConvolveAt(
      g, windows, input.data(), nullptr, Transform<double>{}, packed,
      Transform<double>{}, [&] { return AllTouched{g.num_inputs()}; },
      [&](int64_t r) { return output.data() + r * g.filters; }, workers, {});
  Expect("indexed output", output, expected[0]);
  ConvolveInputGradient(g, windows, gradient.data(), filters.data(),
                        input_gradient.data(), workers);
  Expect("indexed input gradient", input_gradient, expected[1]);
  ConvolveFilterGradient(g, windows, input.data(), gradient.data(),
                         filter_gradient.data(), workers);
  Expect("indexed filter gradient", filter_gradient, expected[2]);
}

// Without scales, shifts and activations a unit is two or three convolutions in a row.
void CheckUnits(Random* random, const Workers& workers) {
  const int64_t channels = random->Integer(1, 40), inner = random->Integer(1, 20);
  Geometry middle = RandomGeometry(random);
  middle.kernel_height = middle.kernel_width = 3;
  middle.stride_y = middle.stride_x = middle.dilation_y = middle.dilation_x = 1;
  middle.pad_top = middle.pad_left = 1;
  middle.out_height = middle.height;
  middle.out_width = middle.width;
  middle.channels = middle.filters = inner;
  const Geometry first = Pointwise(middle, channels, inner);
  const Geometry last = Pointwise(middle, inner, channels);
  const Geometry* geometries[] = {&first, &middle, &last};
  const Values x = random->Numbers(middle.num_inputs() * channels);
  const std::vector<int64_t> positions = random->Positions(middle.num_outputs());
  std::vector<int64_t> all(middle.num_outputs());
  std::iota(all.begin(), all.end(), 0);

  Stage<double> stages[3];
  PackedMatrix<double> packed[3];
  Values rows = x;
  for (int i = 0; i < 3; ++i) {
    const Geometry& g = *geometries[i];
    const Values filters = random->Numbers(g.depth() * g.filters);
    PackFilters(g, filters.data(), &packed[i]);
    stages[i].filters = &packed[i];
    Values next(g.num_outputs() * g.filters);
    ForEachProduct(g, i == 2 ? positions : all, [&](int64_t o, int64_t in, int64_t f) {
      next[o] += rows[in] * filters[f];
    });
    rows = next;
  }
  Values expected = x, sums(middle.batch * channels), expected_sums = sums;
  for (std::size_t i = 0; i < x.size(); ++i) {
    expected[i] += rows[i];
    const int64_t image =
        static_cast<int64_t>(i) / (middle.height * middle.width * channels);
    expected_sums[image * channels + i % channels] += rows[i];
  }
  Values y = x;
  BottleneckUnit(middle, channels, y.data(), Transform<double>{}, stages, positions,
                 nullptr, y.data(), sums.data(), workers);
  Expect("unit", y, expected);
  Expect("sums", sums, expected_sums);

  const std::vector<double> weights = random->Numbers(middle.num_outputs());
  const std::vector<float> float_weights(weights.begin(), weights.end());
  for (std::size_t i = 0; i < x.size(); ++i) {
    expected[i] += static_cast<double>(float_weights[i / channels]) * x[i];
  }
  Accumulate(x.data(), float_weights.data(),
             NonZero(float_weights.data(), middle.num_outputs()), channels, y.data(),
             workers);
  Expect("accumulate", y, expected);
}

}  // namespace
}  // namespace perforated

int main(int argc, char** argv) {
  const int cases = argc > 1 ? std::atoi(argv[1]) : 100;
  for (int i = 0; i < cases; ++i) {
    perforated::Random random(i);
    const perforated::Threads workers(1 + i % 4);
    perforated::CheckConvolution(&random, workers);
    perforated::CheckUnits(&random, workers);
    perforated::CheckIndexed(&random, workers);
  }
  std::printf("%d cases are right\n", cases);
}
