// The exponential of kernels, of one number or of a vector of them. No torch, no CUDA headers.
#pragma once

#include "../common/dtype.h"

namespace stitchkern::hsic {

// exp(v) − shift for v <= 0: 2^k (exp(r) − 1) + (2^k − shift), |r| <= log(2) / 2, exp(r) − 1 by its series up to r^13.
// Without a shift within 2 ulp; near shift = 1 what is small keeps its digits, as expm1 does. Below −708, where doubles
// lose theirs, it stays at exp(−708). NaN stays NaN. power_of: 2^k of a number with k in its last bits.
template <class Real, class Power>
SK_HOST_DEVICE Real exp_minus(Real v, Real shift, const Power& power_of) {
  constexpr double ROUND = 0x1.8p52;  // the last bits of a sum with this are a whole number
  constexpr double LOG2_E = 0x1.71547652b82fep0;
  constexpr double LN2_HIGH = 0x1.62e42feep-1, LN2_LOW = 0x1.a39ef35793c76p-33;  // k × the first is exact
  v = v < -708.0 ? Real{} - 708.0 : v;
  const Real rounded = v * LOG2_E + ROUND, k = rounded - ROUND;
  const Real r = (v - k * LN2_HIGH) - k * LN2_LOW;
  const Real power = power_of(rounded);
  Real series = Real{} + 1.0 / 6227020800;
  series = series * r + 1.0 / 479001600;
  series = series * r + 1.0 / 39916800;
  series = series * r + 1.0 / 3628800;
  series = series * r + 1.0 / 362880;
  series = series * r + 1.0 / 40320;
  series = series * r + 1.0 / 5040;
  series = series * r + 1.0 / 720;
  series = series * r + 1.0 / 120;
  series = series * r + 1.0 / 24;
  series = series * r + 1.0 / 6;
  series = series * r + 0.5;
  return power * (series * r * r + r) + (power - shift);
}

}  // namespace stitchkern::hsic
