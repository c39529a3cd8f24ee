// Checks of the sizes that residual units get, the same on all devices.

#ifndef CUSTOM_OPS_KERNELS_UNIT_CHECKS_H_
#define CUSTOM_OPS_KERNELS_UNIT_CHECKS_H_

#include <cstdint>

#include "convolution.h"
#include "ops.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace perforated {

inline absl::Status CheckImage(const tensorflow::Tensor& x) {
  if (x.dims() == 4) return absl::OkStatus();
  return Invalid("x must be [batch, height, width, channels], got ",
                 x.shape().DebugString());
}

inline absl::Status CheckUnit(const tensorflow::Tensor& x,
                              const tensorflow::Tensor& mask) {
  TF_RETURN_IF_ERROR(CheckImage(x));
  const tensorflow::TensorShape expected({x.dim_size(0), x.dim_size(1), x.dim_size(2)});
  if (mask.shape() == expected) return absl::OkStatus();
  return Invalid("mask must be ", expected.DebugString(), ", got ",
                 mask.shape().DebugString());
}

// Geometry of a SAME convolution with stride 1 of the size of x.
inline absl::Status SameGeometry(const tensorflow::Tensor& x,
                                 const tensorflow::Tensor& filters, int index,
                                 Geometry* g) {
  if (filters.dims() != 4 || filters.dim_size(0) != filters.dim_size(1) ||
      filters.dim_size(0) % 2 == 0) {
    return Invalid("filters_", index, " must be square with an odd side, got ",
                   filters.shape().DebugString());
  }
  g->batch = x.dim_size(0);
  g->height = g->out_height = x.dim_size(1);
  g->width = g->out_width = x.dim_size(2);
  g->kernel_height = g->kernel_width = filters.dim_size(0);
  g->pad_top = g->pad_left = filters.dim_size(0) / 2;
  g->channels = filters.dim_size(2);
  g->filters = filters.dim_size(3);
  return absl::OkStatus();
}

inline absl::Status CheckChain(const char* name, int64_t got, int64_t expected) {
  if (got == expected) return absl::OkStatus();
  return Invalid(name, " must have ", expected, " channels, got ", got);
}

// A bottleneck's inputs from `first` on: preactivation (2), filters (3), scales (2),
// shifts (3). Gives the geometry of its convolutions.
inline absl::Status CheckBottleneck(tensorflow::OpKernelContext* context,
                                    const tensorflow::Tensor& x, int first,
                                    int64_t out_channels, Geometry (&g)[3]) {
  for (int i = 0; i < 3; ++i) {
    TF_RETURN_IF_ERROR(SameGeometry(x, context->input(first + 2 + i), i, &g[i]));
  }
  TF_RETURN_IF_ERROR(CheckChain("filters_0", g[0].channels, x.dim_size(3)));
  TF_RETURN_IF_ERROR(CheckChain("filters_1", g[1].channels, g[0].filters));
  TF_RETURN_IF_ERROR(CheckChain("filters_2", g[2].channels, g[1].filters));
  TF_RETURN_IF_ERROR(CheckChain("the output", g[2].filters, out_channels));
  if (g[0].taps() != 1 || g[2].taps() != 1) {
    return Invalid("filters_0 and filters_2 must be 1x1");
  }
  const int64_t inner = g[0].filters, outer = g[1].filters;
  const struct {
    const char* name;
    int index;
    int64_t size;
  } vectors[] = {{"preactivation_scale", 0, g[0].channels},
                 {"preactivation_shift", 1, g[0].channels},
                 {"scale_0", 5, inner},
                 {"scale_1", 6, outer},
                 {"shift_0", 7, inner},
                 {"shift_1", 8, outer},
                 {"bias", 9, out_channels}};
  for (const auto& vector : vectors) {
    TF_RETURN_IF_ERROR(
        CheckVector(vector.name, context->input(first + vector.index), vector.size));
  }
  return absl::OkStatus();
}

// The sums over positions that an op may be given beside x.
inline absl::Status CheckSums(const tensorflow::Tensor& x,
                              const tensorflow::Tensor& sums) {
  const int64_t size = sums.NumElements();
  if (size == 0 || size == x.dim_size(0) * x.dim_size(3)) return absl::OkStatus();
  return Invalid("sums must be [batch, channels] or empty, got ",
                 sums.shape().DebugString());
}

// ProjectionBottleneck's inputs: x, a bottleneck's from 1 on, projection (2).
inline absl::Status CheckProjection(tensorflow::OpKernelContext* context,
                                    int64_t stride, Geometry (&g)[3]) {
  const tensorflow::Tensor& x = context->input(0);
  const tensorflow::Tensor& projection = context->input(11);
  TF_RETURN_IF_ERROR(CheckImage(x));
  if (projection.dims() != 4 || projection.dim_size(0) != 1 ||
      projection.dim_size(1) != 1 || projection.dim_size(2) != x.dim_size(3)) {
    return Invalid("projection must be [1, 1, ", x.dim_size(3), ", out channels], got ",
                   projection.shape().DebugString());
  }
  const int64_t out_channels = projection.dim_size(3);
  TF_RETURN_IF_ERROR(CheckBottleneck(context, x, 1, out_channels, g));
  TF_RETURN_IF_ERROR(CheckVector("projection_bias", context->input(12), out_channels));
  g[1].stride_y = g[1].stride_x = stride;
  g[1].out_height = CeilDiv(g[1].height, stride);
  g[1].out_width = CeilDiv(g[1].width, stride);
  return absl::OkStatus();
}

// A basic unit's inputs: x, mask, preactivation 2-3, filters 4-5, scale 6, shifts 7-8.
inline absl::Status CheckBasicUnit(tensorflow::OpKernelContext* context,
                                   Geometry (&g)[2]) {
  const tensorflow::Tensor& x = context->input(0);
  TF_RETURN_IF_ERROR(CheckUnit(x, context->input(1)));
  for (int i = 0; i < 2; ++i) {
    TF_RETURN_IF_ERROR(SameGeometry(x, context->input(4 + i), i, &g[i]));
  }
  const int64_t channels = x.dim_size(3);
  TF_RETURN_IF_ERROR(CheckChain("filters_0", g[0].channels, channels));
  TF_RETURN_IF_ERROR(CheckChain("filters_1", g[1].channels, g[0].filters));
  TF_RETURN_IF_ERROR(CheckChain("the output", g[1].filters, channels));
  const int64_t sizes[] = {channels, channels, g[0].filters, g[0].filters, channels};
  constexpr const char* kVectors[] = {"preactivation_scale", "preactivation_shift",
                                      "scale", "shift", "bias"};
  for (int i = 0; i < 5; ++i) {
    const tensorflow::Tensor& vector = context->input(i < 2 ? 2 + i : 4 + i);
    TF_RETURN_IF_ERROR(CheckVector(kVectors[i], vector, sizes[i]));
  }
  return absl::OkStatus();
}

// MaskedAccumulate's inputs: total, x, weight.
inline absl::Status CheckAccumulate(tensorflow::OpKernelContext* context) {
  const tensorflow::Tensor& total = context->input(0);
  const tensorflow::Tensor& x = context->input(1);
  const tensorflow::Tensor& weight = context->input(2);
  if (total.dims() != 4 || total.shape() != x.shape()) {
    return Invalid("total and x must be [batch, height, width, channels], ", "got ",
                   total.shape().DebugString(), " and ", x.shape().DebugString());
  }
  const tensorflow::TensorShape expected({x.dim_size(0), x.dim_size(1), x.dim_size(2)});
  if (weight.shape() == expected) return absl::OkStatus();
  return Invalid("weight must be ", expected.DebugString(), ", got ",
                 weight.shape().DebugString());
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_UNIT_CHECKS_H_
