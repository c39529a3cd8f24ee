// Where convolutions compute, and what they read there.
//
// Positions are flat indices into [batch, out height, out width], ascending.

#ifndef CUSTOM_OPS_KERNELS_POSITIONS_H_
#define CUSTOM_OPS_KERNELS_POSITIONS_H_

#include <algorithm>
#include <cstdint>
#include <vector>

#include "gemm.h"

namespace perforated {

struct Geometry {
  int64_t batch, height, width, channels;  // input
  int64_t kernel_height, kernel_width;     // filters
  int64_t out_height, out_width, filters;  // output
  int64_t stride_y = 1, stride_x = 1;
  int64_t dilation_y = 1, dilation_x = 1;
  int64_t pad_top = 0, pad_left = 0;

  int64_t taps() const { return kernel_height * kernel_width; }
  int64_t depth() const { return taps() * channels; }
  int64_t num_inputs() const { return batch * height * width; }
  int64_t num_outputs() const { return batch * out_height * out_width; }
  // Whether it is 3x3 and keeps size, as in residual units and halting heads.
  bool IsSame3x3() const {
    return kernel_height == 3 && kernel_width == 3 && stride_y == 1 && stride_x == 1 &&
           dilation_y == 1 && dilation_x == 1 && pad_top == 1 && pad_left == 1 &&
           out_height == height && out_width == width;
  }
};

// Some positions, ascending. Owns nothing.
class Positions {
 public:
  Positions() = default;
  Positions(const int64_t* data, int64_t size) : data_(data), size_(size) {}
  Positions(const std::vector<int64_t>& positions)
      : Positions(positions.data(), static_cast<int64_t>(positions.size())) {}

  int64_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  const int64_t* begin() const { return data_; }
  const int64_t* end() const { return data_ + size_; }
  int64_t operator[](int64_t index) const { return data_[index]; }

 private:
  const int64_t* data_ = nullptr;
  int64_t size_ = 0;
};

// Which outputs a convolution computes, image by image, and where their windows lie in
// the input. This one's are at some positions; those ascend, so no division is needed
// to find their coordinates.
class Windows {
 public:
  Windows(const Geometry& g, const Positions& positions)
      : positions_(positions),
        image_size_(g.out_height * g.out_width),
        height_(g.height),
        width_(g.width) {
    for (int64_t y = 0; y < g.kernel_height; ++y) {
      for (int64_t x = 0; x < g.kernel_width; ++x) {
        taps_.push_back({y * g.dilation_y, x * g.dilation_x});
      }
    }
    corners_.reserve(positions.size());
    int64_t image = 0, y = 0, row_end = g.out_width;
    for (const int64_t position : positions) {
      while (position >= row_end) {
        row_end += g.out_width;
        if (++y == g.out_height) {
          y = 0;
          ++image;
        }
      }
      corners_.push_back(
          {image * g.height, y * g.stride_y - g.pad_top,
           (position - row_end + g.out_width) * g.stride_x - g.pad_left});
    }
  }
  int64_t size() const { return positions_.size(); }
  // Row of the output of the index-th window.
  int64_t Output(int64_t index) const { return positions_[index]; }
  // Index of the first window of an image.
  int64_t First(int64_t image) const {
    return std::lower_bound(positions_.begin(), positions_.end(), image * image_size_) -
           positions_.begin();
  }
  // Row of the input that a tap of the index-th window reads, or -1 in the padding.
  int64_t Input(int64_t index, int64_t tap) const {
    const Corner& corner = corners_[index];
    const int64_t y = corner.y + taps_[tap].y;
    const int64_t x = corner.x + taps_[tap].x;
    const bool inside = static_cast<uint64_t>(y) < static_cast<uint64_t>(height_) &&
                        static_cast<uint64_t>(x) < static_cast<uint64_t>(width_);
    return inside ? (corner.first_row + y) * width_ + x : -1;
  }

 private:
  struct Tap {
    int64_t y, x;
  };
  struct Corner {
    int64_t first_row, y, x;  // the image's first row; the window's corner in the image
  };
  Positions positions_;
  int64_t image_size_, height_, width_;
  std::vector<Tap> taps_;
  std::vector<Corner> corners_;
};

// The same where a table, one for all images, tells which row of the input each tap of
// each output reads, or -1.
class TableWindows {
 public:
  // table [outputs of an image, taps].
  TableWindows(int64_t batch, int64_t rows_in, int64_t rows_out, int64_t taps,
               const int32_t* table)
      : rows_out_(rows_out) {
    windows_.reserve(batch * rows_out);
    for (int64_t image = 0; image < batch; ++image) {
      for (int64_t row = 0; row < rows_out; ++row) {
        windows_.push_back({table + row * taps, image * rows_in});
      }
    }
  }
  int64_t size() const { return windows_.size(); }
  int64_t Output(int64_t index) const { return index; }
  int64_t First(int64_t image) const { return image * rows_out_; }
  int64_t Input(int64_t index, int64_t tap) const {
    const Window& window = windows_[index];
    const int64_t row = window.taps[tap];
    return row < 0 ? -1 : window.first_row + row;
  }

 private:
  struct Window {
    const int32_t* taps;
    int64_t first_row;  // of the image
  };
  int64_t rows_out_;
  std::vector<Window> windows_;
};

// A mask's bytes, each 0 or 1.
inline const uint8_t* Bytes(const bool* mask) {
  return reinterpret_cast<const uint8_t*>(mask);
}

// Lists the `count` set bytes of a mask, as flat indices from `first` on. Does not
// branch on them, because nothing can guess them.
inline void ListSet(const uint8_t* mask, int64_t count, int64_t first, int64_t* to) {
  for (int64_t i = 0, n = 0; n < count; ++i) {
    to[n] = first + i;
    n += mask[i];
  }
}

// Flat indices of the set elements of a mask; of one image's mask, in every image.
inline std::vector<int64_t> ActivePositions(const bool* mask, int64_t size,
                                            int64_t copies = 1) {
  const int64_t count = std::count(mask, mask + size, true);
  std::vector<int64_t> positions(count * copies);
  for (int64_t copy = 0; copy < copies; ++copy) {
    ListSet(Bytes(mask), count, copy * size, positions.data() + copy * count);
  }
  return positions;
}

// The input positions that a convolution reads at some output positions, and the way
// back: row_of[input position] is its index among them, or -1.
struct Touched {
  int64_t size() const { return inputs.size(); }
  int64_t Input(int64_t row) const { return inputs[row]; }
  int64_t Row(int64_t input) const { return row_of[input]; }

  Positions inputs;
  const int64_t* row_of = nullptr;
};

// All of them.
struct AllTouched {
  int64_t size() const { return count; }
  int64_t Input(int64_t row) const { return row; }
  int64_t Row(int64_t input) const { return input; }

  int64_t count;
};

// Which inputs [batch, height, width] a convolution reads at a mask of its outputs.
class TouchedMask {
 public:
  TouchedMask(const Geometry& g, const uint8_t* active) : touched_(g.num_inputs()) {
    // First spread along the rows of the output, then along its columns.
    const int64_t num_rows = g.batch * g.out_height;
    std::vector<uint8_t> rows(num_rows * g.width);
    for (int64_t row = 0; row < num_rows; ++row) {
      Spread(g.kernel_width, g.stride_x, g.dilation_x, g.pad_left, g.out_width, g.width,
             1, active + row * g.out_width, rows.data() + row * g.width);
    }
    for (int64_t image = 0; image < g.batch; ++image) {
      Spread(g.kernel_height, g.stride_y, g.dilation_y, g.pad_top, g.out_height,
             g.height, g.width, rows.data() + image * g.out_height * g.width,
             touched_.data() + image * g.height * g.width);
    }
    count_ = std::count(touched_.begin(), touched_.end(), 1);
  }
  int64_t count() const { return count_; }
  // Writes what `Touched` refers to: [count] and [number of inputs].
  void List(int64_t* inputs, int64_t* row_of) const {
    ListSet(touched_.data(), count_, 0, inputs);
    std::fill_n(row_of, touched_.size(), -1);
    for (int64_t row = 0; row < count_; ++row) row_of[inputs[row]] = row;
  }

 private:
  // Sets what a one-dimensional window reads; elements are `width` bytes wide.
  static void Spread(int64_t kernel, int64_t stride, int64_t dilation, int64_t pad,
                     int64_t out_size, int64_t in_size, int64_t width,
                     const uint8_t* from, uint8_t* to) {
    for (int64_t tap = 0; tap < kernel; ++tap) {
      const int64_t offset = tap * dilation - pad;
      const int64_t first = offset >= 0 ? 0 : CeilDiv(-offset, stride);
      const int64_t last =
          in_size <= offset ? 0 : std::min(out_size, CeilDiv(in_size - offset, stride));
      if (stride == 1) {
        for (int64_t i = first * width; i < last * width; ++i) {
          to[i + offset * width] |= from[i];
        }
        continue;
      }
      for (int64_t i = first; i < last; ++i) {
        for (int64_t j = 0; j < width; ++j) {
          to[(i * stride + offset) * width + j] |= from[i * width + j];
        }
      }
    }
  }
  std::vector<uint8_t> touched_;
  int64_t count_;
};

// What a convolution reads at some positions: as it is known already, or found now.
class TouchedInputs : public Touched {
 public:
  TouchedInputs(const Geometry& g, const Positions& positions, const Touched* known) {
    if (known != nullptr) {
      Touched::operator=(*known);
      return;
    }
    std::vector<uint8_t> active(g.num_outputs());
    for (const int64_t position : positions) active[position] = 1;
    const TouchedMask mask(g, active.data());
    inputs_.resize(mask.count());
    row_of_.resize(g.num_inputs());
    mask.List(inputs_.data(), row_of_.data());
    inputs = inputs_;
    row_of = row_of_.data();
  }
  TouchedInputs(const TouchedInputs&) = delete;
  TouchedInputs& operator=(const TouchedInputs&) = delete;

 private:
  std::vector<int64_t> inputs_, row_of_;
};

}  // namespace perforated

#endif  // CUSTOM_OPS_KERNELS_POSITIONS_H_
