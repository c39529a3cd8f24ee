// CPU kernels of residual units and what surrounds them for TensorFlow.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu_ops.h"
#include "gradients.h"
#include "unit_checks.h"
#include "units.h"

namespace perforated {
namespace {

// Three convolutions whose parameters begin at some input: preactivation (2), filters
// (3), scales (2), shifts (3).
template <typename T>
class BottleneckOp : public UnitOp<T> {
 public:
  explicit BottleneckOp(OpKernelConstruction* context) : UnitOp<T>(context) {
    OP_REQUIRES_OK(context, ReadFactors<T>(context, &has_half_factors_));
  }

 protected:
  // With factors F.
  template <typename F>
  struct Parameters {
    // The inputs must be checked; g is what that gave.
    Parameters(OpKernelContext* context, int first, const Geometry (&g)[3]) {
      for (int i = 0; i < 3; ++i) {
        packed[i] = PackedCache<F>::Get().Pack(g[i], context->input(first + 2 + i));
      }
      const auto data = [&](int i) { return DataOrNull<T>(context->input(first + i)); };
      preactivation = {data(0), data(1), T(0)};
      stages[0] = {packed[0].get(), {data(5), data(7), T(0)}};
      stages[1] = {packed[1].get(), {data(6), data(8), T(0)}};
      stages[2] = {packed[2].get(), {nullptr, data(9), T(1)}};
    }
    std::shared_ptr<const PackedMatrix<F>> packed[3];
    Transform<T> preactivation;
    Stage<F> stages[3];
  };
  bool has_half_factors_;
};

template <typename T>
class PerforatedBottleneckOp : public BottleneckOp<T> {
 public:
  using BottleneckOp<T>::BottleneckOp;

  void Run(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& mask = context->input(1);
    const int64_t sums_size = context->input(2).NumElements();
    Geometry g[3];
    OP_REQUIRES_OK(context, CheckUnit(x, mask));
    const int64_t channels = x.dim_size(3);
    OP_REQUIRES_OK(context, CheckBottleneck(context, x, 3, channels, g));
    OP_REQUIRES_OK(context, CheckSums(x, context->input(2)));
    const PoolWorkers workers(context);
    ActiveInput active;
    OP_REQUIRES_OK(context, active.Read(context, mask, 13));
    const T* from = x.flat<T>().data();
    Tensor *y, *sums;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 2, 1, workers, &sums));
    WithFactors<T>(this->has_half_factors_, [&](auto factor) {
      using F = decltype(factor);
      const typename BottleneckOp<T>::template Parameters<F> parameters(context, 3, g);
      BottleneckUnit(g[1], channels, from, parameters.preactivation, parameters.stages,
                     active.positions(), active.TouchedBy(g[1]), y->flat<T>().data(),
                     sums_size == 0 ? nullptr : sums->flat<T>().data(), workers);
    });
  }
};

template <typename T>
class ProjectionBottleneckOp : public BottleneckOp<T> {
 public:
  explicit ProjectionBottleneckOp(OpKernelConstruction* context)
      : BottleneckOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("stride", &stride_));
    OP_REQUIRES(context, stride_ >= 1, Invalid("stride must be >= 1, got ", stride_));
  }

  void Run(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& projection = context->input(11);
    Geometry g[3];
    OP_REQUIRES_OK(context, CheckProjection(context, stride_, g));
    const Geometry& middle = g[1];
    const int64_t out_channels = projection.dim_size(3);
    Tensor *y, *sums;
    OP_REQUIRES_OK(context,
                   AllocateOutput(context, 0,
                                  TensorShape({middle.batch, middle.out_height,
                                               middle.out_width, out_channels}),
                                  &y));
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 1, TensorShape({middle.batch, out_channels}), &sums));
    WithFactors<T>(this->has_half_factors_, [&](auto factor) {
      using F = decltype(factor);
      const typename BottleneckOp<T>::template Parameters<F> parameters(context, 1, g);
      const auto packed = PackedCache<F>::Get().Pack(
          Pointwise(middle, x.dim_size(3), out_channels), projection);
      ProjectionUnit(middle, x.dim_size(3), out_channels, x.flat<T>().data(),
                     parameters.preactivation, parameters.stages,
                     {packed.get(), {nullptr, DataOrNull<T>(context->input(12)), T(1)}},
                     y->flat<T>().data(), sums->flat<T>().data(), PoolWorkers(context));
    });
  }

 private:
  int64_t stride_;
};

template <typename T>
class PerforatedBasicUnitOp : public UnitOp<T> {
 public:
  explicit PerforatedBasicUnitOp(OpKernelConstruction* context) : UnitOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("slopes", &slopes_));
    OP_REQUIRES(context, slopes_.size() == 2, Invalid("slopes must be two numbers"));
    OP_REQUIRES_OK(context, ReadFactors<T>(context, &has_half_factors_));
  }

  void Run(OpKernelContext* context) override {
    // x 0, mask 1, preactivation 2-3, filters 4-5, scale 6, shifts 7-8.
    const Tensor& x = context->input(0);
    const Tensor& mask = context->input(1);
    Geometry g[2];
    OP_REQUIRES_OK(context, CheckBasicUnit(context, g));
    const PoolWorkers workers(context);
    const auto data = [&](int i) { return DataOrNull<T>(context->input(i)); };
    const Transform<T> preactivation{data(2), data(3), T(slopes_[0])};
    ActiveInput active;
    OP_REQUIRES_OK(context, active.Read(context, mask, 9));
    const T* from = x.flat<T>().data();
    Tensor* y;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    WithFactors<T>(has_half_factors_, [&](auto factor) {
      using F = decltype(factor);
      std::shared_ptr<const PackedMatrix<F>> packed[2];
      for (int i = 0; i < 2; ++i) {
        packed[i] = PackedCache<F>::Get().Pack(g[i], context->input(4 + i));
      }
      const Stage<F> stages[2] = {{packed[0].get(), {data(6), data(7), T(slopes_[1])}},
                                  {packed[1].get(), {nullptr, data(8), T(1)}}};
      BasicUnit(g[0], g[1], from, preactivation, stages, active.positions(),
                active.TouchedBy(g[1]), y->flat<T>().data(), static_cast<T*>(nullptr),
                workers);
    });
  }

 private:
  std::vector<float> slopes_;
  bool has_half_factors_;
};

template <typename T>
class MaskedAccumulateOp : public UnitOp<T> {
 public:
  using UnitOp<T>::UnitOp;

  void Run(OpKernelContext* context) override {
    const Tensor& x = context->input(1);
    const Tensor& weight = context->input(2);
    OP_REQUIRES_OK(context, CheckAccumulate(context));
    const float* const weights = weight.flat<float>().data();
    const PoolWorkers workers(context);
    Tensor* y;
    if (context->num_inputs() <= 4) {  // nothing that is for CPUs came along
      const T* const total = context->input(0).flat<T>().data();
      OP_REQUIRES_OK(context,
                     context->forward_input_or_allocate_output({0}, 0, x.shape(), &y));
      AccumulateAll(total, x.flat<T>().data(), weights, weight.NumElements(),
                    x.dim_size(3), y->flat<T>().data(), workers);
      return;
    }
    ActiveInput active;
    OP_REQUIRES_OK(context, active.ReadFound(context, weight.shape(), 3));
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    Accumulate(x.flat<T>().data(), weights, active.positions(), x.dim_size(3),
               y->flat<T>().data(), workers);
  }
};

template <typename T>
class FoldBatchNormOp : public Op {
 public:
  explicit FoldBatchNormOp(OpKernelConstruction* context) : Op(context) {
    OP_REQUIRES_OK(context, context->GetAttr("epsilon", &epsilon_));
  }

  void Run(OpKernelContext* context) override {
    const TensorShape& shape = context->input(0).shape();
    for (int i = 0; i < 4; ++i) {
      OP_REQUIRES(context, context->input(i).shape() == shape,
                  Invalid("gamma, beta, mean and variance must have one shape"));
    }
    Tensor *scale, *shift;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, shape, &scale));
    OP_REQUIRES_OK(context, AllocateOutput(context, 1, shape, &shift));
    const auto in = [&](int i) { return context->input(i).flat<T>(); };
    scale->flat<T>() = in(0) * (in(3) + T(epsilon_)).rsqrt();
    shift->flat<T>() = in(1) - in(2) * scale->flat<T>();
  }

 private:
  float epsilon_;
};

REGISTER_CPU("PerforatedBottleneck", PerforatedBottleneckOp);
REGISTER_CPU("PerforatedBottleneckAt", PerforatedBottleneckOp);
REGISTER_CPU("ProjectionBottleneck", ProjectionBottleneckOp);
REGISTER_CPU("PerforatedBasicUnit", PerforatedBasicUnitOp);
REGISTER_CPU("PerforatedBasicUnitAt", PerforatedBasicUnitOp);
REGISTER_CPU("MaskedAccumulate", MaskedAccumulateOp);
REGISTER_CPU("MaskedAccumulateAt", MaskedAccumulateOp);
REGISTER_CPU("FoldBatchNorm", FoldBatchNormOp);

}  // namespace
}  // namespace perforated
