// From the op's arguments to State and Batch; shared by the launchers of all backends.
#pragma once

#include "../common/tensor.h"
#include "moments.h"

namespace stitchkern::moments {

struct Arguments {
  State state;
  Batch batch;
};

inline Arguments unpack(Tensor& second, Tensor& first, Tensor& third, Tensor& origin, Tensor& totals, const Tensor& x,
                        const std::optional<Tensor>& y, const std::optional<Tensor>& weight, int64_t precision,
                        bool check_finite) {
  Arguments a;
  a.batch.x = rows_of(x, "x");
  if (y) a.batch.y = rows_of(*y, "y");
  a.batch.rows = a.batch.x.count();
  STD_TORCH_CHECK(!y || a.batch.y.count() == a.batch.rows, "x and y must have the same rows; got ", a.batch.rows,
                  " and ", a.batch.y.count());
  if (weight) {
    a.batch.weight = weights_of(*weight, "weight");
    STD_TORCH_CHECK(a.batch.weight.count() == a.batch.rows, "weight must have one entry per row, ", a.batch.rows,
                    "; got ", a.batch.weight.count());
  }
  STD_TORCH_CHECK(precision >= 0 && precision <= 3, "precision must be 0 … 3; got ", precision);
  a.batch.precision = static_cast<Precision>(precision);
  a.batch.check_finite = check_finite;

  for (const Tensor* t : {&second, &first, &third, &origin, &totals}) check_same_device(x, *t, "x", "the state");
  if (y) check_same_device(x, *y, "x", "y");
  if (weight) check_same_device(x, *weight, "x", "weight");
  const int64_t features = a.batch.features();
  a.state.second = state_of(second, features * features, "second");
  a.state.first = state_of(first, features, "first");
  a.state.third = third.numel() ? state_of(third, 2 * features, "third") : nullptr;
  a.state.origin = state_of(origin, features, "origin");
  a.state.totals = state_of(totals, TOTALS, "totals");
  return a;
}

}  // namespace stitchkern::moments
