// CUDA on the host, as much as the kernels here need: their .cu files compile with a
// C++ compiler and run, slowly. `__CUDA_ARCH__` (750, 800, ...) says which device it
// is; 900 is compiled as for sm_90a.
//
// A thread of CUDA's is a fiber. Fibers run one after the other, in another random
// order after every barrier, and blocks in a random order too; so what a missing
// barrier would make wrong at times is wrong often. ThreadSanitizer knows of fibers and
// barriers and finds every race (the program must be compiled with it).

#ifndef CUSTOM_OPS_KERNELS_EMULATION_DEVICE_H_
#define CUSTOM_OPS_KERNELS_EMULATION_DEVICE_H_

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#include "numbers.h"

#if __CUDA_ARCH__ == 900
#define __CUDA_ARCH_FEAT_SM90_ALL
#endif

// ------------------------------------------------------------------------- the
// language

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __shared__ static  // one block runs at a time

struct uint4 {
  alignas(16) unsigned x;
  unsigned y, z, w;
};

namespace emulation {

struct Index {
  unsigned x;
};

constexpr int kWarpSize = 32;

// Runs a kernel that takes no arguments.
void Launch(int64_t blocks, int threads, const std::function<void()>& kernel);
// Waits for all threads of the block.
void WaitForBlock();
// Waits for all threads of the warp; returns the 8 bytes that each of them gave.
const uint64_t* Exchange(uint64_t mine);
// Asynchronous copies of this thread.
void CopyLater(void* to, const void* from, bool zeros);
void EndCopies();
void FinishCopies(int except_groups);
// Writes of this thread to shared memory, which wgmma sees after ShowWrites alone.
void NoteWrite(const void* to);
void ShowWrites();
uint32_t SharedAddress(const void* data);
// Multiplications by wgmma, of factors of 16 bits whose values `value` tells.
constexpr int kSumsPerThread = 32;
struct Factor {
  uint64_t descriptor;
  bool is_transposed;
};
void BeginMultiplications();
void MultiplyLater(float* sums, Factor left, Factor right, float (*value)(uint16_t));
void EndMultiplications();
void FinishMultiplications(int except_groups);
// Notes what went wrong, for cudaGetLastError. The first error stays.
void Fail(const char* error);
// Begins the random orders.
void Seed(uint64_t seed);

}  // namespace emulation

extern emulation::Index threadIdx, blockIdx;

inline void __syncthreads() { emulation::WaitForBlock(); }

template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned distance) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "shuffles are of at most 8 bytes");
  if (mask != 0xffffffffu) emulation::Fail("a shuffle without all threads of a warp");
  uint64_t mine = 0;
  std::memcpy(&mine, &value, sizeof(T));
  const unsigned lane = threadIdx.x % emulation::kWarpSize;
  const uint64_t* const all = emulation::Exchange(mine);
  if (lane < distance) return value;
  T other;
  std::memcpy(&other, &all[lane - distance], sizeof(T));
  return other;
}

template <typename T>
T atomicAdd(T* to, T value) {
  return __atomic_fetch_add(to, value, __ATOMIC_RELAXED);
}

// -------------------------------------------------------------------------- the
// runtime

using cudaStream_t = void*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation,
  cudaErrorLaunchFailure,
  cudaErrorNoKernelImageForDevice,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
};
constexpr int CUDART_VERSION = 12000;
namespace emulation {
inline int driver_version = CUDART_VERSION;  // 0 without a driver
}  // namespace emulation

cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t error);
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = emulation::driver_version;
  return cudaSuccess;
}
template <typename T>
cudaError_t cudaMalloc(T** data, size_t bytes) {
  void* memory;
  const bool done = posix_memalign(&memory, 256, bytes) == 0;
  *data = done ? static_cast<T*>(memory) : nullptr;
  return done ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes,
                              cudaMemcpyKind) {
  if (bytes != 0) std::memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                                   cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemset(void* data, int value, size_t bytes) {
  if (bytes != 0) std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* data, int value, size_t bytes, cudaStream_t) {
  return cudaMemset(data, value, bytes);
}

// ------------------------------------------------------------------------- tensor
// cores

// Lane l of a warp holds the elements 8 l, 8 l + 1, ... of a 16 x 16 product, row by
// row, and of the factors all that these depend on.
namespace nvcuda {
namespace wmma {

struct matrix_a {};
struct matrix_b {};
struct accumulator {};
struct row_major {};
struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision {
struct tf32 {};
}  // namespace precision

constexpr int kSide = 16;
constexpr int kMine = kSide * kSide / emulation::kWarpSize;  // elements of a lane
inline int Row() { return threadIdx.x % emulation::kWarpSize * kMine / kSide; }
inline int Column() { return threadIdx.x % emulation::kWarpSize * kMine % kSide; }

template <typename Use, int kM, int kN, int kK, typename T, typename Layout = void>
struct fragment {
  static_assert(kM == kSide && kN == kSide, "only products of 16 x 16 are emulated");
  static_assert(kK == (std::is_same_v<T, precision::tf32> ? 8 : 16) ||
                    std::is_same_v<Use, accumulator>,
                "the depth of a multiplication is 16, of tf32 8");
  static_assert(__CUDA_ARCH__ >= 800 || std::is_same_v<T, __half> ||
                    std::is_same_v<Use, accumulator>,
                "this device multiplies half precision only");
  static constexpr int num_elements = std::is_same_v<Use, matrix_a>   ? kK
                                      : std::is_same_v<Use, matrix_b> ? kK * kMine
                                                                      : kMine;
  float x[num_elements];
};

inline float __float_to_tf32(float v) {
  if (!std::isfinite(v)) return v;
  return emulation::FloatOf(emulation::BitsOf(v) + 0x1000);
}

template <typename Fragment>
void fill_fragment(Fragment& to, float value) {
  for (float& x : to.x) x = value;
}

template <typename T>
void CheckAligned(const T* data, unsigned stride) {
  if (reinterpret_cast<uintptr_t>(data) % 32 != 0 || stride * sizeof(T) % 16 != 0) {
    emulation::Fail("tensor cores want tiles aligned to 32 bytes, lines to 16");
  }
}

template <int kM, int kN, int kK, typename F, typename Layout, typename T>
void load_matrix_sync(fragment<matrix_a, kM, kN, kK, F, Layout>& to, const T* from,
                      unsigned stride) {
  CheckAligned(from, stride);
  constexpr bool kByRow = std::is_same_v<Layout, row_major>;
  for (int k = 0; k < kK; ++k) {
    to.x[k] =
        static_cast<float>(from[kByRow ? Row() * stride + k : k * stride + Row()]);
  }
}

template <int kM, int kN, int kK, typename F, typename Layout, typename T>
void load_matrix_sync(fragment<matrix_b, kM, kN, kK, F, Layout>& to, const T* from,
                      unsigned stride) {
  CheckAligned(from, stride);
  constexpr bool kByRow = std::is_same_v<Layout, row_major>;
  for (int k = 0; k < kK; ++k) {
    for (int j = 0; j < kMine; ++j) {
      const int column = Column() + j;
      to.x[k * kMine + j] =
          static_cast<float>(from[kByRow ? k * stride + column : column * stride + k]);
    }
  }
}

template <typename Product, int kM, int kN, int kK, typename F, typename A, typename B>
void mma_sync(Product& d, const fragment<matrix_a, kM, kN, kK, F, A>& a,
              const fragment<matrix_b, kM, kN, kK, F, B>& b, const Product& c) {
  // The device reads the first 19 bits of a factor in tf32.
  const auto factor = [](float v) {
    return std::is_same_v<F, precision::tf32>
               ? emulation::FloatOf(emulation::BitsOf(v) & ~0x1fffu)
               : v;
  };
  float sums[kMine];
  for (int j = 0; j < kMine; ++j) sums[j] = c.x[j];
  for (int k = 0; k < kK; ++k) {
    const float left = factor(a.x[k]);
    for (int j = 0; j < kMine; ++j) sums[j] += left * factor(b.x[k * kMine + j]);
  }
  for (int j = 0; j < kMine; ++j) d.x[j] = sums[j];
}

template <typename Product>
void store_matrix_sync(float* to, const Product& from, unsigned stride, layout_t) {
  CheckAligned(to, stride);
  for (int j = 0; j < kMine; ++j) to[Row() * stride + Column() + j] = from.x[j];
}

}  // namespace wmma
}  // namespace nvcuda

// --------------------------------------------------------------------- of gpu_device.h

namespace perforated {
namespace gpu {

template <typename... Parameters, typename... Arguments>
void LaunchKernel(void (*kernel)(Parameters...), int64_t blocks, int threads, void*,
                  const Arguments&... arguments) {
  // As many copies of the arguments as there are threads, as on the device.
  const std::tuple<Parameters...> all(arguments...);
  emulation::Launch(blocks, threads, [&] { std::apply(kernel, all); });
}

inline void CopyAsync(void* to, const void* from, bool zeros) {
  emulation::CopyLater(to, from, zeros);
}
inline void CommitCopies() { emulation::EndCopies(); }
template <int kGroups>
void WaitCopies() {
  emulation::FinishCopies(kGroups);
}
inline void StoreShared(void* to, const uint4& value) {
  *static_cast<uint4*>(to) = value;
  emulation::NoteWrite(to);
}

constexpr int kSumsPerThread = emulation::kSumsPerThread;
inline uint32_t SharedAddress(const void* data) {
  return emulation::SharedAddress(data);
}
inline void ShowWrites() { emulation::ShowWrites(); }
inline void BeginMultiplications() { emulation::BeginMultiplications(); }
template <typename T, bool kLeftTransposed, bool kRightTransposed>
void MultiplyAsync(float (&sums)[kSumsPerThread], uint64_t left, uint64_t right) {
  emulation::MultiplyLater(sums, {left, kLeftTransposed}, {right, kRightTransposed},
                           [](uint16_t bits) {
                             T factor;
                             factor.bits = bits;
                             return static_cast<float>(factor);
                           });
}
inline void CommitMultiplications() { emulation::EndMultiplications(); }
template <int kGroups>
void WaitMultiplications(float (&)[kSumsPerThread]) {
  emulation::FinishMultiplications(kGroups);
}

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_EMULATION_DEVICE_H_
