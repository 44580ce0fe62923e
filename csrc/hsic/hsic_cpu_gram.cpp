// The kernel matrix of one linear side on the CPU, for those who want it while its features are still in the caches:
// K_ij = (x_i − m)ᵀ(x_j − m), m the mean.
//
// Bound: n²/2 p multiply-adds, or the p n numbers that are read, once. Channels go in slices, each of which one thread
// walks in groups that stay in its second-level cache: panels, products of all pairs of tiles. A slice sums in a matrix
// of its own; these are added in order at the end, and how many there are depends on the shape alone, so that nothing
// depends on the number of threads. Tiles, panels and the rule for float32 are those of hsic_cpu.cpp.
//
// So that features are read once, what is subtracted before they are multiplied is the mean of a few samples; the
// matrix is centred afterwards, in float64. Where those few are far from the others (one of them may be an outlier),
// float32 products would lose digits, and the mean of all samples is taken after all.
#include <algorithm>
#include <cmath>
#include <vector>

#include "hsic_cpu_tiles.h"
#include "hsic_op.h"
#include "hsic_safe.h"

namespace stitchkern::hsic {
namespace {

constexpr int64_t GRAM_CHANNELS = 512;                 // of a group, a multiple of CHANNELS
constexpr int64_t MOST_SLICES = 16, SLICE_GROUPS = 4;  // at least, of a slice where there are several
constexpr int64_t MOVE_COST = 8;  // of a number that comes from beyond the caches, in multiply-adds
constexpr int64_t PILOTS = 16;    // samples of the first mean
constexpr double FAR = 0.5;       // |pilot − m|² over |x_i − m|² of a small sample from which on it is too far away
constexpr int64_t SLICES_BYTES = int64_t(1) << 26;  // of the matrices of all slices, unless one is larger

template <class T>
class Gram {
 public:
  Gram(const Rows& x, int64_t count)
      : x_(x),
        count_(count),
        tiles_((count + TILE - 1) / TILE),
        pairs_(tiles_ * (tiles_ + 1) / 2),
        slice_channels_(slice_channels(x.channels, pairs_)),
        slices_((x.channels + slice_channels_ - 1) / slice_channels_),
        values_(slices_ * pairs_ * TILE * TILE) {}

  enum class Found { good, far_pilot, unsafe };

  // Into [count, count], with the mean of `pilots` samples to start from.
  Found run(double* kernel, int64_t pilots) {
    pilots_ = std::min(pilots, count_);
    const int64_t cost = pairs_ * TILE * TILE * x_.channels;
    parallel_tasks(slices_, cost, [&](int64_t slice) { multiply(slice); });
    parallel_tasks(tiles_ * tiles_, MOVE_COST * pairs_ * TILE * TILE * slices_, [&](int64_t task) {
      if (task / tiles_ <= task % tiles_) add(task / tiles_, task % tiles_, kernel);
    });
    const double before = norms(kernel).largest, shifted = centre(kernel);
    const Norms after = norms(kernel);
    if (sizeof(T) == 8) return Found::good;
    // nothing at all may be what is too small for float32
    if (after.largest == 0 || !safe_norm(before, Kernel::linear) || !safe_norm(after.largest, Kernel::linear))
      return Found::unsafe;
    return pilots_ < count_ && shifted > FAR * after.small ? Found::far_pilot : Found::good;
  }

 private:
  static int64_t slice_channels(int64_t channels, int64_t pairs) {
    const int64_t fit = SLICES_BYTES / (pairs * TILE * TILE * int64_t(sizeof(double)));
    const int64_t slices = std::clamp<int64_t>(fit, 1, MOST_SLICES);
    const int64_t groups = (channels + slices * GRAM_CHANNELS - 1) / (slices * GRAM_CHANNELS);
    return std::max(groups, SLICE_GROUPS) * GRAM_CHANNELS;
  }

  int rows_in(int64_t tile) const { return int(std::min<int64_t>(TILE, count_ - tile * TILE)); }
  // Of a pair of tiles i <= j.
  double* values(int64_t slice, int64_t i, int64_t j) const {
    return values_.get() + (slice * pairs_ + i * tiles_ - i * (i - 1) / 2 + j - i) * TILE * TILE;
  }

  void multiply(int64_t slice) {
    const Buffer<T> packed(tiles_ * TILE * GRAM_CHANNELS);
    double mean[GRAM_CHANNELS];
    const int64_t first = slice * slice_channels_, end = std::min(x_.channels, first + slice_channels_);
    for (int64_t c = first; c < end; c += GRAM_CHANNELS) {
      const int64_t channels = std::min(GRAM_CHANNELS, end - c);
      find_pilot(c, channels, mean);
      const auto panels = [&](int64_t tile) { return packed.get() + tile * TILE * channels; };
      for (int64_t tile = 0; tile < tiles_; ++tile)
        products<T>().pack({&x_, mean, tile * TILE, rows_in(tile), c, channels, panels(tile), nullptr});
      for (int64_t i = 0; i < tiles_; ++i)
        for (int64_t j = i; j < tiles_; ++j)
          products<T>().multiply({panels(i),
                                  panels(j),
                                  channels,
                                  {rows_in(i), rows_in(j), i == j},
                                  0,
                                  TILE,
                                  c == first,
                                  values(slice, i, j)});
    }
  }

  void find_pilot(int64_t channel0, int64_t channels, double* mean) const {
    Rows some = x_;
    some.size[2] = pilots_, some.stride[2] *= count_ / pilots_;
    functions().mean({&some, 0, pilots_, channel0, channels, mean});
    for (int64_t c = 0; c < channels; ++c) mean[c] /= double(pilots_);
    add_first(x_, channel0, channels, mean);
  }

  // All slices of one pair of tiles, to both sides of the diagonal.
  void add(int64_t i, int64_t j, double* kernel) {
    double* total = values(0, i, j);
    for (int64_t slice = 1; slice < slices_; ++slice) {
      const double* more = values(slice, i, j);
      for (int64_t k = 0; k < TILE * TILE; ++k) total[k] += more[k];
    }
    for (int64_t r = 0; r < rows_in(i); ++r)
      for (int64_t c = i == j ? r : 0; c < rows_in(j); ++c) {
        const int64_t row = i * TILE + r, column = j * TILE + c;
        kernel[row * count_ + column] = kernel[column * count_ + row] = total[r * TILE + c];
      }
  }

  struct Norms {
    double largest, small;  // beyond all where one is not a number; a quarter is below
  };
  Norms norms(const double* kernel) const {
    std::vector<double> squares(count_);
    for (int64_t i = 0; i < count_; ++i) {
      const double square = kernel[i * (count_ + 1)];
      squares[i] = square < HUGE_VAL ? square : HUGE_VAL;
    }
    const auto quarter = squares.begin() + count_ / 4;
    std::nth_element(squares.begin(), quarter, squares.end());
    return {*std::max_element(quarter, squares.end()), *quarter};
  }

  // Returns |pilot − m|².
  double centre(double* kernel) const {
    std::vector<double> mean(count_);
    const auto each_row = [&](const auto& visit) {
      parallel_tasks(tiles_, MOVE_COST * count_ * count_, [&](int64_t tile) {
        for (int64_t i = tile * TILE; i < tile * TILE + rows_in(tile); ++i) visit(i, kernel + i * count_);
      });
    };
    each_row([&](int64_t i, const double* row) {
      double total = 0;
      for (int64_t j = 0; j < count_; ++j) total += row[j];
      mean[i] = total / double(count_);
    });
    double middle = 0;
    for (int64_t i = 0; i < count_; ++i) middle += mean[i] / double(count_);
    each_row([&](int64_t i, double* row) {
      for (int64_t j = 0; j < count_; ++j) row[j] -= (mean[i] + mean[j]) - middle;
    });
    return middle;
  }

  const Rows& x_;
  const int64_t count_, tiles_, pairs_, slice_channels_, slices_;
  const Buffer<double> values_;  // [slices][pairs][TILE, TILE]
  int64_t pilots_ = 0;
};

Tensor hsic_gram_cpu(Tensor x) {
  Side side{features_of(x, "x"), Kernel::linear};
  Batch batch{};
  batch.sides = &side, batch.sides_count = 1, batch.count = x.size(0);
  const Tensor kernel = torch::stable::new_empty(x, {batch.count, batch.count}, ScalarType::Double);
  double* to = static_cast<double*>(kernel.data_ptr());
  if (batch.count == 0) return kernel;
  bool good = false;
  if (may_be_float32(batch)) {
    Gram<float> gram(side.x, batch.count);
    auto found = gram.run(to, PILOTS);
    if (found == Gram<float>::Found::far_pilot) found = gram.run(to, batch.count);
    good = found == Gram<float>::Found::good;
  }
  if (!good) Gram<double>(side.x, batch.count).run(to, batch.count);
  return kernel;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("hsic_gram", TORCH_BOX(&hsic_gram_cpu)); }

}  // namespace stitchkern::hsic
