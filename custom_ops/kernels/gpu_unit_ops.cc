// GPU kernels for TensorFlow of residual units and what surrounds them.

#include <cstdint>
#include <vector>

#include "gpu.h"
#include "gpu_ops.h"
#include "ops.h"
#include "unit_checks.h"

namespace perforated {
namespace {

gpu::Transform Relu(const Tensor& scale, const Tensor& shift, float slope = 0.0f) {
  return {DataOrNull(scale), DataOrNull(shift), slope};
}
gpu::Transform Bias(const Tensor& bias) { return {nullptr, DataOrNull(bias), 1.0f}; }

// A bottleneck's three convolutions, whose inputs begin at `first`.
struct BottleneckStages {
  BottleneckStages(OpKernelContext* context, int first)
      : stages{{context->input(first + 2).data(),
                Relu(context->input(first + 5), context->input(first + 7))},
               {context->input(first + 3).data(),
                Relu(context->input(first + 6), context->input(first + 8))},
               {context->input(first + 4).data(), Bias(context->input(first + 9))}} {}
  gpu::Stage stages[3];
};

// What was found at a unit's mask: what came along, or what is found now in memory of
// its own. A list is of what 3x3 convolutions read.
class UnitPlaces {
 public:
  absl::Status Get(OpKernelContext* context, const Tensor& mask, int others,
                   const gpu::Geometry& g) {
    if (g.kernel_height == 3 && g.kernel_width == 3) {
      TF_RETURN_IF_ERROR(PlacesThatCame(context, others, g, &places_));
      if (places_ != nullptr) return absl::OkStatus();
    }
    void* stream;
    TF_RETURN_IF_ERROR(StreamOf(context, &stream));
    TF_RETURN_IF_ERROR(AllocateWork(context, gpu::PlacesBytes(g), &memory_));
    places_ = memory_.data();
    return OfDevice(gpu::FindPlaces(g, mask.flat<bool>().data(), places_, stream));
  }
  void* data() const { return places_; }

 private:
  Tensor memory_;
  void* places_ = nullptr;
};

class FindPlacesGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& mask = context->input(0);
    OP_REQUIRES(context, mask.dims() == 3,
                Invalid("mask must be [batch, height, width], got ",
                        mask.shape().DebugString()));
    const int64_t height = mask.dim_size(1), width = mask.dim_size(2);
    const gpu::Geometry g{mask.dim_size(0),
                          height,
                          width,
                          1,
                          3,
                          3,
                          height,
                          width,
                          1,
                          1,
                          1,
                          1,
                          1,
                          1,
                          1,
                          false};
    Tensor* places;
    const int64_t bytes = gpu::PlacesBytes(g);
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({bytes / int64_t{sizeof(int64_t)}}), &places));
    void* stream;
    OP_REQUIRES_OK(context, StreamOf(context, &stream));
    OP_REQUIRES_OK(context, OfDevice(gpu::FindPlaces(g, mask.flat<bool>().data(),
                                                     places->data(), stream)));
  }
};

template <typename T>
class PerforatedBottleneckGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& mask = context->input(1);
    const Tensor& sums = context->input(2);
    Geometry g[3];
    OP_REQUIRES_OK(context, CheckUnit(x, mask));
    OP_REQUIRES_OK(context, CheckBottleneck(context, x, 3, x.dim_size(3), g));
    OP_REQUIRES_OK(context, CheckSums(x, sums));
    const gpu::Geometry middle = ToDevice(g[1]);
    UnitPlaces places;
    OP_REQUIRES_OK(context, places.Get(context, mask, 13, middle));
    Tensor *y, *new_sums;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    OP_REQUIRES_OK(context, context->forward_input_or_allocate_output(
                                {2}, 1, sums.shape(), &new_sums));
    const BottleneckStages unit(context, 3);
    OP_REQUIRES_OK(
        context, RunOnDevice(context, gpu::BottleneckWorkspace(middle),
                             [&](void* workspace, void* stream) {
                               return gpu::Bottleneck(
                                   TypeOf<T>(), middle, x.dim_size(3), x.data(),
                                   Relu(context->input(3), context->input(4)),
                                   unit.stages, places.data(), y->data(),
                                   DataOrNull(sums),
                                   sums.NumElements() == 0 ? nullptr : new_sums->data(),
                                   workspace, stream);
                             }));
  }
};

template <typename T>
class ProjectionBottleneckGpuOp : public OpKernel {
 public:
  explicit ProjectionBottleneckGpuOp(OpKernelConstruction* context)
      : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
    OP_REQUIRES(context, stride_ >= 1, Invalid("stride must be >= 1, got ", stride_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& projection = context->input(11);
    Geometry g[3];
    OP_REQUIRES_OK(context, CheckProjection(context, stride_, g));
    const gpu::Geometry middle = ToDevice(g[1]);
    const int64_t out_channels = projection.dim_size(3);
    Tensor *y, *sums;
    OP_REQUIRES_OK(
        context, context->allocate_output(0,
                                          TensorShape({middle.batch, middle.out_height,
                                                       middle.out_width, out_channels}),
                                          &y));
    OP_REQUIRES_OK(context, context->allocate_output(
                                1, TensorShape({middle.batch, out_channels}), &sums));
    const BottleneckStages unit(context, 1);
    OP_REQUIRES_OK(
        context, RunOnDevice(context, gpu::ProjectionWorkspace(middle),
                             [&](void* workspace, void* stream) {
                               return gpu::ProjectionBottleneck(
                                   TypeOf<T>(), middle, x.dim_size(3), out_channels,
                                   x.data(), Relu(context->input(1), context->input(2)),
                                   unit.stages,
                                   {projection.data(), Bias(context->input(12))},
                                   y->data(), sums->data(), workspace, stream);
                             }));
  }

 private:
  int64_t stride_;
};

template <typename T>
class PerforatedBasicUnitGpuOp : public OpKernel {
 public:
  explicit PerforatedBasicUnitGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("slopes", &slopes_));
    OP_REQUIRES(context, slopes_.size() == 2, Invalid("slopes must be two numbers"));
  }

  void Compute(OpKernelContext* context) override {
    const auto in = [&](int i) -> const Tensor& { return context->input(i); };
    const Tensor& x = in(0);
    Geometry g[2];
    OP_REQUIRES_OK(context, CheckBasicUnit(context, g));
    const gpu::Geometry first = ToDevice(g[0]), second = ToDevice(g[1]);
    UnitPlaces places;
    OP_REQUIRES_OK(context, places.Get(context, in(1), 9, second));
    Tensor* y;
    OP_REQUIRES_OK(context,
                   context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
    const gpu::Stage stages[] = {{in(4).data(), Relu(in(6), in(7), slopes_[1])},
                                 {in(5).data(), Bias(in(8))}};
    OP_REQUIRES_OK(context, RunOnDevice(context, gpu::BasicUnitWorkspace(second),
                                        [&](void* workspace, void* stream) {
                                          return gpu::BasicUnit(
                                              TypeOf<T>(), first, second, x.data(),
                                              Relu(in(2), in(3), slopes_[0]), stages,
                                              places.data(), y->data(), workspace,
                                              stream);
                                        }));
  }

 private:
  std::vector<float> slopes_;
};

template <typename T>
class MaskedAccumulateGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& total = context->input(0);
    const Tensor& weight = context->input(2);
    OP_REQUIRES_OK(context, CheckAccumulate(context));
    Tensor* y;
    OP_REQUIRES_OK(
        context, context->forward_input_or_allocate_output({0}, 0, total.shape(), &y));
    void* stream;
    OP_REQUIRES_OK(context, StreamOf(context, &stream));
    OP_REQUIRES_OK(context, OfDevice(gpu::Accumulate(
                                TypeOf<T>(), weight.NumElements(), total.dim_size(3),
                                total.data(), context->input(1).data(),
                                weight.flat<float>().data(), y->data(), stream)));
  }
};

template <typename T>
class FoldBatchNormGpuOp : public OpKernel {
 public:
  explicit FoldBatchNormGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
  }

  void Compute(OpKernelContext* context) override {
    const TensorShape& shape = context->input(0).shape();
    const float* in[4];
    for (int i = 0; i < 4; ++i) {
      OP_REQUIRES(context, context->input(i).shape() == shape,
                  Invalid("gamma, beta, mean and variance must have one shape"));
      in[i] = context->input(i).flat<T>().data();
    }
    Tensor *scale, *shift;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &scale));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &shift));
    void* stream;
    OP_REQUIRES_OK(context, StreamOf(context, &stream));
    OP_REQUIRES_OK(
        context, OfDevice(gpu::FoldBatchNorm(shape.num_elements(), in[0], in[1], in[2],
                                             in[3], epsilon_, scale->flat<T>().data(),
                                             shift->flat<T>().data(), stream)));
  }

 private:
  float epsilon_;
};

template <typename T>
void Register() {
  REGISTER_GPU("PerforatedBottleneck", PerforatedBottleneckGpuOp, T);
  REGISTER_GPU("PerforatedBottleneckAt", PerforatedBottleneckGpuOp, T);
  REGISTER_GPU("ProjectionBottleneck", ProjectionBottleneckGpuOp, T);
  REGISTER_GPU("PerforatedBasicUnit", PerforatedBasicUnitGpuOp, T);
  REGISTER_GPU("PerforatedBasicUnitAt", PerforatedBasicUnitGpuOp, T);
  REGISTER_GPU("MaskedAccumulate", MaskedAccumulateGpuOp, T);
  REGISTER_GPU("MaskedAccumulateAt", MaskedAccumulateGpuOp, T);
}

const bool registered = [] {
  if (!CanRegister()) return false;
  Register<float>();
  Register<Eigen::half>();
  Register<Eigen::bfloat16>();
  REGISTER_GPU("FoldBatchNorm", FoldBatchNormGpuOp, float);
  REGISTER_KERNEL_BUILDER(Name("FindPlaces").Device(tensorflow::DEVICE_GPU),
                          FindPlacesGpuOp);
  return true;
}();

}  // namespace
}  // namespace perforated
