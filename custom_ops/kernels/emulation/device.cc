// Runs the threads of a block as fibers; see device.h.

#include "device.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
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

struct Fiber {
  ucontext_t context;  // to begin with
  jmp_buf jump;        // to go on with
  bool started = false;
  std::unique_ptr<char[]> stack;
  State state = State::kNew;
  std::vector<std::vector<Copy>> copies;  // groups; the last one is not ended
  int exchanges = 0;
  void* sanitizer = nullptr;
};

struct Warp {
  uint64_t values[2][kWarpSize];  // by turns: some may still read the last ones
  char barrier;
};

constexpr size_t kStackBytes = 256 << 10;
constexpr int kCopyBytes = 16;

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
    }
    groups.erase(groups.begin());
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
