// Sums over two kernel matrices on the CPU.
//
// Bound: n²/2 (p + q) float64 multiply-adds over the fused multiply-add peak, then two exponentials a pair, about
// thirty instructions a vector. So tiles of TILE × TILE products are made from packed features and used up, for all
// bandwidths, while they lie in the second-level cache: nothing of size n² is stored.
//
// Rows of tiles go in bands. The features of a band are packed once for all threads; then one task is one column of
// tiles: it packs its own features and meets the band's tiles above the diagonal one after the other. What it adds to
// the rows of its column is its own; what it adds to the rows of the band has its place beside the other tasks' and is
// added up in order. So memory is O(n) beside the packed tiles, and nothing depends on which thread did what.
//
// float64 products also for float32 data: |a|² + |b|² − 2 aᵀb cancels by |a|² / σ², which the caller's bandwidth makes
// as large as it likes.
#include <algorithm>
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

constexpr int64_t BAND_BYTES = 16 << 20;         // of packed features and row sums: within most third-level caches
constexpr int64_t BAND_TILES = 16;               // at most: packing is then a hundredth of the products
constexpr int64_t MEAN_ROWS = 1024;              // summed by one task
constexpr int64_t PACK_COST = 8, EXP_COST = 32;  // of one number, in multiply-adds

const Kernels& kernels() {
#if defined(STITCHKERN_X86_PATHS)
  if (cpu_path() == CpuPath::avx512) return avx512::kernels;
  if (cpu_path() == CpuPath::avx2) return avx2::kernels;
#endif
  return baseline::kernels;
}

// Uninitialised numbers on a cache line.
class Buffer {
 public:
  explicit Buffer(int64_t count)
      : data_(static_cast<double*>(std::aligned_alloc(64, (size_t(count) * sizeof(double) + 64) / 64 * 64))) {
    if (!data_) throw std::bad_alloc();
  }
  double* get() const { return data_.get(); }

 private:
  struct Free {
    void operator()(double* p) const { std::free(p); }
  };
  std::unique_ptr<double, Free> data_;
};

// Means of the features, summed about the first row, so that constant features become exactly zero.
std::vector<double> means(const Rows& x) {
  const int64_t n = x.count(), blocks = (n + MEAN_ROWS - 1) / MEAN_ROWS, c = x.channels;
  std::vector<double> sums(blocks * c, 0.0), mean(c, 0.0);
  dispatch(x.dtype, [&](auto source) {
    const auto* data = static_cast<const decltype(source)*>(x.data);
    parallel_tasks(blocks, n * c, [&](int64_t block) {
      double* sum = &sums[block * c];
      for (int64_t i = block * MEAN_ROWS; i < std::min(n, (block + 1) * MEAN_ROWS); ++i) {
        const auto* row = data + x.offset(i);
        for (int64_t j = 0; j < c; ++j)
          sum[j] += double(widen(row[j * x.channel_stride])) - double(widen(data[j * x.channel_stride]));
      }
    });
    for (int64_t j = 0; n && j < c; ++j) {
      for (int64_t block = 0; block < blocks; ++block) mean[j] += sums[block * c + j];
      mean[j] = mean[j] / double(n) + double(widen(data[j * x.channel_stride]));
    }
  });
  return mean;
}

class Sums {
 public:
  explicit Sums(const Batch& batch)
      : batch_(batch), mean_{means(batch.x[X]), means(batch.x[Y])}, tiles_((batch.count + TILE - 1) / TILE) {
    channels_ = batch.x[X].channels + batch.x[Y].channels;
    std::fill_n(batch.rows, SIDES * batch.bandwidths * batch.count, 0.0);
    products_.assign(tiles_ * batch.bandwidths * PRODUCTS, 0.0);
    scale_.resize(SIDES * batch.bandwidths);
    for (int side = 0; side < SIDES; ++side)
      for (int64_t b = 0; b < batch.bandwidths; ++b) {
        const double width = batch.bandwidth[side * batch.bandwidths + b];
        scale_[side * batch.bandwidths + b] = batch.kernel[side] == Kernel::rbf ? 1 / (2 * width * width) : 1 / width;
      }
  }

  void run() {
    const int64_t width = SIDES * batch_.bandwidths * TILE;  // row sums of a tile
    const int64_t tile_bytes = int64_t(sizeof(double)) * (packed_size() + tiles_ * width);
    band_ = std::clamp<int64_t>(BAND_BYTES / std::max<int64_t>(tile_bytes, 1), 1, BAND_TILES);
    band_ = std::min(band_, std::max<int64_t>(tiles_, 1));
    const Buffer packed(band_ * packed_size()), partial(tiles_ * band_ * width);
    for (int64_t first = 0; first < tiles_; first += band_) {
      const int64_t tiles = std::min(band_, tiles_ - first);
      parallel_tasks(tiles, PACK_COST * tiles * TILE * channels_, [&](int64_t i) {
        pack(first + i, packed.get() + i * packed_size());
        set_diagonal(first + i, packed.get() + i * packed_size());
      });

      const int64_t columns = tiles_ - first;
      const int64_t cost = columns * tiles * TILE * TILE * (channels_ + 2 * EXP_COST * batch_.bandwidths);
      parallel_tasks(columns, cost, [&](int64_t i) {  // from the right, so that the short columns come last
        const int64_t column = columns - 1 - i;
        meet(first, tiles, first + column, packed.get(), partial.get() + column * band_ * width);
      });

      for (int64_t column = 0; column < columns; ++column)
        for (int64_t i = 0; i < std::min(tiles, column + 1); ++i)
          for (int side = 0; side < SIDES; ++side)
            for (int64_t b = 0; b < batch_.bandwidths; ++b) {
              const double* from = partial.get() + (column * band_ + i) * width + (side * batch_.bandwidths + b) * TILE;
              double* to = rows_of(side, b) + (first + i) * TILE;
              for (int k = 0; k < rows_in(first + i); ++k) to[k] += from[k];
            }
    }

    for (int which = 0; which < PRODUCTS; ++which)
      for (int64_t b = 0; b < batch_.bandwidths; ++b) {
        double total = 0;
        for (int64_t column = 0; column < tiles_; ++column)
          total += products_[(column * batch_.bandwidths + b) * PRODUCTS + which];
        batch_.sums[which * batch_.bandwidths + b] = 2 * total;
      }
  }

 private:
  // A tile of both sides: features, then the norms.
  int64_t packed_size() const { return TILE * (channels_ + SIDES); }
  const double* features(const double* packed, int side) const {
    return packed + (side == X ? 0 : TILE * batch_.x[X].channels);
  }
  const double* norms(const double* packed, int side) const { return packed + TILE * (channels_ + side); }
  int rows_in(int64_t tile) const { return int(std::min<int64_t>(TILE, batch_.count - tile * TILE)); }
  double* rows_of(int side, int64_t b) const { return batch_.rows + (side * batch_.bandwidths + b) * batch_.count; }

  void pack(int64_t tile, double* packed) const {
    for (int side = 0; side < SIDES; ++side)
      kernels().pack({&batch_.x[side], mean_[side].data(), tile * TILE, rows_in(tile),
                      const_cast<double*>(features(packed, side)), const_cast<double*>(norms(packed, side))});
  }

  void set_diagonal(int64_t tile, const double* packed) const {
    for (int side = 0; side < SIDES; ++side)
      for (int64_t b = 0; b < batch_.bandwidths; ++b) {
        const int64_t at = side * batch_.bandwidths + b;
        for (int k = 0; k < rows_in(tile); ++k)
          batch_.diagonal[at * batch_.count + tile * TILE + k] =
              (batch_.kernel[side] == Kernel::linear ? norms(packed, side)[k] : 1) - batch_.shift[at];
      }
  }

  // Column `column` of tiles against the tiles of a band on or above the diagonal. `partial`: [band][SIDES,
  // bandwidths, TILE], out: what it adds to the band's rows.
  void meet(int64_t first, int64_t tiles, int64_t column, const double* band, double* partial) {
    const int64_t bandwidths = batch_.bandwidths, width = SIDES * bandwidths * TILE;
    const Kernels& kernel = kernels();
    const Buffer own(packed_size()), values(SIDES * TILE * TILE), column_sums(width);
    pack(column, own.get());
    std::fill_n(column_sums.get(), width, 0.0);
    for (int64_t i = 0; i < tiles && first + i <= column; ++i) {
      const double* other = band + i * packed_size();
      const Extent extent{rows_in(first + i), rows_in(column), first + i == column};
      SumTask task;
      for (int side = 0; side < SIDES; ++side) {
        double* to = values.get() + side * TILE * TILE;
        task.values[side] = to, task.kernel[side] = batch_.kernel[side];
        kernel.values({batch_.kernel[side], features(other, side), features(own.get(), side), norms(other, side),
                       norms(own.get(), side), batch_.x[side].channels, extent, to});
      }
      task.extent = extent;
      std::fill_n(partial + i * width, width, 0.0);
      for (int64_t b = 0; b < bandwidths; ++b) {
        for (int side = 0; side < SIDES; ++side) {
          const int64_t at = side * bandwidths + b;
          task.scale[side] = scale_[at], task.shift[side] = batch_.shift[at];
          task.rows[side] = partial + i * width + at * TILE;
          task.columns[side] = column_sums.get() + at * TILE;
        }
        task.sums = &products_[(column * bandwidths + b) * PRODUCTS];
        kernel.add(task);
      }
    }
    for (int side = 0; side < SIDES; ++side)
      for (int64_t b = 0; b < bandwidths; ++b) {
        const double* from = column_sums.get() + (side * bandwidths + b) * TILE;
        for (int k = 0; k < rows_in(column); ++k) rows_of(side, b)[column * TILE + k] += from[k];
      }
  }

  const Batch& batch_;
  const std::vector<double> mean_[SIDES];
  const int64_t tiles_;  // rows of tiles
  int64_t channels_, band_ = 1;
  std::vector<double> products_;  // [tiles, bandwidths, PRODUCTS]: of each column, above the diagonal
  std::vector<double> scale_;     // [SIDES, bandwidths]
};

std::tuple<Tensor, Tensor, Tensor> hsic_sums_cpu(Tensor x, Tensor y, int64_t kernel_x, int64_t kernel_y,
                                                 Tensor bandwidth, Tensor shift) {
  const auto [batch, rows, diagonal, sums] = unpack(x, y, kernel_x, kernel_y, bandwidth, shift);
  Sums(batch).run();
  return {rows, diagonal, sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("hsic_sums", TORCH_BOX(&hsic_sums_cpu)); }

}  // namespace stitchkern::hsic
