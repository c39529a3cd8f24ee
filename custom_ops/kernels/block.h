// A block of residual units whose positions halt, from its first unit's output on.
//
// Spatially Adaptive Computation Time (Figurnov et al., 2017, algorithm 2): a head
// scores every unit's output, a position halts where its scores add up to 1 - epsilon,
// and the block's output is the sum of the units', weighted by score. Positions are
// found once and only ever become fewer, so that nothing looks at a whole map.

#ifndef CUSTOM_OPS_KERNELS_BLOCK_H_
#define CUSTOM_OPS_KERNELS_BLOCK_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "units.h"

namespace perforated {

// Scores positions by a 3x3 convolution to one channel, and by pooled features.
template <typename T>
struct Head {
  const PackedMatrix<T>* filters;
  Transform<T> before;  // what the convolution reads
  const T* bias;        // [1]
  Transform<T> pooled;  // the mean of an image's features
  const T* weights;     // [channels], of its mean
};

// What a block tells of its positions; `units` counts the first one.
struct HaltingMaps {
  float* remainder;    // [positions]: what no score has been taken of
  int32_t* num_units;  // [positions]
  float* weights;      // [positions, units]
  float* scores;       // [units - 1, positions], zero where a unit does not run
  int64_t* counts;     // [batch, units - 1, 2]: where later units run, and read
};

// Where units are told to halt, whatever the scores say; for benchmarks.
struct Imposed {
  const int32_t* units = nullptr;  // null: scores decide
  int64_t size = 1;                // those of one image, or of all
};

// Memory that one unit after the other uses.
class ReusedMemory : public Workers {
 public:
  explicit ReusedMemory(const Workers& workers) : workers_(workers) {}
  int num_threads() const override { return workers_.num_threads(); }
  void ForEach(int64_t n, const std::function<void(int64_t)>& fn) const override {
    workers_.ForEach(n, fn);
  }
  void* Allocate(std::size_t bytes) const override {
    if (next_ == pieces_.size()) pieces_.emplace_back(nullptr, 0);
    auto& [memory, size] = pieces_[next_++];
    if (memory == nullptr || size < bytes) {
      memory = workers_.Allocate(bytes);
      size = bytes;
    }
    return memory;
  }
  // All that was allocated may be used again.
  void Reset() { next_ = 0; }

 private:
  const Workers& workers_;
  mutable std::vector<std::pair<void*, std::size_t>> pieces_;
  mutable std::size_t next_ = 0;
};

// What the pooled features of every image add to its positions' logits.
template <typename T>
std::vector<T> PooledLogits(const Head<T>& head, const Geometry& g, const T* sums) {
  const int64_t image_size = g.out_height * g.out_width;
  std::vector<T> logits(g.batch), mean(g.channels);
  for (int64_t image = 0; image < g.batch; ++image) {
    for (int64_t c = 0; c < g.channels; ++c) {
      mean[c] = sums[image * g.channels + c] / static_cast<T>(image_size);
    }
    head.pooled.Apply(mean.data(), 0, g.channels, mean.data());
    T sum = 0;
    for (int64_t c = 0; c < g.channels; ++c) sum += mean[c] * head.weights[c];
    logits[image] = sum;
  }
  return logits;
}

// Runs a block. `g` is the geometry of a head's convolution, and so x [positions,
// channels] is the first unit's output; it becomes the last one's. `sums` [batch,
// channels] are its sums over positions, which units keep up. run_unit(k, positions,
// touched, workers) runs the k-th unit after the first on x. All units but the last
// have a head.
template <typename T, typename RunUnit>
void RunBlock(const Geometry& g, const std::vector<Head<T>>& heads, float limit,
              const Imposed& imposed, const RunUnit& run_unit, const T* x,
              const T* sums, T* output, const HaltingMaps& maps,
              const Workers& workers) {
  constexpr int64_t kChunk = 64;
  const int64_t size = g.num_outputs(), image_size = g.out_height * g.out_width;
  const int64_t last = heads.size(), num_units = last + 1, channels = g.channels;
  std::vector<float> cumulative(size);
  std::fill_n(maps.remainder, size, 1.0f);
  std::fill_n(maps.num_units, size, 0);
  std::fill_n(maps.weights, size * num_units, 0.0f);
  std::fill_n(maps.scores, size * last, 0.0f);
  std::fill_n(maps.counts, g.batch * last * 2, int64_t{0});
  std::vector<int64_t> active(size), inputs(size), row_of(size);
  std::iota(active.begin(), active.end(), 0);
  std::vector<uint8_t> mask(size, 1);
  std::vector<T> logits(size);
  ReusedMemory memory(workers);
  for (int64_t k = 0; k <= last && !active.empty(); ++k) {
    memory.Reset();
    const Positions positions(active);
    const TouchedMask read(g, mask.data());
    read.List(inputs.data(), row_of.data());
    Touched touched;
    touched.inputs = {inputs.data(), read.count()};
    touched.row_of = row_of.data();
    if (k > 0) {
      const auto runs = FirstRows(positions, g.batch, image_size);
      const auto reads = FirstRows(touched.inputs, g.batch, image_size);
      for (int64_t image = 0; image < g.batch; ++image) {
        int64_t* const counts = maps.counts + (image * last + k - 1) * 2;
        counts[0] = runs[image + 1] - runs[image];
        counts[1] = reads[image + 1] - reads[image];
      }
      run_unit(k - 1, positions, touched, memory);
    }
    std::vector<T> pooled;
    if (k < last) {
      const Head<T>& head = heads[k];
      Convolve(
          g, x, nullptr, head.before, *head.filters, Transform<T>{}, positions,
          &touched, [&](int64_t r) { return logits.data() + r; }, memory);
      pooled = PooledLogits(head, g, sums);
    }
    float* const scores = maps.scores + k * size;
    const int64_t count = positions.size();
    workers.ForEach(CeilDiv(count, kChunk), [&](int64_t chunk) {
      const int64_t end = std::min(count, (chunk + 1) * kChunk);
      for (int64_t r = chunk * kChunk; r < end; ++r) {
        const int64_t p = positions[r];
        float weight = maps.remainder[p];
        bool goes_on = false;
        if (k < last) {
          const float logit =
              static_cast<float>(logits[r] + *heads[k].bias + pooled[p / image_size]);
          float score = 1.0f / (1.0f + std::exp(-logit));
          if (imposed.units != nullptr) {
            // So little of the score that it changes nothing, but is not left out.
            const bool halts = imposed.units[p % imposed.size] <= k + 1;
            score = (halts ? 1.0f : 0.0f) + 1e-6f * score;
          }
          scores[p] = score;
          cumulative[p] += score;
          goes_on = cumulative[p] < limit;
          if (goes_on) {
            weight = score;
            maps.remainder[p] -= score;
          }
        }
        ++maps.num_units[p];
        mask[p] = goes_on;
        maps.weights[p * num_units + k] = weight;
        AddWeighted(x + p * channels, static_cast<T>(weight), channels, k > 0,
                    output + p * channels);
      }
    });
    active.erase(std::remove_if(active.begin(), active.end(),
                                [&](int64_t p) { return mask[p] == 0; }),
                 active.end());
  }
}

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_BLOCK_H_
