// CPU kernels of interpolation, convolution and pooling of rows that a table names.

#include <cstdint>

#include "convolution.h"
#include "cpu_ops.h"
#include "gradients.h"
#include "indexed.h"
#include "indexed_shapes.h"

namespace perforated {
namespace {

template <typename T>
class NearestInterpolateOp : public Op {
 public:
  using Op::Op;

  void Run(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& index = context->input(1);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table table;
    OP_REQUIRES_OK(context, ReadTable("index", index, &table));
    OP_REQUIRES_OK(context, CheckRange("index", table, 0, rows.dim_size(1)));
    Tensor* image;
    OP_REQUIRES_OK(context,
                   AllocateOutput(context, 0,
                                  TensorShape({rows.dim_size(0), table.rows_out,
                                               table.taps, rows.dim_size(2)}),
                                  &image));
    Pool(PoolKind::kAverage, ShapeOfRows(rows), {table.data, index.NumElements(), 1},
         rows.flat<T>().data(), image->flat<T>().data(), PoolWorkers(context));
  }
};

template <typename T>
class IndexedConv2DOp : public PoolOp {
 public:
  explicit IndexedConv2DOp(OpKernelConstruction* context) : PoolOp(context) {
    OP_REQUIRES_OK(context, context->GetAttr("slope", &slope_));
  }

  void Run(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& filters = context->input(1);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table taps;
    Geometry g;
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(2), &taps));
    OP_REQUIRES_OK(context, MakeGeometry(ShapeOfRows(rows), filters.shape(), taps, &g));
    OP_REQUIRES_OK(context, CheckRange("taps", taps, -1, g.height));
    const Tensor *bias, *scale;
    OP_REQUIRES_OK(context, ReadVectors(context, g.filters, &bias, &scale));
    Tensor* output;
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 0, TensorShape({g.batch, taps.rows_out, g.filters}),
                       &output));
    T* const to = output->flat<T>().data();
    const auto packed = PackedCache<T>::Get().Pack(g, filters);
    ConvolveAt(
        g, TableWindows(g.batch, g.height, taps.rows_out, taps.taps, taps.data),
        rows.flat<T>().data(), nullptr, Transform<T>{}, *packed,
        Transform<T>{scale == nullptr ? nullptr : DataOrNull<T>(*scale),
                     DataOrNull<T>(*bias), T(slope_)},
        [&] { return AllTouched{g.num_inputs()}; },
        [&](int64_t r) { return to + r * g.filters; }, PoolWorkers(context), {});
  }

 private:
  float slope_;
};

template <typename T>
class IndexedInputGradientOp : public PoolOp {
 public:
  using PoolOp::PoolOp;

  void Run(OpKernelContext* context) override {
    const Tensor& filters = context->input(1);
    const Tensor& output_gradient = context->input(3);
    OP_REQUIRES_OK(context, CheckRows("output_gradient", output_gradient));
    OP_REQUIRES(context, filters.dims() == 4, Invalid("filters must have 4 axes"));
    RowsShape shape{output_gradient.dim_size(0), 0, filters.dim_size(2)};
    Table taps;
    Geometry g;
    OP_REQUIRES_OK(context, ReadNumRows(context->input(0), &shape.rows));
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(2), &taps));
    OP_REQUIRES_OK(context, MakeGeometry(shape, filters.shape(), taps, &g));
    OP_REQUIRES_OK(context, CheckRange("taps", taps, -1, g.height));
    OP_REQUIRES_OK(context, CheckValues("output_gradient", output_gradient, g.batch,
                                        taps, g.filters));
    Tensor* gradient;
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 0, TensorShape({g.batch, shape.rows, g.channels}),
                       &gradient));
    gradient->flat<T>().setZero();
    const T* const from = output_gradient.flat<T>().data();
    ConvolveInputGradientAt(
        g, TableWindows(g.batch, g.height, taps.rows_out, taps.taps, taps.data),
        [&](int64_t r) { return from + r * g.filters; }, filters.flat<T>().data(),
        nullptr, gradient->flat<T>().data(), PoolWorkers(context));
  }
};

template <typename T>
class IndexedFilterGradientOp : public PoolOp {
 public:
  using PoolOp::PoolOp;

  void Run(OpKernelContext* context) override {
    const Tensor& rows = context->input(1);
    const Tensor& output_gradient = context->input(3);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    TensorShape shape;
    Table taps;
    Geometry g;
    OP_REQUIRES_OK(context, tensorflow::TensorShapeUtils::MakeShape(
                                context->input(0).vec<int32_t>(), &shape));
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(2), &taps));
    OP_REQUIRES_OK(context, MakeGeometry(ShapeOfRows(rows), shape, taps, &g));
    OP_REQUIRES_OK(context, CheckRange("taps", taps, -1, g.height));
    OP_REQUIRES_OK(context, CheckValues("output_gradient", output_gradient, g.batch,
                                        taps, g.filters));
    Tensor* gradient;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, shape, &gradient));
    const T* const from = output_gradient.flat<T>().data();
    ConvolveFilterGradientAt(
        g, TableWindows(g.batch, g.height, taps.rows_out, taps.taps, taps.data),
        rows.flat<T>().data(), nullptr, Transform<T>{},
        [&](int64_t r) { return from + r * g.filters; }, gradient->flat<T>().data(),
        PoolWorkers(context));
  }
};

template <typename T>
class IndexedPoolOp : public Op {
 public:
  explicit IndexedPoolOp(OpKernelConstruction* context) : Op(context) {
    OP_REQUIRES_OK(context, ReadKind(context, &kind_));
  }

  void Run(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table taps;
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(1), &taps));
    OP_REQUIRES_OK(context, CheckRange("taps", taps, -1, rows.dim_size(1)));
    Tensor* output;
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 0,
                       TensorShape({rows.dim_size(0), taps.rows_out, rows.dim_size(2)}),
                       &output));
    Pool(kind_, ShapeOfRows(rows), taps, rows.flat<T>().data(),
         output->flat<T>().data(), PoolWorkers(context));
  }

 private:
  PoolKind kind_;
};

template <typename T>
class IndexedMaxPoolGradientOp : public Op {
 public:
  using Op::Op;

  void Run(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& output_gradient = context->input(2);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table taps;
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(1), &taps));
    OP_REQUIRES_OK(context, CheckRange("taps", taps, -1, rows.dim_size(1)));
    OP_REQUIRES_OK(context, CheckValues("output_gradient", output_gradient,
                                        rows.dim_size(0), taps, rows.dim_size(2)));
    Tensor* gradient;
    OP_REQUIRES_OK(context, AllocateOutput(context, 0, rows.shape(), &gradient));
    MaxPoolGradient(ShapeOfRows(rows), taps, rows.flat<T>().data(),
                    output_gradient.flat<T>().data(), gradient->flat<T>().data(),
                    PoolWorkers(context));
  }
};

template <typename T>
class AddToRowsOp : public Op {
 public:
  using Op::Op;

  void Run(OpKernelContext* context) override {
    const Tensor& values = context->input(2);
    OP_REQUIRES_OK(context, CheckRows("values", values));
    RowsShape shape{values.dim_size(0), 0, values.dim_size(2)};
    Table taps;
    OP_REQUIRES_OK(context, ReadNumRows(context->input(0), &shape.rows));
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(1), &taps));
    OP_REQUIRES_OK(context, CheckRange("taps", taps, -1, shape.rows));
    OP_REQUIRES_OK(context,
                   CheckValues("values", values, shape.batch, taps, shape.channels));
    Tensor* rows;
    OP_REQUIRES_OK(
        context,
        AllocateOutput(context, 0,
                       TensorShape({shape.batch, shape.rows, shape.channels}), &rows));
    AddToRows(shape, taps, values.flat<T>().data(), rows->flat<T>().data(),
              PoolWorkers(context));
  }
};

REGISTER_CPU("NearestInterpolate", NearestInterpolateOp);
REGISTER_CPU("IndexedConv2D", IndexedConv2DOp);
REGISTER_CPU("IndexedConv2DInputGradient", IndexedInputGradientOp);
REGISTER_CPU("IndexedConv2DFilterGradient", IndexedFilterGradientOp);
REGISTER_CPU("IndexedPool", IndexedPoolOp);
REGISTER_CPU("IndexedMaxPoolGradient", IndexedMaxPoolGradientOp);
REGISTER_CPU("AddToRows", AddToRowsOp);

}  // namespace
}  // namespace perforated
