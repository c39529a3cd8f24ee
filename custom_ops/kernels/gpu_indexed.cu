// Convolution and pooling of rows that a table names, the functions of gpu.h.
//
// A convolution and its filter gradient are the products of gpu_convolution.cu, whose
// loaders ask the table where a tap reads. How many taps read a row differs from row to
// row, so what goes back to rows takes two steps: for a convolution one product gives
// what every tap sends; then, for each row, all that its readers send is added up in
// registers. Readers are listed in ascending order, so that results are the same every
// time.

#include <algorithm>
#include <cstdint>

#include "gpu.h"
#include "gpu_device.h"
#include "gpu_loaders.h"
#include "gpu_positions.h"
#include "gpu_products.h"

namespace perforated {
namespace gpu {
namespace {

// The table in the numbers that a GPU is fast with.
struct TableView {
  explicit TableView(const Indexed& g)
      : data(g.table),
        rows_in(static_cast<int32_t>(g.rows_in)),
        rows_out(static_cast<int32_t>(g.rows_out)),
        taps(static_cast<int32_t>(g.taps)) {}

  // Row that an entry, a tap of an output, names; -1 for none.
  __device__ int32_t operator[](int64_t entry) const {
    const int32_t row = data[entry];
    return row >= 0 && row < rows_in ? row : -1;
  }
  __device__ int64_t size() const { return static_cast<int64_t>(rows_out) * taps; }

  const int32_t* data;
  int32_t rows_in, rows_out, taps;
};

// Outputs as the loaders want places: image and row.
struct OutputPlaces {
  struct Data {
    __device__ Place operator[](int64_t row) const {
      return {static_cast<int32_t>(row / rows_out),
              static_cast<int32_t>(row % rows_out), 0, 0};
    }
    int32_t rows_out;
  };
  Data data;
};

// The geometry of a convolution whose images are one position wide, and whose filters
// too.
Geometry ToGeometry(const Indexed& g) {
  Geometry result = {};
  result.batch = g.batch;
  result.height = g.rows_in;
  result.channels = g.channels;
  result.kernel_height = g.taps;
  result.out_height = g.rows_out;
  result.filters = g.filters;
  result.width = result.out_width = result.kernel_width = 1;
  result.stride_y = result.stride_x = result.dilation_y = result.dilation_x = 1;
  return result;
}

// Index of the first element that a tap of an output reads, or -1.
__device__ inline int64_t ReadAt(const TableView& table, const Place& place, int tap,
                                 int channels) {
  const int64_t entry = static_cast<int64_t>(place.y) * table.taps + tap;
  const int32_t row = table[entry];
  if (row < 0) return -1;
  return (static_cast<int64_t>(place.image) * table.rows_in + row) * channels;
}

template <typename Element>
struct IndexedConvolveOp {
  using T = Element;
  using Left = Tile<T, true>;
  using Right = Tile<T, false>;
  using LeftLoader = PatchLoader<IndexedConvolveOp>;
  using RightLoader = MatrixLoader<IndexedConvolveOp>;

  __device__ int64_t num_rows() const { return outputs; }
  __device__ int num_columns() const { return shape.filters; }
  __device__ int64_t depth() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.channels;
  }
  __device__ int inner() const { return shape.channels; }
  __device__ Identity change() const { return {}; }
  __device__ int64_t Offset(int64_t, const Place& place, int tap, int) const {
    return ReadAt(table, place, tap, shape.channels);
  }
  __device__ int64_t RightRow(int64_t depth) const { return depth; }
  __device__ void Write(const Job&, int64_t row, int column, float value) const {
    output[row * shape.filters + column] = FromFloat<T>(after(value, column));
  }

  Shape shape;
  TableView table;
  OutputPlaces places;
  int64_t outputs;
  const T* source;
  const T* matrix;
  bool aligned_source, aligned_matrix;
  Affine<T> after;
  T* output;
};

template <typename Element>
struct IndexedFilterGradientOp {
  using T = Element;
  using Left = Tile<T, false>;
  using Right = Tile<T, false>;
  using LeftLoader = TransposedPatchLoader<IndexedFilterGradientOp>;
  using RightLoader = MatrixLoader<IndexedFilterGradientOp>;

  __device__ int64_t num_rows() const {
    return static_cast<int64_t>(shape.kernel_height) * shape.channels;
  }
  __device__ int num_columns() const { return shape.filters; }
  __device__ int64_t depth() const { return outputs; }
  __device__ int inner() const { return shape.channels; }
  __device__ int64_t Offset(int64_t, const Place& place, int tap, int) const {
    return ReadAt(table, place, tap, shape.channels);
  }
  __device__ int64_t RightRow(int64_t depth) const { return depth; }
  __device__ void Write(const Job& job, int64_t row, int column, float value) const {
    sums[(job.split * num_rows() + row) * shape.filters + column] = value;
  }

  Shape shape;
  TableView table;
  OutputPlaces places;
  int64_t outputs;
  const T* source;
  const T* matrix;
  bool aligned_source, aligned_matrix;
  float* sums;  // [splits, taps * channels, filters]
};

// What every tap sends back: output gradients * filters^T. `shape` is of a 1x1
// convolution whose channels are taps * channels.
template <typename Element>
struct SendBackOp {
  using T = Element;
  using Left = Tile<T, true>;
  using Right = Tile<T, true>;
  using LeftLoader = PatchLoader<SendBackOp>;
  using RightLoader = FilterLoader<SendBackOp>;

  __device__ int64_t num_rows() const { return outputs; }
  __device__ int num_columns() const { return shape.channels; }
  __device__ int64_t depth() const { return shape.filters; }
  __device__ int inner() const { return shape.filters; }
  __device__ Identity change() const { return {}; }
  __device__ int64_t Offset(int64_t row, const Place&, int, int) const {
    return row * shape.filters;
  }
  __device__ void Write(const Job&, int64_t row, int column, float value) const {
    sent[row * shape.channels + column] = value;
  }

  Shape shape;
  OutputPlaces places;
  int64_t outputs;
  const T* source;
  const T* matrix;
  bool aligned_source, aligned_matrix;
  float* sent;  // [outputs, taps * channels]
};

// ----------------------------------------------------------------------------------
// readers of rows

// The entries of a table that name each row, ascending: those of a row are
// entries[starts[row]] and on, up to starts[row + 1].
struct Readers {
  int64_t* starts;
  int32_t* entries;
};

struct ReadersParts {
  ReadersParts(const Indexed& g, Allocator* allocator)
      : readers{allocator->Take<int64_t>(g.rows_in + 1),
                allocator->Take<int32_t>(g.rows_out * g.taps)},
        used(allocator->Take<int>(g.rows_in)) {}
  Readers readers;
  int* used;
};

__device__ inline int64_t ThreadIndex() {
  return static_cast<int64_t>(blockIdx.x) * kScanThreads + threadIdx.x;
}

__global__ void __launch_bounds__(kScanThreads)
    CountReaders(TableView table, int64_t* counts) {
  const int64_t entry = ThreadIndex();
  if (entry >= table.size()) return;
  const int32_t row = table[entry];
  if (row < 0) return;
  atomicAdd(reinterpret_cast<unsigned long long*>(counts + row), 1ULL);
}

// Writes the readers of every row, in any order.
__global__ void __launch_bounds__(kScanThreads)
    WriteReaders(TableView table, Readers readers, int* used) {
  const int64_t entry = ThreadIndex();
  if (entry >= table.size()) return;
  const int32_t row = table[entry];
  if (row < 0) return;
  readers.entries[readers.starts[row] + atomicAdd(used + row, 1)] =
      static_cast<int32_t>(entry);
}

// Sorts the readers of every row, by Shell's method; there are few of each.
__global__ void __launch_bounds__(kScanThreads)
    SortReaders(int64_t rows, Readers readers) {
  const int64_t row = ThreadIndex();
  if (row >= rows) return;
  int32_t* const entries = readers.entries + readers.starts[row];
  const int64_t n = readers.starts[row + 1] - readers.starts[row];
  for (int64_t gap = n / 2; gap > 0; gap /= 2) {
    for (int64_t i = gap; i < n; ++i) {
      const int32_t entry = entries[i];
      int64_t j = i;
      for (; j >= gap && entries[j - gap] > entry; j -= gap) {
        entries[j] = entries[j - gap];
      }
      entries[j] = entry;
    }
  }
}

const char* ListReaders(const Indexed& g, const ReadersParts& parts, void* stream) {
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const TableView table(g);
  const Readers& readers = parts.readers;
  RETURN_IF_ERROR(MessageOf(cudaMemsetAsync(
      readers.starts, 0, (g.rows_in + 1) * sizeof(int64_t), cuda_stream)));
  RETURN_IF_ERROR(
      MessageOf(cudaMemsetAsync(parts.used, 0, g.rows_in * sizeof(int), cuda_stream)));
  const int64_t blocks = CeilDiv(g.rows_out * g.taps, kScanThreads);
  RETURN_IF_ERROR(
      Launch(CountReaders, blocks, kScanThreads, stream, table, readers.starts));
  RETURN_IF_ERROR(SumCounts(g.rows_in, readers.starts, stream));
  RETURN_IF_ERROR(
      Launch(WriteReaders, blocks, kScanThreads, stream, table, readers, parts.used));
  return Launch(SortReaders, CeilDiv(g.rows_in, kScanThreads), kScanThreads, stream,
                g.rows_in, readers);
}

// What entries send: a part of a product for each,
struct SentProducts {
  __device__ float operator()(int64_t image, int32_t entry, int channel) const {
    return sent[(image * entries + entry) * channels + channel];
  }
  const float* sent;
  int64_t entries;
  int channels;
};

// or the value of the entry's output,
template <typename T>
struct SentValues {
  __device__ float operator()(int64_t image, int32_t entry, int channel) const {
    return ToFloat(values[(image * rows_out + entry / taps) * channels + channel]);
  }
  const T* values;
  int32_t rows_out, taps;
  int channels;
};

// or that value to the tap that has the maximum.
template <typename T>
struct SentToGreatest {
  __device__ float operator()(int64_t image, int32_t entry, int channel) const {
    const int64_t at =
        (image * all.rows_out + entry / all.taps) * all.channels + channel;
    return greatest[at] == entry % all.taps ? ToFloat(all.values[at]) : 0.0f;
  }
  SentValues<T> all;
  const int32_t* greatest;  // [batch, rows out, channels]
};

// sums [images, rows, channels] = what the readers of each row send.
template <typename T, typename Sent>
__global__ void __launch_bounds__(kScanThreads)
    AddSent(int64_t size, int32_t rows, int channels, Readers readers, Sent sent,
            T* sums) {
  const int64_t i = ThreadIndex();
  if (i >= size) return;
  const int channel = static_cast<int>(i % channels);
  const int32_t row = static_cast<int32_t>(i / channels % rows);
  const int64_t image = i / channels / rows;
  float sum = 0.0f;
  for (int64_t at = readers.starts[row]; at < readers.starts[row + 1]; ++at) {
    sum += sent(image, readers.entries[at], channel);
  }
  sums[i] = FromFloat<T>(sum);
}

template <typename T, typename Sent>
const char* LaunchAddSent(const Indexed& g, int64_t images, const Readers& readers,
                          const Sent& sent, T* sums, void* stream) {
  const int64_t size = images * g.rows_in * g.channels;
  return Launch(AddSent<T, Sent>, CeilDiv(size, kScanThreads), kScanThreads, stream,
                size, static_cast<int32_t>(g.rows_in), static_cast<int>(g.channels),
                readers, sent, sums);
}

// ----------------------------------------------------------------------------------
// pooling

// Reduces the rows that an output's taps name, and tells which tap has the first
// maximum, -1 without any.
template <typename T>
__device__ inline float Reduce(const TableView& table, const T* rows, int64_t at,
                               int channels, bool is_max, int32_t* greatest) {
  const int channel = static_cast<int>(at % channels);
  const int64_t output = at / channels;
  const int64_t first = output / table.rows_out * table.rows_in;
  const int64_t entry = output % table.rows_out * table.taps;
  float result = 0.0f;
  int count = 0;
  *greatest = -1;
  for (int tap = 0; tap < table.taps; ++tap) {
    const int32_t row = table[entry + tap];
    if (row < 0) continue;
    const float v = ToFloat(rows[(first + row) * channels + channel]);
    if (!is_max) {
      result += v;
    } else if (count == 0 || v > result || (v != v && result == result)) {
      result = v;
      *greatest = tap;
    }
    ++count;
  }
  return is_max || count < 2 ? result : result / static_cast<float>(count);
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads)
    PoolRows(TableView table, const T* rows, int64_t size, int channels, bool is_max,
             T* output) {
  const int64_t i = ThreadIndex();
  if (i >= size) return;
  int32_t unused;
  output[i] = FromFloat<T>(Reduce(table, rows, i, channels, is_max, &unused));
}

template <typename T>
__global__ void __launch_bounds__(kScanThreads)
    FindGreatest(TableView table, const T* rows, int64_t size, int channels,
                 int32_t* greatest) {
  const int64_t i = ThreadIndex();
  if (i >= size) return;
  Reduce(table, rows, i, channels, true, &greatest[i]);
}

// --------------------------------------------------------------------------------
// host side

// What one pass of the input gradient may take for what taps send. Images are the
// same whichever pass they are in.
constexpr int64_t kSentBytes = int64_t{256} << 20;

int64_t ImagesPerPass(const Indexed& g) {
  const int64_t bytes = g.rows_out * g.taps * g.channels * sizeof(float);
  return std::clamp(kSentBytes / std::max<int64_t>(1, bytes), int64_t{1},
                    std::max<int64_t>(1, g.batch));
}

struct InputGradientParts {
  InputGradientParts(const Indexed& g, Allocator* allocator)
      : list(g, allocator),
        sent(allocator->Take<float>(ImagesPerPass(g) * g.rows_out * g.taps *
                                    g.channels)) {}
  ReadersParts list;
  float* sent;
};

struct FilterGradientParts {
  FilterGradientParts(const Indexed& g, Allocator* allocator)
      : sums(allocator->Take<float>(NumSplits(ToGeometry(g)) * g.taps * g.channels *
                                    g.filters)) {}
  float* sums;
};

struct MaxPoolGradientParts {
  MaxPoolGradientParts(const Indexed& g, Allocator* allocator)
      : list(g, allocator),
        greatest(allocator->Take<int32_t>(g.batch * g.rows_out * g.channels)) {}
  ReadersParts list;
  int32_t* greatest;
};

template <typename Parts>
int64_t MeasureIndexed(const Indexed& g) {
  Allocator allocator(nullptr);
  Parts parts(g, &allocator);
  return allocator.bytes();
}

const char* CheckConvolution(const Indexed& g) {
  if (g.rows_out * g.taps > kInt32Max) return "a table does not fit into 32 bits";
  return CheckSizes(ToGeometry(g));
}

// Of pooling, which has no filters and may have no taps.
const char* CheckPooling(const Indexed& g) {
  Indexed like = g;
  like.filters = 1;
  like.taps = std::max<int64_t>(1, g.taps);
  return CheckConvolution(like);
}

OutputPlaces Outputs(const Indexed& g) { return {{static_cast<int32_t>(g.rows_out)}}; }

template <typename T>
SentValues<T> ValuesOf(const Indexed& g, const void* values) {
  return {static_cast<const T*>(values), static_cast<int32_t>(g.rows_out),
          static_cast<int32_t>(g.taps), static_cast<int>(g.channels)};
}

}  // namespace

int64_t IndexedInputGradientWorkspace(const Indexed& g) {
  return MeasureIndexed<InputGradientParts>(g);
}
int64_t IndexedFilterGradientWorkspace(const Indexed& g) {
  return MeasureIndexed<FilterGradientParts>(g);
}
int64_t MaxPoolGradientWorkspace(const Indexed& g) {
  return MeasureIndexed<MaxPoolGradientParts>(g);
}
int64_t AddToRowsWorkspace(const Indexed& g) { return MeasureIndexed<ReadersParts>(g); }

const char* IndexedConvolve(Type type, const Indexed& g, const void* rows,
                            const void* filters, const Transform& after, void* output,
                            void* stream) {
  RETURN_IF_ERROR(CheckConvolution(g));
  const int64_t outputs = g.batch * g.rows_out;
  if (outputs == 0 || g.filters == 0) return nullptr;
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(rows);
    const T* const weights = static_cast<const T*>(filters);
    const IndexedConvolveOp<T> op{Shape(ToGeometry(g)),
                                  TableView(g),
                                  Outputs(g),
                                  outputs,
                                  from,
                                  weights,
                                  Aligned(from, g.channels),
                                  Aligned(weights, g.filters),
                                  Affine<T>(after),
                                  static_cast<T*>(output)};
    return LaunchProduct<decltype(arithmetic)::kFast>(op, outputs, g.filters, 1,
                                                      stream);
  });
}

const char* IndexedInputGradient(Type type, const Indexed& g,
                                 const void* output_gradient, const void* filters,
                                 void* gradient, void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckConvolution(g));
  if (g.batch * g.rows_in == 0 || g.channels == 0) return nullptr;
  Allocator allocator(workspace);
  const InputGradientParts parts(g, &allocator);
  RETURN_IF_ERROR(ListReaders(g, parts.list, stream));
  Geometry pointwise = ToGeometry(g);
  pointwise.channels = g.taps * g.channels;
  pointwise.kernel_height = 1;
  return Dispatch(type, [&](auto arithmetic) -> const char* {
    using T = typename decltype(arithmetic)::Type;
    const T* const weights = static_cast<const T*>(filters);
    const int64_t pass = ImagesPerPass(g);
    for (int64_t first = 0; first < g.batch; first += pass) {
      const int64_t images = std::min(pass, g.batch - first);
      const int64_t outputs = images * g.rows_out;
      const T* const from =
          static_cast<const T*>(output_gradient) + first * g.rows_out * g.filters;
      const SendBackOp<T> op{Shape(pointwise),
                             Outputs(g),
                             outputs,
                             from,
                             weights,
                             Aligned(from, g.filters),
                             Aligned(weights, g.filters),
                             parts.sent};
      RETURN_IF_ERROR(LaunchProduct<decltype(arithmetic)::kFast>(
          op, outputs, pointwise.channels, 1, stream));
      const SentProducts sent{parts.sent, g.rows_out * g.taps,
                              static_cast<int>(g.channels)};
      RETURN_IF_ERROR(LaunchAddSent(
          g, images, parts.list.readers, sent,
          static_cast<T*>(gradient) + first * g.rows_in * g.channels, stream));
    }
    return nullptr;
  });
}

const char* IndexedFilterGradient(Type type, const Indexed& g, const void* rows,
                                  const void* output_gradient, void* gradient,
                                  void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckConvolution(g));
  const int64_t depth = g.taps * g.channels, size = depth * g.filters;
  if (size == 0) return nullptr;
  Allocator allocator(workspace);
  const FilterGradientParts parts(g, &allocator);
  const int64_t splits = NumSplits(ToGeometry(g));
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    const T* const from = static_cast<const T*>(rows);
    const T* const right = static_cast<const T*>(output_gradient);
    const IndexedFilterGradientOp<T> op{Shape(ToGeometry(g)),
                                        TableView(g),
                                        Outputs(g),
                                        g.batch * g.rows_out,
                                        from,
                                        right,
                                        Aligned(from, g.channels),
                                        Aligned(right, g.filters),
                                        parts.sums};
    RETURN_IF_ERROR(LaunchProduct<decltype(arithmetic)::kFast>(op, depth, g.filters,
                                                               splits, stream));
    return Launch(AddSplits<T>, CeilDiv(size, kScanThreads), kScanThreads, stream,
                  static_cast<const float*>(parts.sums), size, static_cast<int>(splits),
                  static_cast<T*>(gradient));
  });
}

const char* Pool(Type type, const Indexed& g, bool is_max, const void* rows,
                 void* output, void* stream) {
  RETURN_IF_ERROR(CheckPooling(g));
  const int64_t size = g.batch * g.rows_out * g.channels;
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    return Launch(PoolRows<T>, CeilDiv(size, kScanThreads), kScanThreads, stream,
                  TableView(g), static_cast<const T*>(rows), size,
                  static_cast<int>(g.channels), is_max, static_cast<T*>(output));
  });
}

const char* MaxPoolGradient(Type type, const Indexed& g, const void* rows,
                            const void* output_gradient, void* gradient,
                            void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckPooling(g));
  Allocator allocator(workspace);
  const MaxPoolGradientParts parts(g, &allocator);
  RETURN_IF_ERROR(ListReaders(g, parts.list, stream));
  const int64_t size = g.batch * g.rows_out * g.channels;
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    RETURN_IF_ERROR(Launch(FindGreatest<T>, CeilDiv(size, kScanThreads), kScanThreads,
                           stream, TableView(g), static_cast<const T*>(rows), size,
                           static_cast<int>(g.channels), parts.greatest));
    const SentToGreatest<T> sent{ValuesOf<T>(g, output_gradient), parts.greatest};
    return LaunchAddSent(g, g.batch, parts.list.readers, sent,
                         static_cast<T*>(gradient), stream);
  });
}

const char* AddToRows(Type type, const Indexed& g, const void* values, void* sums,
                      void* workspace, void* stream) {
  RETURN_IF_ERROR(CheckPooling(g));
  Allocator allocator(workspace);
  const ReadersParts parts(g, &allocator);
  RETURN_IF_ERROR(ListReaders(g, parts, stream));
  return Dispatch(type, [&](auto arithmetic) {
    using T = typename decltype(arithmetic)::Type;
    return LaunchAddSent(g, g.batch, parts.readers, ValuesOf<T>(g, values),
                         static_cast<T*>(sums), stream);
  });
}

}  // namespace gpu
}  // namespace perforated
