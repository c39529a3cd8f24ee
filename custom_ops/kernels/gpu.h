// Perforated convolution, its two gradients and whole residual units on a CUDA device,
// free of TensorFlow and of CUDA types: `stream` is a cudaStream_t. Tensors are
// pointers to device memory, contiguous and row-major like in convolution.h; `Type`
// names the type of their elements.
//
// Everything is queued on the stream and nothing waits for the device, which finds the
// active positions by itself. Results are the same every time. Functions return null,
// or an error message that lives for ever.

#ifndef CUSTOM_OPS_KERNELS_GPU_H_
#define CUSTOM_OPS_KERNELS_GPU_H_

#include <cstdint>

namespace perforated {
namespace gpu {

// Type of the elements, and how they are multiplied. Sums are always float.
enum class Type {
  kFloat,          // float, exact products
  kTensorFloat32,  // float, products of the first 11 bits of each factor where the
                   // device has such units (compute capability 8.0 on), else exact
  kHalf,
  kBfloat16,
};

// What the op multiplies, as in convolution.h. An own copy, because that header is
// written for CPU compilers.
struct Geometry {
  int64_t batch, height, width, channels;  // input
  int64_t kernel_height, kernel_width;     // filters
  int64_t out_height, out_width, filters;  // output
  int64_t stride_y, stride_x;
  int64_t dilation_y, dilation_x;
  int64_t pad_top, pad_left;
  bool shared_mask;  // the mask is [out height, out width], the same for all images
};

// v -> max(w, slope * w) with w = scale * v + shift per channel; null pointers leave
// their part out.
struct Transform {
  const void* scale;
  const void* shift;
  float slope;
};

// Bytes of device memory, aligned to 256, that the function of the same name needs as
// `workspace` for as long as its work is queued.
int64_t ConvolveWorkspace(const Geometry& g);
int64_t InputGradientWorkspace(const Geometry& g);
int64_t FilterGradientWorkspace(const Geometry& g);

// Bytes of device memory, aligned to 256, that FindPlaces writes.
int64_t PlacesBytes(const Geometry& g);

// Finds once what several functions need to know of a mask: its active positions, and
// which inputs they read. The mask must not be shared.
const char* FindPlaces(const Geometry& g, const bool* mask, void* places, void* stream);

// output [batch, out height, out width, filters] = after(before(input) * filters) where
// the mask is set, zero elsewhere. Padding stays zero in spite of `before`. `found` is
// what FindPlaces found in this mask, or null.
const char* Convolve(Type type, const Geometry& g, const void* input,
                     const void* filters, const bool* mask, void* found,
                     const Transform& before, const Transform& after, void* output,
                     void* workspace, void* stream);

// input_gradient [batch, height, width, channels] = what the active positions of
// output_gradient pass back through the filters.
const char* InputGradient(Type type, const Geometry& g, const void* output_gradient,
                          const void* filters, const bool* mask, void* input_gradient,
                          void* workspace, void* stream);

// filter_gradient [kernel height, kernel width, channels, filters] = the sum over the
// active positions of their patches of the input times output_gradient.
const char* FilterGradient(Type type, const Geometry& g, const void* input,
                           const void* output_gradient, const bool* mask,
                           void* filter_gradient, void* workspace, void* stream);

// Filters [kernel height, kernel width, channels, filters], and what follows them.
struct Stage {
  const void* filters;
  Transform after;
};

// As the function of the same name, Workspace.
int64_t BottleneckWorkspace(const Geometry& middle);
int64_t ProjectionWorkspace(const Geometry& middle);
int64_t BasicUnitWorkspace(const Geometry& second);

// y = x, plus the residual of three convolutions, 1x1, 3x3 and 1x1, at active
// positions. `middle` is the geometry of the second one, of which `found` is what
// FindPlaces found; the first runs at the positions that the second reads. x and y
// [batch, height, width, channels] may be the same memory. `sums` [batch, channels],
// unless null, are those of x over its positions, `new_sums` those of y; they may be
// the same memory.
const char* Bottleneck(Type type, const Geometry& middle, int64_t channels,
                       const void* x, const Transform& preactivation,
                       const Stage (&stages)[3], void* found, void* y, const void* sums,
                       void* new_sums, void* workspace, void* stream);

// y [batch, out height, out width, out channels] = a strided 1x1 convolution of the
// preactivation of x plus the same residual, at all positions, and the sums of y.
const char* ProjectionBottleneck(Type type, const Geometry& middle, int64_t channels,
                                 int64_t out_channels, const void* x,
                                 const Transform& preactivation,
                                 const Stage (&stages)[3], const Stage& projection,
                                 void* y, void* sums, void* workspace, void* stream);

// y = x, plus the residual of two 3x3 convolutions at active positions. `found` is what
// FindPlaces found with the geometry of the second one.
const char* BasicUnit(Type type, const Geometry& first, const Geometry& second,
                      const void* x, const Transform& preactivation,
                      const Stage (&stages)[2], void* found, void* y, void* workspace,
                      void* stream);

// y = total + weight * x, computed where the weight is not zero. All are [positions,
// channels] but the weight [positions]; y and total may be the same memory.
const char* Accumulate(Type type, int64_t positions, int64_t channels,
                       const void* total, const void* x, const float* weight, void* y,
                       void* stream);

// The scale and shift [n] that a batch normalization in inference amounts to.
const char* FoldBatchNorm(int64_t n, const float* gamma, const float* beta,
                          const float* mean, const float* variance, float epsilon,
                          float* scale, float* shift, void* stream);

// Rows [batch, rows in, channels] that a table [rows out, taps] names, the same for all
// images: each tap of an output reads one of them, or zeros (-1). What else a table
// holds is read as -1.
struct Indexed {
  int64_t batch, rows_in, channels;
  int64_t rows_out, taps;
  int64_t filters;  // of convolutions
  const int32_t* table;
};

// As the function of the same name, Workspace.
int64_t IndexedInputGradientWorkspace(const Indexed& g);
int64_t IndexedFilterGradientWorkspace(const Indexed& g);
int64_t MaxPoolGradientWorkspace(const Indexed& g);
int64_t AddToRowsWorkspace(const Indexed& g);

// output [batch, rows out, filters] = after(patches of the rows * filters [taps *
// channels, filters]).
const char* IndexedConvolve(Type type, const Indexed& g, const void* rows,
                            const void* filters, const Transform& after, void* output,
                            void* stream);

// gradient [batch, rows in, channels] = what output_gradient passes back.
const char* IndexedInputGradient(Type type, const Indexed& g,
                                 const void* output_gradient, const void* filters,
                                 void* gradient, void* workspace, void* stream);

// gradient [taps * channels, filters].
const char* IndexedFilterGradient(Type type, const Indexed& g, const void* rows,
                                  const void* output_gradient, void* gradient,
                                  void* workspace, void* stream);

// output [batch, rows out, channels] = the greatest, or the average, of the rows that
// each output's taps name; zero without any. A maximum is NaN where one of them is.
const char* Pool(Type type, const Indexed& g, bool is_max, const void* rows,
                 void* output, void* stream);

// gradient [batch, rows in, channels]: that of each output goes to the first of its
// rows that has the maximum.
const char* MaxPoolGradient(Type type, const Indexed& g, const void* rows,
                            const void* output_gradient, void* gradient,
                            void* workspace, void* stream);

// sums [batch, rows in, channels] = for each row the sum of values [batch, rows out,
// channels] over all taps that name it.
const char* AddToRows(Type type, const Indexed& g, const void* values, void* sums,
                      void* workspace, void* stream);

// Whether the CUDA driver is new enough for this library; also true without a driver.
bool DriverFits();

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_H_
