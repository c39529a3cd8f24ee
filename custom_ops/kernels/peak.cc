// What the machine can do at most: multiply-adds on numbers that never leave registers.
//
// A library by itself, which `custom_ops.peak` compiles and calls.

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "vector.h"

#if defined(__AVX512BF16__) || defined(__AMX_BF16__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace perforated {
namespace {

// So many independent sums hide how long an instruction takes, and leave registers for
// the factors.
#if defined(__AVX512F__)
constexpr int kSums = 24;
#else
constexpr int kSums = 10;
#endif

// Nothing that is written here is thrown away by the compiler.
volatile float sink;

// Each kernel does `rounds` rounds and returns the operations of one.

struct Float32 {
  static bool Prepare() { return true; }
  static double Run(int64_t rounds) {
    typedef Vector<float> V;
    V sums[kSums];
    const V factor = V{} + 0.999f, term = V{} + 1e-3f;
    for (int s = 0; s < kSums; ++s) sums[s] = V{} + static_cast<float>(s);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
      for (int s = 0; s < kSums; ++s) sums[s] = sums[s] * factor + term;
    }
    V total{};
    for (int s = 0; s < kSums; ++s) total += sums[s];
    sink = total[0];
    return 2.0 * kSums * kLanes<float>;
  }
};

#if defined(__AVX512BF16__)
struct BFloat16 {
  static bool Prepare() { return __builtin_cpu_supports("avx512bf16"); }
  static double Run(int64_t rounds) {
    __m512 sums[kSums];
    const __m512bh ones = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1), _mm512_set1_ps(1));
    for (int s = 0; s < kSums; ++s) sums[s] = _mm512_set1_ps(s);
    for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 24
      for (int s = 0; s < kSums; ++s) sums[s] = _mm512_dpbf16_ps(sums[s], ones, ones);
    }
    __m512 total = sums[0];
    for (int s = 1; s < kSums; ++s) total = _mm512_add_ps(total, sums[s]);
    sink = _mm512_reduce_add_ps(total);
    return 4.0 * kSums * kLanes<float>;
  }
};
#endif

#if defined(__AMX_BF16__)
struct BFloat16Tiles {
  // Linux wants to be asked for the tile registers, once for all threads.
  static bool Prepare() {
    constexpr int kRequest = 0x1023, kTileData = 18;
    return __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  }
  static double Run(int64_t rounds) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, unused[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } shapes;
    alignas(64) uint8_t zeros[1024] = {};
    _tile_loadconfig(&shapes);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(4, zeros, 64);
    _tile_loadd(5, zeros, 64);
    _tile_loadd(6, zeros, 64);
    _tile_loadd(7, zeros, 64);
    for (int64_t round = 0; round < rounds; ++round) {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, zeros, 64);
    float first;
    std::memcpy(&first, zeros, sizeof(first));
    sink = first;
    _tile_release();
    return 4.0 * 2 * 16 * 16 * 32;
  }
};
#endif

// Operations per second of all threads together: the best of some short tries, since
// what a machine can do does not depend on who else is using it.
template <typename Kernel>
double Measure(int threads, double seconds) {
  using Clock = std::chrono::steady_clock;
  if (!Kernel::Prepare()) return 0;
  const auto time = [](const auto& run) {
    const auto start = Clock::now();
    run();
    return std::chrono::duration<double>(Clock::now() - start).count();
  };
  int64_t rounds = 1000;
  while (time([&] { Kernel::Run(rounds); }) < seconds / 20) rounds *= 2;
  double best = 0;
  for (int t = 0; t < 5; ++t) {
    std::vector<double> speeds(threads);
    std::vector<std::thread> others;
    const auto work = [&](int thread) {
      double operations = 0;
      const double spent =
          time([&] { operations = Kernel::Run(4 * rounds) * 4 * rounds; });
      speeds[thread] = operations / spent;
    };
    for (int i = 1; i < threads; ++i) others.emplace_back(work, i);
    work(0);
    for (std::thread& other : others) other.join();
    double sum = 0;
    for (const double speed : speeds) sum += speed;
    best = std::max(best, sum);
  }
  return best;
}

}  // namespace
}  // namespace perforated

// Floating-point operations per second, 0 where the processor lacks the instructions.
extern "C" double perforated_peak(const char* kind, int threads, double seconds) {
  using namespace perforated;
  if (!std::strcmp(kind, "float32")) return Measure<Float32>(threads, seconds);
#if defined(__AVX512BF16__)
  if (!std::strcmp(kind, "bfloat16")) return Measure<BFloat16>(threads, seconds);
#endif
#if defined(__AMX_BF16__)
  if (!std::strcmp(kind, "bfloat16 tiles")) {
    return Measure<BFloat16Tiles>(threads, seconds);
  }
#endif
  return 0;
}
