// The functions of gpu.h for callers that know C only, on the host's memory: lets
// Python compare what the emulation computes with TensorFlow. Null, or an error.

#include <cstdint>

#include "../gpu.h"
#include "device.h"

namespace {

using perforated::gpu::Geometry;
using perforated::gpu::Indexed;
using perforated::gpu::Stage;
using perforated::gpu::Transform;
using perforated::gpu::Type;

// Memory of the device.
class Memory {
 public:
  explicit Memory(int64_t bytes) {
    if (cudaMalloc(&data_, bytes > 0 ? bytes : 1) != cudaSuccess) std::abort();
  }
  Memory(const Memory&) = delete;
  ~Memory() { cudaFree(data_); }
  void* data() const { return data_; }

 private:
  char* data_;
};

}  // namespace

extern "C" {

const char* emulated_convolution(Type type, const Geometry* g, const void* input,
                                 const void* filters, const bool* mask,
                                 const Transform* before, const Transform* after,
                                 void* output) {
  const Memory places(perforated::gpu::PlacesBytes(*g));
  const Memory work(perforated::gpu::ConvolveWorkspace(*g));
  void* const found = g->shared_mask ? nullptr : places.data();
  if (found != nullptr) {
    const char* const error = perforated::gpu::FindPlaces(*g, mask, found, nullptr);
    if (error != nullptr) return error;
  }
  return perforated::gpu::Convolve(type, *g, input, filters, mask, found, *before,
                                   *after, output, work.data(), nullptr);
}

const char* emulated_input_gradient(Type type, const Geometry* g, const void* gradient,
                                    const void* filters, const bool* mask,
                                    void* output) {
  const Memory work(perforated::gpu::InputGradientWorkspace(*g));
  return perforated::gpu::InputGradient(type, *g, gradient, filters, mask, output,
                                        work.data(), nullptr);
}

const char* emulated_filter_gradient(Type type, const Geometry* g, const void* input,
                                     const void* gradient, const bool* mask,
                                     void* output) {
  const Memory work(perforated::gpu::FilterGradientWorkspace(*g));
  return perforated::gpu::FilterGradient(type, *g, input, gradient, mask, output,
                                         work.data(), nullptr);
}

const char* emulated_bottleneck(Type type, const Geometry* middle, int64_t channels,
                                const void* x, const Transform* preactivation,
                                const Stage* stages, const bool* mask, void* y,
                                const void* sums, void* new_sums) {
  const Memory places(perforated::gpu::PlacesBytes(*middle));
  const Memory work(perforated::gpu::BottleneckWorkspace(*middle));
  const char* const error =
      perforated::gpu::FindPlaces(*middle, mask, places.data(), nullptr);
  if (error != nullptr) return error;
  const Stage three[3] = {stages[0], stages[1], stages[2]};
  return perforated::gpu::Bottleneck(type, *middle, channels, x, *preactivation, three,
                                     places.data(), y, sums, new_sums, work.data(),
                                     nullptr);
}

const char* emulated_indexed_convolution(Type type, const Indexed* g, const void* rows,
                                         const void* filters, const Transform* after,
                                         void* output) {
  return perforated::gpu::IndexedConvolve(type, *g, rows, filters, *after, output,
                                          nullptr);
}

const char* emulated_indexed_input_gradient(Type type, const Indexed* g,
                                            const void* gradient, const void* filters,
                                            void* output) {
  const Memory work(perforated::gpu::IndexedInputGradientWorkspace(*g));
  return perforated::gpu::IndexedInputGradient(type, *g, gradient, filters, output,
                                               work.data(), nullptr);
}

const char* emulated_indexed_filter_gradient(Type type, const Indexed* g,
                                             const void* rows, const void* gradient,
                                             void* output) {
  const Memory work(perforated::gpu::IndexedFilterGradientWorkspace(*g));
  return perforated::gpu::IndexedFilterGradient(type, *g, rows, gradient, output,
                                                work.data(), nullptr);
}

const char* emulated_pool(Type type, const Indexed* g, bool is_max, const void* rows,
                          void* output) {
  return perforated::gpu::Pool(type, *g, is_max, rows, output, nullptr);
}

const char* emulated_max_pool_gradient(Type type, const Indexed* g, const void* rows,
                                       const void* gradient, void* output) {
  const Memory work(perforated::gpu::MaxPoolGradientWorkspace(*g));
  return perforated::gpu::MaxPoolGradient(type, *g, rows, gradient, output, work.data(),
                                          nullptr);
}

const char* emulated_add_to_rows(Type type, const Indexed* g, const void* values,
                                 void* output) {
  const Memory work(perforated::gpu::AddToRowsWorkspace(*g));
  return perforated::gpu::AddToRows(type, *g, values, output, work.data(), nullptr);
}

}  // extern "C"
