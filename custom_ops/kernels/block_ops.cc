// CPU kernel of a block of residual units whose positions halt, for TensorFlow.

#include <cmath>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "block.h"
#include "block_shapes.h"
#include "cpu_ops.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
#include "unit_checks.h"

namespace perforated {
namespace {

// The values of inputs from `first` on that are tensors, or variables, of type T.
template <typename T>
absl::Status ReadValues(OpKernelContext* context, int first,
                        std::vector<Tensor>* values) {
  for (int i = first; i < context->num_inputs(); ++i) {
    if (context->input_dtype(i) != tensorflow::DT_RESOURCE) {
      values->push_back(context->input(i));
    } else {
      tensorflow::core::RefCountPtr<tensorflow::Var> variable;
      TF_RETURN_IF_ERROR(tensorflow::LookupResource(
          context, tensorflow::HandleFromInput(context, i), &variable));
      tensorflow::tf_shared_lock lock(*variable->mu());
      // With a reference to it, nobody changes this memory.
      values->push_back(*variable->tensor());
    }
    if (values->back().dtype() != tensorflow::DataTypeToEnum<T>::value) {
      return Invalid("parameter ", i - first, " must be ",
                     tensorflow::DataTypeString(tensorflow::DataTypeToEnum<T>::value),
                     ", got ", tensorflow::DataTypeString(values->back().dtype()));
    }
  }
  return absl::OkStatus();
}

// Reads a block's parameters one after the other, and checks them.
template <typename T>
class Parameters {
 public:
  Parameters(const std::vector<Tensor>& list, const Tensor& x, const Workers& workers)
      : list_(list), x_(x), workers_(workers) {}

  // A batch normalization of so many channels, folded to scale and shift.
  absl::Status ReadNorm(int64_t channels, float epsilon, float slope,
                        Transform<T>* transform) {
    const T* vectors[kNorm];
    for (const T*& vector : vectors) {
      TF_RETURN_IF_ERROR(ReadVector("a normalization", channels, &vector));
    }
    const auto [gamma, beta, mean, variance] = vectors;
    T* const scale = workers_.template NewArray<T>(channels);
    T* const shift = workers_.template NewArray<T>(channels);
    for (int64_t c = 0; c < channels; ++c) {
      scale[c] = gamma[c] * (T(1) / std::sqrt(variance[c] + T(epsilon)));
      shift[c] = beta[c] - mean[c] * scale[c];
    }
    *transform = {scale, shift, T(slope)};
    return absl::OkStatus();
  }
  // Filters of `side` x `side`, `channels` of them; gives their geometry on maps of x.
  template <typename F>
  absl::Status ReadFilters(int64_t side, int64_t in_channels, int64_t channels,
                           Geometry* g,
                           std::shared_ptr<const PackedMatrix<F>>* packed) {
    const Tensor& filters = list_[next_];
    TF_RETURN_IF_ERROR(SameGeometry(x_, filters, next_++, g));
    if (g->kernel_height != side || g->channels != in_channels ||
        (channels > 0 && g->filters != channels)) {
      return Invalid("parameter ", next_ - 1, " must be filters [", side, ", ", side,
                     ", ", in_channels, ", ",
                     channels > 0 ? absl::StrCat(channels) : "any", "], got ",
                     filters.shape().DebugString());
    }
    *packed = PackedCache<F>::Get().Pack(*g, filters);
    return absl::OkStatus();
  }
  absl::Status ReadVector(const char* what, int64_t size, const T** data) {
    const Tensor& vector = list_[next_++];
    if (vector.dims() != 1 || vector.dim_size(0) != size) {
      return Invalid("parameter ", next_ - 1, " must be ", what, "'s [", size,
                     "], got ", vector.shape().DebugString());
    }
    *data = vector.flat<T>().data();
    return absl::OkStatus();
  }
  // The matrix [1, 1, size, 1] of the pooled features.
  absl::Status ReadPooledWeights(int64_t size, const T** data) {
    const Tensor& matrix = list_[next_++];
    if (matrix.shape() != TensorShape({1, 1, size, 1})) {
      return Invalid("parameter ", next_ - 1, " must be [1, 1, ", size, ", 1], got ",
                     matrix.shape().DebugString());
    }
    *data = matrix.flat<T>().data();
    return absl::OkStatus();
  }

 private:
  const std::vector<Tensor>& list_;
  const Tensor& x_;
  const Workers& workers_;
  int next_ = 0;
};

// A bottleneck (three convolutions) or a basic unit (two).
template <typename T, typename F>
struct BlockUnit {
  Geometry g[3];
  std::shared_ptr<const PackedMatrix<F>> packed[3];
  Transform<T> preactivation;
  Stage<F> stages[3];

  absl::Status Read(int convolutions, int64_t channels,
                    const std::vector<float>& epsilons,
                    const std::vector<float>& slopes, Parameters<T>* parameters) {
    Transform<T> norms[3];
    int64_t inputs = channels;
    for (int i = 0; i < convolutions; ++i) {
      const int64_t side = convolutions == 2 || i == 1 ? 3 : 1;
      const int64_t outputs = i == convolutions - 1 ? channels : 0;
      TF_RETURN_IF_ERROR(
          parameters->ReadNorm(inputs, epsilons[i], slopes[i], &norms[i]));
      TF_RETURN_IF_ERROR(
          parameters->ReadFilters(side, inputs, outputs, &g[i], &packed[i]));
      inputs = g[i].filters;
    }
    const T* bias;
    TF_RETURN_IF_ERROR(parameters->ReadVector("the bias", channels, &bias));
    preactivation = norms[0];
    for (int i = 0; i < convolutions; ++i) {
      stages[i].filters = packed[i].get();
      stages[i].after =
          i < convolutions - 1 ? norms[i + 1] : Transform<T>{nullptr, bias, T(1)};
    }
    return absl::OkStatus();
  }
  void Run(int convolutions, const Positions& positions, const Touched& touched, T* x,
           T* sums, const Workers& workers) const {
    if (convolutions == 3) {
      BottleneckUnit(g[1], g[0].channels, x, preactivation, stages, positions, &touched,
                     x, sums, workers);
    } else {
      const Stage<F> two[] = {stages[0], stages[1]};
      BasicUnit(g[0], g[1], x, preactivation, two, positions, &touched, x, sums,
                workers);
    }
  }
};

template <typename T>
class PerforatedBlockOp : public UnitOp<T> {
 public:
  explicit PerforatedBlockOp(OpKernelConstruction* context) : UnitOp<T>(context) {
    OP_REQUIRES_OK(context, context->GetAttr("convolutions", &convolutions_));
    OP_REQUIRES_OK(context, context->GetAttr("slopes", &slopes_));
    OP_REQUIRES_OK(context, context->GetAttr("epsilons", &epsilons_));
    OP_REQUIRES_OK(context, context->GetAttr("limit", &limit_));
    OP_REQUIRES_OK(context, ReadFactors<T>(context, &has_half_factors_));
    const std::size_t norms = convolutions_ + 2;
    OP_REQUIRES(context, slopes_.size() == norms && epsilons_.size() == norms,
                Invalid("slopes and epsilons must be ", norms, " numbers each"));
  }

  void Run(OpKernelContext* context) override {
    WithFactors<T>(has_half_factors_,
                   [&](auto factor) { RunWith<decltype(factor)>(context); });
  }

 private:
  template <typename F>
  void RunWith(OpKernelContext* context) {
    const Tensor& x = context->input(0);
    OP_REQUIRES_OK(context, CheckImage(x));
    const int64_t batch = x.dim_size(0), height = x.dim_size(1), width = x.dim_size(2);
    const int64_t channels = x.dim_size(3);
    OP_REQUIRES(context, context->input(1).shape() == TensorShape({batch, channels}),
                Invalid("sums must be [", batch, ", ", channels, "], got ",
                        context->input(1).shape().DebugString()));
    Imposed imposed;
    OP_REQUIRES_OK(context, ReadImposed(context->input(2), x, &imposed));
    std::vector<Tensor> list;
    OP_REQUIRES_OK(context, ReadValues<T>(context, kBlockInputs, &list));
    const int64_t size = list.size(), each = ParametersPerUnit(convolutions_);
    const int64_t last = size / each;
    OP_REQUIRES(context, last * each == size,
                Invalid("parameters must be a multiple of ", each, ", got ", size));
    const PoolWorkers workers(context);
    Parameters<T> parameters(list, x, workers);
    std::vector<BlockUnit<T, F>> units(last);
    for (auto& unit : units) {
      OP_REQUIRES_OK(
          context, unit.Read(convolutions_, channels, epsilons_, slopes_, &parameters));
    }
    Geometry g;
    std::vector<Head<T>> heads(last);
    std::vector<std::shared_ptr<const PackedMatrix<T>>> packed(last);
    for (int64_t k = 0; k < last; ++k) {
      OP_REQUIRES_OK(context,
                     ReadHead(channels, &parameters, &g, &packed[k], &heads[k]));
    }
    Tensor* outputs[6];
    const TensorShape map({batch, height, width});
    const TensorShape shapes[] = {x.shape(),
                                  map,
                                  map,
                                  TensorShape({batch, height, width, last + 1}),
                                  TensorShape({last, batch, height, width}),
                                  TensorShape({batch, last, 2})};
    for (int i = 0; i < 6; ++i) {
      OP_REQUIRES_OK(context, AllocateOutput(context, i, shapes[i], &outputs[i]));
    }
    Tensor features, sums;
    OP_REQUIRES_OK(context, this->TakeOrCopy(context, 0, workers, &features));
    OP_REQUIRES_OK(context, this->TakeOrCopy(context, 1, workers, &sums));
    T* const values = features.flat<T>().data();
    T* const all_sums = sums.flat<T>().data();
    RunBlock(
        g, heads, limit_, imposed,
        [&](int64_t k, const Positions& positions, const Touched& touched,
            const Workers& memory) {
          units[k].Run(convolutions_, positions, touched, values, all_sums, memory);
        },
        values, all_sums, outputs[0]->flat<T>().data(),
        {outputs[1]->flat<float>().data(), outputs[2]->flat<int32_t>().data(),
         outputs[3]->flat<float>().data(), outputs[4]->flat<float>().data(),
         outputs[5]->flat<int64_t>().data()},
        workers);
  }

  static absl::Status ReadImposed(const Tensor& units, const Tensor& x,
                                  Imposed* imposed) {
    if (units.dims() == 1 && units.NumElements() == 0) return absl::OkStatus();
    const TensorShape one({x.dim_size(1), x.dim_size(2)});
    const TensorShape all({x.dim_size(0), x.dim_size(1), x.dim_size(2)});
    if (units.shape() != one && units.shape() != all) {
      return Invalid("imposed must be ", all.DebugString(), " or ", one.DebugString(),
                     " or empty, got ", units.shape().DebugString());
    }
    if (units.NumElements() == 0) return absl::OkStatus();
    *imposed = {units.flat<int32_t>().data(), units.NumElements()};
    return absl::OkStatus();
  }
  absl::Status ReadHead(int64_t channels, Parameters<T>* parameters, Geometry* g,
                        std::shared_ptr<const PackedMatrix<T>>* packed,
                        Head<T>* head) const {
    const int local = convolutions_, pooled = convolutions_ + 1;
    TF_RETURN_IF_ERROR(parameters->ReadNorm(channels, epsilons_[local], slopes_[local],
                                            &head->before));
    TF_RETURN_IF_ERROR(parameters->ReadFilters(3, channels, 1, g, packed));
    TF_RETURN_IF_ERROR(parameters->ReadVector("a head's bias", 1, &head->bias));
    TF_RETURN_IF_ERROR(parameters->ReadNorm(channels, epsilons_[pooled],
                                            slopes_[pooled], &head->pooled));
    TF_RETURN_IF_ERROR(parameters->ReadPooledWeights(channels, &head->weights));
    head->filters = packed->get();
    return absl::OkStatus();
  }

  int convolutions_;
  std::vector<float> slopes_, epsilons_;
  float limit_;
  bool has_half_factors_;
};

REGISTER_CPU("PerforatedBlock", PerforatedBlockOp);

}  // namespace
}  // namespace perforated
