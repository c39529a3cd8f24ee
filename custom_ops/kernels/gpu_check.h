// What the checks of the GPU kernels share: random cases, comparisons.

#ifndef CUSTOM_OPS_KERNELS_GPU_CHECK_H_
#define CUSTOM_OPS_KERNELS_GPU_CHECK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "gpu.h"
#include "gpu_device.h"

namespace perforated {
namespace gpu {
namespace check {

using Values = std::vector<double>;

constexpr const char* kTypeNames[] = {"float", "tf32", "half", "bfloat16"};

[[noreturn]] inline void Fail(const char* what, const char* why) {
  std::printf("FAILED: %s: %s\n", what, why);
  std::exit(1);
}

inline void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) Fail(what, cudaGetErrorString(error));
}

inline void Check(const char* error, const char* what) {
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

inline std::mt19937 generator(1);

inline int64_t Uniform(int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(generator);
}

inline float Normal() { return std::normal_distribution<float>()(generator); }

template <typename T>
std::vector<T> NormalVector(int64_t size) {
  std::vector<T> values(size);
  for (T& value : values) value = T(Normal());
  return values;
}

// A vector<bool> has no elements to point at.
inline std::vector<uint8_t> RandomMask(int64_t size, double share) {
  std::vector<uint8_t> mask(size);
  std::uniform_real_distribution<double> uniform;
  for (uint8_t& value : mask) value = uniform(generator) < share;
  return mask;
}

inline int64_t Taps(const Geometry& g) { return g.kernel_height * g.kernel_width; }
inline int64_t NumInputs(const Geometry& g) { return g.batch * g.height * g.width; }
inline int64_t NumOutputs(const Geometry& g) {
  return g.batch * g.out_height * g.out_width;
}
inline int64_t NumWeights(const Geometry& g) {
  return Taps(g) * g.channels * g.filters;
}

// Flat input position that a tap of an output position reads, or -1.
inline int64_t ReadBy(const Geometry& g, int64_t out, int64_t tap) {
  const int64_t image = out / (g.out_height * g.out_width);
  const int64_t y = out / g.out_width % g.out_height * g.stride_y - g.pad_top +
                    tap / g.kernel_width * g.dilation_y;
  const int64_t x =
      out % g.out_width * g.stride_x - g.pad_left + tap % g.kernel_width * g.dilation_x;
  if (y < 0 || y >= g.height || x < 0 || x >= g.width) return -1;
  return (image * g.height + y) * g.width + x;
}

// Odd numbers of channels are loaded one by one, multiples of 8 in chunks.
inline int64_t RandomChannels(int64_t most) {
  const int64_t n = Uniform(1, most);
  return Uniform(0, 1) ? (n + 7) / 8 * 8 : n;
}

// Few positions with many channels, or the reverse: more than one block lists.
inline Geometry RandomGeometry() {
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
  if (a.size() != b.size()) return false;
  // The data of an empty vector may be null, which memcmp does not take.
  return a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

// Checks of one random case, for float, __half and __nv_bfloat16. `share` is that of
// active positions.
template <typename T>
void CheckConvolution(Type type, const Geometry& g, double share);
template <typename T>
void CheckUnits(Type type, const Geometry& image, double share);
template <typename T>
void CheckIndexed(Type type);
// Of float alone.
void CheckFold();

}  // namespace check
}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_CHECK_H_
