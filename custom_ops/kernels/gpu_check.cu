// Checks the GPU kernels by themselves against plain loops on the CPU, and times them
// against a dense convolution of a library (from this directory):
//
//   nvcc -O3 -std=c++17 -arch=native gpu_check.cu gpu_kernels.cu -o gpu_check -lcudnn
//   ./gpu_check [cases]
//
// The library is cuDNN if its header is there, else cuBLAS (link -lcublas instead) with
// patches copied into a matrix, else, or with -DWITHOUT_LIBRARY, the kernels of this
// project with all positions active. Exits with 1 at the first result that is wrong,
// with 77 where there is no GPU.

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#if !defined(WITHOUT_LIBRARY) && __has_include(<cudnn.h>)
#include <cudnn.h>
#define WITH_CUDNN
#elif !defined(WITHOUT_LIBRARY) && __has_include(<cublas_v2.h>)
#include <cublas_v2.h>
#define WITH_CUBLAS
#endif

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
  const int64_t x = out % g.out_width * g.stride_x - g.pad_left +
                    tap % g.kernel_width * g.dilation_x;
  if (y < 0 || y >= g.height || x < 0 || x >= g.width) return -1;
  return (image * g.height + y) * g.width + x;
}

Geometry RandomGeometry() {
  // Odd numbers of channels are loaded one by one, multiples of 8 in chunks.
  const auto channels = [] {
    const int64_t n = Uniform(1, 150);
    return Uniform(0, 1) ? (n + 7) / 8 * 8 : n;
  };
  Geometry g;
  g.batch = Uniform(0, 19) == 0 ? 0 : Uniform(1, 3);
  g.height = Uniform(1, 40);
  g.width = Uniform(1, 40);
  g.channels = channels();
  g.filters = channels();
  g.kernel_height = Uniform(1, 4);
  g.kernel_width = Uniform(1, 4);
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
    const double off = std::abs(static_cast<double>(static_cast<float>(got[i])) -
                                expected.values[i]);
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
        const float raw = x[in * g.channels + c];
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
  std::vector<T> results[2][3];
  for (auto& result : results) {
    Array<T> to_y(y.values.size()), to_dx(dx.values.size()), to_dw(dw.values.size());
    Array<char> space(ConvolveWorkspace(g)), dx_space(InputGradientWorkspace(g)),
        dw_space(FilterGradientWorkspace(g));
    Check(Convolve(type, g, device_x.data(), device_weights.data(), mask_data, before,
                   after, to_y.data(), space.data(), nullptr),
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

void CheckCases(int count) {
  constexpr double kShares[] = {0.0, 0.1, 0.5, 1.0};
  for (int i = 0; i < count; ++i) {
    const Geometry g = RandomGeometry();
    const double share = kShares[Uniform(0, 3)];
    CheckCase<float>(Type::kFloat, g, share);
    CheckCase<float>(Type::kTensorFloat32, g, share);
    CheckCase<__half>(Type::kHalf, g, share);
    CheckCase<__nv_bfloat16>(Type::kBfloat16, g, share);
  }
  std::printf("%d random cases of each type are right\n", count);
}

// ---------------------------------------------------------------------------- timing

// Milliseconds of one call, of many in a row.
template <typename Function>
double Time(const Function& function) {
  constexpr int kWarmUp = 3, kCalls = 20;
  cudaEvent_t begin, end;
  Check(cudaEventCreate(&begin), "cudaEventCreate");
  Check(cudaEventCreate(&end), "cudaEventCreate");
  for (int i = 0; i < kWarmUp; ++i) function();
  Check(cudaEventRecord(begin), "cudaEventRecord");
  for (int i = 0; i < kCalls; ++i) function();
  Check(cudaEventRecord(end), "cudaEventRecord");
  Check(cudaEventSynchronize(end), "run");
  float milliseconds;
  Check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return milliseconds / kCalls;
}

#if defined(WITH_CUDNN)
constexpr const char* kLibrary = "cuDNN";

void Check(cudnnStatus_t status, const char* what) {
  if (status != CUDNN_STATUS_SUCCESS) Fail(what, cudnnGetErrorString(status));
}

// Milliseconds of a dense convolution; of the fastest algorithm for this layout.
template <typename T>
double TimeLibrary(Type type, const Geometry& g, Array<T>* x, Array<T>* weights,
                   Array<T>* y) {
  const cudnnDataType_t data_type = type == Type::kHalf       ? CUDNN_DATA_HALF
                                    : type == Type::kBfloat16 ? CUDNN_DATA_BFLOAT16
                                                              : CUDNN_DATA_FLOAT;
  cudnnHandle_t handle;
  cudnnTensorDescriptor_t in, out;
  cudnnFilterDescriptor_t filters;
  cudnnConvolutionDescriptor_t convolution;
  Check(cudnnCreate(&handle), "cudnnCreate");
  Check(cudnnCreateTensorDescriptor(&in), "input");
  Check(cudnnCreateTensorDescriptor(&out), "output");
  Check(cudnnCreateFilterDescriptor(&filters), "filters");
  Check(cudnnCreateConvolutionDescriptor(&convolution), "convolution");
  Check(cudnnSetTensor4dDescriptor(in, CUDNN_TENSOR_NHWC, data_type, g.batch,
                                   g.channels, g.height, g.width),
        "input");
  Check(cudnnSetTensor4dDescriptor(out, CUDNN_TENSOR_NHWC, data_type, g.batch,
                                   g.filters, g.out_height, g.out_width),
        "output");
  Check(cudnnSetFilter4dDescriptor(filters, data_type, CUDNN_TENSOR_NHWC, g.filters,
                                   g.channels, g.kernel_height, g.kernel_width),
        "filters");
  Check(cudnnSetConvolution2dDescriptor(convolution, g.pad_top, g.pad_left, g.stride_y,
                                        g.stride_x, g.dilation_y, g.dilation_x,
                                        CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
        "convolution");
  Check(cudnnSetConvolutionMathType(
            convolution, type == Type::kFloat ? CUDNN_FMA_MATH : CUDNN_TENSOR_OP_MATH),
        "math type");
  int found = 0;
  cudnnConvolutionFwdAlgoPerf_t best[8];
  Check(cudnnFindConvolutionForwardAlgorithm(handle, in, filters, convolution, out, 8,
                                             &found, best),
        "algorithms");
  if (found == 0) Fail("cuDNN", "no algorithm");
  Array<char> space(best[0].memory);
  const float one = 1.0f, zero = 0.0f;
  const double milliseconds = Time([&] {
    Check(cudnnConvolutionForward(handle, &one, in, x->data(), filters, weights->data(),
                                  convolution, best[0].algo, space.data(),
                                  best[0].memory, &zero, out, y->data()),
          "cuDNN");
  });
  cudnnDestroyConvolutionDescriptor(convolution);
  cudnnDestroyFilterDescriptor(filters);
  cudnnDestroyTensorDescriptor(out);
  cudnnDestroyTensorDescriptor(in);
  cudnnDestroy(handle);
  return milliseconds;
}
#elif defined(WITH_CUBLAS)
constexpr const char* kLibrary = "cuBLAS";

void Check(cublasStatus_t status, const char* what) {
  if (status != CUBLAS_STATUS_SUCCESS) Fail(what, cublasGetStatusString(status));
}

// patches[out position][tap][channel], one element per thread.
template <typename T>
__global__ void CopyPatches(Geometry g, const T* x, int64_t size, T* patches) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const int64_t taps = g.kernel_height * g.kernel_width;
  const int64_t channel = i % g.channels, tap = i / g.channels % taps;
  const int64_t out = i / g.channels / taps;
  const int64_t image = out / (g.out_height * g.out_width);
  const int64_t row = out / g.out_width % g.out_height * g.stride_y - g.pad_top +
                      tap / g.kernel_width * g.dilation_y;
  const int64_t column = out % g.out_width * g.stride_x - g.pad_left +
                         tap % g.kernel_width * g.dilation_x;
  const bool inside =
      row >= 0 && row < g.height && column >= 0 && column < g.width;
  patches[i] =
      inside ? x[((image * g.height + row) * g.width + column) * g.channels + channel]
             : T(0.0f);
}

// Milliseconds of a dense convolution: copies patches unless the kernel is 1x1, then
// multiplies.
template <typename T>
double TimeLibrary(Type type, const Geometry& g, Array<T>* x, Array<T>* weights,
                   Array<T>* y) {
  const cudaDataType_t data_type = type == Type::kHalf       ? CUDA_R_16F
                                   : type == Type::kBfloat16 ? CUDA_R_16BF
                                                             : CUDA_R_32F;
  const cublasComputeType_t compute_type = type == Type::kTensorFloat32
                                               ? CUBLAS_COMPUTE_32F_FAST_TF32
                                               : CUBLAS_COMPUTE_32F;
  cublasHandle_t handle;
  Check(cublasCreate(&handle), "cublasCreate");
  const int64_t depth = Taps(g) * g.channels, size = NumOutputs(g) * depth;
  Array<T> patches(Taps(g) == 1 ? 0 : size);
  const float one = 1.0f, zero = 0.0f;
  const double milliseconds = Time([&] {
    const T* left = x->data();
    if (Taps(g) != 1) {
      CopyPatches<<<static_cast<unsigned>((size + 255) / 256), 256>>>(
          g, x->data(), size, patches.data());
      left = patches.data();
    }
    // cuBLAS counts along columns: the product of the transposed matrices.
    Check(cublasGemmEx(handle, CUBLAS_OP_N, CUBLAS_OP_N, g.filters, NumOutputs(g),
                       depth, &one, weights->data(), data_type, g.filters, left,
                       data_type, depth, &zero, y->data(), data_type, g.filters,
                       compute_type, CUBLAS_GEMM_DEFAULT),
          "cuBLAS");
  });
  cublasDestroy(handle);
  return milliseconds;
}
#else
constexpr const char* kLibrary = "no library: own kernel, all positions active";

template <typename T>
double TimeLibrary(Type type, const Geometry& g, Array<T>* x, Array<T>* weights,
                   Array<T>* y) {
  Array<uint8_t> mask(std::vector<uint8_t>(NumOutputs(g), 1));
  Array<char> space(ConvolveWorkspace(g));
  const Transform identity{nullptr, nullptr, 1.0f};
  return Time([&] {
    Check(Convolve(type, g, x->data(), weights->data(),
                   reinterpret_cast<const bool*>(mask.data()), identity, identity,
                   y->data(), space.data(), nullptr),
          "convolution");
  });
}
#endif

constexpr int kPercents[] = {10, 25, 50, 75, 100};

template <typename T>
void TimeLayer(Type type, const Geometry& g) {
  Array<T> x(NormalVector<T>(NumInputs(g) * g.channels));
  Array<T> weights(NormalVector<T>(NumWeights(g)));
  Array<T> dy(NormalVector<T>(NumOutputs(g) * g.filters));
  Array<T> y(NumOutputs(g) * g.filters), dx(NumInputs(g) * g.channels),
      dw(NumWeights(g));
  Array<char> space(ConvolveWorkspace(g)), dx_space(InputGradientWorkspace(g)),
      dw_space(FilterGradientWorkspace(g));
  const Transform identity{nullptr, nullptr, 1.0f};
  constexpr const char* kPasses[] = {"forward", "input gradient", "filter gradient"};
  for (int pass = 0; pass < 3; ++pass) {
    std::printf("%3dx%3dx%3d %4d->%4d %dx%d  %-8s  %-15s", int(g.batch), int(g.height),
                int(g.width), int(g.channels), int(g.filters), int(g.kernel_height),
                int(g.kernel_width), kTypeNames[static_cast<int>(type)], kPasses[pass]);
    for (const int percent : kPercents) {
      Array<uint8_t> device_mask(RandomMask(NumOutputs(g), percent / 100.0));
      const bool* const mask = reinterpret_cast<const bool*>(device_mask.data());
      const double milliseconds = Time([&] {
        switch (pass) {
          case 0:
            return Check(Convolve(type, g, x.data(), weights.data(), mask, identity,
                                  identity, y.data(), space.data(), nullptr),
                         kPasses[0]);
          case 1:
            return Check(InputGradient(type, g, dy.data(), weights.data(), mask,
                                       dx.data(), dx_space.data(), nullptr),
                         kPasses[1]);
          default:
            return Check(FilterGradient(type, g, x.data(), dy.data(), mask, dw.data(),
                                        dw_space.data(), nullptr),
                         kPasses[2]);
        }
      });
      std::printf(" %7.3f", milliseconds);
    }
    if (pass == 0) std::printf(" %7.3f", TimeLibrary(type, g, &x, &weights, &y));
    std::printf("\n");
  }
}

void TimeLayers(const char* device) {
  std::printf("\n%s; milliseconds by the share of random active positions; dense: %s\n",
              device, kLibrary);
  std::printf("%-50s", "batch x height x width, channels, kernel");
  for (const int percent : kPercents) std::printf(" %6d%%", percent);
  std::printf("   dense\n");
  struct {
    int size, channels, filters, kernel;
  } constexpr kLayers[] = {
      {56, 64, 64, 3}, {28, 128, 128, 3}, {14, 256, 256, 3}, {14, 1024, 256, 1}};
  for (const auto& layer : kLayers) {
    const int64_t pad = layer.kernel / 2;
    const Geometry g{32,           layer.size, layer.size,    layer.channels,
                     layer.kernel, layer.kernel, layer.size,  layer.size,
                     layer.filters, 1,          1,            1,
                     1,            pad,        pad,           false};
    TimeLayer<float>(Type::kFloat, g);
    TimeLayer<float>(Type::kTensorFloat32, g);
    TimeLayer<__half>(Type::kHalf, g);
    TimeLayer<__nv_bfloat16>(Type::kBfloat16, g);
  }
}

int Main(int argc, char** argv) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("no GPU: %s\n", cudaGetErrorString(error));
    return kNoGpu;
  }
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::printf("%s, compute capability %d.%d\n", properties.name, properties.major,
              properties.minor);
  CheckCases(argc > 1 ? std::atoi(argv[1]) : 100);
  TimeLayers(properties.name);
  return 0;
}

}  // namespace
}  // namespace gpu
}  // namespace perforated

int main(int argc, char** argv) { return perforated::gpu::Main(argc, argv); }
