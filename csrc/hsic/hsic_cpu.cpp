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
// |a − b|² = |a|² + |b|² − 2 aᵀb cancels, by as much as |a|² / σ² in the exponent, which the caller's bandwidth makes
// as large as it likes. So products are float64, except that RBF kernels of narrower data, where |a|² / σ² is small for
// all samples and bandwidths, are made from float32 products of centred features, and of float64 norms. Entries of K
// then err by 1e-7 and less, at random, which many samples average out: CKA is right to 1e-9 or so, in two thirds of
// the time. The root in Laplace kernels would magnify the error for close samples.
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

constexpr int64_t BAND_BYTES = 16 << 20;  // of packed features and row sums: within most third-level caches
constexpr int64_t BAND_TILES = 16;        // at most: packing is then a hundredth of the products
constexpr int64_t MEAN_ROWS = 1024;       // summed by one task
constexpr double SAFE_REACH = 4;          // |a|² / σ² that float32 products may have
constexpr int64_t SAFE_ROWS = 1024;       // samples that they need
constexpr double SAFE_SMALLEST = 0x1p-60, SAFE_LARGEST = 0x1p100;  // |a|², lest what adds up to it leaves float32
constexpr int64_t PACK_COST = 8, EXP_COST = 32;                    // of one number, in multiply-adds

template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return STITCHKERN_FOR_CPU_PATH(kernels_f32);
  else
    return STITCHKERN_FOR_CPU_PATH(kernels_f64);
}

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

// The largest |x_i − mean|²; infinite where one is not a number.
double largest_norm(const Rows& x, const std::vector<double>& mean) {
  const int64_t n = x.count(), blocks = (n + MEAN_ROWS - 1) / MEAN_ROWS, c = x.channels;
  std::vector<double> largest(blocks, 0.0);
  dispatch(x.dtype, [&](auto source) {
    const auto* data = static_cast<const decltype(source)*>(x.data);
    parallel_tasks(blocks, n * c, [&](int64_t block) {
      for (int64_t i = block * MEAN_ROWS; i < std::min(n, (block + 1) * MEAN_ROWS); ++i) {
        const auto* row = data + x.offset(i);
        double square = 0;
        for (int64_t j = 0; j < c; ++j) {
          const double v = double(widen(row[j * x.channel_stride])) - mean[j];
          square += v * v;
        }
        if (!(square <= largest[block])) largest[block] = square < HUGE_VAL ? square : HUGE_VAL;
      }
    });
  });
  return n ? *std::max_element(largest.begin(), largest.end()) : 0;
}

// Whether float32 products are good enough: see above.
bool may_be_float32(const Batch& batch, const std::vector<double> (&mean)[SIDES]) {
  if (batch.count < SAFE_ROWS) return false;
  for (int side = 0; side < SIDES; ++side)
    if (batch.kernel[side] != Kernel::rbf || batch.x[side].dtype == DType::f64) return false;
  for (int side = 0; side < SIDES; ++side) {
    const double square = largest_norm(batch.x[side], mean[side]);
    if (!(square >= SAFE_SMALLEST && square <= SAFE_LARGEST)) return false;
    for (int64_t b = 0; b < batch.bandwidths; ++b) {
      const double width = batch.bandwidth[side * batch.bandwidths + b];
      if (!(square <= SAFE_REACH * width * width)) return false;
    }
  }
  return true;
}

template <class T>
class Sums {
 public:
  Sums(const Batch& batch, const std::vector<double> (&mean)[SIDES])
      : batch_(batch), mean_(mean), tiles_((batch.count + TILE - 1) / TILE) {
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
    const int64_t tile_bytes = int64_t(sizeof(T)) * TILE * channels_ + int64_t(sizeof(double)) * tiles_ * width;
    band_ = std::clamp<int64_t>(BAND_BYTES / std::max<int64_t>(tile_bytes, 1), 1, BAND_TILES);
    band_ = std::min(band_, std::max<int64_t>(tiles_, 1));
    const Packed band(band_, channels_);
    const Buffer<double> partial(tiles_ * band_ * width);
    for (int64_t first = 0; first < tiles_; first += band_) {
      const int64_t tiles = std::min(band_, tiles_ - first);
      parallel_tasks(tiles, PACK_COST * tiles * TILE * channels_, [&](int64_t i) {
        pack(first + i, band, i);
        set_diagonal(first + i, band, i);
      });

      const int64_t columns = tiles_ - first;
      const int64_t cost = columns * tiles * TILE * TILE * (channels_ + 2 * EXP_COST * batch_.bandwidths);
      parallel_tasks(columns, cost, [&](int64_t i) {  // from the right, so that the short columns come last
        const int64_t column = columns - 1 - i;
        meet(first, tiles, first + column, band, partial.get() + column * band_ * width);
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
  // Some tiles of both sides.
  struct Packed {
    Buffer<T> features;    // [tiles][TILE × channels]
    Buffer<double> norms;  // [tiles][SIDES][TILE]
    Packed(int64_t tiles, int64_t channels) : features(tiles * TILE * channels), norms(tiles * SIDES * TILE) {}
  };
  T* features(const Packed& packed, int64_t tile, int side) const {
    return packed.features.get() + TILE * (tile * channels_ + (side == X ? 0 : batch_.x[X].channels));
  }
  static double* norms(const Packed& packed, int64_t tile, int side) {
    return packed.norms.get() + TILE * (tile * SIDES + side);
  }
  int rows_in(int64_t tile) const { return int(std::min<int64_t>(TILE, batch_.count - tile * TILE)); }
  double* rows_of(int side, int64_t b) const { return batch_.rows + (side * batch_.bandwidths + b) * batch_.count; }

  void pack(int64_t tile, const Packed& to, int64_t at) const {
    for (int side = 0; side < SIDES; ++side)
      kernels<T>().pack({&batch_.x[side], mean_[side].data(), tile * TILE, rows_in(tile), features(to, at, side),
                         norms(to, at, side)});
  }

  void set_diagonal(int64_t tile, const Packed& packed, int64_t place) const {
    for (int side = 0; side < SIDES; ++side)
      for (int64_t b = 0; b < batch_.bandwidths; ++b) {
        const int64_t at = side * batch_.bandwidths + b;
        for (int k = 0; k < rows_in(tile); ++k)
          batch_.diagonal[at * batch_.count + tile * TILE + k] =
              (batch_.kernel[side] == Kernel::linear ? norms(packed, place, side)[k] : 1) - batch_.shift[at];
      }
  }

  // Column `column` of tiles against the tiles of a band on or above the diagonal. `partial`: [band][SIDES,
  // bandwidths, TILE], out: what it adds to the band's rows.
  void meet(int64_t first, int64_t tiles, int64_t column, const Packed& band, double* partial) {
    const int64_t bandwidths = batch_.bandwidths, width = SIDES * bandwidths * TILE;
    const Kernels<T>& kernel = kernels<T>();
    const Packed own(1, channels_);
    const Buffer<double> values(SIDES * TILE * TILE), column_sums(width);
    pack(column, own, 0);
    std::fill_n(column_sums.get(), width, 0.0);
    for (int64_t i = 0; i < tiles && first + i <= column; ++i) {
      const Extent extent{rows_in(first + i), rows_in(column), first + i == column};
      SumTask task;
      for (int side = 0; side < SIDES; ++side) {
        double* to = values.get() + side * TILE * TILE;
        task.values[side] = to, task.kernel[side] = batch_.kernel[side];
        kernel.values({batch_.kernel[side], features(band, i, side), features(own, 0, side), norms(band, i, side),
                       norms(own, 0, side), batch_.x[side].channels, extent, to});
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
  const std::vector<double> (&mean_)[SIDES];
  const int64_t tiles_;  // rows of tiles
  int64_t channels_, band_ = 1;
  std::vector<double> products_;  // [tiles, bandwidths, PRODUCTS]: of each column, above the diagonal
  std::vector<double> scale_;     // [SIDES, bandwidths]
};

std::tuple<Tensor, Tensor, Tensor> hsic_sums_cpu(Tensor x, Tensor y, int64_t kernel_x, int64_t kernel_y,
                                                 Tensor bandwidth, Tensor shift) {
  const auto [batch, rows, diagonal, sums] = unpack(x, y, kernel_x, kernel_y, bandwidth, shift);
  const std::vector<double> mean[SIDES] = {means(batch.x[X]), means(batch.x[Y])};
  if (may_be_float32(batch, mean))
    Sums<float>(batch, mean).run();
  else
    Sums<double>(batch, mean).run();
  return {rows, diagonal, sums};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("hsic_sums", TORCH_BOX(&hsic_sums_cpu)); }

}  // namespace stitchkern::hsic
