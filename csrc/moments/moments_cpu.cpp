// Streaming moments on the CPU.
//
// Bound: n·P²/2 multiply-adds over the fused multiply-add peak; reading is a few per cent of that from P = 256 on. So
// the data is read once, packed (whatever its layout and type) into blocks of BLOCK_ROWS × `width` that the inner loop
// streams from the caches, and only tiles on or above the diagonal are multiplied. A stage of several blocks is packed
// by all threads, then the tiles of Σ u uᵀ are shared out among them; each tile walks the blocks in order, adding to
// the float64 state while it lies in the second-level cache. Nothing depends on which thread did what.
//
// float32 products are used where they are safe. Where a feature's largest |u| in a stage leaves [2^-50, 2^55], squares
// would leave float32's range, and the stage is packed and multiplied in float64 instead; likewise for weights outside
// [2^-40, 2^40].
#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/cpu.h"
#include "../common/parallel.h"
#include "../common/scratch.h"
#include "moments_cpu.h"
#include "moments_op.h"

namespace stitchkern::moments {
namespace {

constexpr int64_t STAGE_BYTES = 4 << 20;  // of packed data: within the third-level cache of most machines
constexpr int64_t LEAST_BLOCKS = 4;       // however wide: enough that the state is not read and written too often
constexpr int64_t STAGE_BLOCKS = 32;      // at most
constexpr int PACK_PANELS = 8;            // packed by one task: a kilobyte of each row
constexpr int TILE_FEATURES = 128;        // at most, of the float64 tile that one task owns: 128 KiB
constexpr int TASKS_PER_THREAD = 4;       // at least, where there are as many panels: narrower tiles then
constexpr int64_t PACK_COST = 16, NORMS_COST = 16;  // of one number, in multiply-adds
constexpr double SAFE_SMALLEST = 0x1p-50, SAFE_LARGEST = 0x1p55;
constexpr double SAFE_LIGHTEST = 0x1p-40, SAFE_HEAVIEST = 0x1p40;

template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return STITCHKERN_FOR_CPU_PATH(kernels_f32);
  else
    return STITCHKERN_FOR_CPU_PATH(kernels_f64);
}

// Where the features of z = [x, y] lie in panels: a panel never spans x and y.
struct Panels {
  int width;
  int64_t p, q;
  int of_x, count;

  Panels(int width, int64_t p, int64_t q)
      : width(width), p(p), q(q), of_x(int((p + width - 1) / width)), count(of_x + int((q + width - 1) / width)) {}
  int64_t feature(int panel) const { return panel < of_x ? int64_t(panel) * width : p + int64_t(panel - of_x) * width; }
  int channels(int panel) const {
    const int64_t end = panel < of_x ? p : p + q;
    return int(std::min<int64_t>(width, end - feature(panel)));
  }

  // f(column, feature) for every feature; columns count the padding of panels too.
  template <class F>
  void each(const F& f) const {
    for (int panel = 0; panel < count; ++panel)
      for (int j = 0; j < channels(panel); ++j) f(int64_t(panel) * width + j, feature(panel) + j);
  }
};

// The mean of the pilot rows, rounded to the type of the products so that subtracting it rounds once. Not finite (bad
// data) or no row with weight: zero.
void pilot_mean(const Batch& batch, double* shift) {
  const int64_t count = std::min(PILOT_ROWS, batch.rows);
  std::vector<int64_t> rows;
  const auto has_weight = [&](int64_t row) {
    return !batch.weight.data || static_cast<const double*>(batch.weight.data)[batch.weight.offset(row)] > 0;
  };
  for (int64_t i = 0; i < count; ++i)
    if (const int64_t row = pilot_row(i, count, batch.rows); has_weight(row)) rows.push_back(row);
  for (int64_t row = 0; rows.empty() && row < batch.rows; ++row)  // a mask that is almost all zeros
    if (has_weight(row)) rows.push_back(row);
  for (const Rows* side : {&batch.x, &batch.y}) {
    if (!side->channels) continue;
    double* mean = side == &batch.x ? shift : shift + batch.p();
    std::fill_n(mean, side->channels, 0.0);
    dispatch(side->dtype, [&](auto source) {
      const auto* data = static_cast<const decltype(source)*>(side->data);
      for (const int64_t row : rows) {
        const auto* from = data + side->offset(row);
        for (int64_t j = 0; j < side->channels; ++j) mean[j] += double(widen(from[j * side->channel_stride]));
      }
    });
    for (int64_t j = 0; j < side->channels; ++j) {
      mean[j] /= double(std::max<size_t>(rows.size(), 1));
      if (!batch.in_float64()) mean[j] = double(float(mean[j]));
      if (!std::isfinite(mean[j])) mean[j] = 0.0;
    }
  }
}

// Some blocks of rows, packed: [block][panel][row][width], and what packing found out about each column of a block.
template <class T>
struct Stage {
  const Kernels<T>& kernel = kernels<T>();
  const Panels panels;
  const int64_t row, rows, blocks, columns;  // columns: features with padding
  const int64_t panel_stride, block_stride;
  const double* weight;     // [rows]; may be null
  T* packed = nullptr;      // [blocks][panels][BLOCK_ROWS][width]
  double* first = nullptr;  // [blocks][columns]
  T* largest = nullptr;     // [blocks][columns]

  Stage(const Batch& batch, int64_t row, int64_t rows, const double* weight)
      : panels(kernel.width, batch.p(), batch.y.channels),
        row(row),
        rows(rows),
        blocks((rows + BLOCK_ROWS - 1) / BLOCK_ROWS),
        columns(int64_t(panels.count) * panels.width),
        panel_stride(BLOCK_ROWS * panels.width),
        block_stride(panels.count * panel_stride),
        weight(weight) {}

  int64_t rows_in(int64_t block) const { return std::min(BLOCK_ROWS, rows - block * BLOCK_ROWS); }
  const double* weight_of(int64_t block) const { return weight ? weight + block * BLOCK_ROWS : nullptr; }
  T* panel(int64_t block, int64_t panel) const { return packed + block * block_stride + panel * panel_stride; }
};

// What one batch adds beside the second moments; applied to the state only once the whole batch was found good.
struct Sums {
  std::vector<double> first;  // [P]: Σ w u, u = z − shift
  std::vector<double> third;  // [2, P]
  double weight = 0, weight_sq = 0, norms[3] = {0, 0, 0};
  bool bad_x = false, bad_y = false, bad_weight = false;
};

class Update {
 public:
  Update(const State& state, const Batch& batch)
      : state_(state), batch_(batch), features_(batch.features()), shift_(features_), offset_(features_) {
    sums_.first.assign(features_, 0.0);
    if (state.third) sums_.third.assign(2 * features_, 0.0);
  }

  void run() {
    if (batch_.rows == 0) return;
    pilot_mean(batch_, shift_.data());
    const bool fresh = state_.totals[WEIGHT] == 0;
    for (int64_t j = 0; j < features_; ++j) offset_[j] = fresh ? 0.0 : shift_[j] - state_.origin[j];

    const int width = kernels<float>().width;  // plan by the narrower type, so that both element types stage alike
    const int64_t row_bytes = Panels(width, batch_.p(), batch_.y.channels).count * width * int64_t(sizeof(float));
    const int64_t blocks = std::clamp<int64_t>(STAGE_BYTES / (row_bytes * BLOCK_ROWS), LEAST_BLOCKS, STAGE_BLOCKS);
    const int64_t stage_rows = blocks * BLOCK_ROWS;

    // Later stages can find bad data after earlier ones were added: keep what there was.
    Scratch kept;
    const int64_t size = features_ * features_;
    double* backup = nullptr;
    if (batch_.check_finite && batch_.rows > stage_rows && !fresh) {
      backup = kept.get<double>(size);
      std::copy_n(state_.second, size, backup);
    }
    for (int64_t row = 0; row < batch_.rows; row += stage_rows) {
      const int64_t rows = std::min(stage_rows, batch_.rows - row);
      read_weights(row, rows);
      last_stage_ = row + rows == batch_.rows;
      const bool done =
          batch_.in_float64() ? stage<double>(row, rows) : stage<float>(row, rows) || stage<double>(row, rows);
      if (!done) {
        if (row > 0 && backup) std::copy_n(backup, size, state_.second);
        if (row > 0 && !backup) std::fill_n(state_.second, size, 0.0);
        state_.totals[BAD_X] += sums_.bad_x;
        state_.totals[BAD_Y] += sums_.bad_y;
        state_.totals[BAD_WEIGHT] += sums_.bad_weight;
        return;
      }
    }
    apply(fresh);
  }

 private:
  void read_weights(int64_t row, int64_t rows) {
    if (!batch_.weight.data) {
      sums_.weight += double(rows), sums_.weight_sq += double(rows);
      return;
    }
    weight_.resize(rows);
    const auto* data = static_cast<const double*>(batch_.weight.data);
    for (int64_t k = 0; k < rows; ++k) {
      const double w = data[batch_.weight.offset(row + k)];
      sums_.bad_weight |= !(w >= 0 && std::isfinite(w));
      weight_[k] = w;
      wide_weights_ |= w > SAFE_HEAVIEST || (w > 0 && w < SAFE_LIGHTEST);
      sums_.weight += w, sums_.weight_sq += w * w;
    }
  }

  bool bad() const { return batch_.check_finite && (sums_.bad_x || sums_.bad_y || sums_.bad_weight); }

  // Adds rows [row, row + rows). False: nothing was added, because bad data was found or, in float32, because the
  // range asks for float64.
  template <class T>
  bool stage(int64_t row, int64_t rows) {
    if (bad() || (sizeof(T) == 4 && wide_weights_)) return false;
    Stage<T> s(batch_, row, rows, batch_.weight.data ? weight_.data() : nullptr);
    s.packed = packed_.get<T>(s.blocks * s.block_stride);
    s.first = first_.get<double>(s.blocks * s.columns);
    s.largest = largest_.get<T>(s.blocks * s.columns);
    pack(s);
    if (!accept(s)) return false;
    if (state_.third) add_norms(s);
    multiply(s);
    return true;
  }

  template <class T>
  void pack(const Stage<T>& s) {
    std::vector<T> shift(s.columns, T(0));
    s.panels.each([&](int64_t column, int64_t feature) { shift[column] = T(shift_[feature]); });
    const int groups_x = (s.panels.of_x + PACK_PANELS - 1) / PACK_PANELS;
    const int groups = groups_x + (s.panels.count - s.panels.of_x + PACK_PANELS - 1) / PACK_PANELS;
    parallel_tasks(s.blocks * groups, PACK_COST * s.rows * s.columns, [&](int64_t i) {
      const int64_t block = i / groups;
      const int group = int(i % groups);
      const bool of_x = group < groups_x;
      const int panel = of_x ? group * PACK_PANELS : s.panels.of_x + (group - groups_x) * PACK_PANELS;
      const int last = std::min(panel + PACK_PANELS, of_x ? s.panels.of_x : s.panels.count) - 1;
      const int64_t begin = s.panels.feature(panel), end = s.panels.feature(last) + s.panels.channels(last);
      const int64_t column = int64_t(panel) * s.panels.width;
      s.kernel.pack({of_x ? &batch_.x : &batch_.y, s.row + block * BLOCK_ROWS, s.rows_in(block),
                     begin - (of_x ? 0 : batch_.p()), end - begin, last - panel + 1, &shift[column], s.weight_of(block),
                     s.panel(block, panel), s.first + block * s.columns + column,
                     s.largest + block * s.columns + column});
    });
  }

  // Looks at what was packed: sums that are not finite betray NaN and Inf.
  template <class T>
  bool accept(const Stage<T>& s) {
    std::vector<double> first(features_);
    bool wide = false;
    s.panels.each([&](int64_t column, int64_t feature) {
      double total = 0, top = 0;
      for (int64_t block = 0; block < s.blocks; ++block) {
        total += s.first[block * s.columns + column];
        top = std::max(top, double(s.largest[block * s.columns + column]));
      }
      first[feature] = total;
      // what is not finite in float32 may be so in float64: x − shift can overflow
      if (!std::isfinite(total) && sizeof(T) == 8) (feature < batch_.p() ? sums_.bad_x : sums_.bad_y) = true;
      wide |= !std::isfinite(total) || top > SAFE_LARGEST || (top > 0 && top < SAFE_SMALLEST);
    });
    if (bad() || (sizeof(T) == 4 && wide)) return false;
    for (int64_t j = 0; j < features_; ++j) sums_.first[j] += first[j];
    return true;
  }

  template <class T>
  void add_norms(const Stage<T>& s) {
    std::vector<double> offset(s.columns, 0.0), third(s.blocks * 2 * s.columns, 0.0), norms(s.blocks * 3, 0.0);
    s.panels.each([&](int64_t column, int64_t feature) { offset[column] = offset_[feature]; });
    parallel_tasks(s.blocks, NORMS_COST * s.rows * s.columns, [&](int64_t block) {
      s.kernel.norms(s.panel(block, 0), s.panel_stride, s.panels.of_x, s.panels.count, s.rows_in(block),
                     s.weight_of(block), offset.data(), &third[block * 2 * s.columns], s.columns, &norms[block * 3]);
    });
    for (int64_t block = 0; block < s.blocks; ++block) {
      for (int i = 0; i < 3; ++i) sums_.norms[i] += norms[block * 3 + i];
      for (int side = 0; side < 2; ++side)
        s.panels.each([&](int64_t column, int64_t feature) {
          sums_.third[side * features_ + feature] += third[(block * 2 + side) * s.columns + column];
        });
    }
  }

  // A task owns a square of panels on or above the diagonal and walks the blocks in order.
  template <class T>
  void multiply(const Stage<T>& s) {
    const Panels& panels = s.panels;
    // t tiles in each direction make t²/2 tasks; how many there are changes nothing in what each element adds up
    const int wanted = int(std::ceil(std::sqrt(2.0 * TASKS_PER_THREAD * torch::stable::get_num_threads())));
    const int per_tile = std::clamp(panels.count / wanted, 1, std::max(1, TILE_FEATURES / panels.width));
    const int tiles = (panels.count + per_tile - 1) / per_tile;
    std::vector<std::pair<int, int>> tasks;
    for (int i = 0; i < tiles; ++i)
      for (int j = i + 1; j < tiles; ++j) tasks.emplace_back(i, j);
    for (int i = 0; i < tiles; ++i) tasks.emplace_back(i, i);  // the halves last: they fill the gaps
    parallel_tasks(int64_t(tasks.size()), s.rows * s.columns * s.columns / 2, [&](int64_t t) {
      const int begin_i = tasks[t].first * per_tile, end_i = std::min(panels.count, begin_i + per_tile);
      const int begin_j = tasks[t].second * per_tile, end_j = std::min(panels.count, begin_j + per_tile);
      for (int64_t block = 0; block < s.blocks; ++block)
        for (int j = begin_j; j < end_j; ++j)
          for (int i = begin_i; i < std::min(end_i, j + 1); ++i)
            s.kernel.multiply(s.panel(block, i), s.panel(block, j), s.rows_in(block),
                              state_.second + panels.feature(i) * features_ + panels.feature(j), features_,
                              panels.channels(i), panels.channels(j), i == j);
      if (last_stage_) correct(panels, begin_i, end_i, begin_j, end_j);
    });
  }

  // Moves Σ u uᵀ of the batch from its own shift to the origin: + f dᵀ + d fᵀ + W d dᵀ.
  void correct(const Panels& panels, int begin_i, int end_i, int begin_j, int end_j) const {
    for (int pi = begin_i; pi < end_i; ++pi) {
      for (int pj = std::max(pi, begin_j); pj < end_j; ++pj) {
        const int64_t column0 = panels.feature(pj);
        for (int i = 0; i < panels.channels(pi); ++i) {
          const int64_t row = panels.feature(pi) + i;
          const double f = sums_.first[row], d = offset_[row], fw = f + sums_.weight * d;
          double* c = state_.second + row * features_ + column0;
          for (int j = 0; j < panels.channels(pj); ++j)
            c[j] += fw * offset_[column0 + j] + d * sums_.first[column0 + j];
        }
      }
    }
  }

  void apply(bool fresh) {
    for (int64_t j = 0; j < features_; ++j) {
      if (fresh) state_.origin[j] = shift_[j];
      state_.first[j] += sums_.first[j] + sums_.weight * offset_[j];
    }
    if (state_.third) {
      for (int64_t j = 0; j < 2 * features_; ++j) state_.third[j] += sums_.third[j];
      state_.totals[NORM_XX] += sums_.norms[0];
      state_.totals[NORM_XY] += sums_.norms[1];
      state_.totals[NORM_YY] += sums_.norms[2];
    }
    state_.totals[ROWS] += double(batch_.rows);
    state_.totals[WEIGHT] += sums_.weight;
    state_.totals[WEIGHT_SQ] += sums_.weight_sq;
  }

  const State& state_;
  const Batch& batch_;
  const int64_t features_;
  std::vector<double> shift_, offset_, weight_;
  Scratch packed_, first_, largest_;
  Sums sums_;
  bool last_stage_ = false, wide_weights_ = false;
};

void moments_update_cpu(Tensor second, Tensor first, Tensor third, Tensor origin, Tensor totals, Tensor x,
                        std::optional<Tensor> y, std::optional<Tensor> weight, int64_t precision, bool check_finite) {
  const Arguments a = unpack(second, first, third, origin, totals, x, y, weight, precision, check_finite);
  Update(a.state, a.batch).run();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(stitchkern, CPU, m) { m.impl("moments_update_", TORCH_BOX(&moments_update_cpu)); }

}  // namespace stitchkern::moments
