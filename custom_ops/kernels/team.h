// Threads that stay together while one call needs them again and again.
//
// An operation of many short parts gives every part to all threads. To wake a thread
// takes longer than many a part, so those that are awake look for the next one for a
// while before they leave.

#ifndef CUSTOM_OPS_KERNELS_TEAM_H_
#define CUSTOM_OPS_KERNELS_TEAM_H_

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

namespace perforated {

// What a thread does between two looks at what others are at.
inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#endif
}

class Team {
 public:
  // Runs fn(i) for every i in [0, n) on this thread and up to `helpers` others, which
  // schedule(closure) calls for. The calling thread works too and waits for tasks, not
  // for threads, so threads that are busy elsewhere delay nothing. One call at a time.
  template <typename Schedule>
  static void ForEach(const std::shared_ptr<Team>& team, int64_t n, int64_t helpers,
                      const std::function<void(int64_t)>& fn,
                      const Schedule& schedule) {
    if (helpers <= 0 || n >= kClosed) {
      for (int64_t i = 0; i < n; ++i) fn(i);
      return;
    }
    team->Open(n, &fn);
    while (team->present_.load() < helpers) {
      ++team->present_;
      schedule([team] { team->Help(); });
    }
    team->Work();
    team->Wait(n);
  }
  // Nothing comes any more.
  void Stop() {
    stopped_.store(true);
    word_.store(NextWord(kClosed));
  }

 private:
  // Whose turn it is: which part in the upper half, and the next task of it.
  static constexpr int64_t kClosed = (int64_t{1} << 32) - 1;
  // How long to look for something to do: some ten microseconds each.
  static constexpr int kPolls = 500, kIdlePolls = 1500;

  uint64_t NextWord(uint64_t task) const {
    return ((word_.load() >> 32) + 1) << 32 | task;
  }

  // Whoever takes a task of an earlier part fails, since the word has changed before
  // anything else does.
  void Open(int64_t n, const std::function<void(int64_t)>* fn) {
    word_.store(NextWord(kClosed));
    done_.store(0);
    count_.store(n);
    function_.store(fn);
    word_.store(NextWord(0));
  }
  // Does tasks until there are none left. Returns the word that says so.
  uint64_t Work() {
    uint64_t word = word_.load();
    for (;;) {
      const int64_t count = count_.load();
      const auto* const function = function_.load();
      const int64_t task = static_cast<int64_t>(word & kClosed);
      if (task == kClosed || task >= count) {
        const uint64_t now = word_.load();
        if (now == word) return word;
        word = now;
        continue;
      }
      if (!word_.compare_exchange_weak(word, word + 1)) continue;
      (*function)(task);
      if (done_.fetch_add(1) + 1 == count) {
        std::lock_guard<std::mutex> lock(mutex_);
        all_done_.notify_one();
      }
      word = word_.load();
    }
  }
  void Help() {
    while (!stopped_.load()) {
      const uint64_t word = Work();
      int polls = 0;
      while (word_.load() == word && polls < kIdlePolls) {
        Pause();
        ++polls;
      }
      if (polls == kIdlePolls) break;
    }
    --present_;
  }
  void Wait(int64_t n) {
    // Tasks end at about the same time, sooner than a thread falls asleep and wakes.
    for (int i = 0; i < kPolls && done_.load() < n; ++i) Pause();
    if (done_.load() == n) return;
    std::unique_lock<std::mutex> lock(mutex_);
    all_done_.wait(lock, [&] { return done_.load() == n; });
  }

  std::atomic<uint64_t> word_{kClosed};
  std::atomic<int64_t> count_{0}, done_{0}, present_{0};
  std::atomic<const std::function<void(int64_t)>*> function_{nullptr};
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::condition_variable all_done_;
};

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_TEAM_H_
