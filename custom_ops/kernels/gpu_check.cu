// Checks the GPU kernels by themselves against plain loops on the CPU, on a GPU (from
// this directory):
//
//   nvcc -O3 -std=c++17 -arch=native gpu_check.cu gpu_convolution.cu gpu_positions.cu
//   gpu_units.cu -o gpu_check && ./gpu_check [cases] [seed]
//
// or in the emulation, which custom_ops/emulation.py compiles. Exits with 1 at the
// first result that is wrong, with 77 where there is no GPU.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "gpu.h"
#include "gpu_device.h"

namespace perforated {
namespace gpu {
namespace {

using Values = std::vector<double>;

constexpr int kNoGpu = 77;
constexpr const char* kTypeNames[] = {"float", "tf32", "half", "bfloat16"};

[[noreturn]] void Fail(const char* what, const char* why) {
  std::printf("FAILED: %s: %s\n", what, why);
  std::exit(1);
}

void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Fail(what, cudaGetErrorString(error));
}

void Check(const char* error, const char* what) {
  if (error != nullptr) Fail(what, error);
}

// An array on the device. Begins as bytes 0xff: NaN in every type.
template <typename T>
class Array {
 public:
  explicit Array(int64_t size) : size_(size) {
    Check(cudaMalloc(&data_, std::max<int64_t>(1, size) * sizeof(T)), "cudaMalloc");
    Check(cudaMemset(data_, 0xff, size * sizeof(T)), "cudaMemset");
  }
  explicit Array(const std::vector<T>& values) : Array(values.size()) {
    Check(cudaMemcpy(data_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice),
          "copy to the device");
  }
  Array(const Array&) = delete;
  ~Array() { cudaFree(data_); }
  T* data() { return data_; }
  std::vector<T> Read() const {
    std::vector<T> values(size_);
    Check(cudaMemcpy(values.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost),
          "copy from the device");
    return values;
  }

 private:
  int64_t size_;
  T* data_ = nullptr;
};

std::mt19937 generator(1);

int64_t Uniform(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

float Normal() { return std::normal_distribution<float>()(generator); }

template <typename T>
std::vector<T> NormalVector(int64_t size) {
  std::vector<T> values(size);
  for (T& value : values) value = T(Normal());
  return values;
}

// A vector<bool> has no elements to point at.
std::vector<uint8_t> RandomMask(int64_t size, double share) {
  std::vector<uint8_t> mask(size);
  std::uniform_real_distribution<double> uniform;
  for (uint8_t& value : mask) value = uniform(generator) < share;
  return mask;
}

int64_t Taps(const Geometry& g) { return g.kernel_height * g.kernel_width; }
int64_t NumInputs(const Geometry& g) { return g.batch * g.height * g.width; }
int64_t NumOutputs(const Geometry& g) { return g.batch * g.out_height * g.out_width; }
int64_t NumWeights(const Geometry& g) { return Taps(g) * g.channels * g.filters; }

// Flat input position that a tap of an output position reads, or -1.
int64_t ReadBy(const Geometry& g, int64_t out, int64_t tap) {
  const int64_t image = out / (g.out_height * g.out_width);
  const int64_t y = out / g.out_width % g.out_height * g.stride_y - g.pad_top +
                    tap / g.kernel_width * g.dilation_y;
  const int64_t x =
      out % g.out_width * g.stride_x - g.pad_left + tap % g.kernel_width * g.dilation_x;
  if (y < 0 || y >= g.height || x < 0 || x >= g.width) return -1;
  return (image * g.height + y) * g.width + x;
}

// Odd numbers of channels are loaded one by one, multiples of 8 in chunks.
int64_t RandomChannels(int64_t most) {
  const int64_t n = Uniform(1, most);
  return Uniform(0, 1) ? (n + 7) / 8 * 8 : n;
}

// Few positions with many channels, or the reverse: more than one block lists.
Geometry RandomGeometry() {
  const bool is_large = Uniform(0, 5) == 0;
  const int64_t most = is_large ? 6 : 80;
  Geometry g;
  g.batch = Uniform(0, 19) == 0 ? 0 : Uniform(1, 3);
  g.height = is_large ? Uniform(30, 50) : Uniform(1, 10);
  g.width = is_large ? Uniform(30, 50) : Uniform(1, 10);
  g.channels = RandomChannels(most);
  g.filters = RandomChannels(most);
  g.kernel_height = Uniform(1, 3);
  g.kernel_width = Uniform(1, 3);
  g.stride_y = Uniform(1, 3);
  g.stride_x = Uniform(1, 3);
  g.dilation_y = Uniform(1, 3);
  g.dilation_x = Uniform(1, 3);
  g.pad_top = Uniform(0, 3);
  g.pad_left = Uniform(0, 3);
  const auto out_size = [](int64_t size, int64_t kernel, int64_t dilation,
                           int64_t stride) {
    const int64_t extent = (kernel - 1) * dilation + 1;
    return size < extent ? 0 : (size - extent) / stride + 1;
  };
  g.out_height = out_size(g.height + g.pad_top + Uniform(0, 3), g.kernel_height,
                          g.dilation_y, g.stride_y);
  g.out_width = out_size(g.width + g.pad_left + Uniform(0, 3), g.kernel_width,
                         g.dilation_x, g.stride_x);
  g.shared_mask = Uniform(0, 1);
  return g;
}

// A result and what it may be off by: `error` times the sum of the magnitudes.
struct Expected {
  explicit Expected(int64_t size) : values(size), magnitudes(size) {}
  void Add(int64_t i, double value) {
    values[i] += value;
    magnitudes[i] += std::abs(value);
  }
  Values values, magnitudes;
};

template <typename T>
void Compare(const char* what, Type type, const Geometry& g, const std::vector<T>& got,
             const Expected& expected) {
  // Half a unit of the last place of T and of the factors, and rounding of sums.
  const double error = type == Type::kFloat           ? 1e-5
                       : type == Type::kBfloat16      ? 8e-3
                       : type == Type::kTensorFloat32 ? 2e-3
                                                      : 1e-3;
  for (size_t i = 0; i < got.size(); ++i) {
    const double off =
        std::abs(static_cast<double>(static_cast<float>(got[i])) - expected.values[i]);
    if (off <= error * (expected.magnitudes[i] + 1e-3)) continue;  // false for NaN
    char message[400];
    std::snprintf(
        message, sizeof(message),
        "%s, element %zu: got %g instead of %g; batch %d, input %dx%dx%d, kernel %dx%d,"
        " output %dx%dx%d, strides %d %d, dilations %d %d, padding %d %d, shared %d",
        kTypeNames[static_cast<int>(type)], i, static_cast<float>(got[i]),
        expected.values[i], int(g.batch), int(g.height), int(g.width), int(g.channels),
        int(g.kernel_height), int(g.kernel_width), int(g.out_height), int(g.out_width),
        int(g.filters), int(g.stride_y), int(g.stride_x), int(g.dilation_y),
        int(g.dilation_x), int(g.pad_top), int(g.pad_left), int(g.shared_mask));
    Fail(what, message);
  }
}

template <typename T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

template <typename T>
void CheckCase(Type type, const Geometry& g, double share) {
  const int64_t outputs = NumOutputs(g), taps = Taps(g);
  const int64_t mask_size = g.out_height * g.out_width * (g.shared_mask ? 1 : g.batch);
  const std::vector<uint8_t> mask = RandomMask(mask_size, share);
  const auto active = [&](int64_t out) { return mask[out % mask_size] != 0; };

  // What no active position reads stays NaN, and must have no effect.
  std::vector<T> x(NumInputs(g) * g.channels, T(NAN)), dy(outputs * g.filters, T(NAN));
  for (int64_t out = 0; out < outputs; ++out) {
    if (!active(out)) continue;
    for (int64_t f = 0; f < g.filters; ++f) dy[out * g.filters + f] = T(Normal());
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t in = ReadBy(g, out, tap);
      for (int64_t c = 0; in >= 0 && c < g.channels; ++c) {
        x[in * g.channels + c] = T(Normal());
      }
    }
  }
  const std::vector<T> weights = NormalVector<T>(NumWeights(g));
  const std::vector<T> bias = NormalVector<T>(g.filters);
  const std::vector<T> scale = NormalVector<T>(g.channels);
  const std::vector<T> shift = NormalVector<T>(g.channels);
  constexpr float kSlopes[] = {1.0f, 0.0f, 0.1f};
  const float input_slope = kSlopes[Uniform(0, 2)], slope = kSlopes[Uniform(0, 2)];
  const bool has_scale = Uniform(0, 1), has_shift = Uniform(0, 1);
  const bool has_bias = Uniform(0, 1);

  Expected y(outputs * g.filters), dx(x.size()), dw(weights.size());
  for (int64_t out = 0; out < outputs; ++out) {
    if (!active(out)) continue;
    for (int64_t tap = 0; tap < taps; ++tap) {
      const int64_t in = ReadBy(g, out, tap);
      if (in < 0) continue;
      for (int64_t c = 0; c < g.channels; ++c) {
        const float raw = static_cast<float>(x[in * g.channels + c]);
        float v = raw;
        if (has_scale) v *= static_cast<float>(scale[c]);
        if (has_shift) v += static_cast<float>(shift[c]);
        if (v < 0) v *= input_slope;
        v = static_cast<float>(T(v));
        for (int64_t f = 0; f < g.filters; ++f) {
          const int64_t weight = (tap * g.channels + c) * g.filters + f;
          const double w = static_cast<float>(weights[weight]);
          const double d = static_cast<float>(dy[out * g.filters + f]);
          y.Add(out * g.filters + f, v * w);
          dx.Add(in * g.channels + c, d * w);
          dw.Add(weight, raw * d);
        }
      }
    }
    for (int64_t f = 0; f < g.filters; ++f) {
      const int64_t i = out * g.filters + f;
      if (has_bias) y.Add(i, static_cast<float>(bias[f]));
      if (y.values[i] < 0) y.values[i] *= slope;
    }
  }

  Array<uint8_t> device_mask(mask);
  const bool* const mask_data = reinterpret_cast<const bool*>(device_mask.data());
  Array<T> device_x(x), device_dy(dy), device_weights(weights), device_bias(bias),
      device_scale(scale), device_shift(shift);
  const Transform before{has_scale ? device_scale.data() : nullptr,
                         has_shift ? device_shift.data() : nullptr, input_slope};
  const Transform after{nullptr, has_bias ? device_bias.data() : nullptr, slope};
  Array<char> places(g.shared_mask ? 0 : PlacesBytes(g));
  void* const found = g.shared_mask ? nullptr : places.data();
  if (found != nullptr) Check(FindPlaces(g, mask_data, found, nullptr), "positions");
  std::vector<T> results[2][3];
  for (auto& result : results) {
    Array<T> to_y(y.values.size()), to_dx(dx.values.size()), to_dw(dw.values.size());
    Array<char> space(ConvolveWorkspace(g)), dx_space(InputGradientWorkspace(g)),
        dw_space(FilterGradientWorkspace(g));
    Check(Convolve(type, g, device_x.data(), device_weights.data(), mask_data, found,
                   before, after, to_y.data(), space.data(), nullptr),
          "convolution");
    Check(InputGradient(type, g, device_dy.data(), device_weights.data(), mask_data,
                        to_dx.data(), dx_space.data(), nullptr),
          "input gradient");
    Check(FilterGradient(type, g, device_x.data(), device_dy.data(), mask_data,
                         to_dw.data(), dw_space.data(), nullptr),
          "filter gradient");
    Check(cudaDeviceSynchronize(), "run");
    result[0] = to_y.Read();
    result[1] = to_dx.Read();
    result[2] = to_dw.Read();
  }
  Compare("convolution", type, g, results[0][0], y);
  Compare("input gradient", type, g, results[0][1], dx);
  Compare("filter gradient", type, g, results[0][2], dw);
  for (int i = 0; i < 3; ++i) {
    if (!SameBits(results[0][i], results[1][i])) Fail("second run", "other results");
  }
}

// ------------------------------------------------------------------------------- units

// A transform of random numbers, and the same on the device.
template <typename T>
struct RandomTransform {
  RandomTransform(int64_t size, bool has_scale, float slope)
      : scale(has_scale ? NormalVector<T>(size) : std::vector<T>(size, T(1.0f))),
        shift(NormalVector<T>(size)),
        slope(slope),
        device_scale(scale),
        device_shift(shift),
        has_scale(has_scale) {}
  Transform Get() {
    return {has_scale ? device_scale.data() : nullptr, device_shift.data(), slope};
  }
  // Rounds to T, as what a unit keeps between its convolutions is.
  Values operator()(Values values) const {
    const int64_t size = scale.size();
    for (size_t i = 0; i < values.size(); ++i) {
      double v = values[i] * static_cast<float>(scale[i % size]) +
                 static_cast<float>(shift[i % size]);
      if (v < 0) v *= slope;
      values[i] = static_cast<float>(T(static_cast<float>(v)));
    }
    return values;
  }
  std::vector<T> scale, shift;
  float slope;
  Array<T> device_scale, device_shift;
  bool has_scale;
};

template <typename T>
struct RandomFilters {
  explicit RandomFilters(const Geometry& g)
      : values(NormalVector<T>(NumWeights(g))), device(values) {}
  std::vector<T> values;
  Array<T> device;
};

// A dense convolution.
template <typename T>
Values Dense(const Geometry& g, const Values& x, const RandomFilters<T>& filters) {
  Values y(NumOutputs(g) * g.filters);
  for (int64_t out = 0; out < NumOutputs(g); ++out) {
    for (int64_t tap = 0; tap < Taps(g); ++tap) {
      const int64_t in = ReadBy(g, out, tap);
      for (int64_t c = 0; in >= 0 && c < g.channels; ++c) {
        const T* const w = filters.values.data() + (tap * g.channels + c) * g.filters;
        const double v = x[in * g.channels + c];
        for (int64_t f = 0; f < g.filters; ++f) {
          y[out * g.filters + f] += v * static_cast<float>(w[f]);
        }
      }
    }
  }
  return y;
}

template <typename T>
Values ToValues(const std::vector<T>& values) {
  Values result(values.size());
  for (size_t i = 0; i < values.size(); ++i) result[i] = static_cast<float>(values[i]);
  return result;
}

// A convolution that keeps size, or strides.
Geometry Same(const Geometry& like, int64_t kernel, int64_t stride, int64_t channels,
              int64_t filters) {
  Geometry g = like;
  g.kernel_height = g.kernel_width = kernel;
  g.stride_y = g.stride_x = stride;
  g.dilation_y = g.dilation_x = 1;
  g.pad_top = g.pad_left = kernel / 2;
  g.out_height = (g.height + stride - 1) / stride;
  g.out_width = (g.width + stride - 1) / stride;
  g.channels = channels;
  g.filters = filters;
  g.shared_mask = false;
  return g;
}

// Compares what a unit computed with x (where a mask is not set: the very bits) and
// with x plus the residual.
template <typename T>
void CompareUnit(const char* what, Type type, const std::vector<T>& got,
                 const std::vector<T>& x, const std::vector<uint8_t>& mask,
                 const Values& residual, int64_t channels) {
  const double error = type == Type::kFloat           ? 1e-4
                       : type == Type::kBfloat16      ? 6e-2
                       : type == Type::kTensorFloat32 ? 1e-2
                                                      : 1e-2;
  double square = 0.0;
  for (const double v : residual) square += v * v / residual.size();
  for (size_t i = 0; i < got.size(); ++i) {
    if (!mask[i / channels]) {
      if (std::memcmp(&got[i], &x[i], sizeof(T)) != 0) Fail(what, "a frozen position");
      continue;
    }
    const double expected = static_cast<float>(x[i]) + residual[i];
    const double off = std::abs(static_cast<float>(got[i]) - expected);
    if (off <= error * (std::sqrt(square) + std::abs(expected))) continue;
    char message[200];
    std::snprintf(message, sizeof(message), "%s, element %zu: got %g instead of %g",
                  kTypeNames[static_cast<int>(type)], i, static_cast<float>(got[i]),
                  expected);
    Fail(what, message);
  }
}

template <typename T>
void CompareSums(const char* what, Type type, const std::vector<T>& got,
                 const Values& before, const Values& added, const Geometry& image,
                 const std::vector<uint8_t>& mask) {
  const int64_t size = image.out_height * image.out_width, channels = image.filters;
  Expected expected(got.size());
  for (size_t i = 0; i < before.size(); ++i) expected.Add(i, before[i]);
  for (size_t i = 0; i < added.size(); ++i) {
    const int64_t position = i / channels;
    if (mask[position]) {
      expected.Add(position / size * channels + i % channels, added[i]);
    }
  }
  // Numbers of the order of many channels are added, of either sign.
  for (size_t i = 0; i < got.size(); ++i) expected.magnitudes[i] = 0.0;
  const double error = type == Type::kFloat      ? 1e-3
                       : type == Type::kBfloat16 ? 0.2
                                                 : 0.05;
  for (size_t i = 0; i < got.size(); ++i) {
    double square = 1.0;
    for (int64_t p = 0; p < size; ++p) {
      const int64_t position = i / channels * size + p;
      const double v = mask[position] ? added[position * channels + i % channels] : 0.0;
      square += v * v;
    }
    const double off = std::abs(static_cast<float>(got[i]) - expected.values[i]);
    if (!(off <= error * (std::sqrt(square) + std::abs(expected.values[i])))) {
      Fail(what, kTypeNames[static_cast<int>(type)]);
    }
  }
}

template <typename T>
void CheckBottleneck(Type type, const Geometry& image, double share) {
  const int64_t channels = RandomChannels(80), inner = RandomChannels(40);
  const int64_t outer = RandomChannels(40);
  const Geometry first = Same(image, 1, 1, channels, inner);
  const Geometry middle = Same(image, 3, 1, inner, outer);
  const Geometry last = Same(image, 1, 1, outer, channels);
  const std::vector<uint8_t> mask = RandomMask(NumOutputs(middle), share);
  const std::vector<T> x = NormalVector<T>(NumInputs(first) * channels);
  const std::vector<T> sums = NormalVector<T>(image.batch * channels);
  RandomTransform<T> before(channels, true, 0.0f), after_first(inner, true, 0.0f);
  RandomTransform<T> after_middle(outer, true, 0.0f), bias(channels, false, 1.0f);
  RandomFilters<T> filters[] = {RandomFilters<T>(first), RandomFilters<T>(middle),
                                RandomFilters<T>(last)};
  const Values residual =
      bias(Dense(last,
                 after_middle(Dense(
                     middle, after_first(Dense(first, before(ToValues(x)), filters[0])),
                     filters[1])),
                 filters[2]));

  const Stage stages[] = {{filters[0].device.data(), after_first.Get()},
                          {filters[1].device.data(), after_middle.Get()},
                          {filters[2].device.data(), bias.Get()}};
  Array<uint8_t> device_mask(mask);
  Array<char> places(PlacesBytes(middle)), space(BottleneckWorkspace(middle));
  Check(FindPlaces(middle, reinterpret_cast<const bool*>(device_mask.data()),
                   places.data(), nullptr),
        "positions");
  Array<T> device_x(x), y(x.size()), device_sums(sums), new_sums(sums.size());
  Check(Bottleneck(type, middle, channels, device_x.data(), before.Get(), stages,
                   places.data(), y.data(), device_sums.data(), new_sums.data(),
                   space.data(), nullptr),
        "bottleneck");
  Check(cudaDeviceSynchronize(), "run");
  CompareUnit("bottleneck", type, y.Read(), x, mask, residual, channels);
  CompareSums("sums of a bottleneck", type, new_sums.Read(), ToValues(sums), residual,
              last, mask);
  // In place, and without sums.
  Check(Bottleneck(type, middle, channels, device_x.data(), before.Get(), stages,
                   places.data(), device_x.data(), nullptr, nullptr, space.data(),
                   nullptr),
        "bottleneck");
  Check(cudaDeviceSynchronize(), "run");
  if (!SameBits(device_x.Read(), y.Read())) Fail("bottleneck", "in place");
}

template <typename T>
void CheckProjection(Type type, const Geometry& image) {
  const int64_t channels = RandomChannels(40), inner = RandomChannels(40);
  const int64_t outer = RandomChannels(40), out_channels = RandomChannels(80);
  const int64_t stride = Uniform(1, 2);
  const Geometry first = Same(image, 1, 1, channels, inner);
  const Geometry middle = Same(image, 3, stride, inner, outer);
  Geometry small = image;
  small.height = middle.out_height;
  small.width = middle.out_width;
  const Geometry last = Same(small, 1, 1, outer, out_channels);
  const Geometry shortcut = Same(image, 1, stride, channels, out_channels);
  const std::vector<T> x = NormalVector<T>(NumInputs(first) * channels);
  RandomTransform<T> before(channels, true, 0.0f), after_first(inner, true, 0.0f);
  RandomTransform<T> after_middle(outer, true, 0.0f), bias(out_channels, false, 1.0f);
  RandomTransform<T> shortcut_bias(out_channels, false, 1.0f);
  RandomFilters<T> filters[] = {RandomFilters<T>(first), RandomFilters<T>(middle),
                                RandomFilters<T>(last), RandomFilters<T>(shortcut)};
  const Values preactivated = before(ToValues(x));
  Values expected = bias(Dense(
      last,
      after_middle(Dense(middle, after_first(Dense(first, preactivated, filters[0])),
                         filters[1])),
      filters[2]));
  const Values rest = shortcut_bias(Dense(shortcut, preactivated, filters[3]));
  for (size_t i = 0; i < expected.size(); ++i) expected[i] += rest[i];

  const Stage stages[] = {{filters[0].device.data(), after_first.Get()},
                          {filters[1].device.data(), after_middle.Get()},
                          {filters[2].device.data(), bias.Get()}};
  Array<T> device_x(x), y(expected.size()), sums(image.batch * out_channels);
  Array<char> space(ProjectionWorkspace(middle));
  Check(ProjectionBottleneck(type, middle, channels, out_channels, device_x.data(),
                             before.Get(), stages,
                             {filters[3].device.data(), shortcut_bias.Get()}, y.data(),
                             sums.data(), space.data(), nullptr),
        "projection");
  Check(cudaDeviceSynchronize(), "run");
  const std::vector<uint8_t> everywhere(NumOutputs(middle), 1);
  CompareUnit("projection", type, y.Read(), std::vector<T>(expected.size(), T(0.0f)),
              everywhere, expected, out_channels);
  CompareSums("sums of a projection", type, sums.Read(), {}, expected, last,
              everywhere);
}

template <typename T>
void CheckBasicUnit(Type type, const Geometry& image, double share) {
  const int64_t channels = RandomChannels(40), inner = RandomChannels(40);
  const Geometry first = Same(image, 3, 1, channels, inner);
  const Geometry second = Same(image, 3, 1, inner, channels);
  const std::vector<uint8_t> mask = RandomMask(NumOutputs(second), share);
  const std::vector<T> x = NormalVector<T>(NumInputs(first) * channels);
  RandomTransform<T> before(channels, true, 0.1f), after(inner, true, 0.0f);
  RandomTransform<T> bias(channels, false, 1.0f);
  RandomFilters<T> filters[] = {RandomFilters<T>(first), RandomFilters<T>(second)};
  const Values residual = bias(
      Dense(second, after(Dense(first, before(ToValues(x)), filters[0])), filters[1]));

  const Stage stages[] = {{filters[0].device.data(), after.Get()},
                          {filters[1].device.data(), bias.Get()}};
  Array<uint8_t> device_mask(mask);
  Array<char> places(PlacesBytes(second)), space(BasicUnitWorkspace(second));
  Check(FindPlaces(second, reinterpret_cast<const bool*>(device_mask.data()),
                   places.data(), nullptr),
        "positions");
  Array<T> device_x(x), y(x.size());
  Check(BasicUnit(type, first, second, device_x.data(), before.Get(), stages,
                  places.data(), y.data(), space.data(), nullptr),
        "basic unit");
  Check(cudaDeviceSynchronize(), "run");
  CompareUnit("basic unit", type, y.Read(), x, mask, residual, channels);
}

template <typename T>
void CheckAccumulate(Type type, const Geometry& image, double share) {
  const int64_t channels = RandomChannels(80), positions = NumInputs(image);
  const std::vector<uint8_t> mask = RandomMask(positions, share);
  const std::vector<T> total = NormalVector<T>(positions * channels);
  const std::vector<T> x = NormalVector<T>(positions * channels);
  std::vector<float> weight(positions);
  Values added(positions * channels);
  for (int64_t p = 0; p < positions; ++p) {
    if (mask[p]) weight[p] = Normal();
    for (int64_t c = 0; c < channels; ++c) {
      const int64_t i = p * channels + c;
      added[i] = weight[p] * static_cast<float>(x[i]);
    }
  }
  Array<T> device_total(total), device_x(x), y(total.size());
  Array<float> device_weight(weight);
  Check(Accumulate(type, positions, channels, device_total.data(), device_x.data(),
                   device_weight.data(), y.data(), nullptr),
        "accumulation");
  Check(cudaDeviceSynchronize(), "run");
  CompareUnit("accumulation", type, y.Read(), total, mask, added, channels);
}

void CheckFold() {
  const int64_t n = Uniform(1, 600);
  const std::vector<float> gamma = NormalVector<float>(n),
                           beta = NormalVector<float>(n);
  const std::vector<float> mean = NormalVector<float>(n);
  std::vector<float> variance = NormalVector<float>(n);
  for (float& v : variance) v = v * v;
  Array<float> device_gamma(gamma), device_beta(beta), device_mean(mean),
      device_variance(variance), scale(n), shift(n);
  Check(
      FoldBatchNorm(n, device_gamma.data(), device_beta.data(), device_mean.data(),
                    device_variance.data(), 1e-3f, scale.data(), shift.data(), nullptr),
      "batch normalization");
  Check(cudaDeviceSynchronize(), "run");
  const std::vector<float> got_scale = scale.Read(), got_shift = shift.Read();
  for (int64_t i = 0; i < n; ++i) {
    const double expected = gamma[i] / std::sqrt(variance[i] + 1e-3);
    const double rest = beta[i] - mean[i] * expected;
    if (!(std::abs(got_scale[i] - expected) <= 1e-5 * std::abs(expected)) ||
        !(std::abs(got_shift[i] - rest) <=
          1e-5 * (std::abs(beta[i]) + std::abs(mean[i] * expected)))) {
      Fail("batch normalization", "scale or shift");
    }
  }
}

// --------------------------------------------------------------------------------- all

template <typename T>
void CheckAll(Type type, const Geometry& g, double share) {
  CheckCase<T>(type, g, share);
  Geometry image = g;
  image.height = std::min<int64_t>(g.height, 9);
  image.width = std::min<int64_t>(g.width, 9);
  CheckBottleneck<T>(type, image, share);
  CheckProjection<T>(type, image);
  CheckBasicUnit<T>(type, image, share);
  CheckAccumulate<T>(type, image, share);
}

void CheckCases(int count) {
  constexpr double kShares[] = {0.0, 0.1, 0.5, 1.0};
  for (int i = 0; i < count; ++i) {
    const Geometry g = RandomGeometry();
    const double share = kShares[i % 4];
    CheckAll<float>(Type::kFloat, g, share);
    CheckAll<float>(Type::kTensorFloat32, g, share);
    CheckAll<__half>(Type::kHalf, g, share);
    CheckAll<__nv_bfloat16>(Type::kBfloat16, g, share);
    CheckFold();
  }
  std::printf("%d random cases of each type are right\n", count);
}

#ifdef __CUDACC__
void FindDevice() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("no GPU: %s\n", cudaGetErrorString(error));
    std::exit(kNoGpu);
  }
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::printf("%s, compute capability %d.%d\n", properties.name, properties.major,
              properties.minor);
}
void Seed(uint64_t seed) { generator.seed(seed); }
#else
void FindDevice() { std::printf("emulation\n"); }
void Seed(uint64_t seed) {
  generator.seed(seed);
  emulation::Seed(seed);
}
#endif

int Main(int argc, char** argv) {
  FindDevice();
  Seed(argc > 2 ? std::atoi(argv[2]) : 1);
  CheckCases(argc > 1 ? std::atoi(argv[1]) : 100);
  std::fflush(stdout);
  return 0;
}

}  // namespace
}  // namespace gpu
}  // namespace perforated

int main(int argc, char** argv) { return perforated::gpu::Main(argc, argv); }
