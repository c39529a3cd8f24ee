// Checks the CPU kernels by themselves against plain loops, on random cases with
// several threads; made to be run under sanitizers (from this directory):
//
//   for s in address,undefined thread; do
//     g++ -std=c++17 -O1 -g -march=native -fsanitize=$s cpu_check.cc -o check -pthread
//     &&
//     ./check 300
//   done
//
// Products of bfloat16 are checked for all the instructions that there are here, with
// small whole numbers, whose sums are exact whatever the order, so that all must agree
// to the last bit.
//
// The argument is the number of cases. Exits with 1 at the first result that is wrong.

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bfloat16.h"
#include "block.h"
#include "convolution.h"
#include "gradients.h"
#include "indexed.h"
#include "multiply_bfloat16.h"
#include "team.h"
#include "units.h"

namespace perforated {
namespace {

using Values = std::vector<double>;

class Threads : public Workers {
 public:
  explicit Threads(int count) : count_(count) {
    for (int i = 1; i < count; ++i) threads_.emplace_back([this] { Serve(); });
  }
  ~Threads() override {
    team_->Stop();
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_over_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }
  int num_threads() const override { return count_; }
  void ForEach(int64_t n, const std::function<void(int64_t)>& fn) const override {
    Team::ForEach(team_, n, std::min<int64_t>(n, count_) - 1, fn,
                  [&](std::function<void()> help) {
                    std::lock_guard<std::mutex> lock(mutex_);
                    waiting_.push_back(std::move(help));
                    changed_.notify_one();
                  });
  }
  void* Allocate(std::size_t bytes) const override {
    memory_.push_back(std::make_unique<char[]>(bytes));
    return memory_.back().get();
  }

 private:
  void Serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      changed_.wait(lock, [&] { return is_over_ || !waiting_.empty(); });
      if (waiting_.empty()) return;
      const std::function<void()> help = std::move(waiting_.back());
      waiting_.pop_back();
      lock.unlock();
      help();
      lock.lock();
    }
  }

  int count_;
  const std::shared_ptr<Team> team_ = std::make_shared<Team>();
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  mutable std::vector<std::function<void()>> waiting_;
  bool is_over_ = false;
  std::vector<std::thread> threads_;
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
  Values WholeNumbers(int64_t size, int64_t limit) {
    Values values(size);
    for (double& value : values) value = Integer(-limit, limit);
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

std::vector<float> Floats(const Values& values) {
  return {values.begin(), values.end()};
}

template <typename T>
Values Doubles(const std::vector<T>& values) {
  Values doubles;
  for (const T value : values) doubles.push_back(static_cast<float>(value));
  return doubles;
}

constexpr Instructions kAllInstructions[] = {Instructions::kPlain, Instructions::kPairs,
                                             Instructions::kTiles};

// Any bits, whatever they mean: the nearest number of 8 bits, or infinity, or NaN.
void CheckRounding(Random* random) {
  float values[kLanes<float>];
  for (float& value : values) {
    // No number smaller than normal ones, which processors take for zero.
    const uint32_t exponent = random->Integer(1, 255);
    const uint32_t fraction = random->Integer(0, (1 << 23) - 1);
    const uint32_t half = random->Integer(0, 3) == 0 ? fraction & 0xff8000 : fraction;
    const uint32_t bits = random->Integer(0, 1) << 31 | exponent << 23 | half;
    std::memcpy(&value, &bits, sizeof(value));
  }
  BFloat16 rounded[kLanes<float>];
  Store(rounded, Load(values));
  for (int i = 0; i < kLanes<float>; ++i) {
    const float got = static_cast<float>(rounded[i]);
    const double value = values[i];
    if (std::isnan(value) && std::isnan(got)) continue;
    const float once = static_cast<float>(BFloat16(values[i]));
    bool is_right = got == once && rounded[i].bits == BFloat16(values[i]).bits;
    if (!std::isinf(got)) {
      // Half of the unit in the last of 8 places; even where it lies in the middle.
      const double unit = std::ldexp(1.0, std::ilogb(values[i]) - 7);
      const double error = std::abs(got - value);
      is_right &= error <= unit / 2;
      is_right &= error < unit / 2 || rounded[i].bits % 2 == 0;
    } else {
      is_right &= std::abs(value) >= std::ldexp(255.5, 120);
    }
    if (is_right) continue;
    std::printf("rounding: %g became %g\n", value, got);
    std::exit(1);
  }
}

void CheckHalfConvolution(Random* random, const Workers& workers) {
  const Geometry g = RandomGeometry(random);
  const Values input = random->WholeNumbers(g.num_inputs() * g.channels, 9);
  const Values filters = random->WholeNumbers(g.depth() * g.filters, 9);
  const Values scale = random->WholeNumbers(g.channels, 2);
  const Values shift = random->WholeNumbers(g.filters, 9);
  const std::vector<int64_t> positions = random->Positions(g.num_outputs());
  Values expected(g.num_outputs() * g.filters);
  ForEachProduct(g, positions, [&](int64_t o, int64_t i, int64_t f) {
    expected[o] += std::max(0.0, input[i] * scale[i % g.channels]) * filters[f];
  });
  for (const int64_t p : positions) {
    for (int64_t f = 0; f < g.filters; ++f) expected[p * g.filters + f] += shift[f];
  }
  const std::vector<float> x = Floats(input), w = Floats(filters), b = Floats(shift);
  const std::vector<float> scales = Floats(scale);
  const Transform<float> before{scales.data(), nullptr, 0.0f};
  const Transform<float> after{nullptr, b.data(), 1.0f};
  for (const Instructions instructions : kAllInstructions) {
    if (!Has(instructions)) continue;
    const std::string name = std::to_string(static_cast<int>(instructions));
    PackedMatrix<BFloat16> packed;
    packed.set_instructions(instructions);
    PackFilters(g, w.data(), &packed);
    std::vector<float> output(expected.size());
    Convolve(
        g, x.data(), nullptr, before, packed, after, positions, nullptr,
        [&](int64_t r) { return output.data() + positions[r] * g.filters; }, workers);
    Expect(("bfloat16 output " + name).c_str(), Doubles(output), expected);
    // Rounded, and of an input that is.
    const std::vector<BFloat16> half_x(x.begin(), x.end());
    std::vector<BFloat16> half(expected.size(), BFloat16(0));
    Convolve(
        g, half_x.data(), nullptr, before, packed, after, positions, nullptr,
        [&](int64_t r) { return half.data() + positions[r] * g.filters; }, workers);
    Values rounded(expected.size());
    ForEachProduct(g, positions, [&](int64_t o, int64_t i, int64_t f) {
      rounded[o] += input[i] * filters[f];
    });
    for (const int64_t p : positions) {
      for (int64_t f = 0; f < g.filters; ++f) rounded[p * g.filters + f] += shift[f];
    }
    for (double& value : rounded) value = static_cast<float>(BFloat16(value));
    Expect(("bfloat16 rows " + name).c_str(), Doubles(half), rounded);
  }
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
  const auto gradient_row = [&](int64_t r) {
    return gradient.data() + positions[r] * g.filters;
  };
  ConvolveInputGradient(g, gradient_row, filters.data(), positions, nullptr,
                        input_gradient.data(), workers);
  Expect("input gradient", input_gradient, expected[1]);
  ConvolveFilterGradient(g, input.data(), nullptr, Transform<double>{}, gradient_row,
                         positions, nullptr, filter_gradient.data(), workers);
  Expect("filter gradient", filter_gradient, expected[2]);

  // The same by what outputs pass back, whatever the number of filters.
  const TouchedInputs touched(g, positions, nullptr);
  std::fill(input_gradient.begin(), input_gradient.end(), 0.0);
  InputGradientOfFew(
      g, positions, gradient_row, filters.data(), touched.inputs,
      [&](int64_t row, int64_t c, int64_t count, const double* from) {
        std::copy_n(from, count,
                    input_gradient.data() + touched.inputs[row] * g.channels + c);
      },
      workers);
  Expect("input gradient of few", input_gradient, expected[1]);
}

// Gradients of random chains against plain loops over all their convolutions.
void CheckChains(Random* random, const Workers& workers) {
  Geometry image = RandomGeometry(random);
  const int64_t n = random->Integer(1, 3);
  const std::vector<int64_t> positions = random->Positions(image.num_inputs());
  std::vector<Link<double>> links(n);
  std::vector<Values> filters(n), scales(n), shifts(n), inputs(n), transformed(n);
  std::vector<PackedMatrix<double>> packed(n);
  int64_t channels = random->Integer(1, 40);
  const Values x = random->Numbers(image.num_inputs() * channels);
  std::vector<int64_t> all(image.num_inputs());
  std::iota(all.begin(), all.end(), 0);
  Values values = x;
  for (int64_t i = 0; i < n; ++i) {
    Geometry g = Pointwise(
        image, channels,
        random->Integer(1, 3) == 1 ? random->Integer(1, 3) : random->Integer(1, 40));
    g.kernel_height = g.kernel_width = random->Integer(0, 1) * 2 + 1;
    g.pad_top = g.pad_left = g.kernel_height / 2;
    filters[i] = random->Numbers(g.depth() * g.filters);
    PackFilters(g, filters[i].data(), &packed[i]);
    links[i].geometry = g;
    links[i].filters = filters[i].data();
    links[i].packed = &packed[i];
    const bool has_affine = random->Integer(0, 3) > 0;
    if (has_affine) {
      scales[i] = random->Numbers(channels);
      shifts[i] = random->Numbers(channels);
    }
    const double slope = random->Integer(0, 2) / 2.0;
    links[i].before = {has_affine ? scales[i].data() : nullptr,
                       has_affine ? shifts[i].data() : nullptr, slope};
    inputs[i] = transformed[i] = values;
    for (std::size_t k = 0; k < values.size(); k += channels) {
      links[i].before.Apply(values.data() + k, 0, channels, transformed[i].data() + k);
    }
    values.assign(g.num_outputs() * g.filters, 0.0);
    ForEachProduct(g, all, [&](int64_t o, int64_t in, int64_t f) {
      values[o] += transformed[i][in] * filters[i][f];
    });
    channels = g.filters;
  }
  const Values gradient = random->Numbers(values.size());
  const Values sums = random->Numbers(image.batch * channels);
  const bool has_sums = random->Integer(0, 1);
  Values passed(gradient.size()), bias(channels), expected_bias = bias;
  const int64_t image_size = image.height * image.width;
  for (const int64_t p : positions) {
    for (int64_t c = 0; c < channels; ++c) {
      passed[p * channels + c] = gradient[p * channels + c];
      if (has_sums) passed[p * channels + c] += sums[p / image_size * channels + c];
      expected_bias[c] += passed[p * channels + c];
    }
  }
  std::vector<Values> got(3 * n), expected(3 * n);
  for (int64_t i = n - 1; i >= 0; --i) {
    const Geometry& g = links[i].geometry;
    Values before(inputs[i].size());
    expected[3 * i].resize(filters[i].size());
    expected[3 * i + 1].resize(scales[i].size());
    expected[3 * i + 2].resize(shifts[i].size());
    for (int k = 0; k < 3; ++k) got[3 * i + k].resize(expected[3 * i + k].size());
    links[i].filter_gradient = got[3 * i].data();
    links[i].scale_gradient = scales[i].empty() ? nullptr : got[3 * i + 1].data();
    links[i].shift_gradient = shifts[i].empty() ? nullptr : got[3 * i + 2].data();
    ForEachProduct(g, all, [&](int64_t o, int64_t in, int64_t f) {
      before[in] += passed[o] * filters[i][f];
      expected[3 * i][f] += passed[o] * transformed[i][in];
    });
    for (std::size_t k = 0; k < before.size(); ++k) {
      const int64_t c = k % g.channels;
      const double scale = scales[i].empty() ? 1.0 : scales[i][c];
      const double shift = shifts[i].empty() ? 0.0 : shifts[i][c];
      if (inputs[i][k] * scale + shift <= 0) before[k] *= links[i].before.slope;
      if (!scales[i].empty()) {
        expected[3 * i + 1][c] += before[k] * inputs[i][k];
        expected[3 * i + 2][c] += before[k];
      }
      before[k] *= scale;
    }
    passed = before;
  }
  Values x_gradient = random->Numbers(x.size());
  for (std::size_t k = 0; k < x.size(); ++k) passed[k] += x_gradient[k];
  ChainGradient(links, x.data(), positions, nullptr, gradient.data(),
                has_sums ? sums.data() : nullptr, bias.data(), x_gradient.data(),
                workers);
  Expect("chain: x", x_gradient, passed);
  Expect("chain: bias", bias, expected_bias);
  for (int64_t i = 0; i < 3 * n; ++i) Expect("chain: parameters", got[i], expected[i]);
}

double Rounded(double value) { return static_cast<float>(BFloat16(value)); }

// As CheckUnits below, where every stage rounds what it hands on.
void CheckHalfUnits(Random* random, const Workers& workers) {
  const int64_t channels = random->Integer(1, 70), inner = random->Integer(1, 40);
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
  const Values x = random->WholeNumbers(middle.num_inputs() * channels, 3);
  const std::vector<int64_t> positions = random->Positions(middle.num_outputs());
  std::vector<int64_t> all(middle.num_outputs());
  std::iota(all.begin(), all.end(), 0);
  const Values shift = random->WholeNumbers(channels, 9);
  const std::vector<float> shifts = Floats(shift);
  std::vector<float> filters[3];
  Values rows = x;
  for (int i = 0; i < 3; ++i) {
    const Geometry& g = *geometries[i];
    const Values weights = random->WholeNumbers(g.depth() * g.filters, 1);
    filters[i] = Floats(weights);
    Values next(g.num_outputs() * g.filters);
    ForEachProduct(g, i == 2 ? positions : all, [&](int64_t o, int64_t in, int64_t f) {
      next[o] += rows[in] * weights[f];
    });
    if (i < 2) {
      for (double& value : next) value = Rounded(value);
    }
    rows = next;
  }
  for (const int64_t p : positions) {
    for (int64_t c = 0; c < channels; ++c) rows[p * channels + c] += shift[c];
  }
  Values expected = x, expected_sums(middle.batch * channels);
  for (std::size_t i = 0; i < x.size(); ++i) {
    expected[i] += rows[i];
    const int64_t image =
        static_cast<int64_t>(i) / (middle.height * middle.width * channels);
    expected_sums[image * channels + i % channels] += rows[i];
  }
  for (const Instructions instructions : kAllInstructions) {
    if (!Has(instructions)) continue;
    const std::string name = std::to_string(static_cast<int>(instructions));
    Stage<BFloat16> stages[3];
    PackedMatrix<BFloat16> packed[3];
    for (int i = 0; i < 3; ++i) {
      packed[i].set_instructions(instructions);
      PackFilters(*geometries[i], filters[i].data(), &packed[i]);
      stages[i].filters = &packed[i];
    }
    stages[2].after.shift = shifts.data();
    std::vector<float> y = Floats(x), sums(middle.batch * channels);
    BottleneckUnit(middle, channels, y.data(), Transform<float>{}, stages, positions,
                   nullptr, y.data(), sums.data(), workers);
    Expect(("bfloat16 unit " + name).c_str(), Doubles(y), expected);
    Expect(("bfloat16 sums " + name).c_str(), Doubles(sums), expected_sums);
  }
}

// The first unit of a block, with small whole numbers, in which every stage rounds what
// it hands on to factors F.
template <typename F>
void CheckProjection(const char* name, Instructions instructions, Random* random,
                     const Workers& workers) {
  using T = typename Blocks<F>::Sum;
  const int64_t channels = random->Integer(1, 50), inner = random->Integer(1, 40);
  const int64_t out_channels = random->Integer(1, 70);
  Geometry middle = RandomGeometry(random);
  middle.kernel_height = middle.kernel_width = 3;
  middle.stride_y = middle.stride_x = random->Integer(1, 2);
  middle.dilation_y = middle.dilation_x = middle.pad_top = middle.pad_left = 1;
  middle.out_height = CeilDiv(middle.height, middle.stride_y);
  middle.out_width = CeilDiv(middle.width, middle.stride_x);
  middle.channels = middle.filters = inner;
  Geometry last = Pointwise(middle, inner, out_channels);
  last.height = last.out_height = middle.out_height;
  last.width = last.out_width = middle.out_width;
  Geometry shortcut = Pointwise(middle, channels, out_channels);
  shortcut.stride_y = shortcut.stride_x = middle.stride_y;
  shortcut.out_height = middle.out_height;
  shortcut.out_width = middle.out_width;
  const Geometry geometries[] = {Pointwise(middle, channels, inner), middle, last,
                                 shortcut};
  const Values x = random->WholeNumbers(middle.num_inputs() * channels, 3);
  const Values shift = random->WholeNumbers(out_channels, 9);
  Stage<F> stages[4];
  PackedMatrix<F> packed[4];
  Values rows = x, expected(middle.num_outputs() * out_channels);
  for (int i = 0; i < 4; ++i) {
    const Geometry& g = geometries[i];
    const Values weights = random->WholeNumbers(g.depth() * g.filters, 1);
    const std::vector<T> filters(weights.begin(), weights.end());
    packed[i].set_instructions(instructions);
    PackFilters(g, filters.data(), &packed[i]);
    stages[i].filters = &packed[i];
    std::vector<int64_t> all(g.num_outputs());
    std::iota(all.begin(), all.end(), 0);
    Values next(g.num_outputs() * g.filters);
    const Values& from = i == 3 ? x : rows;
    ForEachProduct(g, all, [&](int64_t o, int64_t in, int64_t f) {
      next[o] += from[in] * weights[f];
    });
    if (i >= 2) {
      for (std::size_t o = 0; o < next.size(); ++o) expected[o] += next[o];
      continue;
    }
    for (double& value : next) value = static_cast<T>(F(static_cast<T>(value)));
    rows = next;
  }
  const std::vector<T> shifts(shift.begin(), shift.end()), input(x.begin(), x.end());
  stages[2].after.shift = stages[3].after.shift = shifts.data();
  const int64_t size = middle.out_height * middle.out_width * out_channels;
  Values expected_sums(middle.batch * out_channels);
  for (int64_t i = 0; i < middle.batch * size; ++i) {
    expected[i] += 2 * shift[i % out_channels];
    expected_sums[i / size * out_channels + i % out_channels] += expected[i];
  }
  std::vector<T> y(expected.size()), sums(expected_sums.size());
  const Stage<F> three[] = {stages[0], stages[1], stages[2]};
  ProjectionUnit(middle, channels, out_channels, input.data(), Transform<T>{}, three,
                 stages[3], y.data(), sums.data(), workers);
  Expect((std::string("projection ") + name).c_str(), {y.begin(), y.end()}, expected);
  Expect((std::string("projection's sums ") + name).c_str(), {sums.begin(), sums.end()},
         expected_sums);
}

void CheckProjections(int seed, const Workers& workers) {
  const auto check = [&](auto factor, const char* name, Instructions instructions) {
    Random random(seed);
    CheckProjection<decltype(factor)>(name, instructions, &random, workers);
  };
  check(0.0, "double", Instructions::kPlain);
  check(0.0f, "float", Instructions::kPlain);
  for (const Instructions instructions : kAllInstructions) {
    if (Has(instructions)) check(BFloat16(), "bfloat16", instructions);
  }
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
  // Often one row after the other.
  const bool ascend = random->Integer(0, 1) == 0;
  for (size_t i = 1; ascend && i < taps.size(); ++i) {
    if (random->Integer(0, 5) > 0 && taps[i - 1] + 1 < shape.rows) {
      taps[i] = taps[i - 1] + 1;
    }
  }
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
  const auto gradient_row = [&](int64_t r) { return gradient.data() + r * g.filters; };
  ConvolveInputGradientAt(g, windows, gradient_row, filters.data(), nullptr,
                          input_gradient.data(), workers);
  Expect("indexed input gradient", input_gradient, expected[1]);
  ConvolveFilterGradientAt(g, windows, input.data(), nullptr, Transform<double>{},
                           gradient_row, filter_gradient.data(), workers);
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

// Many short parts in a row, each of whose tasks has to be done once.
void CheckTeam(Random* random, const Workers& workers) {
  std::vector<int> done(20);
  for (int part = 0; part < 100; ++part) {
    const int64_t count = random->Integer(0, 20);
    workers.ForEach(count, [&](int64_t task) { ++done[task]; });
    for (int64_t task = 0; task < 20; ++task) {
      if (done[task] == (task < count)) continue;
      std::printf("a task was done %d times\n", done[task]);
      std::exit(1);
    }
    std::fill(done.begin(), done.end(), 0);
  }
}

// A block whose units add something to what they run on, against algorithm 2 of SACT
// written out.
void CheckBlock(Random* random, const Workers& workers) {
  Geometry g = RandomGeometry(random);
  g.kernel_height = g.kernel_width = 3;
  g.stride_y = g.stride_x = g.dilation_y = g.dilation_x = g.pad_top = g.pad_left = 1;
  g.out_height = g.height;
  g.out_width = g.width;
  g.filters = 1;
  const int64_t size = g.num_outputs(), image_size = g.height * g.width;
  const int64_t last = random->Integer(1, 4), channels = g.channels;
  std::vector<Values> filters(last), weights(last), biases(last), steps(last);
  std::vector<PackedMatrix<double>> packed(last);
  std::vector<Head<double>> heads(last);
  for (int64_t k = 0; k < last; ++k) {
    filters[k] = random->Numbers(g.depth());
    weights[k] = random->Numbers(channels);
    biases[k] = random->Numbers(1);
    steps[k] = random->Numbers(channels);
    PackFilters(g, filters[k].data(), &packed[k]);
    heads[k] = {&packed[k], {}, biases[k].data(), {}, weights[k].data()};
  }
  std::vector<int32_t> units(random->Integer(0, 1) == 0 ? 0 : image_size);
  for (int32_t& value : units) value = random->Integer(0, last + 1);
  const Imposed imposed{units.empty() ? nullptr : units.data(), image_size};
  const Values first = random->Numbers(size * channels);
  Values x = first, sums(g.batch * channels);
  const auto add_up = [&] {
    std::fill(sums.begin(), sums.end(), 0.0);
    for (int64_t p = 0; p < size; ++p) {
      Add(x.data() + p * channels, channels, sums.data() + p / image_size * channels);
    }
  };
  const auto run_unit = [&](int64_t k, const Positions& positions) {
    for (const int64_t p : positions) {
      Add(steps[k].data(), channels, x.data() + p * channels);
    }
    add_up();
  };

  // Position by position.
  Values expected(x.size()), expected_weights(size * (last + 1));
  std::vector<float> left(size, 1.0f), sum(size);
  std::vector<int32_t> counted(size);
  std::vector<int64_t> all(size), runs(g.batch * last);
  std::vector<bool> active(size, true);
  std::iota(all.begin(), all.end(), 0);
  add_up();
  for (int64_t k = 0; k <= last; ++k) {
    std::vector<int64_t> positions;
    for (int64_t p = 0; p < size; ++p) {
      if (active[p]) positions.push_back(p);
    }
    if (positions.empty()) break;
    if (k > 0) {
      for (const int64_t p : positions) ++runs[p / image_size * last + k - 1];
      run_unit(k - 1, positions);
    }
    Values logits(size);
    if (k < last) {
      ForEachProduct(g, positions, [&](int64_t o, int64_t in, int64_t f) {
        logits[o] += x[in] * filters[k][f];
      });
    }
    for (const int64_t p : positions) {
      float weight = left[p];
      bool goes_on = false;
      if (k < last) {
        double logit = logits[p] + biases[k][0];
        for (int64_t c = 0; c < channels; ++c) {
          logit += sums[p / image_size * channels + c] / image_size * weights[k][c];
        }
        float score = 1.0f / (1.0f + std::exp(-static_cast<float>(logit)));
        if (!units.empty()) {
          score = (units[p % image_size] <= k + 1 ? 1.0f : 0.0f) + 1e-6f * score;
        }
        sum[p] += score;
        if (std::abs(sum[p] - 0.99f) < 1e-5f) return;  // rounding decides
        goes_on = sum[p] < 0.99f;
        if (goes_on) {
          weight = score;
          left[p] -= score;
        }
      }
      ++counted[p];
      active[p] = goes_on;
      expected_weights[p * (last + 1) + k] = weight;
      for (int64_t c = 0; c < channels; ++c) {
        expected[p * channels + c] += weight * x[p * channels + c];
      }
    }
  }

  x = first;
  add_up();
  Values output(x.size());
  std::vector<float> remainder(size), got_weights(size * (last + 1)),
      scores(last * size);
  std::vector<int32_t> num_units(size);
  std::vector<int64_t> counts(g.batch * last * 2);
  RunBlock(
      g, heads, 0.99f, imposed,
      [&](int64_t k, const Positions& positions, const Touched& touched,
          const Workers& memory) {
        std::fill_n(memory.NewArray<double>(touched.inputs.size()),
                    touched.inputs.size(), 1.0);
        run_unit(k, positions);
      },
      x.data(), sums.data(), output.data(),
      {remainder.data(), num_units.data(), got_weights.data(), scores.data(),
       counts.data()},
      workers);
  // Weights are sums in single precision, in whatever order.
  for (int64_t p = 0; p < size; ++p) {
    if (num_units[p] == counted[p]) continue;
    std::printf("a position runs %d units, expected %d\n", num_units[p], counted[p]);
    std::exit(1);
  }
  for (int64_t i = 0; i < size * (last + 1); ++i) {
    if (std::abs(got_weights[i] - expected_weights[i]) < 1e-5) continue;
    std::printf("a weight is %g, expected %g\n", got_weights[i], expected_weights[i]);
    std::exit(1);
  }
  for (std::size_t i = 0; i < expected.size(); ++i) {
    if (std::abs(output[i] - expected[i]) < 1e-4 * (1 + std::abs(expected[i])))
      continue;
    std::printf("a block's output is %g, expected %g\n", output[i], expected[i]);
    std::exit(1);
  }
  for (int64_t i = 0; i < g.batch * last; ++i) {
    if (counts[2 * i] == runs[i] && counts[2 * i + 1] >= runs[i]) continue;
    std::printf("a unit runs at %g positions, expected %g\n", 1.0 * counts[2 * i],
                1.0 * runs[i]);
    std::exit(1);
  }
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
    perforated::CheckTeam(&random, workers);
    perforated::CheckBlock(&random, workers);
    perforated::CheckRounding(&random);
    perforated::CheckHalfConvolution(&random, workers);
    perforated::CheckHalfUnits(&random, workers);
    perforated::CheckChains(&random, workers);
    perforated::CheckProjections(i, workers);
    perforated::CheckIndexed(&random, workers);
  }
  std::printf("%d cases are right\n", cases);
}
