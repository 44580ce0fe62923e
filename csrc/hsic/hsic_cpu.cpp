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
#include <cstdlib>
#include <memory>
#include <new>
#include <tuple>
#include <vector>

#include "../common/cpu.h"
#include "../common/parallel.h"
#include "hsic_cpu.h"
#include "hsic_op.h"

namespace stitchkern::hsic {
namespace {

constexpr int64_t BLOCK_BYTES = 32 << 20;  // of the tiles of a block, and their sums: within most third-level caches
constexpr int64_t BLOCK_TILES = 8;         // at most, in each direction
constexpr int64_t GROUP_CHANNELS = 1024;   // of a group, a multiple of CHANNELS
constexpr int64_t MEAN_ROWS = 1024, MEAN_CHANNELS = 256;            // summed by one task
constexpr double SAFE_REACH = 4;                                    // |a|² / σ² that float32 products may have
constexpr int64_t SAFE_ROWS_RADIAL = 1024, SAFE_ROWS_LINEAR = 128;  // samples that they need
constexpr double SAFE_SMALLEST = 0x1p-60, SAFE_LARGEST = 0x1p100;   // |a|², lest what adds up to it leaves float32
constexpr int64_t PACK_COST = 4, EXP_COST = 32;                     // of one number, in multiply-adds

template <class T>
const Products<T>& products() {
  if constexpr (sizeof(T) == 4)
    return STITCHKERN_FOR_CPU_PATH(products_f32);
  else
    return STITCHKERN_FOR_CPU_PATH(products_f64);
}
const Functions& functions() { return STITCHKERN_FOR_CPU_PATH(functions); }

// Uninitialised numbers on a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, (size_t(count) * sizeof(T) + 64) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  T* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
};

// Whether float32 products may be good enough; `are_safe` has the last word, once norms are known.
bool may_be_float32(const Batch& batch) {
  return std::all_of(batch.sides, batch.sides + batch.sides_count, [&](const Side& side) {
    const int64_t least = side.kernel == Kernel::linear ? SAFE_ROWS_LINEAR : SAFE_ROWS_RADIAL;
    return side.x.dtype != DType::f64 && side.kernel != Kernel::laplace && batch.count >= least;
  });
}

// Some channels of one side, and where they lie among those packed with them.
struct Stretch {
  int64_t side, channel0, channels, offset;
};
using Group = std::vector<Stretch>;

std::vector<Group> groups_of(const Batch& batch) {
  std::vector<Group> groups;
  int64_t used = GROUP_CHANNELS;
  for (int64_t side = 0; side < batch.sides_count; ++side) {
    const int64_t all = batch.sides[side].x.channels;
    for (int64_t c = 0; c < all;) {
      int64_t room = GROUP_CHANNELS - used;
      if (all - c > room) room = room / CHANNELS * CHANNELS;  // cut where products are added up anyway
      if (room == 0 || (c == 0 && all > room && all <= GROUP_CHANNELS)) groups.emplace_back(), used = 0;
      const int64_t channels = std::min(all - c, GROUP_CHANNELS - used);
      groups.back().push_back({side, c, channels, used});
      c += channels, used += channels;
    }
  }
  return groups;
}

template <class T>
class Sums {
 public:
  explicit Sums(const Batch& batch)
      : batch_(batch),
        sides_(batch.sides_count),
        width_(batch.bandwidths * batch.sides_count),
        tiles_((batch.count + TILE - 1) / TILE),
        side_(block_side(batch)),
        groups_(groups_of(batch)),
        values_(side_ * side_ * sides_ * TILE * TILE),
        packed_{Buffer<T>(side_ * TILE * GROUP_CHANNELS), Buffer<T>(side_ * TILE * GROUP_CHANNELS)},
        partial_rows_(side_ * side_ * width_ * TILE),
        partial_columns_(side_ * side_ * width_ * TILE),
        partial_sums_(side_ * side_ * width_ * sides_),
        norms_(sides_ * tiles_ * TILE, 0.0) {
    first_channel_.assign(1, 0);
    for (int64_t a = 0; a < sides_; ++a) first_channel_.push_back(first_channel_[a] + batch.sides[a].x.channels);
    mean_.resize(first_channel_.back());
    for (int64_t b = 0; b < batch.bandwidths; ++b)
      for (int64_t a = 0; a < sides_; ++a) {
        const double sigma = batch.bandwidth[a * batch.bandwidths + b];
        scale_.push_back(batch.sides[a].kernel == Kernel::rbf ? 1 / (2 * sigma * sigma) : 1 / sigma);
        shift_.push_back(batch.shift[a * batch.bandwidths + b]);
      }
  }

  // False where float32 products turn out not to be good enough.
  bool run() {
    std::fill_n(batch_.rows, width_ * batch_.count, 0.0);
    std::fill_n(batch_.sums, width_ * sides_, 0.0);
    const int64_t blocks = (tiles_ + side_ - 1) / side_;
    if (blocks > 1)
      for (const Group& group : groups_) find_means(group);
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
  static int64_t block_side(const Batch& batch) {
    const int64_t numbers = TILE * TILE + batch.bandwidths * (2 * TILE + batch.sides_count);  // of a tile of one side
    const int64_t bytes = batch.sides_count * numbers * int64_t(sizeof(double));
    int64_t side = 1;
    while (side < BLOCK_TILES && (side + 1) * (side + 1) * bytes <= BLOCK_BYTES) ++side;
    return std::max<int64_t>(1, std::min(side, (batch.count + TILE - 1) / TILE));
  }
  int rows_in(int64_t tile) const { return int(std::min<int64_t>(TILE, batch_.count - tile * TILE)); }
  double* norms(int64_t side, int64_t tile) { return &norms_[(side * tiles_ + tile) * TILE]; }
  double* values(int64_t place, int64_t side) const { return values_.get() + (place * sides_ + side) * TILE * TILE; }

  void find_means(const Group& group) {
    struct Piece {
      int64_t side, channel0, channels;
      double* mean;
    };
    std::vector<Piece> pieces;
    int64_t channels = 0;
    for (const Stretch& s : group) {
      channels += s.channels;
      for (int64_t c = 0; c < s.channels; c += MEAN_CHANNELS)
        pieces.push_back({s.side, s.channel0 + c, std::min(MEAN_CHANNELS, s.channels - c),
                          &mean_[first_channel_[s.side] + s.channel0 + c]});
    }
    const int64_t count = int64_t(pieces.size()), parts = (batch_.count + MEAN_ROWS - 1) / MEAN_ROWS;
    std::vector<double> sums(parts * count * MEAN_CHANNELS);
    parallel_tasks(count * parts, batch_.count * channels, [&](int64_t task) {
      const Piece& piece = pieces[task % count];
      const int64_t row0 = task / count * MEAN_ROWS;
      functions().mean({&batch_.sides[piece.side].x, row0, std::min(MEAN_ROWS, batch_.count - row0), piece.channel0,
                        piece.channels, &sums[task * MEAN_CHANNELS]});
    });
    for (int64_t i = 0; i < count; ++i) {
      const Piece& piece = pieces[i];
      const Rows& x = batch_.sides[piece.side].x;
      dispatch(x.dtype, [&](auto source) {
        const auto* first = static_cast<const decltype(source)*>(x.data) + piece.channel0 * x.channel_stride;
        for (int64_t c = 0; c < piece.channels; ++c) {
          double total = 0;
          for (int64_t part = 0; part < parts; ++part) total += sums[(part * count + i) * MEAN_CHANNELS + c];
          piece.mean[c] = total / double(batch_.count) + double(widen(first[c * x.channel_stride]));
        }
      });
    }
  }

  // All that two blocks of samples have to do with each other.
  void visit(int64_t block_i, int64_t block_j, bool with_means) {
    const bool diagonal = block_i == block_j;
    const int64_t first_i = block_i * side_, first_j = block_j * side_;
    const int64_t tiles_i = std::min(side_, tiles_ - first_i), tiles_j = std::min(side_, tiles_ - first_j);
    struct Pair {
      int64_t i, j;  // within their blocks
    };
    std::vector<Pair> pairs;
    for (int64_t i = 0; i < tiles_i; ++i)
      for (int64_t j = diagonal ? i : 0; j < tiles_j; ++j) pairs.push_back({i, j});
    const int64_t count = int64_t(pairs.size());
    const auto extent = [&](const Pair& pair) {
      return Extent{rows_in(first_i + pair.i), rows_in(first_j + pair.j), diagonal && pair.i == pair.j};
    };

    for (const Group& group : groups_) {
      if (with_means) find_means(group);
      const int64_t stretches = int64_t(group.size()), channels = group.back().offset + group.back().channels;
      const int64_t tiles = diagonal ? tiles_i : tiles_i + tiles_j;
      parallel_tasks(tiles * stretches, PACK_COST * tiles * TILE * channels, [&](int64_t task) {
        const Stretch& s = group[task % stretches];
        const int64_t place = task / stretches;
        const bool left = place < tiles_i;
        const int64_t tile = left ? first_i + place : first_j + place - tiles_i;
        products<T>().pack({&batch_.sides[s.side].x, &mean_[first_channel_[s.side] + s.channel0], tile * TILE,
                            rows_in(tile), s.channel0, s.channels,
                            packed(s, left ? 0 : 1, left ? place : place - tiles_i),
                            diagonal ? norms(s.side, tile) : nullptr});
      });
      parallel_tasks(2 * count * stretches, count * TILE * TILE * channels, [&](int64_t task) {
        const Stretch& s = group[task / 2 % stretches];
        const int64_t place = task / 2 / stretches;
        const int half = int(task % 2) * TILE / 2;
        const Pair& pair = pairs[place];
        products<T>().multiply({packed(s, 0, pair.i), packed(s, diagonal ? 0 : 1, pair.j), s.channels, extent(pair),
                                half, half + TILE / 2, s.channel0 == 0, values(place, s.side)});
      });
    }

    const int64_t cost = count * TILE * TILE * width_ * (EXP_COST + sides_ / 2);
    parallel_tasks(count, cost, [&](int64_t place) {
      const Pair& pair = pairs[place];
      const Extent wanted = extent(pair);
      for (int64_t a = 0; a < sides_; ++a)
        if (batch_.sides[a].kernel != Kernel::linear)
          functions().distances({batch_.sides[a].kernel, norms(a, first_i + pair.i), norms(a, first_j + pair.j), wanted,
                                 values(place, a)});
      const Buffer<double> scratch(scratch_size(sides_));
      for (int64_t b = 0; b < batch_.bandwidths; ++b) {
        const int64_t at = place * width_ + b * sides_;
        functions().add({int(sides_), batch_.sides, values(place, 0), &scale_[b * sides_], &shift_[b * sides_], wanted,
                         partial_rows_.get() + at * TILE, partial_columns_.get() + at * TILE,
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

  T* packed(const Stretch& s, int which, int64_t place) const {
    return packed_[which].get() + (place * GROUP_CHANNELS + s.offset) * TILE;
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

  const Batch& batch_;
  const int64_t sides_, width_;  // width: sides of all bandwidths
  const int64_t tiles_, side_;   // tiles of samples; of a block, in each direction
  const std::vector<Group> groups_;
  const Buffer<double> values_;                          // [side × side][sides][TILE, TILE]
  const Buffer<T> packed_[2];                            // [side][TILE × GROUP_CHANNELS]
  const Buffer<double> partial_rows_, partial_columns_;  // [side × side][bandwidths][sides][TILE]
  const Buffer<double> partial_sums_;                    // [side × side][bandwidths][sides, sides]
  std::vector<double> norms_;                            // [sides][tiles × TILE]
  std::vector<int64_t> first_channel_;                   // of each side in mean_
  std::vector<double> mean_, scale_, shift_;             // scale and shift: [bandwidths][sides]
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
