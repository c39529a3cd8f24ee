// Perforated convolution and its two gradients on a CUDA device, free of TensorFlow and
// of CUDA types: `stream` is a cudaStream_t. Tensors are pointers to device memory,
// contiguous and row-major like in convolution.h; `Type` names their elements' type.
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

// output [batch, out height, out width, filters] = after(before(input) * filters) where
// the mask is set, zero elsewhere. Padding stays zero in spite of `before`.
const char* Convolve(Type type, const Geometry& g, const void* input,
                     const void* filters, const bool* mask, const Transform& before,
                     const Transform& after, void* output, void* workspace,
                     void* stream);

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

// Whether the CUDA driver is new enough for this library; also true without a driver.
bool DriverFits();

}  // namespace gpu
}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_GPU_H_
