// How the CUDA backend splits the work of one batch: a pure function of the shapes, the precision and the device, so
// that the same batch is added up in the same order every time. No torch, no CUDA headers.
#pragma once

#include <algorithm>
#include <cstdint>

#include "moments.h"

namespace stitchkern::moments {

// Which kernel multiplies: float64 fused multiply-adds (what the others are checked against), float64 tensor cores, or
// bfloat16 tensor cores with 1, 3 or 6 products of the parts that a float32 splits into.
enum class Kind : int { plain, float64, bf16x1, bf16x3, bf16x6 };
inline constexpr const char* KIND_NAMES[5] = {"plain", "float64", "bf16x1", "bf16x3", "bf16x6"};

// A tile of Σ u uᵀ: TILE_ROWS features against TILE_COLUMNS, neither spanning x and y.
inline constexpr int TILE_ROWS = 128, TILE_COLUMNS = 64, TILE = TILE_ROWS * TILE_COLUMNS;
inline constexpr int SPLIT_ALIGNMENT = 32;  // rows of a split are a multiple of this: whole slabs
inline constexpr int64_t MIN_SPLIT_ROWS = 64;
inline constexpr int64_t MAX_WORKSPACE = int64_t(256) << 20;  // bytes of partial tiles, unless one split needs more
inline constexpr int NORM_ROWS = 32;                          // of one step of the norms kernel
inline constexpr int WEIGHT_CHUNK = 4096, MAX_WEIGHT_CHUNKS = 256;

// Tests and benchmarks reach the other kernels through this; -1: as planned.
inline int& forced_kind() {
  static int kind = -1;
  return kind;
}

// The tiles on or above the diagonal, in order: for each tile row the tile columns from its own diagonal on, x before
// y.
struct Tiles {
  int rows_x, rows_y, columns_x, columns_y;

  SK_HOST_DEVICE int first_column(int row) const {
    return row < rows_x ? row * (TILE_ROWS / TILE_COLUMNS) : columns_x + (row - rows_x) * (TILE_ROWS / TILE_COLUMNS);
  }
  SK_HOST_DEVICE int columns() const { return columns_x + columns_y; }
  SK_HOST_DEVICE int rows() const { return rows_x + rows_y; }

  SK_HOST_DEVICE int64_t pairs() const {
    int64_t count = 0;
    for (int row = 0; row < rows(); ++row) count += columns() - first_column(row);
    return count;
  }
  SK_HOST_DEVICE void locate(int pair, int& row, int& column) const {
    row = 0;
    while (pair >= columns() - first_column(row)) pair -= columns() - first_column(row++);
    column = first_column(row) + pair;
  }
};

struct Plan {
  Kind kind;
  Tiles tiles;
  int64_t pairs, splits, split_rows;  // split s adds rows [s, s + 1) · split_rows
  int64_t weight_chunks, norm_chunks, norm_chunk_rows;

  // The workspace, in doubles from its start
  int64_t header, shift, offset, about, unscale, first, bad, partial_weight, partial_norms, partial_third,
      partial_first, partial_second;
  int64_t workspace_bytes;
};

inline Kind plan_kind(bool in_float64, Precision precision, int capability) {
  if (forced_kind() >= 0 && (!in_float64 || forced_kind() <= int(Kind::float64))) return Kind(forced_kind());
  if (in_float64 || precision == Precision::float64) return Kind::float64;
  switch (precision) {
    case Precision::medium: return Kind::bf16x1;
    case Precision::high: return Kind::bf16x3;
    default: {  // where float64 tensor cores are fast they beat six products, and are exact
      const bool fast_float64 = capability == 80 || capability == 90 || capability == 100;
      return fast_float64 ? Kind::float64 : Kind::bf16x6;
    }
  }
}

inline Plan plan(int64_t rows, int64_t p, int64_t q, bool in_float64, Precision precision, bool weighted, bool third,
                 int capability, int multiprocessors) {
  const auto ceil_div = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  Plan plan{};
  plan.kind = plan_kind(in_float64, precision, capability);
  plan.tiles = {int(ceil_div(p, TILE_ROWS)), int(ceil_div(q, TILE_ROWS)), int(ceil_div(p, TILE_COLUMNS)),
                int(ceil_div(q, TILE_COLUMNS))};
  plan.pairs = plan.tiles.pairs();

  // Splits: as few as fill the device, and more only while that keeps it visibly busier in its last wave.
  const int64_t slots = multiprocessors;  // one block each at a time
  const int64_t most = std::max<int64_t>(1, std::min({ceil_div(rows, MIN_SPLIT_ROWS), 4 * ceil_div(slots, plan.pairs),
                                                      MAX_WORKSPACE / (plan.pairs * TILE * int64_t(sizeof(double)))}));
  double best = 0;
  plan.splits = 1;
  for (int64_t splits = 1; splits <= most; ++splits) {
    const int64_t blocks = splits * plan.pairs;
    const double busy = double(blocks) / double(ceil_div(blocks, slots) * slots);
    if (busy > best * 1.02) best = busy, plan.splits = splits;
  }
  plan.split_rows = ceil_div(ceil_div(rows, plan.splits), SPLIT_ALIGNMENT) * SPLIT_ALIGNMENT;
  plan.splits = ceil_div(rows, plan.split_rows);

  const int64_t features = p + q;
  plan.weight_chunks = weighted ? std::min<int64_t>(ceil_div(rows, WEIGHT_CHUNK), MAX_WEIGHT_CHUNKS) : 0;
  if (third) {
    const int64_t affordable = std::max<int64_t>(1, (MAX_WORKSPACE / 8) / (2 * features * int64_t(sizeof(double))));
    const int64_t chunks = std::min({ceil_div(rows, NORM_ROWS), 4 * int64_t(multiprocessors), affordable});
    plan.norm_chunk_rows = ceil_div(ceil_div(rows, chunks), NORM_ROWS) * NORM_ROWS;
    plan.norm_chunks = ceil_div(rows, plan.norm_chunk_rows);
  }

  int64_t end = 0;
  const auto take = [&end](int64_t doubles) {
    const int64_t start = end;
    end += (doubles + 15) / 16 * 16;
    return start;
  };
  plan.header = take(16);
  plan.shift = take(features);
  plan.offset = take(features);
  plan.about = take(features);
  plan.unscale = take(features);
  plan.first = take(features);
  plan.bad = take(2 * ceil_div(features, 256));
  plan.partial_weight = take(3 * plan.weight_chunks);
  plan.partial_norms = take(3 * plan.norm_chunks);
  plan.partial_third = take(plan.norm_chunks * 2 * features);
  plan.partial_first = take(plan.tiles.rows() * plan.splits * TILE_ROWS);
  plan.partial_second = take(plan.pairs * plan.splits * TILE);
  plan.workspace_bytes = end * int64_t(sizeof(double));
  return plan;
}

}  // namespace stitchkern::moments
