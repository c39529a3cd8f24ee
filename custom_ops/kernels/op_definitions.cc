// The ops: what goes in and out, and its shapes.

#include <cstdint>
#include <vector>

#include "block_shapes.h"
#include "convolution.h"
#include "status.h"
#include "tensorflow/core/framework/kernel_shape_util.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "tensorflow/core/util/padding.h"

namespace perforated {
namespace {

using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

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

// With `bfloat16_factors`, which is for T float on CPUs, convolutions round what they
// multiply to bfloat16, and sum in float. GPUs multiply as they do without it.

// Ops that compute at the set elements of a mask come in two forms: as SavedModels hold
// them that were made when there was no other, and `At`, to which the results of
// FindPositions may be given along with the mask they come from.
#define BOTH_FORMS(op, name) \
  op(name);                  \
  op(name "At").Input("found: N * int64").Attr("N: int >= 0")

REGISTER_OP("FindPositions")
    .Input("mask: bool")
    .Output("positions: int64")
    .Output("touched: int64")
    .Output("touched_rows: int64")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle mask;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &mask));
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      c->set_output(1, c->Vector(InferenceContext::kUnknownDim));
      c->set_output(2, mask);
      return absl::OkStatus();
    });

// The same for GPUs, where nobody may wait for the number of positions: memory that
// only kernels understand. Goes where the results of FindPositions do.
REGISTER_OP("FindPlaces")
    .Input("mask: bool")
    .Output("places: int64")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle mask;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 3, &mask));
      c->set_output(0, c->Vector(InferenceContext::kUnknownDim));
      return absl::OkStatus();
    });

#define CONV2D(name)                                  \
  REGISTER_OP(name)                                   \
      .Input("input: T")                              \
      .Input("filters: T")                            \
      .Input("mask: bool")                            \
      .Input("bias: T")                               \
      .Input("input_scale: T")                        \
      .Input("input_shift: T")                        \
      .Output("output: T")                            \
      .Attr("T: {half, bfloat16, float, double}")     \
      .Attr("strides: list(int) = [1, 1]")            \
      .Attr("dilations: list(int) = [1, 1]")          \
      .Attr("padding: {'SAME', 'VALID', 'EXPLICIT'}") \
      .Attr("explicit_paddings: list(int) = []")      \
      .Attr("input_slope: float = 1.0")               \
      .Attr("slope: float = 1.0")                     \
      .Attr("bfloat16_factors: bool = false")         \
      .SetShapeFn(ConvolutionShape)

BOTH_FORMS(CONV2D, "PerforatedConv2D");

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
#define BOTTLENECK(name)                          \
  REGISTER_OP(name)                               \
      .Input("x: T")                              \
      .Input("mask: bool")                        \
      .Input("sums: T")                           \
      .Input("preactivation_scale: T")            \
      .Input("preactivation_shift: T")            \
      .Input("filters_0: T")                      \
      .Input("filters_1: T")                      \
      .Input("filters_2: T")                      \
      .Input("scale_0: T")                        \
      .Input("scale_1: T")                        \
      .Input("shift_0: T")                        \
      .Input("shift_1: T")                        \
      .Input("bias: T")                           \
      .Output("y: T")                             \
      .Output("new_sums: T")                      \
      .Attr("T: {half, bfloat16, float, double}") \
      .Attr("bfloat16_factors: bool = false")     \
      .SetShapeFn([](InferenceContext* c) {       \
        c->set_output(0, c->input(0));            \
        c->set_output(1, c->input(2));            \
        return absl::OkStatus();                  \
      })

BOTH_FORMS(BOTTLENECK, "PerforatedBottleneck");

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
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("stride: int")
    .Attr("bfloat16_factors: bool = false")
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

#define BASIC_UNIT(name)                          \
  REGISTER_OP(name)                               \
      .Input("x: T")                              \
      .Input("mask: bool")                        \
      .Input("preactivation_scale: T")            \
      .Input("preactivation_shift: T")            \
      .Input("filters_0: T")                      \
      .Input("filters_1: T")                      \
      .Input("scale: T")                          \
      .Input("shift: T")                          \
      .Input("bias: T")                           \
      .Output("y: T")                             \
      .Attr("T: {half, bfloat16, float, double}") \
      .Attr("slopes: list(float)")                \
      .Attr("bfloat16_factors: bool = false")     \
      .SetShapeFn([](InferenceContext* c) {       \
        c->set_output(0, c->input(0));            \
        return absl::OkStatus();                  \
      })

BOTH_FORMS(BASIC_UNIT, "PerforatedBasicUnit");

#define ACCUMULATE(name)                                                \
  REGISTER_OP(name)                                                     \
      .Input("total: T")                                                \
      .Input("x: T")                                                    \
      .Input("weight: float")                                           \
      .Output("new_total: T")                                           \
      .Attr("T: {half, bfloat16, float, double}")                       \
      .SetShapeFn([](InferenceContext* c) {                             \
        ShapeHandle shape;                                              \
        TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &shape)); \
        c->set_output(0, shape);                                        \
        return absl::OkStatus();                                        \
      })

BOTH_FORMS(ACCUMULATE, "MaskedAccumulate");

// A block of SACT from its first unit's output on. Parameters are, of every later unit,
// its batch normalizations (gamma, beta, mean, variance each), filters and bias; then
// of every unit's head but the last one's, those of the local part and of the pooled
// features: a batch normalization, filters and bias, and another one and filters. Each
// is a tensor, or a variable, which saves an operation that reads it. Not stateful:
// TensorFlow would run it even where nobody wants its results; and it orders operations
// on a variable all the same.
REGISTER_OP("PerforatedBlock")
    .Input("x: T")
    .Input("sums: T")
    .Input("imposed: int32")
    .Input("parameters: Tparameters")
    .Output("output: T")
    .Output("remainder: float")
    .Output("num_units: int32")
    .Output("weights: float")
    .Output("scores: float")
    .Output("counts: int64")
    .Attr("T: {float, double}")
    .Attr("Tparameters: list({float, double, resource}) >= 1")
    .Attr("convolutions: int")
    .Attr("slopes: list(float)")
    .Attr("epsilons: list(float)")
    .Attr("limit: float")
    .Attr("bfloat16_factors: bool = false")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle x;
      int64_t convolutions;
      const int64_t count = c->num_inputs() - kBlockInputs;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 4, &x));
      TF_RETURN_IF_ERROR(c->GetAttr("convolutions", &convolutions));
      if (convolutions != 2 && convolutions != 3) {
        return Invalid("convolutions must be 2 or 3, got ", convolutions);
      }
      const int64_t heads = count / ParametersPerUnit(convolutions);
      const DimensionHandle batch = c->Dim(x, 0), height = c->Dim(x, 1),
                            width = c->Dim(x, 2);
      const ShapeHandle map = c->MakeShape({batch, height, width});
      c->set_output(0, x);
      c->set_output(1, map);
      c->set_output(2, map);
      c->set_output(3, c->MakeShape({batch, height, width, c->MakeDim(heads + 1)}));
      c->set_output(4, c->MakeShape({c->MakeDim(heads), batch, height, width}));
      c->set_output(5, c->MakeShape({batch, c->MakeDim(heads), c->MakeDim(2)}));
      return absl::OkStatus();
    });

// Gradients of a chain of convolutions that keep size: each of its input's scale and
// shift, activation max(v, slope * v), and filters; a bias follows the last. With
// `shortcut`, which such a chain is the residual of, the gradient passes by it as well.
// Of the bottleneck and the basic unit, and of a convolution to few channels.
REGISTER_OP("PerforatedChainGradient")
    .Input("x: T")
    .Input("mask: bool")
    .Input("output_gradient: T")
    .Input("sums_gradient: T")
    .Input("filters: K * T")
    .Input("scales: K * T")
    .Input("shifts: K * T")
    .Input("found: N * int64")
    .Output("x_gradient: T")
    .Output("filter_gradients: K * T")
    .Output("scale_gradients: K * T")
    .Output("shift_gradients: K * T")
    .Output("bias_gradient: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("K: int >= 1")
    .Attr("N: int >= 0")
    .Attr("slopes: list(float)")
    .Attr("shortcut: bool")
    .SetShapeFn([](InferenceContext* c) {
      int64_t count;
      TF_RETURN_IF_ERROR(c->GetAttr("K", &count));
      c->set_output(0, c->input(0));
      for (int64_t i = 0; i < 3 * count; ++i) c->set_output(1 + i, c->input(4 + i));
      ShapeHandle gradient;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 4, &gradient));
      c->set_output(1 + 3 * count, c->Vector(c->Dim(gradient, 3)));
      return absl::OkStatus();
    });

// Where the weight is zero, so are both gradients.
REGISTER_OP("MaskedAccumulateGradient")
    .Input("gradient: T")
    .Input("x: T")
    .Input("weight: float")
    .Output("x_gradient: T")
    .Output("weight_gradient: float")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle shape;
      TF_RETURN_IF_ERROR(c->Merge(c->input(0), c->input(1), &shape));
      c->set_output(0, shape);
      c->set_output(1, c->input(2));
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

// Ops on rows [batch, rows, channels] that a table names, the same in all images.

absl::Status TableShape(InferenceContext* c, int rows_input, int table_input,
                        ShapeHandle* rows, ShapeHandle* table) {
  TF_RETURN_IF_ERROR(c->WithRank(c->input(rows_input), 3, rows));
  return c->WithRank(c->input(table_input), 2, table);
}

// [batch of a tensor, a number of rows that the graph carries, channels].
absl::Status CountedRowsShape(InferenceContext* c, int batch_input,
                              DimensionHandle channels) {
  ShapeHandle values;
  DimensionHandle rows;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(batch_input), 3, &values));
  TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(0, &rows));
  c->set_output(0, c->MakeShape({c->Dim(values, 0), rows, channels}));
  return absl::OkStatus();
}

REGISTER_OP("NearestInterpolate")
    .Input("rows: T")
    .Input("index: int32")
    .Output("image: T")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, index;
      TF_RETURN_IF_ERROR(TableShape(c, 0, 1, &rows, &index));
      c->set_output(0, c->MakeShape({c->Dim(rows, 0), c->Dim(index, 0),
                                     c->Dim(index, 1), c->Dim(rows, 2)}));
      return absl::OkStatus();
    });

// The scale of a normalization comes along as one more input, or not.
REGISTER_OP("IndexedConv2D")
    .Input("rows: T")
    .Input("filters: T")
    .Input("taps: int32")
    .Input("bias: T")
    .Input("scale: N * T")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("N: int >= 0 = 0")
    .Attr("slope: float = 1.0")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, filters, taps;
      DimensionHandle unused;
      TF_RETURN_IF_ERROR(TableShape(c, 0, 2, &rows, &taps));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &filters));
      TF_RETURN_IF_ERROR(c->Merge(c->Dim(rows, 2), c->Dim(filters, 2), &unused));
      c->set_output(
          0, c->MakeShape({c->Dim(rows, 0), c->Dim(taps, 0), c->Dim(filters, 3)}));
      return absl::OkStatus();
    });

REGISTER_OP("IndexedConv2DInputGradient")
    .Input("num_rows: int32")
    .Input("filters: T")
    .Input("taps: int32")
    .Input("output_gradient: T")
    .Output("gradient: T")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle filters;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 4, &filters));
      return CountedRowsShape(c, 3, c->Dim(filters, 2));
    });

REGISTER_OP("IndexedConv2DFilterGradient")
    .Input("filters_shape: int32")
    .Input("rows: T")
    .Input("taps: int32")
    .Input("output_gradient: T")
    .Output("gradient: T")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn(GradientShape);

REGISTER_OP("IndexedPool")
    .Input("rows: T")
    .Input("taps: int32")
    .Output("output: T")
    .Attr("T: {half, bfloat16, float, double}")
    .Attr("kind: {'max', 'average'}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle rows, taps;
      TF_RETURN_IF_ERROR(TableShape(c, 0, 1, &rows, &taps));
      c->set_output(0,
                    c->MakeShape({c->Dim(rows, 0), c->Dim(taps, 0), c->Dim(rows, 2)}));
      return absl::OkStatus();
    });

REGISTER_OP("IndexedMaxPoolGradient")
    .Input("rows: T")
    .Input("taps: int32")
    .Input("output_gradient: T")
    .Output("gradient: T")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn([](InferenceContext* c) {
      c->set_output(0, c->input(0));
      return absl::OkStatus();
    });

// For each row the sum of the values of all outputs whose taps name it.
REGISTER_OP("AddToRows")
    .Input("num_rows: int32")
    .Input("taps: int32")
    .Input("values: T")
    .Output("sums: T")
    .Attr("T: {half, bfloat16, float, double}")
    .SetShapeFn([](InferenceContext* c) {
      ShapeHandle values;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(2), 3, &values));
      return CountedRowsShape(c, 2, c->Dim(values, 2));
    });

}  // namespace
}  // namespace perforated
