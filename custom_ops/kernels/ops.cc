// Op definitions and CPU kernels for TensorFlow.

#include "ops.h"

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <tuple>
#include <vector>

#include "convolution.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/platform/threadpool.h"
#include "units.h"

namespace perforated {
namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// ---------------------------------------------------------------- op definitions

absl::Status WindowShape(InferenceContext* c, ShapeHandle input, ShapeHandle filters,
                         DimensionHandle* height, DimensionHandle* width) {
  std::vector<int64_t> strides, dilations, explicit_paddings;
  tensorflow::Padding padding;
  TF_RETURN_IF_ERROR(c->GetAttr("strides", &strides));
  TF_RETURN_IF_ERROR(c->GetAttr("dilations", &dilations));
  TF_RETURN_IF_ERROR(c->GetAttr("padding", &padding));
  TF_RETURN_IF_ERROR(c->GetAttr("explicit_paddings", &explicit_paddings));
  if (strides.size() != 2 || dilations.size() != 2 || strides[0] < 1 ||
      strides[1] < 1 || dilations[0] < 1 || dilations[1] < 1) {
    return Invalid("strides and dilations must be two numbers >= 1");
  }
  if (padding == tensorflow::EXPLICIT && explicit_paddings.size() != 4) {
    return Invalid("explicit_paddings must be top, bottom, left, right");
  }
  DimensionHandle* outputs[] = {height, width};
  for (int axis = 0; axis < 2; ++axis) {
    *outputs[axis] = c->UnknownDim();
    const DimensionHandle size = c->Dim(input, 1 + axis);
    const DimensionHandle kernel = c->Dim(filters, axis);
    if (!c->ValueKnown(size) || !c->ValueKnown(kernel)) continue;
    int64_t output = 0, before = 0, after = 0;
    if (padding == tensorflow::EXPLICIT) {
      before = explicit_paddings[2 * axis];
      after = explicit_paddings[2 * axis + 1];
    }
    TF_RETURN_IF_ERROR(tensorflow::GetWindowedOutputSizeVerbose(
        c->Value(size), c->Value(kernel), dilations[axis], strides[axis], padding,
        &output, &before, &after));
    *outputs[axis] = c->MakeDim(output);
  }
  return absl::OkStatus();
}

absl::Status ConvolutionShape(InferenceContext* c) {
  ShapeHandle input, filters, mask;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &input));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &filters));
  TF_RETURN_IF_ERROR(c->WithRankAtLeast(c->input(2), 2, &mask));
  TF_RETURN_IF_ERROR(c->WithRankAtMost(mask, 3, &mask));
  DimensionHandle unused, height, width;
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(input, 3), c->Dim(filters, 2), &unused));
  TF_RETURN_IF_ERROR(WindowShape(c, input, filters, &height, &width));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(mask, -2), height, &height));
  TF_RETURN_IF_ERROR(c->Merge(c->Dim(mask, -1), width, &width));
  c->set_output(0, c->MakeShape({c->Dim(input, 0), height, width, c->Dim(filters, 3)}));
  return absl::OkStatus();
}

// The output has the shape of an input that the graph carries as a tensor.
absl::Status GradientShape(InferenceContext* c) {
  ShapeHandle shape;
  TF_RETURN_IF_ERROR(c->MakeShapeFromShapeTensor(0, &shape));
  TF_RETURN_IF_ERROR(c->WithRank(shape, 4, &shape));
  c->set_output(0, shape);
  return absl::OkStatus();
}

REGISTER_OP("PerforatedConv2D")
    .Input("input: T")
    .Input("filters: T")
    .Input("mask: bool")
    .Input("bias: T")
    .Input("input_scale: T")
    .Input("input_shift: T")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("strides: list(int) = [1, 1]")
    .Attr("dilations: list(int) = [1, 1]")
    .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'}")
    .Attr("explicit_paddings: list(int) = []")
    .Attr("input_slope: float = 1.0")
    .Attr("slope: float = 1.0")
    .SetShapeFn(ConvolutionShape);

REGISTER_OP("PerforatedConv2DInputGradient")
    .Input("input_shape: int32")
    .Input("filters: T")
    .Input("mask: bool")
    .Input("output_gradient: T")
    .Output("input_gradient: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("strides: list(int) = [1, 1]")
    .Attr("dilations: list(int) = [1, 1]")
    .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'}")
    .Attr("explicit_paddings: list(int) = []")
    .SetShapeFn(GradientShape);

REGISTER_OP("PerforatedConv2DFilterGradient")
    .Input("filters_shape: int32")
    .Input("input: T")
    .Input("mask: bool")
    .Input("output_gradient: T")
    .Output("filter_gradient: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("strides: list(int) = [1, 1]")
    .Attr("dilations: list(int) = [1, 1]")
    .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'}")
    .Attr("explicit_paddings: list(int) = []")
    .SetShapeFn(GradientShape);

// The shape functions of the units check what the Python wrappers cannot know earlier.
REGISTER_OP("PerforatedBottleneck")
    .Input("x: T")
    .Input("mask: bool")
    .Input("sums: T")
    .Input("preactivation_scale: T")
    .Input("preactivation_shift: T")
    .Input("filters_0: T")
    .Input("filters_1: T")
    .Input("filters_2: T")
    .Input("scale_0: T")
    .Input("scale_1: T")
    .Input("shift_0: T")
    .Input("shift_1: T")
    .Input("bias: T")
    .Output("y: T")
    .Output("new_sums: T")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(2));
      return absl::OkStatus();
    });

REGISTER_OP("ProjectionBottleneck")
    .Input("x: T")
    .Input("preactivation_scale: T")
    .Input("preactivation_shift: T")
    .Input("filters_0: T")
    .Input("filters_1: T")
    .Input("filters_2: T")
    .Input("scale_0: T")
    .Input("scale_1: T")
    .Input("shift_0: T")
    .Input("shift_1: T")
    .Input("bias: T")
    .Input("projection: T")
    .Input("projection_bias: T")
    .Output("y: T")
    .Output("sums: T")
    .Attr("T: {float, double}")
    .Attr("stride: int")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle x, projection;
      int64_t stride;
      TF_RETURN_IF_ERROR(c->GetAttr("stride", &stride));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(11), 4, &projection));
      DimensionHandle size[2];
      for (int axis = 0; axis < 2; ++axis) {
        const DimensionHandle in = c->Dim(x, 1 + axis);
        size[axis] = c->ValueKnown(in) ? c->MakeDim(CeilDiv(c->Value(in), stride))
                                       : c->UnknownDim();
      }
      const DimensionHandle channels = c->Dim(projection, 3);
      c->set_output(0, c->MakeShape({c->Dim(x, 0), size[0], size[1], channels}));
      c->set_output(1, c->MakeShape({c->Dim(x, 0), channels}));
      return absl::OkStatus();
    });

REGISTER_OP("PerforatedBasicUnit")
    .Input("x: T")
    .Input("mask: bool")
    .Input("preactivation_scale: T")
    .Input("preactivation_shift: T")
    .Input("filters_0: T")
    .Input("filters_1: T")
    .Input("scale: T")
    .Input("shift: T")
    .Input("bias: T")
    .Output("y: T")
    .Attr("T: {float, double}")
    .Attr("slopes: list(float)")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    });

REGISTER_OP("MaskedAccumulate")
    .Input("total: T")
    .Input("x: T")
    .Input("weight: float")
    .Output("new_total: T")
    .Attr("T: {float, double}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle shape;
      TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &shape));
      c->set_output(0, shape);
      return absl::OkStatus();
    });

REGISTER_OP("FoldBatchNorm")
    .Input("gamma: T")
    .Input("beta: T")
    .Input("mean: T")
    .Input("variance: T")
    .Output("scale: T")
    .Output("shift: T")
    .Attr("T: {float, double}")
    .Attr("epsilon: float")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(0));
      c->set_output(1, c->input(0));
      return absl::OkStatus();
    });

// ---------------------------------------------------------------- CPU kernels

// TensorFlow's own threads and memory. The calling thread works too and waits for tasks,
// not for threads, so a busy pool delays nothing.
class PoolWorkers : public Workers {
 public:
  explicit PoolWorkers(OpKernelContext* context)
      : context_(context),
        workers_(*context->device()->tensorflow_cpu_worker_threads()) {}

  int num_threads() const override { return workers_.num_threads; }

  void ForEach(int64_t n, const std::function<void(int64_t)>& fn) const override {
    const int64_t helpers = std::min<int64_t>(n, num_threads()) - 1;
    if (helpers <= 0) {
      for (int64_t i = 0; i < n; ++i) fn(i);
      return;
    }
    struct State {
      std::atomic<int64_t> next{0};
      std::mutex mutex;
      std::condition_variable all_done;
      int64_t done = 0;
    };
    auto state = std::make_shared<State>();
    const auto work = [state, n, &fn] {
      int64_t done = 0;
      for (int64_t i; (i = state->next.fetch_add(1)) < n; ++done) fn(i);
      if (done == 0) return;
      std::lock_guard<std::mutex> lock(state->mutex);
      state->done += done;
      if (state->done == n) state->all_done.notify_one();
    };
    for (int64_t i = 0; i < helpers; ++i) workers_.workers->Schedule(work);
    work();
    std::unique_lock<std::mutex> lock(state->mutex);
    state->all_done.wait(lock, [&] { return state->done == n; });
  }

  void* Allocate(std::size_t bytes) const override {
    const TensorShape shape({static_cast<int64_t>(bytes)});
    Tensor& memory = memory_.emplace_back();
    if (!context_->allocate_temp(tensorflow::DT_INT8, shape, &memory).ok()) {
      throw std::bad_alloc();
    }
    return memory.data();
  }

 private:
  OpKernelContext* context_;
  mutable std::vector<Tensor> memory_;
  const tensorflow::DeviceBase::CpuWorkerThreads& workers_;
};

// Packed filters by the memory they were packed from.
//
// An entry holds a reference to that memory. TensorFlow updates a variable in place only
// where nobody else refers to its memory, so new values always come in new memory, and
// an entry can not be stale. Entries that nobody but the cache refers to any more are
// dropped when something new is packed.
template <typename T>
class PackedCache {
 public:
  static PackedCache& Get() {
    static PackedCache* cache = new PackedCache;
    return *cache;
  }
  std::shared_ptr<const PackedMatrix<T>> Pack(const Geometry& g, const Tensor& filters) {
    const Key key(filters.data(), g.kernel_height, g.kernel_width, g.channels, g.filters);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = entries_.find(key);
      if (found != entries_.end()) return found->second.packed;
    }
    auto packed = std::make_shared<PackedMatrix<T>>();
    PackFilters(g, filters.flat<T>().data(), packed.get());
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      entry = entry->second.filters.RefCountIsOne() ? entries_.erase(entry)
                                                    : std::next(entry);
    }
    entries_.insert_or_assign(key, Entry{filters, packed});
    return packed;
  }

 private:
  using Key = std::tuple<const void*, int64_t, int64_t, int64_t, int64_t>;
  struct Entry {
    Tensor filters;
    std::shared_ptr<const PackedMatrix<T>> packed;
  };
  std::mutex mutex_;
  std::map<Key, Entry> entries_;
};

template <typename T>
const T* DataOrNull(const Tensor& tensor) {
  return tensor.NumElements() == 0 ? nullptr : tensor.flat<T>().data();
}

// An op that may run out of memory.
class Op : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) final {
    try {
      Run(context);
    } catch (const std::bad_alloc&) {
      context->SetStatus(absl::ResourceExhaustedError(
          absl::StrCat(type_string(), " is out of memory")));
    }
  }

 protected:
  virtual void Run(OpKernelContext* context) = 0;
};

template <typename T>
class PerforatedConv2DOp : public Op {
 public:
  explicit PerforatedConv2DOp(OpKernelConstruction* context) : Op(context) {
    OP_REQUIRES_OK(context, window_.Read(context));
    OP_REQUIRES_OK(context, context->GetAttr("input_slope", &input_slope_));
    OP_REQUIRES_OK(context, context->GetAttr("slope", &slope_));
  }

  void Run(OpKernelContext* context) override {
    const Tensor& input = context->input(0);
    const Tensor& filters = context->input(1);
    const Tensor& mask = context->input(2);
    Geometry g;
    int64_t copies;
    OP_REQUIRES_OK(context, window_.MakeGeometry(input.shape(), filters.shape(), &g));
    OP_REQUIRES_OK(context, CheckMask(g, mask.shape(), &copies));
    OP_REQUIRES_OK(context, CheckVector("bias", context->input(3), g.filters));
    OP_REQUIRES_OK(context, CheckVector("input_scale", context->input(4), g.channels));
    OP_REQUIRES_OK(context, CheckVector("input_shift", context->input(5), g.channels));
    Tensor* output;
    OP_REQUIRES_OK(
        context, context->allocate_output(
                     0, TensorShape({g.batch, g.out_height, g.out_width, g.filters}),
                     &output));
    T* const to = output->flat<T>().data();
    const PoolWorkers workers(context);
    const auto packed = PackedCache<T>::Get().Pack(g, filters);
    const std::vector<int64_t> positions =
        ActivePositions(mask.flat<bool>().data(), mask.NumElements(), copies);
    const Transform<T> before{DataOrNull<T>(context->input(4)),
                              DataOrNull<T>(context->input(5)), T(input_slope_)};
    const Transform<T> after{nullptr, DataOrNull<T>(context->input(3)), T(slope_)};
    Convolve(
        g, input.flat<T>().data(), nullptr, before, *packed, after, positions,
        [&](int64_t r) { return to + positions[r] * g.filters; }, workers,
        FillInactive(g, positions, to));
  }

 private:
  // Zeros wherever no position is active, some cache lines per task.
  static Tasks FillInactive(const Geometry& g, const std::vector<int64_t>& positions,
                            T* to) {
    const int64_t chunk = CeilDiv(1 << 15, std::max<int64_t>(1, g.filters));
    return {CeilDiv(g.num_outputs(), chunk), [=, &positions, &g](int64_t task) {
              int64_t p = task * chunk;
              const int64_t end = std::min(g.num_outputs(), p + chunk);
              auto active = std::lower_bound(positions.begin(), positions.end(), p);
              for (; p < end; ++p) {
                const int64_t next =
                    active == positions.end() ? end : std::min(end, *active++);
                std::fill(to + p * g.filters, to + next * g.filters, T(0));
                p = next;
              }
            }};
  }
  WindowAttributes window_;
  float input_slope_, slope_;
};

// What both gradient kernels do first.
template <typename T>
class GradientOp : public Op {
 public:
  explicit GradientOp(OpKernelConstruction* context) : Op(context) {
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
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    output->flat<T>().setZero();
    ConvolveInputGradient(g, context->input(3).flat<T>().data(),
                          filters.flat<T>().data(), positions, output->flat<T>().data(),
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
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &output));
    ConvolveFilterGradient(g, input.flat<T>().data(),
                           context->input(3).flat<T>().data(), positions,
                           output->flat<T>().data(), PoolWorkers(context));
  }
};

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
      return Invalid("filters_", index,
                     " must be square with an odd side, got ",
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
    TF_RETURN_IF_ERROR(context->forward_input_or_allocate_output({input}, output,
                                                                 x.shape(), y));
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
    const std::vector<int64_t> positions =
        ActivePositions(mask.flat<bool>().data(), mask.NumElements());
    const T* from = x.flat<T>().data();
    Tensor *y, *sums;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 2, 1, workers, &sums));
    BottleneckUnit(parameters.geometry[1], channels, from, parameters.preactivation,
                   parameters.stages, positions, y->flat<T>().data(),
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
    OP_REQUIRES_OK(context, context->allocate_output(
                                0,
                                TensorShape({middle.batch, middle.out_height,
                                             middle.out_width, out_channels}),
                                &y));
    OP_REQUIRES_OK(context,
                   context->allocate_output(
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
    OP_REQUIRES(context, slopes_.size() == 2,
                Invalid("slopes must be two numbers"));
  }

  void Run(OpKernelContext* context) override {
    // x 0, mask 1, preactivation 2-3, filters 4-5, scale 6, shifts 7-8.
    const Tensor& x = context->input(0);
    const Tensor& mask = context->input(1);
    OP_REQUIRES_OK(context, this->CheckUnit(x, mask));
    Geometry g[2];
    for (int i = 0; i < 2; ++i) {
      OP_REQUIRES_OK(context,
                     this->MakeGeometry(x, context->input(4 + i), i, &g[i]));
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
    const std::vector<int64_t> positions =
        ActivePositions(mask.flat<bool>().data(), mask.NumElements());
    const T* from = x.flat<T>().data();
    Tensor* y;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    BasicUnit(g[0], g[1], from, preactivation, stages, positions, y->flat<T>().data(),
              workers);
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
    OP_REQUIRES(context, total.dims() == 4 && total.shape() == x.shape(),
                Invalid("total and x must be [batch, height, width, channels], ",
                                "got ", total.shape().DebugString(), " and ",
                                x.shape().DebugString()));
    const TensorShape expected({x.dim_size(0), x.dim_size(1), x.dim_size(2)});
    OP_REQUIRES(context, weight.shape() == expected,
                Invalid("weight must be ", expected.DebugString(), ", got ",
                                weight.shape().DebugString()));
    const PoolWorkers workers(context);
    Tensor* y;
    OP_REQUIRES_OK(context, this->CopyOrForward(context, 0, 0, workers, &y));
    Accumulate(x.flat<T>().data(), weight.flat<float>().data(), weight.NumElements(),
               x.dim_size(3), y->flat<T>().data(), workers);
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

#define REGISTER(name, kernel, type) \
  REGISTER_KERNEL_BUILDER(           \
      Name(name).Device(DEVICE_CPU).TypeConstraint<type>("T"), kernel<type>)
#define REGISTER_CPU(type)                                            \
  REGISTER("PerforatedConv2D", PerforatedConv2DOp, type);             \
  REGISTER("PerforatedConv2DInputGradient", InputGradientOp, type);   \
  REGISTER("PerforatedConv2DFilterGradient", FilterGradientOp, type); \
  REGISTER("PerforatedBottleneck", PerforatedBottleneckOp, type);     \
  REGISTER("ProjectionBottleneck", ProjectionBottleneckOp, type);     \
  REGISTER("PerforatedBasicUnit", PerforatedBasicUnitOp, type);       \
  REGISTER("MaskedAccumulate", MaskedAccumulateOp, type);             \
  REGISTER("FoldBatchNorm", FoldBatchNormOp, type)

REGISTER_CPU(float);
REGISTER_CPU(double);

#undef REGISTER_CPU
#undef REGISTER

}  // namespace
}  // namespace perforated
