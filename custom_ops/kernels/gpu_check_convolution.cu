// Checks the convolution and its gradients against plain loops.

#include "gpu_check.h"

namespace perforated {
namespace gpu {
namespace check {

template <typename T>
void CheckConvolution(Type type, const Geometry& g, double share) {
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

template void CheckConvolution<float>(Type, const Geometry&, double);
template void CheckConvolution<__half>(Type, const Geometry&, double);
template void CheckConvolution<__nv_bfloat16>(Type, const Geometry&, double);

}  // namespace check
}  // namespace gpu
}  // namespace perforated
