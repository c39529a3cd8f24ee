// What the CPU kernels of all ops share: threads, memory, packed filters.

#ifndef CUSTOM_OPS_KERNELS_CPU_OPS_H_
#define CUSTOM_OPS_KERNELS_CPU_OPS_H_

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "convolution.h"
#include "ops.h"
#include "team.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/types.h"
#include "tensorflow/core/platform/threadpool.h"

namespace perforated {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;

// Asks for large pages where there is much memory that nobody has touched yet: with
// small ones, its first use takes several times as long as what is computed there.
inline void PreferLargePages(void* memory, std::size_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr std::uintptr_t kPage = 2 << 20;
  const auto begin = reinterpret_cast<std::uintptr_t>(memory);
  const std::uintptr_t first = (begin + kPage - 1) / kPage * kPage;
  const std::uintptr_t last = (begin + bytes) / kPage * kPage;
  if (first < last)
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

inline absl::Status AllocateOutput(OpKernelContext* context, int index,
                                   const TensorShape& shape, Tensor** output) {
  TF_RETURN_IF_ERROR(context->allocate_output(index, shape, output));
  PreferLargePages((*output)->data(), (*output)->TotalBytes());
  return absl::OkStatus();
}

// TensorFlow's own threads and memory.
class PoolWorkers : public Workers {
 public:
  explicit PoolWorkers(OpKernelContext* context)
      : context_(context),
        workers_(*context->device()->tensorflow_cpu_worker_threads()) {}
  ~PoolWorkers() override { team_->Stop(); }
  PoolWorkers(const PoolWorkers&) = delete;
  PoolWorkers& operator=(const PoolWorkers&) = delete;

  int num_threads() const override { return workers_.num_threads; }

  void ForEach(int64_t n, const std::function<void(int64_t)>& fn) const override {
    Team::ForEach(team_, n, std::min<int64_t>(n, num_threads()) - 1, fn,
                  [&](std::function<void()> help) {
                    workers_.workers->Schedule(std::move(help));
                  });
  }

  void* Allocate(std::size_t bytes) const override {
    const TensorShape shape({static_cast<int64_t>(bytes)});
    Tensor& memory = memory_.emplace_back();
    if (!context_->allocate_temp(tensorflow::DT_INT8, shape, &memory).ok()) {
      throw std::bad_alloc();
    }
    PreferLargePages(memory.data(), bytes);
    return memory.data();
  }

 private:
  OpKernelContext* context_;
  mutable std::vector<Tensor> memory_;
  const tensorflow::DeviceBase::CpuWorkerThreads& workers_;
  const std::shared_ptr<Team> team_ = std::make_shared<Team>();
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

  void Compute(OpKernelContext* context) override {
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

// An op of parallel parts. All of it runs on the threads that compute, while the one
// that called it sleeps: with one thread more than processors, two of them would now
// and then share one while another has nothing to do.
class PoolOp : public Op {
 public:
  using Op::Op;

  void Compute(OpKernelContext* context) final {
    const auto& pool = *context->device()->tensorflow_cpu_worker_threads();
    if (pool.num_threads < 2 || pool.workers->CurrentThreadId() >= 0) {
      Op::Compute(context);
      return;
    }
    std::mutex mutex;
    std::condition_variable changed;
    bool is_done = false;
    pool.workers->Schedule([&] {
      Op::Compute(context);
      std::lock_guard<std::mutex> lock(mutex);
      is_done = true;
      changed.notify_one();
    });
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait(lock, [&] { return is_done; });
  }
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
class UnitOp : public PoolOp {
 public:
  using PoolOp::PoolOp;

 protected:
  // y as a copy of x, or x itself where nobody else needs it.
  static absl::Status CopyOrForward(OpKernelContext* context, int input, int output,
                                    const Workers& workers, Tensor** y) {
    const Tensor& x = context->input(input);
    TF_RETURN_IF_ERROR(
        context->forward_input_or_allocate_output({input}, output, x.shape(), y));
    PreferLargePages((*y)->data(), (*y)->TotalBytes());
    const T* from = x.flat<T>().data();
    T* to = (*y)->template flat<T>().data();
    if (from != to) CopyInParts(from, x.NumElements(), workers, to);
    return absl::OkStatus();
  }
  // An input's memory to write to, if nobody else needs it, or a copy.
  static absl::Status TakeOrCopy(OpKernelContext* context, int input,
                                 const Workers& workers, Tensor* to) {
    const Tensor& x = context->input(input);
    const std::unique_ptr<Tensor> taken = context->forward_input(
        input, OpKernelContext::Params::kNoReservation, x.dtype(), x.shape(),
        tensorflow::DEVICE_MEMORY, tensorflow::AllocatorAttributes());
    if (taken != nullptr) {
      *to = *taken;
      return absl::OkStatus();
    }
    TF_RETURN_IF_ERROR(context->allocate_temp(x.dtype(), x.shape(), to));
    PreferLargePages(to->data(), to->TotalBytes());
    CopyInParts(x.flat<T>().data(), x.NumElements(), workers, to->flat<T>().data());
    return absl::OkStatus();
  }
  // Copies, all threads a part each.
  static void CopyInParts(const T* from, int64_t size, const Workers& workers, T* to) {
    constexpr int64_t kChunk = 1 << 16;
    workers.ForEach(CeilDiv(size, kChunk), [&](int64_t chunk) {
      const int64_t first = chunk * kChunk;
      const int64_t last = std::min(size, first + kChunk);
      std::memcpy(to + first, from + first, (last - first) * sizeof(T));
    });
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
