// CPU kernels of finding positions, of perforated convolution, and of its gradients.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "convolution.h"
#include "cpu_ops.h"
#include "gradients.h"

namespace perforated {
namespace {

class FindPositionsOp : public Op {
 public:
  using Op::Op;

  // Takes less time than to hand it to another thread.
  bool IsExpensive() override { return false; }

  void Run(OpKernelContext* context) override {
    const Tensor& mask = context->input(0);
    OP_REQUIRES(context, mask.dims() == 3,
                Invalid("mask must be [batch, height, width], got ",
                        mask.shape().DebugString()));
    Geometry g;
    g.batch = mask.dim_size(0);
    g.height = g.out_height = mask.dim_size(1);
    g.width = g.out_width = mask.dim_size(2);
    g.channels = g.filters = 1;
    g.kernel_height = g.kernel_width = 3;
    g.pad_top = g.pad_left = 1;
    const bool* const active = mask.flat<bool>().data();
    const int64_t count = std::count(active, active + mask.NumElements(), true);
    const TouchedMask touched(g, Bytes(active));
    Tensor *positions, *inputs, *rows;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, {count}, &positions));
    OP_REQUIRES_OK(context, AllocateOutput(context, 1, {touched.count()}, &inputs));
    OP_REQUIRES_OK(context, AllocateOutput(context, 2, mask.shape(), &rows));
    ListSet(Bytes(active), count, 0, positions->flat<int64_t>().data());
    touched.List(inputs->flat<int64_t>().data(), rows->flat<int64_t>().data());
  }
};

template <typename T>
class PerforatedConv2DOp : public PoolOp {
 public:
  explicit PerforatedConv2DOp(OpKernelConstruction* context) : PoolOp(context) {
    OP_REQUIRES_OK(context, window_.Read(context));
    OP_REQUIRES_OK(context, context->GetAttr("input_slope", &input_slope_));
    OP_REQUIRES_OK(context, context->GetAttr("slope", &slope_));
    OP_REQUIRES_OK(context, ReadFactors<T>(context, &has_half_factors_));
  }

  void Run(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const Tensor& filters = context->input(1);
    const Tensor& mask = context->input(2);
    Geometry g;
    int64_t copies;
    OP_REQUIRES_OK(context, window_.MakeGeometry(input.shape(), filters.shape(), &g));
    OP_REQUIRES_OK(context, CheckMask(g, mask.shape(), &copies));
    ActiveInput active;
    OP_REQUIRES_OK(context, active.Read(context, mask, 6, copies));
    const Positions& positions = active.positions();
    OP_REQUIRES_OK(context, CheckVector("bias", context->input(3), g.filters));
    OP_REQUIRES_OK(context, CheckVector("input_scale", context->input(4), g.channels));
    OP_REQUIRES_OK(context, CheckVector("input_shift", context->input(5), g.channels));
    Tensor* output;
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 0,
                       TensorShape({g.batch, g.out_height, g.out_width, g.filters}),
                       &output));
    T* const to = output->flat<T>().data();
    const PoolWorkers workers(context);
    const Transform<T> before{DataOrNull<T>(context->input(4)),
                              DataOrNull<T>(context->input(5)), T(input_slope_)};
    const Transform<T> after{nullptr, DataOrNull<T>(context->input(3)), T(slope_)};
    WithFactors<T>(has_half_factors_, [&](auto factor) {
      const auto packed = PackedCache<decltype(factor)>::Get().Pack(g, filters);
      Convolve(
          g, input.flat<T>().data(), nullptr, before, *packed, after, positions,
          active.TouchedBy(g), [&](int64_t r) { return to + positions[r] * g.filters; },
          workers, FillInactive(g, positions, to));
    });
  }

 private:
  // What the near caches of a processor hold, in bytes.
  static constexpr int64_t kLargeOutput = 2 << 20;

  // Zeros wherever no position is active, some cache lines per task.
  static Tasks FillInactive(const Geometry& g, const Positions& positions, T* to) {
    const int64_t chunk = CeilDiv(1 << 15, std::max<int64_t>(1, g.filters));
    const int64_t row = g.filters * sizeof(T);
    const bool is_large = g.num_outputs() * row >= kLargeOutput;
    return {CeilDiv(g.num_outputs(), chunk), [=, &g](int64_t task) {
              int64_t p = task * chunk;
              const int64_t end = std::min(g.num_outputs(), p + chunk);
              auto active = std::lower_bound(positions.begin(), positions.end(), p);
              for (; p < end; ++p) {
                const int64_t next =
                    active == positions.end() ? end : std::min(end, *active++);
                if (is_large) {
                  StreamZeros(to + p * g.filters, (next - p) * row);
                } else {
                  std::memset(to + p * g.filters, 0, (next - p) * row);
                }
                p = next;
              }
            }};
  }
  WindowAttributes window_;
  float input_slope_, slope_;
  bool has_half_factors_;
};

// What both gradient kernels do first.
template <typename T>
class GradientOp : public PoolOp {
 public:
  explicit GradientOp(OpKernelConstruction* context) : PoolOp(context) {
    OP_REQUIRES_OK(context, window_.Read(context));
  }

 protected:
  absl::Status Prepare(OpKernelContext* context, const TensorShape& input,
                       const TensorShape& filters, Geometry* g,
                       std::vector<int64_t>* positions) const {
    TF_RETURN_IF_ERROR(window_.MakeGeometry(input, filters, g));
    const Tensor& mask = context->input(2);
    int64_t copies;
    TF_RETURN_IF_ERROR(CheckMask(*g, mask.shape(), &copies));
    const TensorShape output({g->batch, g->out_height, g->out_width, g->filters});
    if (context->input(3).shape() != output) {
      return Invalid("output_gradient must be ", output.DebugString(), ", got ",
                     context->input(3).shape().DebugString());
    }
    *positions = ActivePositions(mask.flat<bool>().data(), mask.NumElements(), copies);
    return absl::OkStatus();
  }
  static absl::Status ShapeOf(const Tensor& tensor, TensorShape* shape) {
    return tensorflow::TensorShapeUtils::MakeShape(tensor.vec<int32_t>(), shape);
  }

 private:
  WindowAttributes window_;
};

template <typename T>
class InputGradientOp : public GradientOp<T> {
 public:
  using GradientOp<T>::GradientOp;

  void Run(OpKernelContext* context) override {
    const Tensor& filters = context->input(1);
    TensorShape shape;
    Geometry g;
    std::vector<int64_t> positions;
    OP_REQUIRES_OK(context, this->ShapeOf(context->input(0), &shape));
    OP_REQUIRES_OK(context,
                   this->Prepare(context, shape, filters.shape(), &g, &positions));
    Tensor* output;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, shape, &output));
    output->flat<T>().setZero();
    const T* const gradient = context->input(3).flat<T>().data();
    ConvolveInputGradient(
        g, [&](int64_t r) { return gradient + positions[r] * g.filters; },
        filters.flat<T>().data(), positions, nullptr, output->flat<T>().data(),
        PoolWorkers(context));
  }
};

template <typename T>
class FilterGradientOp : public GradientOp<T> {
 public:
  using GradientOp<T>::GradientOp;

  void Run(OpKernelContext* context) override {
    const Tensor& input = context->input(1);
    TensorShape shape;
    Geometry g;
    std::vector<int64_t> positions;
    OP_REQUIRES_OK(context, this->ShapeOf(context->input(0), &shape));
    OP_REQUIRES_OK(context,
                   this->Prepare(context, input.shape(), shape, &g, &positions));
    Tensor* output;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, shape, &output));
    const T* const gradient = context->input(3).flat<T>().data();
    ConvolveFilterGradient(
        g, input.flat<T>().data(), nullptr, Transform<T>{},
        [&](int64_t r) { return gradient + positions[r] * g.filters; }, positions,
        nullptr, output->flat<T>().data(), PoolWorkers(context));
  }
};

REGISTER_KERNEL_BUILDER(Name("FindPositions").Device(tensorflow::DEVICE_CPU),
                        FindPositionsOp);
REGISTER_CPU("PerforatedConv2D", PerforatedConv2DOp);
REGISTER_CPU("PerforatedConv2DAt", PerforatedConv2DOp);
REGISTER_CPU("PerforatedConv2DInputGradient", InputGradientOp);
REGISTER_CPU("PerforatedConv2DFilterGradient", FilterGradientOp);

}  // namespace
}  // namespace perforated
