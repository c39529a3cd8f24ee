// What the GPU kernels of all ops share: types, memory, the stream.

#ifndef CUSTOM_OPS_KERNELS_GPU_OPS_H_
#define CUSTOM_OPS_KERNELS_GPU_OPS_H_

#include "gpu.h"
#include "ops.h"
#include "tensorflow/core/framework/device_base.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/platform/tensor_float_32_utils.h"
#include "xla/stream_executor/stream.h"

namespace perforated {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

template <typename T>
gpu::Type TypeOf();
template <>
inline gpu::Type TypeOf<Eigen::half>() {
  return gpu::Type::kHalf;
}
template <>
inline gpu::Type TypeOf<Eigen::bfloat16>() {
  return gpu::Type::kBfloat16;
}
template <>
inline gpu::Type TypeOf<float>() {
  return tensorflow::tensor_float_32_execution_enabled() ? gpu::Type::kTensorFloat32
                                                         : gpu::Type::kFloat;
}

inline const void* DataOrNull(const Tensor& tensor) {
  return tensor.NumElements() == 0 ? nullptr : tensor.data();
}

inline gpu::Geometry ToDevice(const Geometry& g, bool shared_mask = false) {
  return {g.batch,         g.height,       g.width,      g.channels,
          g.kernel_height, g.kernel_width, g.out_height, g.out_width,
          g.filters,       g.stride_y,     g.stride_x,   g.dilation_y,
          g.dilation_x,    g.pad_top,      g.pad_left,   shared_mask};
}

inline absl::Status OfDevice(const char* error) {
  if (error == nullptr) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("perforated convolution on CUDA: ", error));
}

inline absl::Status StreamOf(OpKernelContext* context, void** stream) {
  stream_executor::Stream* const found = context->op_device_context()->stream();
  if (found == nullptr) return absl::InternalError("the device has no stream");
  *stream = found->platform_specific_handle().stream;
  return absl::OkStatus();
}

// Memory of the device for an op's work. TensorFlow says what could not be had, this
// what to do about it.
inline absl::Status AllocateWork(OpKernelContext* context, int64_t bytes,
                                 Tensor* memory) {
  const absl::Status status =
      context->allocate_temp(tensorflow::DT_INT8, TensorShape({bytes}), memory);
  if (status.ok()) return status;
  return absl::Status(
      status.code(),
      absl::StrCat(status.message(), "; the perforated kernels work in these ", bytes,
                   " bytes: run fewer or smaller images at a time"));
}

// Calls a function with memory for its work and the stream to queue it on.
template <typename Function>
absl::Status RunOnDevice(OpKernelContext* context, int64_t workspace_bytes,
                         const Function& function) {
  Tensor workspace;
  void* stream;
  TF_RETURN_IF_ERROR(AllocateWork(context, workspace_bytes, &workspace));
  TF_RETURN_IF_ERROR(StreamOf(context, &stream));
  return OfDevice(function(workspace.data(), stream));
}

// What FindPlaces found in the op's mask, if it came along behind the other inputs;
// else null. What FindPositions found is for CPUs.
inline absl::Status PlacesThatCame(OpKernelContext* context, int others,
                                   const gpu::Geometry& g, void** places) {
  *places = nullptr;
  if (context->num_inputs() != others + 1) return absl::OkStatus();
  const Tensor& found = context->input(others);
  const int64_t bytes = gpu::PlacesBytes(g);
  if (found.TotalBytes() != static_cast<size_t>(bytes)) {
    return Invalid("found must be what FindPlaces found in this mask, ", bytes,
                   " bytes, got ", found.TotalBytes());
  }
  *places = const_cast<void*>(static_cast<const void*>(found.data()));
  return absl::OkStatus();
}

// Whether there is a point in registering GPU kernels: not where the driver is too old
// for this library. That is said once; Python then runs plain TensorFlow operations.
bool CanRegister();

#define REGISTER_GPU(name, kernel, type)                                   \
  REGISTER_KERNEL_BUILDER(                                                 \
      Name(name).Device(tensorflow::DEVICE_GPU).TypeConstraint<type>("T"), \
      kernel<type>)
#define REGISTER_GPU_WITH_HOST_INPUT(name, kernel, type, input) \
  REGISTER_KERNEL_BUILDER(Name(name)                            \
                              .Device(tensorflow::DEVICE_GPU)   \
                              .HostMemory(input)                \
                              .TypeConstraint<type>("T"),       \
                          kernel<type>)

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_OPS_H_
