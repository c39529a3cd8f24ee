// What the ops on rows that a table names check, for CPUs and GPUs.

#ifndef CUSTOM_OPS_KERNELS_INDEXED_SHAPES_H_
#define CUSTOM_OPS_KERNELS_INDEXED_SHAPES_H_

#include <algorithm>
#include <cstdint>

#include "convolution.h"
#include "indexed.h"
#include "ops.h"
#include "status.h"
#include "tensorflow/core/framework/op_kernel.h"

namespace perforated {

inline absl::Status CheckRows(const char* name, const tensorflow::Tensor& tensor) {
  if (tensor.dims() == 3) return absl::OkStatus();
  return Invalid(name, " must be [batch, rows, channels], got ",
                 tensor.shape().DebugString());
}

// Reads a table [outputs, taps], or, as `index`, [height, width] with one tap each.
inline absl::Status ReadTable(const char* name, const tensorflow::Tensor& tensor,
                              Table* table) {
  if (tensor.dims() != 2) {
    return Invalid(name, " must be a matrix, got ", tensor.shape().DebugString());
  }
  *table = {tensor.flat<int32_t>().data(), tensor.dim_size(0), tensor.dim_size(1)};
  return absl::OkStatus();
}

// Checks that a table in the host's memory names rows that there are, or `low`.
inline absl::Status CheckRange(const char* name, const Table& table, int32_t low,
                               int64_t rows) {
  const int64_t size = table.rows_out * table.taps;
  int32_t least = low, most = low;
  for (int64_t i = 0; i < size; ++i) {
    least = std::min(least, table.data[i]);
    most = std::max(most, table.data[i]);
  }
  if (size == 0 || (least >= low && most < rows)) return absl::OkStatus();
  return Invalid(name, " must lie in [", low, ", number of rows); there are ", rows,
                 " rows, and values from ", least, " to ", most);
}

// As a convolution of images that are one position wide.
inline absl::Status MakeGeometry(const RowsShape& rows,
                                 const tensorflow::TensorShape& filters,
                                 const Table& taps, Geometry* geometry) {
  if (filters.dims() != 4 || filters.dim_size(2) != rows.channels) {
    return Invalid("filters must be [height, width, ", rows.channels,
                   ", out channels], got ", filters.DebugString());
  }
  Geometry& g = *geometry;
  g.batch = rows.batch;
  g.height = rows.rows;
  g.channels = rows.channels;
  g.kernel_height = filters.dim_size(0);
  g.kernel_width = filters.dim_size(1);
  g.filters = filters.dim_size(3);
  g.out_height = taps.rows_out;
  g.width = g.out_width = 1;
  if (taps.taps == g.taps()) return absl::OkStatus();
  return Invalid("taps must have ", g.taps(), " columns for filters ",
                 filters.DebugString(), ", got ", taps.taps);
}

// Finds the vectors that follow a convolution: the bias is input 3, and the scale, if
// there is one, input 4.
inline absl::Status ReadVectors(tensorflow::OpKernelContext* context, int64_t filters,
                                const tensorflow::Tensor** bias,
                                const tensorflow::Tensor** scale) {
  if (context->num_inputs() > 5) return Invalid("scale must be one vector, or none");
  *bias = &context->input(3);
  *scale = context->num_inputs() == 5 ? &context->input(4) : nullptr;
  TF_RETURN_IF_ERROR(CheckVector("bias", **bias, filters));
  return *scale == nullptr ? absl::OkStatus() : CheckVector("scale", **scale, filters);
}

inline absl::Status CheckValues(const char* name, const tensorflow::Tensor& values,
                                int64_t batch, const Table& table, int64_t channels) {
  const tensorflow::TensorShape expected({batch, table.rows_out, channels});
  if (values.shape() == expected) return absl::OkStatus();
  return Invalid(name, " must be ", expected.DebugString(), ", got ",
                 values.shape().DebugString());
}

inline RowsShape ShapeOfRows(const tensorflow::Tensor& rows) {
  return {rows.dim_size(0), rows.dim_size(1), rows.dim_size(2)};
}

// Reads a number of rows, in the host's memory.
inline absl::Status ReadNumRows(const tensorflow::Tensor& tensor, int64_t* rows) {
  if (tensor.dims() != 0 || tensor.scalar<int32_t>()() < 0) {
    return Invalid("num_rows must be a number >= 0");
  }
  *rows = tensor.scalar<int32_t>()();
  return absl::OkStatus();
}

inline absl::Status ReadKind(tensorflow::OpKernelConstruction* context,
                             PoolKind* kind) {
  std::string name;
  TF_RETURN_IF_ERROR(context->GetAttr("kind", &name));
  *kind = name == "max" ? PoolKind::kMax : PoolKind::kAverage;
  return absl::OkStatus();
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_INDEXED_SHAPES_H_
