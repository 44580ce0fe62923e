// Sums over kernel matrices on the CPU.
//
// Bound: n²/2 Σp multiply-adds over the fused multiply-add peak, then an exponential for each pair of samples, side and
// bandwidth, about thirty instructions a vector, and s²/2 multiply-adds for the products of sides.
//
// Samples go in tiles of TILE, tiles in blocks. For a block of pairs of samples, on or above the diagonal, the products
// of all sides are made one group of channels after the other: pack the samples' channels into panels, add their
// products to the tiles. A group is some channels of a wide side or several narrow sides, so that what is packed and
// the tiles it adds to stay in the caches whatever p. Then each tile turns into kernels, a few rows of all sides at a
// time, which meet while they lie in the first-level cache. So nothing of size n² is stored: memory is O(n) beside one
// block. Every task writes to a place of its own, and what they found is added up in order: nothing depends on which
// thread did what.
//
// float32 products serve narrower data, summed in float64 after CHANNELS channels: entries of a linear kernel err by
// 1e-7 of |a||b| and less, at random, which many samples average out. |a − b|² = |a|² + |b|² − 2 aᵀb cancels, by as
// much as |a|² / σ² in the exponent, which the caller's bandwidth makes as large as it likes: RBF kernels take float32
// products only where that is small for all samples and bandwidths, and float64 norms in any case. CKA is then right to
// 1e-9 or so, in two thirds of the time. The root in Laplace kernels would magnify the error for close samples.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include "hsic_cpu_tiles.h"
#include "hsic_op.h"

namespace stitchkern::hsic {
namespace {

constexpr double SAFE_REACH = 4;                                    // |a|² / σ² that float32 products may have
constexpr int64_t SAFE_ROWS_RADIAL = 1024, SAFE_ROWS_LINEAR = 128;  // samples that they need
constexpr double SAFE_SMALLEST = 0x1p-60, SAFE_LARGEST = 0x1p100;   // |a|², lest what adds up to it leaves float32

// Whether float32 products may be good enough; `are_safe` has the last word, once norms are known.
bool may_be_float32(const Batch& batch) {
  return std::all_of(batch.sides, batch.sides + batch.sides_count, [&](const Side& side) {
    const int64_t least = side.kernel == Kernel::linear ? SAFE_ROWS_LINEAR : SAFE_ROWS_RADIAL;
    return side.x.dtype != DType::f64 && side.kernel != Kernel::laplace && batch.count >= least;
  });
}

template <class T>
class Sums : Tiles<T> {
  using Tiles<T>::batch_, Tiles<T>::sides_, Tiles<T>::tiles_, Tiles<T>::side_, Tiles<T>::groups_, Tiles<T>::norms_,
      Tiles<T>::scale_, Tiles<T>::shift_;

 public:
  explicit Sums(const Batch& batch)
      : Tiles<T>(batch,
                 batch.sides_count * batch.bandwidths * (2 * TILE + batch.sides_count) * int64_t(sizeof(double))),
        width_(batch.bandwidths * batch.sides_count),
        partial_rows_(side_ * side_ * width_ * TILE),
        partial_columns_(side_ * side_ * width_ * TILE),
        partial_sums_(side_ * side_ * width_ * sides_) {}

  // False where float32 products turn out not to be good enough.
  bool run() {
    std::fill_n(batch_.rows, width_ * batch_.count, 0.0);
    std::fill_n(batch_.sums, width_ * sides_, 0.0);
    const int64_t blocks = this->blocks();
    if (blocks > 1)
      for (const Group& group : groups_) this->find_means(group);
    for (int64_t i = 0; i < blocks; ++i) visit(i, i, blocks == 1);  // which finds the norms
    if (sizeof(T) == 4 && !are_safe()) return false;
    for (int64_t i = 0; i < blocks; ++i)
      for (int64_t j = i + 1; j < blocks; ++j) visit(i, j, false);
    set_diagonal();
    for (int64_t b = 0; b < batch_.bandwidths; ++b)
      for (int64_t a = 0; a < sides_; ++a)
        for (int64_t c = a; c < sides_; ++c) {
          double* sums = batch_.sums + b * sides_ * sides_;
          sums[c * sides_ + a] = sums[a * sides_ + c] *= 2;
        }
    return true;
  }

 private:
  // All that two blocks of samples have to do with each other.
  void visit(int64_t block_i, int64_t block_j, bool with_means) {
    const bool diagonal = block_i == block_j;
    const int64_t first_i = this->first_tile(block_i), first_j = this->first_tile(block_j);
    std::vector<Pair> pairs;
    for (int64_t i = 0; i < this->tiles_of(block_i); ++i)
      for (int64_t j = diagonal ? i : 0; j < this->tiles_of(block_j); ++j) pairs.push_back({i, j});
    const int64_t count = int64_t(pairs.size());
    const auto extent = [&](const Pair& pair) {
      return Extent{this->rows_in(first_i + pair.i), this->rows_in(first_j + pair.j), diagonal && pair.i == pair.j};
    };
    this->multiply(block_i, block_j, pairs, extent, with_means, diagonal);

    const int64_t cost = count * TILE * TILE * width_ * (EXP_COST + sides_ / 2);
    parallel_tasks(count, cost, [&](int64_t place) {
      const Pair& pair = pairs[place];
      const Extent wanted = extent(pair);
      this->to_distances(place, first_i + pair.i, first_j + pair.j, wanted);
      const Buffer<double> scratch(scratch_size(sides_));
      for (int64_t b = 0; b < batch_.bandwidths; ++b) {
        const int64_t at = place * width_ + b * sides_;
        functions().add({int(sides_), batch_.sides, this->values(place, 0), &scale_[b * sides_], &shift_[b * sides_],
                         wanted, partial_rows_.get() + at * TILE, partial_columns_.get() + at * TILE,
                         partial_sums_.get() + at * sides_, scratch.get()});
      }
    });

    for (int64_t place = 0; place < count; ++place)
      for (int64_t b = 0; b < batch_.bandwidths; ++b)
        for (int64_t a = 0; a < sides_; ++a) {
          const int64_t at = place * width_ + b * sides_ + a;
          double* rows = batch_.rows + (a * batch_.bandwidths + b) * batch_.count;
          const Extent wanted = extent(pairs[place]);
          for (int k = 0; k < wanted.rows; ++k)
            rows[(first_i + pairs[place].i) * TILE + k] += partial_rows_.get()[at * TILE + k];
          for (int k = 0; k < wanted.columns; ++k)
            rows[(first_j + pairs[place].j) * TILE + k] += partial_columns_.get()[at * TILE + k];
          for (int64_t c = a; c < sides_; ++c)
            batch_.sums[(b * sides_ + a) * sides_ + c] += partial_sums_.get()[at * sides_ + c];
        }
  }

  bool are_safe() const {
    for (int64_t a = 0; a < sides_; ++a) {
      double largest = 0;
      for (int64_t i = 0; i < tiles_ * TILE; ++i)
        if (const double square = norms_[a * tiles_ * TILE + i]; !(square <= largest))
          largest = square < HUGE_VAL ? square : HUGE_VAL;
      if (largest == 0 && batch_.sides[a].kernel == Kernel::linear) continue;
      if (!(largest >= SAFE_SMALLEST && largest <= SAFE_LARGEST)) return false;
      for (int64_t b = 0; batch_.sides[a].kernel == Kernel::rbf && b < batch_.bandwidths; ++b)
        if (!(largest * scale_[b * sides_ + a] * 2 <= SAFE_REACH)) return false;
    }
    return true;
  }

  void set_diagonal() {
    for (int64_t a = 0; a < sides_; ++a)
      for (int64_t b = 0; b < batch_.bandwidths; ++b)
        for (int64_t i = 0; i < batch_.count; ++i)
          batch_.diagonal[(a * batch_.bandwidths + b) * batch_.count + i] =
              (batch_.sides[a].kernel == Kernel::linear ? norms_[a * tiles_ * TILE + i] : 1) - shift_[b * sides_ + a];
  }

  const int64_t width_;                                  // sides of all bandwidths
  const Buffer<double> partial_rows_, partial_columns_;  // [side × side][bandwidths][sides][TILE]
  const Buffer<double> partial_sums_;                    // [side × side][bandwidths][sides, sides]
};

std::tuple<Tensor, Tensor, Tensor> hsic_sums_cpu(std::vector<Tensor> x, std::vector<int64_t> kernels, Tensor bandwidth,
                                                 Tensor shift) {
  const Arguments found = unpack(x, kernels, bandwidth, shift);
  if (!may_be_float32(found.batch) || !Sums<float>(found.batch).run()) Sums<double>(found.batch).run();
  return {found.rows, found.diagonal, found.sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("hsic_sums", TORCH_BOX(&hsic_sums_cpu)); }

}  // namespace stitchkern::hsic
