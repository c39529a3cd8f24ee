// GPU kernels for TensorFlow of the ops that op_definitions.cc defines; the work is in
// gpu.h.
//
// Nothing here needs TensorFlow's own GPU library, so that a build for CPUs loads it.

#include "gpu_ops.h"

#include <string>

#include "gpu.h"
#include "ops.h"
#include "tensorflow/core/platform/logging.h"

namespace perforated {

bool CanRegister() {
  static const bool fits = [] {
    const bool fits = gpu::DriverFits();
    if (!fits) {
      LOG(WARNING)
          << "The NVIDIA driver is too old for the perforated kernels, so that "
             "plain TensorFlow operations run on the GPU. Install a newer "
             "driver, or set NVCC to the CUDA compiler of an older version.";
    }
    return fits;
  }();
  return fits;
}

namespace {

// What the three ops do around the call of gpu.h.
class GpuOp : public OpKernel {
 public:
  explicit GpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, window_.Read(context));
  }

 protected:
  absl::Status MakeGeometry(const TensorShape& input, const TensorShape& filters,
                            const TensorShape& mask, gpu::Geometry* geometry) const {
    Geometry g;
    int64_t copies;
    TF_RETURN_IF_ERROR(window_.MakeGeometry(input, filters, &g));
    TF_RETURN_IF_ERROR(CheckMask(g, mask, &copies));
    *geometry = ToDevice(g, mask.dims() == 2);
    return absl::OkStatus();
  }
  static TensorShape OutputShape(const gpu::Geometry& g) {
    return TensorShape({g.batch, g.out_height, g.out_width, g.filters});
  }
  static absl::Status CheckGradient(const gpu::Geometry& g, const TensorShape& shape) {
    if (shape == OutputShape(g)) return absl::OkStatus();
    return Invalid("output_gradient must be ", OutputShape(g).DebugString(), ", got ",
                   shape.DebugString());
  }
  static absl::Status ShapeOf(const Tensor& tensor, TensorShape* shape) {
    return tensorflow::TensorShapeUtils::MakeShape(tensor.vec<int32_t>(), shape);
  }

 private:
  WindowAttributes window_;
};

template <typename T>
class PerforatedConv2DGpuOp : public GpuOp {
 public:
  explicit PerforatedConv2DGpuOp(OpKernelConstruction* context) : GpuOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("input_slope", &input_slope_));
    OP_REQUIRES_OK(context, context->GetAttr("slope", &slope_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const Tensor& filters = context->input(1);
    const Tensor& mask = context->input(2);
    const Tensor& bias = context->input(3);
    const Tensor& scale = context->input(4);
    const Tensor& shift = context->input(5);
    gpu::Geometry g;
    OP_REQUIRES_OK(context,
                   MakeGeometry(input.shape(), filters.shape(), mask.shape(), &g));
    OP_REQUIRES_OK(context, CheckVector("bias", bias, g.filters));
    OP_REQUIRES_OK(context, CheckVector("input_scale", scale, g.channels));
    OP_REQUIRES_OK(context, CheckVector("input_shift", shift, g.channels));
    void* found = nullptr;
    if (!g.shared_mask) {
      OP_REQUIRES_OK(context, PlacesThatCame(context, 6, g, &found));
    }
    Tensor* output;
    OP_REQUIRES_OK(context, context->allocate_output(0, OutputShape(g), &output));
    OP_REQUIRES_OK(
        context, RunOnDevice(context, gpu::ConvolveWorkspace(g),
                             [&](void* workspace, void* stream) {
                               return gpu::Convolve(
                                   TypeOf<T>(), g, input.data(), filters.data(),
                                   mask.flat<bool>().data(), found,
                                   {DataOrNull(scale), DataOrNull(shift), input_slope_},
                                   {nullptr, DataOrNull(bias), slope_}, output->data(),
                                   workspace, stream);
                             }));
  }

 private:
  float input_slope_, slope_;
};

template <typename T>
class InputGradientGpuOp : public GpuOp {
 public:
  using GpuOp::GpuOp;

  void Compute(OpKernelContext* context) override {
    const Tensor& filters = context->input(1);
    const Tensor& mask = context->input(2);
    const Tensor& output_gradient = context->input(3);
    TensorShape shape;
    gpu::Geometry g;
    OP_REQUIRES_OK(context, ShapeOf(context->input(0), &shape));
    OP_REQUIRES_OK(context, MakeGeometry(shape, filters.shape(), mask.shape(), &g));
    OP_REQUIRES_OK(context, CheckGradient(g, output_gradient.shape()));
    Tensor* input_gradient;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &input_gradient));
    OP_REQUIRES_OK(context, RunOnDevice(context, gpu::InputGradientWorkspace(g),
                                        [&](void* workspace, void* stream) {
                                          return gpu::InputGradient(
                                              TypeOf<T>(), g, output_gradient.data(),
                                              filters.data(), mask.flat<bool>().data(),
                                              input_gradient->data(), workspace,
                                              stream);
                                        }));
  }
};

template <typename T>
class FilterGradientGpuOp : public GpuOp {
 public:
  using GpuOp::GpuOp;

  void Compute(OpKernelContext* context) override {
    const Tensor& input = context->input(1);
    const Tensor& mask = context->input(2);
    const Tensor& output_gradient = context->input(3);
    TensorShape shape;
    gpu::Geometry g;
    OP_REQUIRES_OK(context, ShapeOf(context->input(0), &shape));
    OP_REQUIRES_OK(context, MakeGeometry(input.shape(), shape, mask.shape(), &g));
    OP_REQUIRES_OK(context, CheckGradient(g, output_gradient.shape()));
    Tensor* filter_gradient;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &filter_gradient));
    OP_REQUIRES_OK(context,
                   RunOnDevice(context, gpu::FilterGradientWorkspace(g),
                               [&](void* workspace, void* stream) {
                                 return gpu::FilterGradient(
                                     TypeOf<T>(), g, input.data(),
                                     output_gradient.data(), mask.flat<bool>().data(),
                                     filter_gradient->data(), workspace, stream);
                               }));
  }
};

template <typename T>
void Register() {
  REGISTER_GPU("PerforatedConv2D", PerforatedConv2DGpuOp, T);
  REGISTER_GPU("PerforatedConv2DAt", PerforatedConv2DGpuOp, T);
  // Shapes that come as tensors are needed on the host.
  REGISTER_GPU_WITH_HOST_INPUT("PerforatedConv2DInputGradient", InputGradientGpuOp, T,
                               "input_shape");
  REGISTER_GPU_WITH_HOST_INPUT("PerforatedConv2DFilterGradient", FilterGradientGpuOp, T,
                               "filters_shape");
}

const bool registered = [] {
  if (!CanRegister()) return false;
  Register<float>();
  Register<Eigen::half>();
  Register<Eigen::bfloat16>();
  return true;
}();

}  // namespace
}  // namespace perforated
