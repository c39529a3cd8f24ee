// What the CPU kernels of all ops share: threads, memory, packed filters.

#ifndef CUSTOM_OPS_KERNELS_CPU_OPS_H_
#define CUSTOM_OPS_KERNELS_CPU_OPS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <tuple>
#include <type_traits>
#include <vector>

#include "convolution.h"
#include "ops.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/platform/threadpool.h"

namespace perforated {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// What a thread does between two looks at what others are at.
inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

// TensorFlow's own threads and memory. The calling thread works too and waits for
// tasks, not for threads, so a busy pool delays nothing.
class PoolWorkers : public Workers {
 public:
  explicit PoolWorkers(OpKernelContext* context)
      : context_(context),
        workers_(*context->device()->tensorflow_cpu_worker_threads()) {}

  int num_threads() const override { return workers_.num_threads; }

  void ForEach(int64_t n, const std::function<void(int64_t)>& fn) const override {
    const int64_t helpers = std::min<int64_t>(n, num_threads()) - 1;
    if (helpers <= 0) {
      for (int64_t i = 0; i < n; ++i) fn(i);
      return;
    }
    struct State {
      std::atomic<int64_t> next{0}, done{0};
      std::mutex mutex;
      std::condition_variable all_done;
    };
    auto state = std::make_shared<State>();
    const auto work = [state, n, &fn] {
      int64_t done = 0;
      for (int64_t i; (i = state->next.fetch_add(1)) < n; ++done) fn(i);
      if (done == 0) return;
      if (state->done.fetch_add(done) + done < n) return;
      std::lock_guard<std::mutex> lock(state->mutex);
      state->all_done.notify_one();
    };
    for (int64_t i = 0; i < helpers; ++i) workers_.workers->Schedule(work);
    work();
    // Tasks end at about the same time, sooner than a thread falls asleep and wakes.
    for (int i = 0; i < kPolls && state->done.load() < n; ++i) Pause();
    if (state->done.load() == n) return;
    std::unique_lock<std::mutex> lock(state->mutex);
    state->all_done.wait(lock, [&] { return state->done.load() == n; });
  }

  // Some ten microseconds.
  static constexpr int kPolls = 500;

  void* Allocate(std::size_t bytes) const override {
    const TensorShape shape({static_cast<int64_t>(bytes)});
    Tensor& memory = memory_.emplace_back();
    if (!context_->allocate_temp(tensorflow::DT_INT8, shape, &memory).ok()) {
      throw std::bad_alloc();
    }
    return memory.data();
  }

 private:
  OpKernelContext* context_;
  mutable std::vector<Tensor> memory_;
  const tensorflow::DeviceBase::CpuWorkerThreads& workers_;
};

// Packed filters by the memory they were packed from.
//
// An entry holds a reference to that memory. TensorFlow updates a variable in place
// only where nobody else refers to its memory, so new values always come in new memory,
// and an entry can not be stale. Entries that nobody but the cache refers to any more
// are dropped when something new is packed.
template <typename F>
class PackedCache {
 public:
  static PackedCache& Get() {
    static PackedCache* cache = new PackedCache;
    return *cache;
  }
  std::shared_ptr<const PackedMatrix<F>> Pack(const Geometry& g,
                                              const Tensor& filters) {
    const Key key(filters.data(), g.kernel_height, g.kernel_width, g.channels,
                  g.filters);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      const auto found = entries_.find(key);
      if (found != entries_.end()) return found->second.packed;
    }
    auto packed = std::make_shared<PackedMatrix<F>>();
    PackFilters(g, filters.flat<typename Blocks<F>::Sum>().data(), packed.get());
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto entry = entries_.begin(); entry != entries_.end();) {
      entry = entry->second.filters.RefCountIsOne() ? entries_.erase(entry)
                                                    : std::next(entry);
    }
    entries_.insert_or_assign(key, Entry{filters, packed});
    return packed;
  }

 private:
  using Key = std::tuple<const void*, int64_t, int64_t, int64_t, int64_t>;
  struct Entry {
    Tensor filters;
    std::shared_ptr<const PackedMatrix<F>> packed;
  };
  std::mutex mutex_;
  std::map<Key, Entry> entries_;
};

template <typename T>
const T* DataOrNull(const Tensor& tensor) {
  return tensor.NumElements() == 0 ? nullptr : tensor.flat<T>().data();
}

// Where an op computes: at the set elements of its mask. What FindPositions found there
// may come along as three inputs that follow all others; what FindPlaces found is one
// input, and for GPUs.
class ActiveInput {
 public:
  // Args: number of the other inputs; how many images share the mask.
  absl::Status Read(OpKernelContext* context, const Tensor& mask, int others,
                    int64_t copies = 1) {
    if (context->num_inputs() <= others + 1) {
      found_here_ =
          ActivePositions(mask.flat<bool>().data(), mask.NumElements(), copies);
      positions_ = found_here_;
      return absl::OkStatus();
    }
    return ReadFound(context, mask.shape(), others);
  }
  // Reads what came along, from `first` on, of a mask of this shape.
  absl::Status ReadFound(OpKernelContext* context, const TensorShape& mask, int first) {
    if (context->num_inputs() != first + 3) {
      return Invalid("found must be nothing, or positions, touched and touched_rows");
    }
    const Tensor& rows = context->input(first + 2);
    if (mask.dims() != 3 || rows.shape() != mask) {
      return Invalid("mask is ", mask.DebugString(),
                     ", but positions were found in one of ",
                     rows.shape().DebugString());
    }
    const int64_t size = rows.NumElements();
    const int64_t* const row_of = rows.flat<int64_t>().data();
    positions_ = View(context->input(first));
    touched_ = {View(context->input(first + 1)), row_of};
    // Anybody may make up these inputs, and kernels write where they say.
    bool fits = Ascends(positions_, size) && Ascends(touched_.inputs, size);
    const int64_t num_rows = touched_.inputs.size();
    for (int64_t i = 0; fits && i < num_rows; ++i) {
      fits = row_of[touched_.inputs[i]] == i;
    }
    bool below = true;
    for (int64_t i = 0; i < size; ++i) below &= row_of[i] < num_rows;
    if (!fits || !below)
      return Invalid("positions are not as find_positions gives them");
    return absl::OkStatus();
  }
  const Positions& positions() const { return positions_; }
  // What any 3x3 convolution that keeps size reads at them; null where nobody has told.
  const Touched* TouchedBySame3x3() const {
    return touched_.row_of != nullptr ? &touched_ : nullptr;
  }
  // What a convolution reads at them; null where nobody has told.
  const Touched* TouchedBy(const Geometry& g) const {
    return touched_.row_of != nullptr && g.IsSame3x3() ? &touched_ : nullptr;
  }

 private:
  static Positions View(const Tensor& tensor) {
    return {tensor.flat<int64_t>().data(), tensor.NumElements()};
  }
  static bool Ascends(const Positions& positions, int64_t end) {
    if (positions.empty()) return true;
    bool ascends = positions[0] >= 0 && *(positions.end() - 1) < end;
    for (int64_t i = 1; i < positions.size(); ++i) {
      ascends &= positions[i - 1] < positions[i];
    }
    return ascends;
  }
  std::vector<int64_t> found_here_;
  Positions positions_;
  Touched touched_;
};

// An op that may run out of memory.
class Op : public OpKernel {
 public:
  using OpKernel::OpKernel;

  void Compute(OpKernelContext* context) final {
    try {
      Run(context);
    } catch (const std::bad_alloc&) {
      context->SetStatus(absl::ResourceExhaustedError(
          absl::StrCat(type_string(), " is out of memory")));
    }
  }

 protected:
  virtual void Run(OpKernelContext* context) = 0;
};

// Whether an op of type T multiplies bfloat16, and only sums in T.
template <typename T>
absl::Status ReadFactors(OpKernelConstruction* context, bool* are_half) {
  TF_RETURN_IF_ERROR(context->GetAttr("bfloat16_factors", are_half));
  if (*are_half && !std::is_same_v<T, float>) {
    return Invalid("bfloat16_factors needs T: float");
  }
  return absl::OkStatus();
}

// Calls function(F()), F being the type of factors.
template <typename T, typename Function>
void WithFactors(bool are_half, const Function& function) {
  if constexpr (std::is_same_v<T, float>) {
    if (are_half) return function(BFloat16());
  }
  function(T());
}

// What ops that change x at some positions do around their arithmetic.
template <typename T>
class UnitOp : public Op {
 public:
  using Op::Op;

 protected:
  // y as a copy of x, or x itself where nobody else needs it.
  static absl::Status CopyOrForward(OpKernelContext* context, int input, int output,
                                    const Workers& workers, Tensor** y) {
    const Tensor& x = context->input(input);
    TF_RETURN_IF_ERROR(
        context->forward_input_or_allocate_output({input}, output, x.shape(), y));
    const T* from = x.flat<T>().data();
    T* to = (*y)->template flat<T>().data();
    if (from == to) return absl::OkStatus();
    constexpr int64_t kChunk = 1 << 16;
    workers.ForEach(CeilDiv(x.NumElements(), kChunk), [&](int64_t chunk) {
      const int64_t first = chunk * kChunk;
      const int64_t last = std::min(x.NumElements(), first + kChunk);
      std::memcpy(to + first, from + first, (last - first) * sizeof(T));
    });
    return absl::OkStatus();
  }
};

// Registers a kernel, a class template, for the types that CPUs multiply.
#define REGISTER_CPU_TYPE(name, kernel, type)                              \
  REGISTER_KERNEL_BUILDER(                                                 \
      Name(name).Device(tensorflow::DEVICE_CPU).TypeConstraint<type>("T"), \
      kernel<type>)
#define REGISTER_CPU(name, kernel)        \
  REGISTER_CPU_TYPE(name, kernel, float); \
  REGISTER_CPU_TYPE(name, kernel, double)

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_CPU_OPS_H_
