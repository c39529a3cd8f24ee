// CPU kernels of residual units and what surrounds them for TensorFlow.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "cpu_ops.h"
#include "units.h"

namespace perforated {
namespace {

// What both units do around their arithmetic.
template <typename T>
class UnitOp : public Op {
 public:
  using Op::Op;

 protected:
  static absl::Status CheckRank(const Tensor& x) {
    if (x.dims() == 4) return absl::OkStatus();
    return Invalid("x must be [batch, height, width, channels], got ",
                   x.shape().DebugString());
  }
  static absl::Status CheckUnit(const Tensor& x, const Tensor& mask) {
    TF_RETURN_IF_ERROR(CheckRank(x));
    const TensorShape expected({x.dim_size(0), x.dim_size(1), x.dim_size(2)});
    if (mask.shape() == expected) return absl::OkStatus();
    return Invalid("mask must be ", expected.DebugString(), ", got ",
                   mask.shape().DebugString());
  }
  // Geometry of a SAME convolution with stride 1 of the size of x.
  static absl::Status MakeGeometry(const Tensor& x, const Tensor& filters, int index,
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
  // y as a copy of x, or x itself where nobody else needs it.
  static absl::Status CopyOrForward(OpKernelContext* context, int input, int output,
                                    const Workers& workers, Tensor** y) {
    const Tensor& x = context->input(input);
    TF_RETURN_IF_ERROR(
        context->forward_input_or_allocate_output({input}, output, x.shape(), y));
    const T* from = x.flat<T>().data();
    T* to = (*y)->template flat<T>().data();
    if (from == to) return absl::OkStatus();
    constexpr int64_t kChunk = 1 << 16;
    workers.ForEach(CeilDiv(x.NumElements(), kChunk), [&](int64_t chunk) {
      const int64_t first = chunk * kChunk;
      const int64_t last = std::min(x.NumElements(), first + kChunk);
      std::memcpy(to + first, from + first, (last - first) * sizeof(T));
    });
    return absl::OkStatus();
  }
  static absl::Status CheckChain(const char* name, int64_t got, int64_t expected) {
    if (got == expected) return absl::OkStatus();
    return Invalid(name, " must have ", expected, " channels, got ", got);
  }
};

// Three convolutions whose parameters begin at some input: preactivation (2), filters
// (3), scales (2), shifts (3).
template <typename T>
class BottleneckOp : public UnitOp<T> {
 public:
  using UnitOp<T>::UnitOp;

 protected:
  struct Parameters {
    Geometry geometry[3];
    std::shared_ptr<const PackedMatrix<T>> packed[3];
    Transform<T> preactivation;
    Stage<T> stages[3];
  };
  absl::Status Read(OpKernelContext* context, const Tensor& x, int first,
                    int64_t out_channels, Parameters* parameters) const {
    Geometry(&g)[3] = parameters->geometry;
    for (int i = 0; i < 3; ++i) {
      TF_RETURN_IF_ERROR(
          this->MakeGeometry(x, context->input(first + 2 + i), i, &g[i]));
    }
    TF_RETURN_IF_ERROR(this->CheckChain("filters_0", g[0].channels, x.dim_size(3)));
    TF_RETURN_IF_ERROR(this->CheckChain("filters_1", g[1].channels, g[0].filters));
    TF_RETURN_IF_ERROR(this->CheckChain("filters_2", g[2].channels, g[1].filters));
    TF_RETURN_IF_ERROR(this->CheckChain("the output", g[2].filters, out_channels));
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
    for (int i = 0; i < 3; ++i) {
      parameters->packed[i] =
          PackedCache<T>::Get().Pack(g[i], context->input(first + 2 + i));
    }
    const auto data = [&](int i) { return DataOrNull<T>(context->input(first + i)); };
    parameters->preactivation = {data(0), data(1), T(0)};
    parameters->stages[0] = {parameters->packed[0].get(), {data(5), data(7), T(0)}};
    parameters->stages[1] = {parameters->packed[1].get(), {data(6), data(8), T(0)}};
    parameters->stages[2] = {parameters->packed[2].get(), {nullptr, data(9), T(1)}};
    return absl::OkStatus();
  }
};

template <typename T>
class PerforatedBottleneckOp : public BottleneckOp<T> {
 public:
  using BottleneckOp<T>::BottleneckOp;

  void Run(OpKernelContext* context) override {
    const Tensor& x = context->input(0);
    const Tensor& mask = context->input(1);
    const int64_t sums_size = context->input(2).NumElements();
    typename BottleneckOp<T>::Parameters parameters;
    OP_REQUIRES_OK(context, this->CheckUnit(x, mask));
    const int64_t channels = x.dim_size(3);
    OP_REQUIRES_OK(context, this->Read(context, x, 3, channels, &parameters));
    OP_REQUIRES(context, sums_size == 0 || sums_size == x.dim_size(0) * channels,
                Invalid("sums must be [batch, channels] or empty, got ",
                        context->input(2).shape().DebugString()));
    const PoolWorkers workers(context);
    ActiveInput active;
    OP_REQUIRES_OK(context, active.Read(context, mask, 13));
    const T* from = x.flat<T>().data();
    Tensor *y, *sums;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 2, 1, workers, &sums));
    BottleneckUnit(parameters.geometry[1], channels, from, parameters.preactivation,
                   parameters.stages, active.positions(),
                   active.TouchedBy(parameters.geometry[1]), y->flat<T>().data(),
                   sums_size == 0 ? nullptr : sums->flat<T>().data(), workers);
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
    OP_REQUIRES_OK(context, this->CheckRank(x));
    OP_REQUIRES(context,
                projection.dims() == 4 && projection.dim_size(0) == 1 &&
                    projection.dim_size(1) == 1 &&
                    projection.dim_size(2) == x.dim_size(3),
                Invalid("projection must be [1, 1, ", x.dim_size(3),
                        ", out channels], got ", projection.shape().DebugString()));
    const int64_t out_channels = projection.dim_size(3);
    typename BottleneckOp<T>::Parameters parameters;
    OP_REQUIRES_OK(context, this->Read(context, x, 1, out_channels, &parameters));
    OP_REQUIRES_OK(context,
                   CheckVector("projection_bias", context->input(12), out_channels));
    Geometry& middle = parameters.geometry[1];
    middle.stride_y = middle.stride_x = stride_;
    middle.out_height = CeilDiv(middle.height, stride_);
    middle.out_width = CeilDiv(middle.width, stride_);
    Tensor *y, *sums;
    OP_REQUIRES_OK(
        context, context->allocate_output(0,
                                          TensorShape({middle.batch, middle.out_height,
                                                       middle.out_width, out_channels}),
                                          &y));
    OP_REQUIRES_OK(context, context->allocate_output(
                                1, TensorShape({middle.batch, out_channels}), &sums));
    const auto packed = PackedCache<T>::Get().Pack(
        Pointwise(middle, x.dim_size(3), out_channels), projection);
    ProjectionUnit(middle, x.dim_size(3), out_channels, x.flat<T>().data(),
                   parameters.preactivation, parameters.stages,
                   {packed.get(), {nullptr, DataOrNull<T>(context->input(12)), T(1)}},
                   y->flat<T>().data(), sums->flat<T>().data(), PoolWorkers(context));
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
  }

  void Run(OpKernelContext* context) override {
    // x 0, mask 1, preactivation 2-3, filters 4-5, scale 6, shifts 7-8.
    const Tensor& x = context->input(0);
    const Tensor& mask = context->input(1);
    OP_REQUIRES_OK(context, this->CheckUnit(x, mask));
    Geometry g[2];
    for (int i = 0; i < 2; ++i) {
      OP_REQUIRES_OK(context, this->MakeGeometry(x, context->input(4 + i), i, &g[i]));
    }
    const int64_t channels = x.dim_size(3);
    OP_REQUIRES_OK(context, this->CheckChain("filters_0", g[0].channels, channels));
    OP_REQUIRES_OK(context, this->CheckChain("filters_1", g[1].channels, g[0].filters));
    OP_REQUIRES_OK(context, this->CheckChain("the output", g[1].filters, channels));
    const int64_t sizes[] = {channels, channels, g[0].filters, g[0].filters, channels};
    constexpr const char* kVectors[] = {"preactivation_scale", "preactivation_shift",
                                        "scale", "shift", "bias"};
    for (int i = 0; i < 5; ++i) {
      const Tensor& vector = context->input(i < 2 ? 2 + i : 4 + i);
      OP_REQUIRES_OK(context, CheckVector(kVectors[i], vector, sizes[i]));
    }
    const PoolWorkers workers(context);
    std::shared_ptr<const PackedMatrix<T>> packed[2];
    for (int i = 0; i < 2; ++i) {
      packed[i] = PackedCache<T>::Get().Pack(g[i], context->input(4 + i));
    }
    const auto data = [&](int i) { return DataOrNull<T>(context->input(i)); };
    const Stage<T> stages[2] = {{packed[0].get(), {data(6), data(7), T(slopes_[1])}},
                                {packed[1].get(), {nullptr, data(8), T(1)}}};
    const Transform<T> preactivation{data(2), data(3), T(slopes_[0])};
    ActiveInput active;
    OP_REQUIRES_OK(context, active.Read(context, mask, 9));
    const T* from = x.flat<T>().data();
    Tensor* y;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    BasicUnit(g[0], g[1], from, preactivation, stages, active.positions(),
              active.TouchedBy(g[1]), y->flat<T>().data(), workers);
  }

 private:
  std::vector<float> slopes_;
};

template <typename T>
class MaskedAccumulateOp : public UnitOp<T> {
 public:
  using UnitOp<T>::UnitOp;

  void Run(OpKernelContext* context) override {
    const Tensor& total = context->input(0);
    const Tensor& x = context->input(1);
    const Tensor& weight = context->input(2);
    OP_REQUIRES(
        context, total.dims() == 4 && total.shape() == x.shape(),
        Invalid("total and x must be [batch, height, width, channels], ", "got ",
                total.shape().DebugString(), " and ", x.shape().DebugString()));
    const TensorShape expected({x.dim_size(0), x.dim_size(1), x.dim_size(2)});
    OP_REQUIRES(context, weight.shape() == expected,
                Invalid("weight must be ", expected.DebugString(), ", got ",
                        weight.shape().DebugString()));
    const float* const weights = weight.flat<float>().data();
    std::vector<int64_t> found_here;
    Positions positions;
    if (context->num_inputs() == 3) {
      found_here = NonZero(weights, weight.NumElements());
      positions = found_here;
    } else {
      ActiveInput active;
      OP_REQUIRES_OK(context, active.ReadFound(context, weight.shape(), 3));
      positions = active.positions();
    }
    const PoolWorkers workers(context);
    Tensor* y;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    Accumulate(x.flat<T>().data(), weights, positions, x.dim_size(3),
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
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &scale));
    OP_REQUIRES_OK(context, context->allocate_output(1, shape, &shift));
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
