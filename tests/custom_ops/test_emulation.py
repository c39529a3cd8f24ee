"""The CUDA kernels, run on the host by the emulation beside them."""

import pathlib
import shutil
import subprocess

import pytest

from custom_ops import build, emulation

KERNELS = pathlib.Path(build.__file__).parent / "kernels"

# Finds the positions of a mask that takes several blocks, twice over.
DRIVER = r"""
#include <cstdio>
#include <vector>
#include "gpu_positions.cu"
using namespace perforated::gpu;
int main() {
  Geometry g{2, 70, 40, 1, 3, 3, 70, 40, 1, 1, 1, 1, 1, 1, 1, false};
  std::vector<uint8_t> mask(NumOutputs(g));
  for (size_t i = 0; i < mask.size(); ++i) mask[i] = i * 2654435761u >> 7 & 1;
  void* places;
  if (cudaMalloc(&places, PlacesBytes(g)) != cudaSuccess) return 2;
  for (int run = 0; run < 2; ++run) {
    const char* error = FindPlaces(g, reinterpret_cast<bool*>(mask.data()), places,
                                   nullptr);
    if (error != nullptr) return std::printf("error: %s\n", error), 2;
  }
  Allocator allocator(places);
  const FoundPlaces found(g, &allocator);
  int64_t count = 0;
  for (int64_t i = 0; i < NumOutputs(g); ++i) {
    if (!mask[i]) continue;
    const Place& place = found.active.places.data[count++];
    if ((place.image * 70 + place.y) * 40 + place.x != i) return std::puts("wrong"), 1;
  }
  if (count != *found.active.places.count) return std::puts("wrong count"), 1;
  std::puts("right");
  cudaFree(places);
}
"""


@pytest.fixture(autouse=True)
def compiler():
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("there is no C++ compiler")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a source to a program, with the emulation's own part compiled once."""
    directory, devices = tmp_path_factory.mktemp("device"), {}

    def run(*command):
        flags = [*emulation._FLAGS, "-D__CUDA_ARCH__=800"]
        subprocess.run([*emulation._compiler(), *flags, *command], check=True)

    def compile_source(source, kernels=KERNELS, *options):
        if options not in devices:
            devices[options] = str(directory / f"device{len(devices)}.o")
            device = str(KERNELS / "emulation" / "device.cc")
            run(*options, "-c", device, "-o", devices[options])
        program = source.with_suffix("")
        run(*options, f"-I{kernels}", str(source), devices[options], "-o", str(program))
        return str(program)

    return compile_source


def edited_kernels(directory, file, old, new):
    """A copy of the sources in which `old`, which is there once, is `new`."""
    kernels = directory / "kernels"
    shutil.copytree(KERNELS, kernels)
    text = (kernels / file).read_text()
    assert text.count(old) == 1
    (kernels / file).write_text(text.replace(old, new))
    return kernels


@pytest.mark.parametrize("architecture", emulation.ARCHITECTURES)
def test_emulated_kernels_equal_plain_loops(architecture):
    """Ops, gradients and units of every type: odd sizes, no and all positions."""
    done = emulation.check(architecture, 6)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "emulation\n6 random cases of each type are right\n"


@pytest.mark.parametrize(
    "old, new, sanitizer",
    [
        ("", "", "thread"),
        ("sums[warp] = sum;\n  __syncthreads();", "sums[warp] = sum;", "thread"),
        ("if (i < warp) before += sums[i];", "if (i <= warp) before += sums[i];", ""),
    ],
    ids=["as it is", "a barrier is missing", "an index is off by one"],
)
def test_emulation_finds_broken_kernels(tmp_path, compiled, old, new, sanitizer):
    kernels = edited_kernels(tmp_path, "gpu_positions.cu", old, new) if old else KERNELS
    driver = tmp_path / "driver.cc"
    driver.write_text(DRIVER)
    options = [f"-fsanitize={sanitizer}"] if sanitizer else []
    program = compiled(driver, kernels, *options)
    done = subprocess.run([program], capture_output=True, text=True)
    if not old:
        assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
    elif sanitizer:
        assert "ThreadSanitizer: data race" in done.stderr
    else:
        assert done.returncode != 0


# A product by wgmma in each of the four orders that a factor can have in memory.
WARPGROUP = r"""
#undef __CUDA_ARCH__
#define __CUDA_ARCH__ 900
#include <cstdio>
#include <cstring>
#include <vector>
#include "gpu_products.h"
using namespace perforated::gpu;
using T = __nv_bfloat16;
constexpr int kLength = 9 * kDepth<T> - 8;
template <typename Tile, bool kCopies>
struct Loader {
  using T = ::T;
  template <typename Op>
  Loader(const Op& op, const Job&, ChunkPlace<Tile, T> at)
      : from(Tile::kIsDepthInner ? op.source : op.matrix), at(at) {}
  bool CanCopy() const { return kCopies; }
  const T* Find() const {
    if (first + (Tile::kIsDepthInner ? at.element : at.line) >= kLength) return nullptr;
    return from + (Tile::kIsDepthInner ? at.line * kLength + first + at.element
                                       : (first + at.line) * kTile + at.element);
  }
  Chunk<T> Next() const { return Find() ? LoadChunk(Find()) : ZeroChunk<T>(); }
  void Advance() { first += kDepth<T>; }
  const T* from;
  ChunkPlace<Tile, T> at;
  int first = 0;
};
template <bool kLeftInner, bool kRightInner>
struct Op {
  using T = ::T;
  using Left = Tile<T, kLeftInner>;
  using Right = Tile<T, kRightInner>;
  using LeftLoader = Loader<Left, true>;
  using RightLoader = Loader<Right, false>;
  int64_t num_rows() const { return kTile; }
  int num_columns() const { return kTile; }
  int64_t depth() const { return kLength; }
  void Write(const Job&, int64_t row, int column, float value) const {
    product[row * kTile + column] = value;
  }
  const T *source, *matrix;
  float* product;
};
template <bool kLeftInner, bool kRightInner>
bool Check() {
  static_assert(std::is_same_v<Product<Op<kLeftInner, kRightInner>, true>,
                               WarpgroupProduct<Op<kLeftInner, kRightInner>>>);
  // The same factor twice, by row and by depth: small whole numbers.
  alignas(16) static T inner[kTile * kLength], outer[kTile * kLength];
  const auto value = [](int row, int k) { return (row * 37 + k * 11) % 16 - 8.0f; };
  for (int row = 0; row < kTile; ++row) {
    for (int k = 0; k < kLength; ++k) {
      inner[row * kLength + k] = outer[k * kTile + row] = T(value(row, k));
    }
  }
  std::vector<float> product(kTile * kTile);
  const Op<kLeftInner, kRightInner> op{inner, outer, product.data()};
  LaunchKernel(Multiply<Op<kLeftInner, kRightInner>, true>, 1, kThreads, nullptr, op, 1,
               1, 1);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return std::puts(cudaGetErrorString(error)), false;
  for (int i = 0; i < kTile * kTile; ++i) {
    float sum = 0.0f;
    for (int k = 0; k < kLength; ++k) sum += value(i / kTile, k) * value(i % kTile, k);
    if (product[i] != sum) return std::puts("wrong"), false;
  }
  return std::puts("right"), true;
}
int main() { return !(CHECKS); }
"""
ORDERS = [f"Check<{a}, {b}>()" for a in ("true", "false") for b in ("true", "false")]


@pytest.mark.parametrize(
    "file, old, new, expected",
    [
        ("", "", "", "right\n" * 4),
        (
            "gpu_products.h",
            "product.Wait();",
            "",
            "shared memory changed while wgmma could read it\n",
        ),
        ("gpu_products.h", "product.WaitForAll();", "", "wrong\n"),
        (
            "gpu_products.h",
            "Product::Show();",
            "",
            "wgmma reads shared memory that nobody wrote, or not for it to see\n",
        ),
        (
            "gpu_products.h",
            "    BeginMultiplications();",
            "",
            "the sums are not fenced before wgmma\n",
        ),
        ("gpu_loaders.h", "kPatternBytes >> 4", "kPatternBytes >> 5", "wrong\n"),
    ],
    ids=["as it is", "no wait", "no last wait", "no proxy fence", "no fence", "stride"],
)
def test_emulated_warpgroups(tmp_path, compiled, file, old, new, expected):
    """Factors by descriptor, asynchronously: right, and what is broken is noticed."""
    kernels = edited_kernels(tmp_path, file, old, new) if file else KERNELS
    driver = tmp_path / "driver.cc"
    checks = " && ".join(ORDERS[1:2] if file else ORDERS)
    driver.write_text(WARPGROUP.replace("CHECKS", checks))
    program = compiled(driver, kernels)
    done = subprocess.run([program], capture_output=True, text=True)
    assert done.stdout == expected
    assert (done.returncode == 0) == (not file)


MISUSE = r"""
#include <cstdio>
#include <cstdlib>
#include "gpu_device.h"
using namespace perforated::gpu;
__global__ void Kernel(int misuse, int* out) {
  __shared__ __align__(16) int to[4];
  alignas(16) static int from[4] = {1, 1, 1, 1};
  if (misuse == 1 && threadIdx.x < 40) __syncthreads();
  if (misuse == 2 && threadIdx.x % 2) __shfl_up_sync(0xffffffffu, 1, 1);
  CopyAsync(to, from, false);
  CommitCopies();
  if (misuse != 3) WaitCopies<0>();
  __syncthreads();
  out[threadIdx.x] = to[0];
}
int main(int, char** argv) {
  int out[64] = {};
  LaunchKernel(Kernel, 1, 64, nullptr, std::atoi(argv[1]), &out[0]);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) return std::puts(cudaGetErrorString(error)), 1;
  std::printf("%d\n", out[63]);
}
"""


@pytest.fixture(scope="module")
def misuse(compiled, tmp_path_factory):
    source = tmp_path_factory.mktemp("misuse") / "misuse.cc"
    source.write_text(MISUSE)
    return compiled(source)


@pytest.mark.parametrize(
    "number, expected",
    enumerate(
        [
            "1",
            "some threads of a block wait at a barrier that others do not come to",
            "some threads of a block wait at a barrier that others do not come to",
            "0",
        ]
    ),
    ids=["none", "barrier not for all", "shuffle not for all", "copy not waited for"],
)
def test_emulation_finds_misuse(misuse, number, expected):
    done = subprocess.run([misuse, str(number)], capture_output=True, text=True)
    assert done.stdout == f"{expected}\n"


def test_emulated_driver_and_card_that_are_too_old(tmp_path, compiled):
    """What Python asks before it registers kernels; what the error says."""
    source = tmp_path / "driver.cc"
    source.write_text(r"""
#include <cstdio>
#include "gpu_positions.cu"
using namespace perforated::gpu;
int main() {
  for (const int version : {0, 11080, 12000, 12080, 13000}) {
    emulation::driver_version = version;
    std::printf("%d ", DriverFits());
  }
  std::printf("%s\n", MessageOf(cudaErrorNoKernelImageForDevice));
}
""")
    done = subprocess.run([compiled(source)], capture_output=True, text=True)
    *fits, message = done.stdout.split(" ", 5)
    assert fits == ["1", "0", "1", "1", "1"]
    assert "this library is not compiled for this device" in message
    assert "SACT_CUDA_ARCHITECTURES" in message


def test_emulated_numbers_round_to_nearest(tmp_path, compiled):
    """Half and bfloat16: every value, and halfway between neighbours, ties to even."""
    source = tmp_path / "driver.cc"
    source.write_text(r"""
#include <cstdio>
#include "emulation/numbers.h"
template <typename T>
int Check() {
  for (unsigned bits = 0; bits < 0x10000; ++bits) {
    T value, next;
    value.bits = bits;
    next.bits = bits + 1;
    const float v = static_cast<float>(value), n = static_cast<float>(next);
    if (std::isnan(v)) continue;
    if (T(v).bits != bits) return std::printf("%x\n", bits), 1;
    if (!std::isfinite(n) || !std::isfinite(v) || (bits & 0x7fff) == 0x7fff) continue;
    const float half = static_cast<float>((double(v) + n) / 2);
    if (T(half).bits != bits + (bits & 1)) return std::printf("half %x\n", bits), 1;
  }
  return !std::isnan(static_cast<float>(T(NAN)));
}
int main() { return Check<__half>() + Check<__nv_bfloat16>(); }
""")
    done = subprocess.run([compiled(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.long
@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_emulated_kernels_under_sanitizers(tmp_path, sanitizers):
    options = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    for program in emulation.compile_programs(tmp_path, options=options):
        done = subprocess.run(
            [str(program), "6", "2"], capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.long
@pytest.mark.parametrize(
    "file, old, new",
    [
        ("gpu_products.h", "__syncthreads();  // this step's", "// this step's"),
        ("gpu_products.h", "WaitCopies<kAhead - 1>();", ""),
        ("gpu_products.h", "product.Wait();", ""),
        ("gpu_loaders.h", "kPatternBytes >> 4", "kPatternBytes >> 5"),
        (
            "gpu_loaders.h",
            "column < op.num_columns() ?",
            "column <= op.num_columns() ?",
        ),
        ("gpu_indexed.cu", "v > result ||", "v >= result ||"),
        (
            "gpu_indexed.cu",
            "greatest[at] == entry % all.taps ?",
            "greatest[at] >= entry % all.taps ?",
        ),
        (
            "gpu_units.cu",
            "i < kWarpsPerSum; ++i) sum",
            "i < kWarpsPerSum - 1; ++i) sum",
        ),
    ],
)
def test_emulation_finds_broken_products(tmp_path, file, old, new):
    kernels = edited_kernels(tmp_path, file, old, new)
    options = ["-fsanitize=address"] if "column" in old else []
    architecture = 90 if "product" in old or "Pattern" in old else 80
    (program,) = emulation.compile_programs(tmp_path, (architecture,), options, kernels)
    done = subprocess.run([str(program), "8"], capture_output=True, text=True)
    assert done.returncode != 0, done.stdout
