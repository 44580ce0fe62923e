// Tiles of products of all sides, block by block of pairs of samples, on the CPU: what sums and gradients are made
// from. See hsic_cpu.cpp for the plan.
#pragma once

#include <algorithm>
#include <vector>

#include "../common/cpu.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "hsic_cpu.h"

namespace stitchkern::hsic {

inline constexpr int64_t BLOCK_BYTES =
    32 << 20;                              // of the tiles of a block, and their sums: within most third-level caches
inline constexpr int64_t BLOCK_TILES = 8;  // at most, in each direction
inline constexpr int64_t GROUP_CHANNELS = 1024;                  // of a group, a multiple of CHANNELS
inline constexpr int64_t MEAN_ROWS = 1024, MEAN_CHANNELS = 256;  // summed by one task
inline constexpr int64_t PACK_COST = 4, EXP_COST = 32;           // of one number, in multiply-adds

template <class T>
const Products<T>& products() {
  if constexpr (sizeof(T) == 4)
    return STITCHKERN_FOR_CPU_PATH(products_f32);
  else
    return STITCHKERN_FOR_CPU_PATH(products_f64);
}
inline const Functions& functions() { return STITCHKERN_FOR_CPU_PATH(functions); }

// Uninitialised numbers on a cache line.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : data_(scratch_.get<T>(count)) {}
  T* get() const { return data_; }

 private:
  Scratch scratch_;
  T* data_;
};

// From means of x_i − x_0, as MeanTask sums them, to those of x_i.
inline void add_first(const Rows& x, int64_t channel0, int64_t channels, double* mean) {
  dispatch(x.dtype, [&](auto source) {
    const auto* first = static_cast<const decltype(source)*>(x.data) + channel0 * x.channel_stride;
    for (int64_t c = 0; c < channels; ++c) mean[c] += double(widen(first[c * x.channel_stride]));
  });
}

// Some channels of one side, and where they lie among those packed with them.
struct Stretch {
  int64_t side, channel0, channels, offset;
};
using Group = std::vector<Stretch>;

inline std::vector<Group> groups_of(const Batch& batch) {
  std::vector<Group> groups;
  int64_t used = GROUP_CHANNELS;
  for (int64_t side = 0; side < batch.sides_count; ++side) {
    const int64_t all = batch.sides[side].x.channels;
    for (int64_t c = 0; c < all;) {
      int64_t room = GROUP_CHANNELS - used;
      if (all - c > room) room = room / CHANNELS * CHANNELS;  // a shorter start is not worth a stretch
      if (room == 0 || (c == 0 && all > room && all <= GROUP_CHANNELS)) groups.emplace_back(), used = 0;
      const int64_t channels = std::min(all - c, GROUP_CHANNELS - used);
      groups.back().push_back({side, c, channels, used});
      c += channels, used += channels;
    }
  }
  return groups;
}

// Two tiles of samples, by their places within two blocks.
struct Pair {
  int64_t i, j;
};

template <class T>
class Tiles {
 public:
  // `bytes`: what the caller keeps for each pair of tiles beside the tiles themselves.
  Tiles(const Batch& batch, int64_t bytes)
      : batch_(batch),
        sides_(batch.sides_count),
        tiles_((batch.count + TILE - 1) / TILE),
        side_(block_side(batch, bytes)),
        groups_(groups_of(batch)),
        values_(side_ * side_ * sides_ * TILE * TILE),
        packed_{Buffer<T>(side_ * TILE * GROUP_CHANNELS), Buffer<T>(side_ * TILE * GROUP_CHANNELS)},
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

 protected:
  static int64_t block_side(const Batch& batch, int64_t bytes) {
    bytes += batch.sides_count * TILE * TILE * int64_t(sizeof(double));
    int64_t side = 1;
    while (side < BLOCK_TILES && (side + 1) * (side + 1) * bytes <= BLOCK_BYTES) ++side;
    return std::max<int64_t>(1, std::min(side, (batch.count + TILE - 1) / TILE));
  }

  int64_t blocks() const { return (tiles_ + side_ - 1) / side_; }
  int64_t first_tile(int64_t block) const { return block * side_; }
  int64_t tiles_of(int64_t block) const { return std::min(side_, tiles_ - first_tile(block)); }
  int rows_in(int64_t tile) const { return int(std::min<int64_t>(TILE, batch_.count - tile * TILE)); }
  double* norms(int64_t side, int64_t tile) { return &norms_[(side * tiles_ + tile) * TILE]; }
  const double* mean(const Stretch& s) const { return &mean_[first_channel_[s.side] + s.channel0]; }
  // Of the pair at this place among those of `multiply`: [TILE, TILE]; those of the next side follow.
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
      for (int64_t c = 0; c < piece.channels; ++c) {
        double total = 0;
        for (int64_t part = 0; part < parts; ++part) total += sums[(part * count + i) * MEAN_CHANNELS + c];
        piece.mean[c] = total / double(batch_.count);
      }
      add_first(x, piece.channel0, piece.channels, piece.mean);
    }
  }

  // The products of these pairs of tiles of two blocks, all sides. Means may be found on the way where one block holds
  // all samples, and norms where a block meets itself.
  template <class Extents>
  void multiply(int64_t block_i, int64_t block_j, const std::vector<Pair>& pairs, const Extents& extent,
                bool with_means, bool with_norms) {
    const bool same = block_i == block_j;
    const int64_t first_i = first_tile(block_i), first_j = first_tile(block_j);
    const int64_t tiles_i = tiles_of(block_i), tiles_j = tiles_of(block_j), count = int64_t(pairs.size());
    for (const Group& group : groups_) {
      if (with_means) find_means(group);
      const int64_t stretches = int64_t(group.size()), channels = group.back().offset + group.back().channels;
      const int64_t tiles = same ? tiles_i : tiles_i + tiles_j;
      parallel_tasks(tiles * stretches, PACK_COST * tiles * TILE * channels, [&](int64_t task) {
        const Stretch& s = group[task % stretches];
        const int64_t place = task / stretches;
        const bool left = place < tiles_i;
        const int64_t tile = left ? first_i + place : first_j + place - tiles_i;
        products<T>().pack({&batch_.sides[s.side].x, mean(s), tile * TILE, rows_in(tile), s.channel0, s.channels,
                            packed(s, left ? 0 : 1, left ? place : place - tiles_i),
                            with_norms ? norms(s.side, tile) : nullptr});
      });
      parallel_tasks(2 * count * stretches, count * TILE * TILE * channels, [&](int64_t task) {
        const Stretch& s = group[task / 2 % stretches];
        const int64_t place = task / 2 / stretches;
        const int half = int(task % 2) * TILE / 2;
        const Pair& pair = pairs[place];
        products<T>().multiply({packed(s, 0, pair.i), packed(s, same ? 0 : 1, pair.j), s.channels, extent(pair), half,
                                half + TILE / 2, s.channel0 == 0, values(place, s.side)});
      });
    }
  }

  // Products into what kernels are functions of.
  void to_distances(int64_t place, int64_t tile_i, int64_t tile_j, const Extent& extent) {
    for (int64_t a = 0; a < sides_; ++a)
      if (batch_.sides[a].kernel != Kernel::linear)
        functions().distances({batch_.sides[a].kernel, norms(a, tile_i), norms(a, tile_j), extent, values(place, a)});
  }

  T* packed(const Stretch& s, int which, int64_t place) const {
    return packed_[which].get() + (place * GROUP_CHANNELS + s.offset) * TILE;
  }

  const Batch& batch_;
  const int64_t sides_;
  const int64_t tiles_, side_;  // tiles of samples; of a block, in each direction
  const std::vector<Group> groups_;
  const Buffer<double> values_;               // [side × side][sides][TILE, TILE]
  const Buffer<T> packed_[2];                 // [side][TILE × GROUP_CHANNELS]
  std::vector<double> norms_;                 // [sides][tiles × TILE]
  std::vector<int64_t> first_channel_;        // of each side in mean_
  std::vector<double> mean_, scale_, shift_;  // scale and shift: [bandwidths][sides]
};

}  // namespace stitchkern::hsic
