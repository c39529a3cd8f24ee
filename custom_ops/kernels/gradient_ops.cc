// CPU kernel of the gradients of residual units and halting heads for TensorFlow.

#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "cpu_ops.h"
#include "gradients.h"
#include "unit_checks.h"

namespace perforated {
namespace {

template <typename T>
class PerforatedChainGradientOp : public UnitOp<T> {
 public:
  explicit PerforatedChainGradientOp(OpKernelConstruction* context)
      : UnitOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("K", &count_));
    OP_REQUIRES_OK(context, context->GetAttr("slopes", &slopes_));
    OP_REQUIRES_OK(context, context->GetAttr("shortcut", &shortcut_));
    OP_REQUIRES(context, static_cast<int64_t>(slopes_.size()) == count_,
                Invalid("slopes must be one number for each convolution"));
  }

  void Run(OpKernelContext* context) override {
    // x 0, mask 1, gradients 2-3, then filters, scales and shifts.
    const Tensor& x = context->input(0);
    const Tensor& mask = context->input(1);
    const Tensor& gradient = context->input(2);
    const Tensor& sums_gradient = context->input(3);
    std::vector<Link<T>> links(count_);
    OP_REQUIRES_OK(context, CheckUnit(x, mask));
    OP_REQUIRES_OK(context, ReadLinks(context, x, &links));
    const int64_t channels = links.back().geometry.filters;
    const TensorShape output({x.dim_size(0), x.dim_size(1), x.dim_size(2), channels});
    OP_REQUIRES(context, gradient.shape() == output,
                Invalid("output_gradient must be ", output.DebugString(), ", got ",
                        gradient.shape().DebugString()));
    OP_REQUIRES(context, !shortcut_ || channels == x.dim_size(3),
                Invalid("with a shortcut the output must have ", x.dim_size(3),
                        " channels, got ", channels));
    OP_REQUIRES_OK(context, CheckSums(gradient, sums_gradient));
    ActiveInput active;
    OP_REQUIRES_OK(context, active.Read(context, mask, 4 + 3 * count_));
    const PoolWorkers workers(context);
    std::vector<std::shared_ptr<const PackedMatrix<T>>> packed(count_);
    for (int i = 0; i + 1 < count_; ++i) {
      packed[i] = PackedCache<T>::Get().Pack(links[i].geometry, context->input(4 + i));
      links[i].packed = packed[i].get();
    }
    // Read in whole before x_gradient, which may be the same memory, is added to.
    const T* const from = gradient.flat<T>().data();
    Tensor *x_gradient, *bias_gradient;
    if (shortcut_) {
      OP_REQUIRES_OK(context, this->CopyOrForward(context, 2, 0, workers, &x_gradient));
    } else {
      OP_REQUIRES_OK(context, AllocateOutput(context, 0, x.shape(), &x_gradient));
      Clear(x_gradient, workers);
    }
    OP_REQUIRES_OK(context, AllocateOutput(context, 1 + 3 * count_,
                                           TensorShape({channels}), &bias_gradient));
    ChainGradient(links, x.flat<T>().data(), active.positions(),
                  active.TouchedBySame3x3(), from, DataOrNull<T>(sums_gradient),
                  bias_gradient->flat<T>().data(), x_gradient->flat<T>().data(),
                  workers);
  }

 private:
  // Checks the convolutions, and allocates what their gradients go to.
  absl::Status ReadLinks(OpKernelContext* context, const Tensor& x,
                         std::vector<Link<T>>* links) const {
    int64_t channels = x.dim_size(3);
    for (int i = 0; i < count_; ++i) {
      const Tensor* inputs[3];
      Tensor* outputs[3];
      for (int kind = 0; kind < 3; ++kind) {
        inputs[kind] = &context->input(4 + kind * count_ + i);
        TF_RETURN_IF_ERROR(AllocateOutput(context, 1 + kind * count_ + i,
                                          inputs[kind]->shape(), &outputs[kind]));
      }
      Link<T>& link = (*links)[i];
      TF_RETURN_IF_ERROR(SameGeometry(x, *inputs[0], i, &link.geometry));
      TF_RETURN_IF_ERROR(CheckChain("filters", link.geometry.channels, channels));
      TF_RETURN_IF_ERROR(CheckVector("scales", *inputs[1], channels));
      TF_RETURN_IF_ERROR(CheckVector("shifts", *inputs[2], channels));
      channels = link.geometry.filters;
      const auto data = [](Tensor* tensor) {
        return tensor->NumElements() == 0 ? nullptr : tensor->flat<T>().data();
      };
      link.filters = inputs[0]->flat<T>().data();
      link.packed = nullptr;
      link.before = {DataOrNull<T>(*inputs[1]), DataOrNull<T>(*inputs[2]),
                     T(slopes_[i])};
      link.filter_gradient = outputs[0]->flat<T>().data();
      link.scale_gradient = data(outputs[1]);
      link.shift_gradient = data(outputs[2]);
    }
    return absl::OkStatus();
  }
  static void Clear(Tensor* tensor, const Workers& workers) {
    constexpr int64_t kChunk = 1 << 16;
    T* const to = tensor->flat<T>().data();
    const int64_t size = tensor->NumElements();
    workers.ForEach(CeilDiv(size, kChunk), [&](int64_t chunk) {
      std::fill(to + chunk * kChunk, to + std::min(size, (chunk + 1) * kChunk), T(0));
    });
  }
  int count_;
  std::vector<float> slopes_;
  bool shortcut_;
};

template <typename T>
class MaskedAccumulateGradientOp : public Op {
 public:
  using Op::Op;

  void Run(OpKernelContext* context) override {
    const Tensor& gradient = context->input(0);
    const Tensor& x = context->input(1);
    const Tensor& weight = context->input(2);
    OP_REQUIRES_OK(context, CheckAccumulate(context));
    Tensor *x_gradient, *weight_gradient;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, x.shape(), &x_gradient));
    OP_REQUIRES_OK(context,
                   AllocateOutput(context, 1, weight.shape(), &weight_gradient));
    AccumulateGradient(gradient.flat<T>().data(), x.flat<T>().data(),
                       weight.flat<float>().data(), weight.NumElements(), x.dim_size(3),
                       x_gradient->flat<T>().data(),
                       weight_gradient->flat<float>().data(), PoolWorkers(context));
  }
};

REGISTER_CPU("MaskedAccumulateGradient", MaskedAccumulateGradientOp);
REGISTER_CPU("PerforatedChainGradient", PerforatedChainGradientOp);

}  // namespace
}  // namespace perforated
