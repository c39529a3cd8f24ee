// Checks convolution and pooling of rows that a table names against plain loops.

#include "gpu_check.h"

namespace perforated {
namespace gpu {
namespace check {

namespace {

constexpr int kNone = -1;

Indexed RandomIndexed() {
  Indexed g = {};
  g.batch = Uniform(0, 9) == 0 ? 0 : Uniform(1, 3);
  g.rows_in = Uniform(0, 9) == 0 ? 0 : Uniform(1, 90);
  g.rows_out = Uniform(0, 9) == 0 ? 0 : Uniform(1, 90);
  g.channels = RandomChannels(80);
  g.filters = RandomChannels(80);
  g.taps = Uniform(1, 9);
  return g;
}

// Many taps of one row, none of another; numbers that are no rows mean none.
std::vector<int32_t> RandomTable(const Indexed& g) {
  std::vector<int32_t> table(g.rows_out * g.taps);
  const int64_t most = Uniform(0, 3) == 0 ? std::min<int64_t>(g.rows_in, 2) : g.rows_in;
  for (int32_t& row : table) {
    const int64_t kind = Uniform(0, 19);
    row = most == 0 || kind < 3 ? kNone : static_cast<int32_t>(Uniform(0, most - 1));
    if (kind == 3) row = static_cast<int32_t>(Uniform(0, 1) ? g.rows_in : -7);
  }
  return table;
}

Geometry ForMessage(const Indexed& g) {
  Geometry result = {};
  result.batch = g.batch;
  result.height = g.rows_in;
  result.channels = g.channels;
  result.kernel_height = g.taps;
  result.out_height = g.rows_out;
  result.filters = g.filters;
  return result;
}

// Calls visit(row of the output, tap, row of the input) for every tap that reads one.
template <typename Visit>
void ForEachTap(const Indexed& g, const std::vector<int32_t>& table,
                const Visit& visit) {
  for (int64_t out = 0; out < g.batch * g.rows_out; ++out) {
    for (int64_t tap = 0; tap < g.taps; ++tap) {
      const int32_t row = table[out % g.rows_out * g.taps + tap];
      if (row < 0 || row >= g.rows_in) continue;
      visit(out, tap, out / g.rows_out * g.rows_in + row);
    }
  }
}

// Calls run(result, workspace) twice and compares: with `expected`, and the bits.
template <typename T, typename Run>
void CompareRuns(const char* what, Type type, const Indexed& g,
                 const Expected& expected, int64_t workspace_bytes, const Run& run) {
  std::vector<T> results[2];
  for (auto& result : results) {
    Array<T> to(expected.values.size());
    Array<char> space(workspace_bytes);
    Check(run(to.data(), space.data()), what);
    Check(cudaDeviceSynchronize(), "run");
    result = to.Read();
  }
  Compare(what, type, ForMessage(g), results[0], expected);
  if (!SameBits(results[0], results[1])) Fail(what, "other results in the second run");
}

template <typename T>
void CheckProducts(Type type, const Indexed& g, const std::vector<int32_t>& table) {
  const std::vector<T> rows = NormalVector<T>(g.batch * g.rows_in * g.channels);
  const std::vector<T> filters = NormalVector<T>(g.taps * g.channels * g.filters);
  const std::vector<T> bias = NormalVector<T>(g.filters);
  const std::vector<T> scale = NormalVector<T>(g.filters);
  const std::vector<T> dy = NormalVector<T>(g.batch * g.rows_out * g.filters);
  constexpr float kSlopes[] = {1.0f, 0.0f, 0.1f};
  const float slope = kSlopes[Uniform(0, 2)];
  const bool has_bias = Uniform(0, 1), has_scale = Uniform(0, 1);
  Expected y(dy.size()), dx(rows.size()), dw(filters.size());
  ForEachTap(g, table, [&](int64_t out, int64_t tap, int64_t in) {
    for (int64_t c = 0; c < g.channels; ++c) {
      const double v = static_cast<float>(rows[in * g.channels + c]);
      for (int64_t f = 0; f < g.filters; ++f) {
        const int64_t weight = (tap * g.channels + c) * g.filters + f;
        const double w = static_cast<float>(filters[weight]);
        const double d = static_cast<float>(dy[out * g.filters + f]);
        y.Add(out * g.filters + f, v * w);
        dx.Add(in * g.channels + c, d * w);
        dw.Add(weight, v * d);
      }
    }
  });
  for (size_t i = 0; i < dy.size(); ++i) {
    if (has_scale) {
      const double by = static_cast<float>(scale[i % g.filters]);
      y.values[i] *= by;
      y.magnitudes[i] *= std::abs(by);
    }
    if (has_bias) y.Add(i, static_cast<float>(bias[i % g.filters]));
    if (y.values[i] < 0) y.values[i] *= slope;
  }
  Array<T> device_rows(rows), device_filters(filters), device_bias(bias), device_dy(dy),
      device_scale(scale);
  const Transform after{has_scale ? device_scale.data() : nullptr,
                        has_bias ? device_bias.data() : nullptr, slope};
  CompareRuns<T>("indexed convolution", type, g, y, 0, [&](T* to, void*) {
    return IndexedConvolve(type, g, device_rows.data(), device_filters.data(), after,
                           to, nullptr);
  });
  CompareRuns<T>("its input gradient", type, g, dx, IndexedInputGradientWorkspace(g),
                 [&](T* to, void* space) {
                   return IndexedInputGradient(type, g, device_dy.data(),
                                               device_filters.data(), to, space,
                                               nullptr);
                 });
  CompareRuns<T>("its filter gradient", type, g, dw, IndexedFilterGradientWorkspace(g),
                 [&](T* to, void* space) {
                   return IndexedFilterGradient(type, g, device_rows.data(),
                                                device_dy.data(), to, space, nullptr);
                 });
}

template <typename T>
void CheckPooling(Type type, const Indexed& g, const std::vector<int32_t>& table) {
  std::vector<T> rows = NormalVector<T>(g.batch * g.rows_in * g.channels);
  // Few values, so that maxima are often equal.
  for (T& v : rows) v = T(std::round(static_cast<float>(v) * 2.0f));
  const std::vector<T> dy = NormalVector<T>(g.batch * g.rows_out * g.channels);
  Expected greatest(dy.size()), average(dy.size()), sums(rows.size()), dx(rows.size());
  std::vector<int64_t> first(dy.size(), kNone), counts(dy.size());
  ForEachTap(g, table, [&](int64_t out, int64_t, int64_t in) {
    for (int64_t c = 0; c < g.channels; ++c) {
      const int64_t i = out * g.channels + c, from = in * g.channels + c;
      const auto value = [&](int64_t at) { return static_cast<float>(rows[at]); };
      if (first[i] < 0 || value(from) > value(first[i])) first[i] = from;
      ++counts[i];
      average.Add(i, value(from));
      sums.Add(from, static_cast<float>(dy[i]));
    }
  });
  for (size_t i = 0; i < dy.size(); ++i) {
    if (first[i] < 0) continue;
    average.values[i] /= counts[i];
    greatest.Add(i, static_cast<float>(rows[first[i]]));
    dx.Add(first[i], static_cast<float>(dy[i]));
  }
  Array<T> device_rows(rows), device_dy(dy);
  for (const bool is_max : {false, true}) {
    CompareRuns<T>(is_max ? "maxima" : "averages", type, g, is_max ? greatest : average,
                   0, [&](T* to, void*) {
                     return Pool(type, g, is_max, device_rows.data(), to, nullptr);
                   });
  }
  CompareRuns<T>("gradient of maxima", type, g, dx, MaxPoolGradientWorkspace(g),
                 [&](T* to, void* space) {
                   return MaxPoolGradient(type, g, device_rows.data(), device_dy.data(),
                                          to, space, nullptr);
                 });
  CompareRuns<T>("sums of rows", type, g, sums, AddToRowsWorkspace(g),
                 [&](T* to, void* space) {
                   return AddToRows(type, g, device_dy.data(), to, space, nullptr);
                 });
}

}  // namespace

template <typename T>
void CheckIndexed(Type type) {
  Indexed g = RandomIndexed();
  const std::vector<int32_t> table = RandomTable(g);
  Array<int32_t> device_table(table);
  g.table = device_table.data();
  CheckProducts<T>(type, g, table);
  CheckPooling<T>(type, g, table);
}

template void CheckIndexed<float>(Type);
template void CheckIndexed<__half>(Type);
template void CheckIndexed<__nv_bfloat16>(Type);

}  // namespace check
}  // namespace gpu
}  // namespace perforated
