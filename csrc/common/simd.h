// Fixed-width vectors on the compiler's own vector types. Include only from *_path.cpp files: the width follows the
// instruction set that the file is compiled for.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include "dtype.h"

namespace stitchkern::STITCHKERN_PATH {

#if defined(__AVX512F__)
inline constexpr int VECTOR_BYTES = 64;
#elif defined(__AVX2__)
inline constexpr int VECTOR_BYTES = 32;
#else
inline constexpr int VECTOR_BYTES = 16;
#endif

template <class T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(VECTOR_BYTES)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(VECTOR_BYTES)));
};
template <class T>
using Vector = typename VectorOf<T>::type;

// The same bits as whole numbers of the same width. Magnitudes compare as whole numbers do, in one instruction, where
// floating-point maxima would have to mind NaN.
typedef int32_t Bits32 __attribute__((vector_size(VECTOR_BYTES)));
typedef int64_t Bits64 __attribute__((vector_size(VECTOR_BYTES)));
SK_HOST_DEVICE Bits32 magnitude_bits(Vector<float> v) { return Bits32(v) & 0x7fffffff; }
SK_HOST_DEVICE Bits64 magnitude_bits(Vector<double> v) { return Bits64(v) & 0x7fffffffffffffff; }

template <class T>
inline constexpr int LANES = VECTOR_BYTES / int(sizeof(T));

template <class T>
SK_HOST_DEVICE Vector<T> load(const T* p) {
  Vector<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
SK_HOST_DEVICE void store(T* p, Vector<T> v) {
  memcpy(p, &v, sizeof v);
}

template <class T>
SK_HOST_DEVICE Vector<T> splat(T s) {
  return s - Vector<T>{};
}

// LANES<double> numbers of either type, as doubles
SK_HOST_DEVICE Vector<double> load_double(const double* p) { return load(p); }
SK_HOST_DEVICE Vector<double> load_double(const float* p) {
  typedef float HalfVector __attribute__((vector_size(VECTOR_BYTES / 2)));
  HalfVector v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, Vector<double>);
}

template <class T>
SK_HOST_DEVICE T sum(Vector<T> v) {  // pairwise: the order depends on the width alone
  T lanes[LANES<T>];
  store(lanes, v);
  for (int width = LANES<T> / 2; width; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
}

// Transposes LANES × LANES in place: log2(LANES) rounds that exchange ever smaller blocks.
template <class T, int BLOCK, int... I>
SK_HOST_DEVICE void exchange(Vector<T>& upper, Vector<T>& lower, std::integer_sequence<int, I...>) {
  constexpr int N = LANES<T>;
  const Vector<T> u = upper, l = lower;
  upper = __builtin_shufflevector(u, l, ((I & BLOCK) ? N + I - BLOCK : I)...);
  lower = __builtin_shufflevector(u, l, ((I & BLOCK) ? N + I : I + BLOCK)...);
}

template <class T, int BLOCK = LANES<T> / 2>
SK_HOST_DEVICE void transpose(Vector<T> (&v)[LANES<T>]) {
  if constexpr (BLOCK > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES<T>; ++i)
      if (!(i & BLOCK)) exchange<T, BLOCK>(v[i], v[i + BLOCK], std::make_integer_sequence<int, LANES<T>>{});
    transpose<T, BLOCK / 2>(v);
  }
}

}  // namespace stitchkern::STITCHKERN_PATH
