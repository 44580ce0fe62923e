// The floating-point types that data comes in, and their exact widening. No torch, no CUDA headers.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define SK_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define SK_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace stitchkern {

enum class DType : int { f64, f32, bf16, f16 };

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <class To, class From>
SK_HOST_DEVICE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

SK_HOST_DEVICE double widen(double v) { return v; }
SK_HOST_DEVICE float widen(float v) { return v; }
SK_HOST_DEVICE float widen(BFloat16 v) { return bit_cast<float>(uint32_t(v.bits) << 16); }

// Branch-free, so that loops over it vectorise: place exponent and mantissa, let a multiplication by 2^112 rebase the
// exponent (exact, and right for subnormals), then patch Inf and NaN.
SK_HOST_DEVICE float widen(Half v) {
  const uint32_t sign = uint32_t(v.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(v.bits & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * 5.192296858534828e33f;  // 2^112
  const uint32_t special = magnitude >= (0x7c00u << 13) ? 0x7f800000u : 0u;
  return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | sign);
}

// Round to nearest even; NaN stays NaN.
SK_HOST_DEVICE BFloat16 round_to_bf16(float v) {
  const uint32_t u = bit_cast<uint32_t>(v);
  if ((u & 0x7fffffffu) > 0x7f800000u) return BFloat16{uint16_t((u >> 16) | 0x40u)};
  return BFloat16{uint16_t((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

// Calls f(T{}) with the C++ type of a dtype.
template <class F>
inline void dispatch(DType dtype, F&& f) {
  switch (dtype) {
    case DType::f64: return f(double{});
    case DType::f32: return f(float{});
    case DType::bf16: return f(BFloat16{});
    case DType::f16: return f(Half{});
  }
}

}  // namespace stitchkern
