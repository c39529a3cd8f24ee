// Runs the threads of a block as fibers; see device.h.

#include "device.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <deque>
#include <memory>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
#else
inline void* __tsan_get_current_fiber() { return nullptr; }
inline void* __tsan_create_fiber(unsigned) { return nullptr; }
inline void __tsan_switch_to_fiber(void*, unsigned) {}
inline void __tsan_acquire(void*) {}
inline void __tsan_release(void*) {}
constexpr unsigned __tsan_switch_to_fiber_no_sync = 1;
#endif

// How a fiber goes on where it left: swapcontext asks the system twice every time,
// which takes as long as everything else; sanitizers want it.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define SWITCH(from, from_jump, to, to_jump, started) swapcontext(from, to)
#else
#define SWITCH(from, from_jump, to, to_jump, started) \
  do {                                                \
    if (_setjmp(from_jump) == 0) {                    \
      if (started) _longjmp(to_jump, 1);              \
      setcontext(to);                                 \
    }                                                 \
  } while (false)
#endif

// The emulation's own memory is shared by all fibers, and not what is to be checked.
#define NOT_CHECKED __attribute__((no_sanitize("thread")))

emulation::Index threadIdx, blockIdx;

namespace emulation {
namespace {

enum class State { kNew, kReady, kAtBlockBarrier, kAtWarpBarrier, kDone };

struct Copy {
  void* to;
  const void* from;
  bool zeros;
};

using Sums = std::array<float, kSumsPerThread>;

struct Multiplication {
  Factor left, right;
  float (*value)(uint16_t);
  Sums product;  // if it read its factors at once
};

struct Fiber {
  ucontext_t context;  // to begin with
  jmp_buf jump;        // to go on with
  bool started = false;
  std::unique_ptr<char[]> stack;
  State state = State::kNew;
  std::vector<std::vector<Copy>> copies;  // groups; the last one is not ended
  int exchanges = 0;
  std::vector<const void*> not_shown;  // writes to shared memory
  std::vector<std::vector<Multiplication>> multiplications;  // groups, as of copies
  size_t multiplied = 0;  // number of multiplications so far
  float* sums = nullptr;  // not to be used now, and then
  Sums sums_then;         // what they will be
  bool may_multiply = false;
  void* sanitizer = nullptr;
};

struct Warp {
  uint64_t values[2][kWarpSize];  // by turns: some may still read the last ones
  char barrier;
};

constexpr size_t kStackBytes = 256 << 10;
constexpr int kCopyBytes = 16;
constexpr uintptr_t kMostShared = 1 << 18;  // bytes that a descriptor can name

// Their contexts must not move, and they outlive all checks.
std::deque<Fiber>& fibers = *new std::deque<Fiber>;
std::vector<Warp> warps;
int current;
ucontext_t scheduler;
[[maybe_unused]] jmp_buf scheduler_jump;
void* scheduler_sanitizer;
const std::function<void()>* kernel_now;
char block_barrier, launch_barrier;
std::string error_now, last_error;
uint64_t random_state = 1;
// What shared memory's own address 0 is; where wgmma sees what was written there, in
// units of 16 bytes; the descriptors that the first thread to come gave.
uintptr_t shared_begin;
bool shown[kMostShared / kCopyBytes];
std::vector<std::pair<uint64_t, uint64_t>> descriptors;

NOT_CHECKED unsigned Random(unsigned end) {
  random_state = random_state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<unsigned>(random_state >> 33) % end;
}

// Numbers below n in some order: step by a number that has no factor in common with n.
class Order {
 public:
  NOT_CHECKED explicit Order(unsigned n) : n_(n), at_(Random(n)), step_(1 + Random(n)) {
    while (std::gcd(step_, n) != 1) ++step_;
  }
  NOT_CHECKED unsigned Next() { return at_ = (at_ + step_) % n_; }

 private:
  uint64_t n_, at_, step_;
};

NOT_CHECKED void SwitchToScheduler(State state) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  __tsan_switch_to_fiber(scheduler_sanitizer, __tsan_switch_to_fiber_no_sync);
  SWITCH(&fiber.context, fiber.jump, &scheduler, scheduler_jump, true);
}

NOT_CHECKED void Resume(Fiber& fiber) {
  [[maybe_unused]] const bool started = std::exchange(fiber.started, true);
  __tsan_switch_to_fiber(fiber.sanitizer, __tsan_switch_to_fiber_no_sync);
  SWITCH(&scheduler, scheduler_jump, &fiber.context, fiber.jump, started);
}

NOT_CHECKED void SwitchTo(int index) {
  current = index;
  threadIdx.x = index;
  Resume(fibers[index]);
}

// A thread of this block, then of the next one, and so on.
NOT_CHECKED void RunThreads() {
  while (true) {
    __tsan_acquire(&launch_barrier);
    (*kernel_now)();
    __tsan_release(&launch_barrier);
    SwitchToScheduler(State::kDone);
  }
}

NOT_CHECKED void Begin(Fiber* fiber) {
  if (fiber->state != State::kDone) {  // a block that failed left it anywhere
    fiber->stack.reset(new char[kStackBytes]);
    if (fiber->sanitizer == nullptr) fiber->sanitizer = __tsan_create_fiber(0);
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, RunThreads, 0);
    fiber->started = false;
  }
  fiber->state = State::kReady;
  fiber->copies.assign(1, {});
  fiber->exchanges = 0;
  fiber->not_shown.clear();
  fiber->multiplications.assign(1, {});
  fiber->multiplied = 0;
  fiber->sums = nullptr;
  fiber->may_multiply = false;
}

// Lets those go on that all wait for the same. Returns whether there were any.
NOT_CHECKED bool Release(int first, int end, State barrier) {
  for (int i = first; i < end; ++i) {
    if (fibers[i].state != barrier) return false;
  }
  for (int i = first; i < end; ++i) fibers[i].state = State::kReady;
  return true;
}

NOT_CHECKED bool AllDone(int threads) {
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state != State::kDone) return false;
  }
  return true;
}

NOT_CHECKED void RunBlock(int threads) {
  for (int i = 0; i < threads; ++i) Begin(&fibers[i]);
  if (!descriptors.empty()) std::fill(std::begin(shown), std::end(shown), false);
  descriptors.clear();
  __tsan_release(&launch_barrier);
  while (error_now.empty()) {
    bool ran = false;
    Order order(threads);
    for (int i = 0; i < threads; ++i) {
      const unsigned index = order.Next();
      if (fibers[index].state != State::kReady) continue;
      SwitchTo(index);
      ran = true;
    }
    for (int first = 0; first < threads; first += kWarpSize) {
      ran |=
          Release(first, std::min(threads, first + kWarpSize), State::kAtWarpBarrier);
    }
    if (ran || Release(0, threads, State::kAtBlockBarrier)) continue;
    if (AllDone(threads)) return;
    Fail("some threads of a block wait at a barrier that others do not come to");
  }
}

}  // namespace

NOT_CHECKED void Launch(int64_t blocks, int threads,
                        const std::function<void()>& kernel) {
  if (fibers.size() < static_cast<size_t>(threads)) fibers.resize(threads);
  warps.assign((threads + kWarpSize - 1) / kWarpSize, {});
  kernel_now = &kernel;
  shared_begin = 0;
  scheduler_sanitizer = __tsan_get_current_fiber();
  Order order(static_cast<unsigned>(blocks));
  for (int64_t i = 0; i < blocks && error_now.empty(); ++i) {
    blockIdx.x = order.Next();
    RunBlock(threads);
    __tsan_acquire(&launch_barrier);
  }
}

NOT_CHECKED void WaitForBlock() {
  __tsan_release(&block_barrier);
  SwitchToScheduler(State::kAtBlockBarrier);
  __tsan_acquire(&block_barrier);
}

NOT_CHECKED const uint64_t* Exchange(uint64_t mine) {
  Warp& warp = warps[current / kWarpSize];
  uint64_t (&values)[kWarpSize] = warp.values[fibers[current].exchanges++ % 2];
  values[current % kWarpSize] = mine;
  __tsan_release(&warp.barrier);
  SwitchToScheduler(State::kAtWarpBarrier);
  __tsan_acquire(&warp.barrier);
  return values;
}

NOT_CHECKED void CopyLater(void* to, const void* from, bool zeros) {
  if ((reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from)) %
          kCopyBytes !=
      0) {
    Fail("an asynchronous copy is not aligned to 16 bytes");
  }
  fibers[current].copies.back().push_back({to, from, zeros});
}

NOT_CHECKED void EndCopies() { fibers[current].copies.emplace_back(); }

void FinishCopies(int except_groups) {
  auto& groups = fibers[current].copies;
  while (groups.size() > static_cast<size_t>(except_groups) + 1) {
    for (const Copy& copy : groups.front()) {
      if (copy.zeros) {
        std::memset(copy.to, 0, kCopyBytes);
      } else {
        std::memcpy(copy.to, copy.from, kCopyBytes);
      }
      NoteWrite(copy.to);
    }
    groups.erase(groups.begin());
  }
}

// ------------------------------------------------------------------------- wgmma

NOT_CHECKED uint32_t SharedAddress(const void* data) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  // The first one that is asked for lies in the middle, at a multiple of 1024 if it
  // does: patterns of permuted chunks go by address.
  if (shared_begin == 0) shared_begin = (address & ~uintptr_t{1023}) - kMostShared / 2;
  if (address - shared_begin >= kMostShared) Fail("this is not in shared memory");
  return static_cast<uint32_t>((address - shared_begin) % kMostShared);
}

NOT_CHECKED void NoteWrite(const void* to) {
  shown[SharedAddress(to) / kCopyBytes] = false;
  fibers[current].not_shown.push_back(to);
}

NOT_CHECKED void ShowWrites() {
  for (const void* to : fibers[current].not_shown) {
    shown[SharedAddress(to) / kCopyBytes] = true;
  }
  fibers[current].not_shown.clear();
}

// A factor's element in a row (or column) at a depth, by what the descriptor says. See
// "Canonical Layouts" of wgmma in the manual of PTX.
NOT_CHECKED const uint16_t* FindElement(const Factor& factor, unsigned row,
                                        unsigned depth) {
  const auto field = [&](int bit) { return (factor.descriptor >> bit & 0x3fff) << 4; };
  const uint64_t leading = field(16), stride = field(32);
  const uint64_t mode = factor.descriptor >> 62;
  const bool has_offset = (factor.descriptor >> 49 & 7) != 0;
  if (mode == 0 || has_offset) {
    Fail("only permuted tiles that begin where the pattern does are emulated");
    return nullptr;
  }
  const uint64_t line = 16u << (4 - mode);  // bytes: 128, 64 or 32
  uint64_t address = field(0);
  if (factor.is_transposed) {
    const uint64_t elements = line / 2;
    address += row % elements * 2 + row / elements * leading;
    address += depth % 8 * line + depth / 8 * stride;
  } else {
    address += row % 8 * line + row / 8 * stride + depth * 2;
  }
  address ^= address >> 3 & (line - 16);
  address %= kMostShared;
  if (!shown[address / kCopyBytes]) {
    Fail("wgmma reads shared memory that nobody wrote, or not for it to see");
    return nullptr;
  }
  return reinterpret_cast<const uint16_t*>(shared_begin + address);
}

// This thread's part of a product.
Sums Multiply(const Multiplication& m) {
  constexpr int kDepth = 16, kRows = 2, kColumns = kSumsPerThread / kRows;
  const int lane = current % kWarpSize;
  const auto read = [&](const Factor& factor, int row, float (&to)[kDepth]) {
    for (int k = 0; k < kDepth; ++k) {
      const uint16_t* const element = FindElement(factor, row, k);
      to[k] = element == nullptr ? NAN : m.value(*element);
    }
  };
  float left[kRows][kDepth], right[kDepth];
  for (int i = 0; i < kRows; ++i) {
    read(m.left, current / kWarpSize * 16 + lane / 4 + i * 8, left[i]);
  }
  Sums product = {};
  for (int j = 0; j < kColumns; ++j) {
    read(m.right, j / 2 * 8 + lane % 4 * 2 + j % 2, right);
    for (int i = 0; i < kRows; ++i) {
      float& sum = product[j / 2 * 4 + i * 2 + j % 2];
      for (int k = 0; k < kDepth; ++k) sum += left[i][k] * right[k];
    }
  }
  return product;
}

NOT_CHECKED void BeginMultiplications() { fibers[current].may_multiply = true; }

// The device may read the factors now, or as late as the thread waits, and it may
// change the sums at any time in between.
void MultiplyLater(float* sums, Factor left, Factor right, float (*value)(uint16_t)) {
  Fiber& fiber = fibers[current];
  if (fiber.sums == nullptr) {
    if (!fiber.may_multiply) Fail("the sums are not fenced before wgmma");
    fiber.sums = sums;
    std::copy_n(sums, kSumsPerThread, fiber.sums_then.begin());
    std::fill_n(sums, kSumsPerThread, NAN);
  }
  if (fiber.sums != sums) Fail("wgmma with other sums before all are waited for");
  const std::pair<uint64_t, uint64_t> both(left.descriptor, right.descriptor);
  if (fiber.multiplied == descriptors.size()) descriptors.push_back(both);
  if (descriptors[fiber.multiplied++] != both) {
    Fail("the threads of a block give wgmma different descriptors");
  }
  Multiplication m{left, right, value, {}};
  m.product = Multiply(m);
  fiber.multiplications.back().push_back(m);
}

NOT_CHECKED void EndMultiplications() {
  fibers[current].multiplications.emplace_back();
}

void FinishMultiplications(int except_groups) {
  Fiber& fiber = fibers[current];
  auto& groups = fiber.multiplications;
  while (groups.size() > static_cast<size_t>(except_groups) + 1) {
    for (const Multiplication& m : groups.front()) {
      const Sums late = Multiply(m);
      if (std::memcmp(late.data(), m.product.data(), sizeof(late)) != 0) {
        Fail("shared memory changed while wgmma could read it");
      }
      for (int i = 0; i < kSumsPerThread; ++i) fiber.sums_then[i] += late[i];
    }
    groups.erase(groups.begin());
  }
  if (groups.size() == 1 && groups[0].empty() && fiber.sums != nullptr) {
    std::copy_n(fiber.sums_then.begin(), kSumsPerThread, fiber.sums);
    fiber.sums = nullptr;
    fiber.may_multiply = false;
  }
}

NOT_CHECKED void Fail(const char* error) {
  if (error_now.empty()) error_now = error;
}

void Seed(uint64_t seed) { random_state = seed; }

}  // namespace emulation

cudaError_t cudaGetLastError() {
  if (emulation::error_now.empty()) return cudaSuccess;
  emulation::last_error.swap(emulation::error_now);
  emulation::error_now.clear();
  return cudaErrorLaunchFailure;
}

const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure) return emulation::last_error.c_str();
  return error == cudaErrorMemoryAllocation ? "out of memory" : "no error";
}
