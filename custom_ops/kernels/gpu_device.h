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

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_DEVICE_H_
