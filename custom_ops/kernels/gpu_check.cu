// Checks the GPU kernels by themselves against plain loops on the CPU, on a GPU (from
// this directory):
//
//   nvcc -O3 -std=c++17 -arch=native gpu_check*.cu gpu_convolution.cu gpu_indexed.cu
//   gpu_positions.cu gpu_units.cu -o gpu_check && ./gpu_check [cases] [seed]
//
// (for 9.0 with -gencode=arch=compute_90a,code=sm_90a instead of -arch=native), or in
// the emulation, which custom_ops/emulation.py compiles. Exits with 1 at the first
// result that is wrong, with 77 where there is no GPU.

#include "gpu_check.h"

namespace perforated {
namespace gpu {
namespace check {
namespace {

constexpr int kNoGpu = 77;

template <typename T>
void CheckAll(Type type, const Geometry& g, double share) {
  CheckConvolution<T>(type, g, share);
  Geometry image = g;
  image.height = std::min<int64_t>(g.height, 9);
  image.width = std::min<int64_t>(g.width, 9);
  CheckUnits<T>(type, image, share);
  CheckIndexed<T>(type);
}

void CheckCases(int count) {
  constexpr double kShares[] = {0.0, 0.1, 0.5, 1.0};
  for (int i = 0; i < count; ++i) {
    const Geometry g = RandomGeometry();
    const double share = kShares[i % 4];
    CheckAll<float>(Type::kFloat, g, share);
    CheckAll<float>(Type::kTensorFloat32, g, share);
    CheckAll<__half>(Type::kHalf, g, share);
    CheckAll<__nv_bfloat16>(Type::kBfloat16, g, share);
    CheckFold();
  }
  std::printf("%d random cases of each type are right\n", count);
}

#ifdef __CUDACC__
void FindDevice() {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error != cudaSuccess || devices == 0) {
    std::printf("no GPU: %s\n", cudaGetErrorString(error));
    std::exit(kNoGpu);
  }
  cudaDeviceProp properties;
  Check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  std::printf("%s, compute capability %d.%d\n", properties.name, properties.major,
              properties.minor);
}
void Seed(uint64_t seed) { generator.seed(seed); }
#else
void FindDevice() { std::printf("emulation\n"); }
void Seed(uint64_t seed) {
  generator.seed(seed);
  emulation::Seed(seed);
}
#endif

int Main(int argc, char** argv) {
  FindDevice();
  Seed(argc > 2 ? std::atoi(argv[2]) : 1);
  CheckCases(argc > 1 ? std::atoi(argv[1]) : 100);
  std::fflush(stdout);
  return 0;
}

}  // namespace

int Run(int argc, char** argv) { return Main(argc, argv); }

}  // namespace check
}  // namespace gpu
}  // namespace perforated

int main(int argc, char** argv) { return perforated::gpu::check::Run(argc, argv); }
