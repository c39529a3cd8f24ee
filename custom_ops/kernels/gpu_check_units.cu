// Checks residual units and what surrounds them against plain loops.

#include "gpu_check.h"

namespace perforated {
namespace gpu {
namespace check {

namespace {

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

}  // namespace

template <typename T>
void CheckUnits(Type type, const Geometry& image, double share) {
  CheckBottleneck<T>(type, image, share);
  CheckProjection<T>(type, image);
  CheckBasicUnit<T>(type, image, share);
  CheckAccumulate<T>(type, image, share);
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

template void CheckUnits<float>(Type, const Geometry&, double);
template void CheckUnits<__half>(Type, const Geometry&, double);
template void CheckUnits<__nv_bfloat16>(Type, const Geometry&, double);

}  // namespace check
}  // namespace gpu
}  // namespace perforated
