// What the CPU and GPU kernels share: attributes, shapes and their checks.

#ifndef CUSTOM_OPS_KERNELS_OPS_H_
#define CUSTOM_OPS_KERNELS_OPS_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "convolution.h"
#include "status.h"
#include "tensorflow/core/framework/kernel_shape_util.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/util/padding.h"

namespace perforated {

// The attributes that every convolution op has.
struct WindowAttributes {
  absl::Status Read(tensorflow::OpKernelConstruction* context) {
    TF_RETURN_IF_ERROR(context->GetAttr("strides", &strides));
    TF_RETURN_IF_ERROR(context->GetAttr("dilations", &dilations));
    TF_RETURN_IF_ERROR(context->GetAttr("padding", &padding));
    return context->GetAttr("explicit_paddings", &explicit_paddings);
  }
  // Output size and padding of one axis, 0 (height) or 1 (width).
  absl::Status OutputSize(int axis, int64_t input, int64_t kernel, int64_t* output,
                          int64_t* pad_before) const {
    int64_t pad_after = 0;
    if (padding == tensorflow::EXPLICIT) {
      *pad_before = explicit_paddings[2 * axis];
      pad_after = explicit_paddings[2 * axis + 1];
    }
    return tensorflow::GetWindowedOutputSizeVerbose(input, kernel, dilations[axis],
                                                    strides[axis], padding, output,
                                                    pad_before, &pad_after);
  }
  absl::Status MakeGeometry(const tensorflow::TensorShape& input,
                            const tensorflow::TensorShape& filters,
                            Geometry* geometry) const {
    if (input.dims() != 4) {
      return Invalid("input must be [batch, height, width, channels], got ",
                     input.DebugString());
    }
    if (filters.dims() != 4 || filters.dim_size(2) != input.dim_size(3)) {
      return Invalid("filters must be [height, width, ", input.dim_size(3),
                     ", out channels] for input ", input.DebugString(), ", got ",
                     filters.DebugString());
    }
    Geometry& g = *geometry;
    g.batch = input.dim_size(0);
    g.height = input.dim_size(1);
    g.width = input.dim_size(2);
    g.channels = input.dim_size(3);
    g.kernel_height = filters.dim_size(0);
    g.kernel_width = filters.dim_size(1);
    g.filters = filters.dim_size(3);
    g.stride_y = strides[0];
    g.stride_x = strides[1];
    g.dilation_y = dilations[0];
    g.dilation_x = dilations[1];
    TF_RETURN_IF_ERROR(
        OutputSize(0, g.height, g.kernel_height, &g.out_height, &g.pad_top));
    return OutputSize(1, g.width, g.kernel_width, &g.out_width, &g.pad_left);
  }
  std::vector<int64_t> strides, dilations, explicit_paddings;
  tensorflow::Padding padding;
};

// Checks a mask, [batch, height, width] or the same for all images [height, width], and
// tells how many images share it.
inline absl::Status CheckMask(const Geometry& g, const tensorflow::TensorShape& mask,
                              int64_t* copies) {
  const tensorflow::TensorShape one({g.out_height, g.out_width});
  const tensorflow::TensorShape all({g.batch, g.out_height, g.out_width});
  if (mask != one && mask != all) {
    return Invalid("mask must be ", all.DebugString(), " or ", one.DebugString(),
                   ", got ", mask.DebugString());
  }
  *copies = mask == one ? g.batch : 1;
  return absl::OkStatus();
}

// Checks that a vector has one element for each channel; an empty one means "none".
inline absl::Status CheckVector(const char* name, const tensorflow::Tensor& vector,
                                int64_t size) {
  if (vector.NumElements() == 0 || (vector.dims() == 1 && vector.dim_size(0) == size)) {
    return absl::OkStatus();
  }
  return Invalid(name, " must be [", size, "], got ", vector.shape().DebugString());
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_OPS_H_
