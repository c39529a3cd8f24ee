// GPU kernels for TensorFlow of interpolation, convolution and pooling of rows that a
// table names; the work is in gpu.h. The table is in the device's memory, where nobody
// can refuse what it holds without waiting: Python checks it before.

#include <string>

#include "gpu.h"
#include "gpu_ops.h"
#include "indexed_shapes.h"

namespace perforated {
namespace {

gpu::Indexed ToDevice(const RowsShape& shape, const Table& table, int64_t filters) {
  return {shape.batch, shape.rows, shape.channels, table.rows_out,
          table.taps,  filters,    table.data};
}

template <typename T>
class NearestInterpolateGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& index = context->input(1);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table table;
    OP_REQUIRES_OK(context, ReadTable("index", index, &table));
    Tensor* image;
    OP_REQUIRES_OK(
        context, context->allocate_output(0,
                                          TensorShape({rows.dim_size(0), table.rows_out,
                                                       table.taps, rows.dim_size(2)}),
                                          &image));
    const gpu::Indexed g =
        ToDevice(ShapeOfRows(rows), {table.data, index.NumElements(), 1}, 0);
    OP_REQUIRES_OK(context, RunOnDevice(context, 0, [&](void*, void* stream) {
                     return gpu::Pool(TypeOf<T>(), g, false, rows.data(), image->data(),
                                      stream);
                   }));
  }
};

template <typename T>
class IndexedConv2DGpuOp : public OpKernel {
 public:
  explicit IndexedConv2DGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, context->GetAttr("slope", &slope_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& filters = context->input(1);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table taps;
    Geometry unused;
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(2), &taps));
    OP_REQUIRES_OK(context,
                   MakeGeometry(ShapeOfRows(rows), filters.shape(), taps, &unused));
    const gpu::Indexed g = ToDevice(ShapeOfRows(rows), taps, filters.dim_size(3));
    const Tensor *bias, *scale;
    OP_REQUIRES_OK(context, ReadVectors(context, g.filters, &bias, &scale));
    const gpu::Transform after{scale == nullptr ? nullptr : DataOrNull(*scale),
                               DataOrNull(*bias), slope_};
    Tensor* output;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({g.batch, g.rows_out, g.filters}), &output));
    OP_REQUIRES_OK(context, RunOnDevice(context, 0, [&](void*, void* stream) {
                     return gpu::IndexedConvolve(TypeOf<T>(), g, rows.data(),
                                                 filters.data(), after, output->data(),
                                                 stream);
                   }));
  }

 private:
  float slope_;
};

template <typename T>
class IndexedInputGradientGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& filters = context->input(1);
    const Tensor& output_gradient = context->input(3);
    OP_REQUIRES_OK(context, CheckRows("output_gradient", output_gradient));
    OP_REQUIRES(context, filters.dims() == 4, Invalid("filters must have 4 axes"));
    RowsShape shape{output_gradient.dim_size(0), 0, filters.dim_size(2)};
    Table taps;
    Geometry unused;
    OP_REQUIRES_OK(context, ReadNumRows(context->input(0), &shape.rows));
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(2), &taps));
    OP_REQUIRES_OK(context, MakeGeometry(shape, filters.shape(), taps, &unused));
    const gpu::Indexed g = ToDevice(shape, taps, filters.dim_size(3));
    OP_REQUIRES_OK(context, CheckValues("output_gradient", output_gradient, g.batch,
                                        taps, g.filters));
    Tensor* gradient;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({g.batch, g.rows_in, g.channels}), &gradient));
    OP_REQUIRES_OK(context, RunOnDevice(context, gpu::IndexedInputGradientWorkspace(g),
                                        [&](void* workspace, void* stream) {
                                          return gpu::IndexedInputGradient(
                                              TypeOf<T>(), g, output_gradient.data(),
                                              filters.data(), gradient->data(),
                                              workspace, stream);
                                        }));
  }
};

template <typename T>
class IndexedFilterGradientGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& rows = context->input(1);
    const Tensor& output_gradient = context->input(3);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    TensorShape shape;
    Table taps;
    Geometry unused;
    OP_REQUIRES_OK(context, tensorflow::TensorShapeUtils::MakeShape(
                                context->input(0).vec<int32_t>(), &shape));
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(2), &taps));
    OP_REQUIRES_OK(context, MakeGeometry(ShapeOfRows(rows), shape, taps, &unused));
    const gpu::Indexed g = ToDevice(ShapeOfRows(rows), taps, shape.dim_size(3));
    OP_REQUIRES_OK(context, CheckValues("output_gradient", output_gradient, g.batch,
                                        taps, g.filters));
    Tensor* gradient;
    OP_REQUIRES_OK(context, context->allocate_output(0, shape, &gradient));
    OP_REQUIRES_OK(context, RunOnDevice(context, gpu::IndexedFilterGradientWorkspace(g),
                                        [&](void* workspace, void* stream) {
                                          return gpu::IndexedFilterGradient(
                                              TypeOf<T>(), g, rows.data(),
                                              output_gradient.data(), gradient->data(),
                                              workspace, stream);
                                        }));
  }
};

template <typename T>
class IndexedPoolGpuOp : public OpKernel {
 public:
  explicit IndexedPoolGpuOp(OpKernelConstruction* context) : OpKernel(context) {
    OP_REQUIRES_OK(context, ReadKind(context, &kind_));
  }

  void Compute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table taps;
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(1), &taps));
    const gpu::Indexed g = ToDevice(ShapeOfRows(rows), taps, 0);
    Tensor* output;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({g.batch, g.rows_out, g.channels}), &output));
    OP_REQUIRES_OK(context, RunOnDevice(context, 0, [&](void*, void* stream) {
                     return gpu::Pool(TypeOf<T>(), g, kind_ == PoolKind::kMax,
                                      rows.data(), output->data(), stream);
                   }));
  }

 private:
  PoolKind kind_;
};

template <typename T>
class IndexedMaxPoolGradientGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& rows = context->input(0);
    const Tensor& output_gradient = context->input(2);
    OP_REQUIRES_OK(context, CheckRows("rows", rows));
    Table taps;
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(1), &taps));
    const gpu::Indexed g = ToDevice(ShapeOfRows(rows), taps, 0);
    OP_REQUIRES_OK(context, CheckValues("output_gradient", output_gradient, g.batch,
                                        taps, g.channels));
    Tensor* gradient;
    OP_REQUIRES_OK(context, context->allocate_output(0, rows.shape(), &gradient));
    OP_REQUIRES_OK(context, RunOnDevice(context, gpu::MaxPoolGradientWorkspace(g),
                                        [&](void* workspace, void* stream) {
                                          return gpu::MaxPoolGradient(
                                              TypeOf<T>(), g, rows.data(),
                                              output_gradient.data(), gradient->data(),
                                              workspace, stream);
                                        }));
  }
};

template <typename T>
class AddToRowsGpuOp : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) override {
    const Tensor& values = context->input(2);
    OP_REQUIRES_OK(context, CheckRows("values", values));
    RowsShape shape{values.dim_size(0), 0, values.dim_size(2)};
    Table taps;
    OP_REQUIRES_OK(context, ReadNumRows(context->input(0), &shape.rows));
    OP_REQUIRES_OK(context, ReadTable("taps", context->input(1), &taps));
    OP_REQUIRES_OK(context,
                   CheckValues("values", values, shape.batch, taps, shape.channels));
    const gpu::Indexed g = ToDevice(shape, taps, 0);
    Tensor* sums;
    OP_REQUIRES_OK(context,
                   context->allocate_output(
                       0, TensorShape({g.batch, g.rows_in, g.channels}), &sums));
    OP_REQUIRES_OK(context, RunOnDevice(context, gpu::AddToRowsWorkspace(g),
                                        [&](void* workspace, void* stream) {
                                          return gpu::AddToRows(
                                              TypeOf<T>(), g, values.data(),
                                              sums->data(), workspace, stream);
                                        }));
  }
};

template <typename T>
void Register() {
  REGISTER_GPU("NearestInterpolate", NearestInterpolateGpuOp, T);
  REGISTER_GPU("IndexedConv2D", IndexedConv2DGpuOp, T);
  REGISTER_GPU("IndexedPool", IndexedPoolGpuOp, T);
  REGISTER_GPU("IndexedMaxPoolGradient", IndexedMaxPoolGradientGpuOp, T);
  // Sizes that come as tensors are needed on the host.
  REGISTER_GPU_WITH_HOST_INPUT("IndexedConv2DInputGradient", IndexedInputGradientGpuOp,
                               T, "num_rows");
  REGISTER_GPU_WITH_HOST_INPUT("IndexedConv2DFilterGradient",
                               IndexedFilterGradientGpuOp, T, "filters_shape");
  REGISTER_GPU_WITH_HOST_INPUT("AddToRows", AddToRowsGpuOp, T, "num_rows");
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
