// What the .cu files use of CUDA. All that is neither C++ nor a function of CUDA's
// stands here: launches and inline PTX. A compiler that is not CUDA's gets the
// emulation.

#ifndef CUSTOM_OPS_KERNELS_GPU_DEVICE_H_
#define CUSTOM_OPS_KERNELS_GPU_DEVICE_H_

#ifndef __CUDACC__
#include "emulation/device.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <mma.h>

#include <cstdint>
#include <type_traits>

namespace perforated {
namespace gpu {

// Queues a kernel on a stream.
template <typename... Parameters, typename... Arguments>
void LaunchKernel(void (*kernel)(Parameters...), int64_t blocks, int threads,
                  void* stream, const Arguments&... arguments) {
  // clang-format off
  kernel<<<static_cast<unsigned>(blocks), threads, 0,
           static_cast<cudaStream_t>(stream)>>>(arguments...);
  // clang-format on
}

// Copies 16 bytes from global to shared memory behind the thread's back, or writes
// zeros. They are there after WaitCopies. Both must be aligned to 16 bytes.
__device__ inline void CopyAsync(void* to, const void* from, bool zeros) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  const unsigned shared = static_cast<unsigned>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(from),
               "r"(zeros ? 0 : 16)
               : "memory");
#endif
}

// Ends a group of copies.
__device__ inline void CommitCopies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies except for those of the last `kGroups` groups.
template <int kGroups>
__device__ inline void WaitCopies() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// Writes 16 bytes to shared memory.
__device__ inline void StoreShared(void* to, const uint4& value) {
  *static_cast<uint4*>(to) = value;
}

// ----------------------------------------------------------------------------------
// wgmma: the four warps of a block of 128 threads multiply 64 x 16 by 16 x 64 elements
// in shared memory, behind the threads' backs. Element i of a thread's sums is that of
// row 16 * warp + lane / 4 + 8 * (i / 2 % 2), column 8 * (i / 4) + 2 * (lane % 4) +
// i % 2.

constexpr int kSumsPerThread = 32;

// Where something in shared memory is, in its own numbers.
__device__ inline uint32_t SharedAddress(const void* data) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(data));
}

// Lets multiplications that start later, after a barrier, see what this thread has
// written to shared memory: they look past its usual order.
__device__ inline void ShowWrites() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// Orders a thread's own use of its sums before the multiplications that follow.
__device__ inline void BeginMultiplications() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// sums += left * right, both by descriptors. Transposed is a factor whose rows (columns
// of the right one) are contiguous, not its depth.
template <typename T, bool kLeftTransposed, bool kRightTransposed>
__device__ inline void MultiplyAsync(float (&sums)[kSumsPerThread], uint64_t left,
                                     uint64_t right) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
#define SUMS_OF_8(i)                                                      \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), \
      "+f"(sums[i + 4]), "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define MULTIPLY(type)                                                             \
  asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32." type "." type         \
               " {%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, "    \
               "%14, %15, %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, " \
               "%27, %28, %29, %30, %31}, %32, %33, 1, 1, 1, %34, %35;"            \
               : SUMS_OF_8(0), SUMS_OF_8(8), SUMS_OF_8(16), SUMS_OF_8(24)          \
               : "l"(left), "l"(right), "n"(kLeftTransposed ? 1 : 0),              \
                 "n"(kRightTransposed ? 1 : 0))
  if constexpr (std::is_same_v<T, __half>) {
    MULTIPLY("f16");
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>, "half precision, or bfloat16");
    MULTIPLY("bf16");
  }
#undef MULTIPLY
#undef SUMS_OF_8
#endif
}

// Ends a group of multiplications.
__device__ inline void CommitMultiplications() {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits for all multiplications except for those of the last `kGroups` groups. The sums
// can be used after those of all.
template <int kGroups>
__device__ inline void WaitMultiplications(float (&sums)[kSumsPerThread]) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
  // No use of the sums moves to before.
#pragma unroll
  for (float& sum : sums) asm volatile("" : "+f"(sum)::"memory");
#endif
}

}  // namespace gpu
}  // namespace perforated

#endif  // __CUDACC__

namespace perforated {
namespace gpu {

// What the device that is compiled for can do. CUDA's compiler asks the host too, for
// which nothing depends on the answer.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
constexpr bool kIsAmpere = true;  // or newer: asynchronous copies, all tensor cores
#else
constexpr bool kIsAmpere = false;  // 7.5: tensor cores for half precision only
#endif
// Code for 9.0 and nothing else ("sm_90a"): newer devices do not know wgmma.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
constexpr bool kIsHopper = true;
#else
constexpr bool kIsHopper = false;
#endif

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_DEVICE_H_
