// The gradient of the kernel sums with respect to the features, on the CPU.
//
// A loss that depends on the row sums (with gradient r), the diagonals (d) and the sums of products (G) changes by
// Σ_{i≠k} W_ik dK_ik + Σ d_i dK_ii of each side, W_ik = (r_i + r_k)/2 + Σ_c (G + Gᵀ)_c K^c_ik over the sides c. As
//
//   linear   dK_ik = dx_i·x_k + x_i·dx_k,
//   RBF      dK_ik = −k_ik/σ² (x_i − x_k)·(dx_i − dx_k),        k = K + c,
//   Laplace  dK_ik = −k_ik/(σ |x_i − x_k|) (x_i − x_k)·(dx_i − dx_k), and nothing where x_i = x_k,
//
// the gradient is A (x − mean) with A_ik = 2 W_ik, A_ii = 2 d_i (linear), or A_ik = 2 W_ik k_ik/σ² or its like and A_ii
// = −Σ_k A_ik (radial); of linear kernels less its mean over samples, as the mean follows x. Kernels are made again,
// tile by tile as in hsic_cpu.cpp, for all pairs of samples in both orders, so that every tile of rows has a gradient
// of its own and adds to it in order. A is summed over bandwidths and meets the features while its tile is at hand;
// everything is float64. Time: about n² Σp of products for the kernels and as much for A x; memory: O(n Σp), the
// gradients.
#include <vector>

#include "hsic_cpu_tiles.h"
#include "hsic_op.h"

namespace stitchkern::hsic {
namespace {

class Gradients : Tiles<double> {
 public:
  explicit Gradients(const BackwardArguments& to)
      : Tiles<double>(to.batch, to.batch.sides_count * TILE * TILE * int64_t(sizeof(double))),
        to_(to),
        weights_(side_ * side_ * sides_ * TILE * TILE),
        diagonal_(sides_ * batch_.count, 0.0) {
    for (int64_t b = 0; b < batch_.bandwidths; ++b)
      for (int64_t a = 0; a < sides_; ++a)
        for (int64_t c = 0; c < sides_; ++c) {
          const double* grad = to.grad_sums + b * sides_ * sides_;
          mix_.push_back(grad[a * sides_ + c] + grad[c * sides_ + a]);
        }
  }

  void run() {
    for (int64_t a = 0; a < sides_; ++a) std::fill_n(gradient(a), batch_.count * channels(a), 0.0);
    for (const Group& group : groups_) find_means(group);
    const auto none = [](const Pair&) { return Extent{}; };
    for (int64_t i = 0; i < blocks(); ++i) multiply(i, i, {}, none, false, true);  // norms alone
    for (int64_t i = 0; i < blocks(); ++i)
      for (int64_t j = 0; j < blocks(); ++j) visit(i, j);
    parallel_tasks(sides_, batch_.count * first_channel_.back(), [&](int64_t a) { finish(a); });
  }

 private:
  int64_t channels(int64_t side) const { return batch_.sides[side].x.channels; }
  double* gradient(int64_t side) const { return static_cast<double*>(to_.gradients[side].data_ptr()); }

  void visit(int64_t block_i, int64_t block_j) {
    const int64_t first_i = first_tile(block_i), first_j = first_tile(block_j);
    const int64_t tiles_i = tiles_of(block_i), tiles_j = tiles_of(block_j);
    std::vector<Pair> pairs;
    for (int64_t i = 0; i < tiles_i; ++i)
      for (int64_t j = 0; j < tiles_j; ++j) pairs.push_back({i, j});
    const auto extent = [&](const Pair& pair) {
      return Extent{rows_in(first_i + pair.i), rows_in(first_j + pair.j), false};
    };
    multiply(block_i, block_j, pairs, extent, false, false);

    // A, from products
    const int64_t count = int64_t(pairs.size()), width = batch_.bandwidths * sides_;
    parallel_tasks(count, count * TILE * TILE * width * (EXP_COST + sides_), [&](int64_t place) {
      const Pair& pair = pairs[place];
      Extent wanted = extent(pair);
      to_distances(place, first_i + pair.i, first_j + pair.j, wanted);
      wanted.diagonal = first_i + pair.i == first_j + pair.j;
      std::fill_n(weights(place, 0), sides_ * TILE * TILE, 0.0);
      const Buffer<double> scratch(sides_ * TILE);
      for (int64_t b = 0; b < batch_.bandwidths; ++b) {
        const double* grad = to_.grad_rows + b * batch_.count;
        functions().weigh({int(sides_), batch_.sides, values(place, 0), &scale_[b * sides_], &shift_[b * sides_],
                           &mix_[b * sides_ * sides_], grad + (first_i + pair.i) * TILE,
                           grad + (first_j + pair.j) * TILE, batch_.bandwidths * batch_.count, wanted,
                           weights(place, 0), scratch.get()});
      }
    });

    // A x, some channels of one tile of rows at a time
    struct Piece {
      Stretch stretch;
      int64_t tile;
    };
    std::vector<Piece> pieces;
    int64_t cost = 0;
    for (int64_t a = 0; a < sides_; ++a)
      for (int64_t c = 0; c < channels(a); c += PIECE)
        for (int64_t i = 0; i < tiles_i; ++i) {
          pieces.push_back({{a, c, std::min(PIECE, channels(a) - c), 0}, i});
          cost += tiles_j * TILE * TILE * pieces.back().stretch.channels;
        }
    parallel_tasks(int64_t(pieces.size()), cost, [&](int64_t task) {
      const auto& [s, i] = pieces[task];
      const Buffer<double> packed(TILE * (PIECE + WIDEST));
      const int rows = rows_in(first_i + i);
      for (int64_t j = 0; j < tiles_j; ++j) {
        const int columns = rows_in(first_j + j);
        functions().spread(
            {&batch_.sides[s.side].x, mean(s), (first_j + j) * TILE, columns, s.channel0, s.channels, packed.get()});
        functions().apply({weights(i * tiles_j + j, s.side), packed.get(), rows, columns, s.channels,
                           gradient(s.side) + (first_i + i) * TILE * channels(s.side) + s.channel0, channels(s.side)});
      }
    });
    for (int64_t a = 0; a < sides_; ++a)
      for (int64_t place = 0; place < count; ++place)
        for (int k = 0; k < rows_in(first_i + pairs[place].i); ++k) {
          double total = 0;
          for (int j = 0; j < rows_in(first_j + pairs[place].j); ++j) total += weights(place, a)[k * TILE + j];
          diagonal_[a * batch_.count + (first_i + pairs[place].i) * TILE + k] -= total;
        }
  }

  // The diagonal of A, and the mean.
  void finish(int64_t a) {
    const Side& side = batch_.sides[a];
    const bool linear = side.kernel == Kernel::linear;
    const int64_t p = channels(a), n = batch_.count;
    const double* center = &mean_[first_channel_[a]];
    std::vector<double> total(p, 0.0);
    dispatch(side.x.dtype, [&](auto source) {
      for (int64_t i = 0; i < n; ++i) {
        double weight = linear ? 0 : diagonal_[a * n + i];
        for (int64_t b = 0; linear && b < batch_.bandwidths; ++b)
          weight += 2 * to_.grad_diagonal[(a * batch_.bandwidths + b) * n + i];
        const auto* from = static_cast<const decltype(source)*>(side.x.data) + side.x.offset(i);
        double* grad = gradient(a) + i * p;
        for (int64_t c = 0; c < p; ++c) {
          grad[c] += weight * (double(widen(from[c * side.x.channel_stride])) - center[c]);
          total[c] += grad[c];
        }
      }
    });
    for (int64_t i = 0; linear && i < n; ++i)
      for (int64_t c = 0; c < p; ++c) gradient(a)[i * p + c] -= total[c] / double(n);
  }

  static constexpr int64_t PIECE = 384;  // channels of one task: packed, they fit a second-level cache
  double* weights(int64_t place, int64_t side) const { return weights_.get() + (place * sides_ + side) * TILE * TILE; }

  const BackwardArguments& to_;
  const Buffer<double> weights_;  // [side × side][sides][TILE, TILE]
  std::vector<double> diagonal_;  // [sides][n]: −Σ_k A_ik
  std::vector<double> mix_;       // [bandwidths][sides, sides]
};

std::vector<Tensor> hsic_backward_cpu(std::vector<Tensor> x, std::vector<int64_t> kernels, Tensor bandwidth,
                                      Tensor shift, Tensor grad_rows, Tensor grad_diagonal, Tensor grad_sums) {
  const BackwardArguments to = unpack_backward(x, kernels, bandwidth, shift, grad_rows, grad_diagonal, grad_sums);
  if (to.batch.count > 0) Gradients(to).run();  // means start from the first sample
  return to.gradients;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("hsic_backward", TORCH_BOX(&hsic_backward_cpu)); }

}  // namespace stitchkern::hsic
