// Portable device primitives. Each has a PTX body for the GPU and a plain body for the test executor (tests/executor/),
// which runs the same kernels on the CPU. The plain bodies spell out the fragment layouts of the PTX ISA.
#pragma once

#include <cstdint>

#include "dtype.h"

#if defined(STITCHKERN_EXECUTOR)
#include <executor.h>
#define SK_DEVICE inline __attribute__((always_inline))
#else
#define SK_DEVICE __device__ __forceinline__
#endif

namespace stitchkern::device {

inline constexpr int WARP = 32;

// ---------------------------------------------------------------------------------------------------- shared memory

// Where an array lies in a block's dynamic shared memory: laid out by constexpr code, so that the host asks for exactly
// the bytes that the kernel uses.
template <class T>
struct SharedArray {
  int offset, count;

  static constexpr int ALIGNMENT = 16;
  constexpr SharedArray(int at, int count) : offset((at + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT), count(count) {}
  constexpr int end() const { return offset + count * int(sizeof(T)); }

  SK_DEVICE T* get() const {
#if defined(STITCHKERN_EXECUTOR)
    return static_cast<T*>(executor::shared(offset, count * int(sizeof(T))));  // its own allocation: overruns show
#else
    extern __shared__ __align__(16) unsigned char stitchkern_shared[];
    return reinterpret_cast<T*>(stitchkern_shared + offset);
#endif
  }
};

// ---------------------------------------------------------------------------------------------------- warps

SK_DEVICE int lane() { return int(threadIdx.x) % WARP; }

template <class T>
SK_DEVICE T shuffle_xor(T v, int mask) {
#if defined(STITCHKERN_EXECUTOR)
  struct Lane {
    T value;
    int mask;
    T result;
  } mine{v, mask, v};
  executor::collective("shuffle_xor", &mine, [](void* const* lanes) {
    for (int i = 0; i < WARP; ++i) {
      auto* to = static_cast<Lane*>(lanes[i]);
      to->result = static_cast<Lane*>(lanes[(i ^ to->mask) % WARP])->value;
    }
  });
  return mine.result;
#else
  return __shfl_xor_sync(0xffffffffu, v, mask);
#endif
}

// v of lane `source`, which may differ from lane to lane.
template <class T>
SK_DEVICE T shuffle(T v, int source) {
#if defined(STITCHKERN_EXECUTOR)
  struct Lane {
    T value;
    int source;
    T result;
  } mine{v, source, v};
  executor::collective("shuffle", &mine, [](void* const* lanes) {
    for (int i = 0; i < WARP; ++i) {
      auto* to = static_cast<Lane*>(lanes[i]);
      to->result = static_cast<Lane*>(lanes[to->source % WARP])->value;
    }
  });
  return mine.result;
#else
  return __shfl_sync(0xffffffffu, v, source);
#endif
}

// The sum over the lanes whose numbers differ in the low bits only, `width` (a power of two) of them; every lane gets
// it. The order is a fixed tree.
template <class T>
SK_DEVICE T warp_sum(T v, int width = WARP) {
#pragma unroll
  for (int mask = WARP / 2; mask > 0; mask /= 2)
    if (mask < width) v += shuffle_xor(v, mask);
  return v;
}

// ---------------------------------------------------------------------------------------------------- arithmetic

// 1 / sqrt(v), v > 0: half the latency of a root and a division.
SK_DEVICE double inverse_sqrt(double v) {
#if defined(STITCHKERN_EXECUTOR)
  return 1 / std::sqrt(v);
#else
  return rsqrt(v);
#endif
}

// ---------------------------------------------------------------------------------------------------- tensor cores
//
// With g = lane / 4 and t = lane % 4, PTX ISA, "Matrix Fragments for mma":

// C (16 × 8) += A (16 × 8) B (8 × 8) in float64.
// a[i]: row g + 8 (i % 2), column t + 4 (i / 2). b[i]: row t + 4 i, column g. c[i]: row g + 8 (i / 2), column 2 t + i
// % 2. One instruction from sm_90 on; on sm_80 four m8n8k4, whose fragments are these, one register each.
SK_DEVICE void mma_f64_m16n8k8(double (&c)[4], const double (&a)[4], const double (&b)[2]) {
#if defined(STITCHKERN_EXECUTOR)
  struct Lane {
    double* c;
    const double *a, *b;
  } mine{c, a, b};
  executor::collective("mma_f64_m16n8k8", &mine, [](void* const* lanes) {
    double a[16][8], b[8][8];
    for (int l = 0; l < WARP; ++l) {
      const auto* from = static_cast<const Lane*>(lanes[l]);
      for (int i = 0; i < 4; ++i) a[l / 4 + 8 * (i % 2)][l % 4 + 4 * (i / 2)] = from->a[i];
      for (int i = 0; i < 2; ++i) b[l % 4 + 4 * i][l / 4] = from->b[i];
    }
    for (int l = 0; l < WARP; ++l) {
      auto* to = static_cast<Lane*>(lanes[l]);
      for (int i = 0; i < 4; ++i)
        for (int k = 0; k < 8; ++k)
          to->c[i] = __builtin_fma(a[l / 4 + 8 * (i / 2)][k], b[k][2 * (l % 4) + i % 2], to->c[i]);
    }
  });
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+d"(c[0]), "+d"(c[1]), "+d"(c[2]), "+d"(c[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
#pragma unroll
  for (int k = 0; k < 2; ++k)
#pragma unroll
    for (int half = 0; half < 2; ++half)
      asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
          : "+d"(c[2 * half]), "+d"(c[2 * half + 1])
          : "d"(a[2 * k + half]), "d"(b[k]));
#endif
}

// Two float32 to bfloat16, round to nearest even, packed: `low` in the low half.
SK_DEVICE uint32_t pack_bf16(float low, float high) {
#if defined(STITCHKERN_EXECUTOR)
  return uint32_t(round_to_bf16(low).bits) | uint32_t(round_to_bf16(high).bits) << 16;
#else
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#endif
}

// C (16 × 8, float32) += A (16 × 16) B (16 × 8), bfloat16, two to a register, the lower column (A) or row (B) in the
// low half. a[i]: row g + 8 (i % 2), columns 2 t + 8 (i / 2), + 1. b[i]: rows 2 t + 8 i, + 1, column g. c as above.
SK_DEVICE void mma_bf16_m16n8k16(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(STITCHKERN_EXECUTOR)
  struct Lane {
    float* c;
    const uint32_t *a, *b;
  } mine{c, a, b};
  executor::collective("mma_bf16_m16n8k16", &mine, [](void* const* lanes) {
    float a[16][16], b[8][16];  // b transposed
    for (int l = 0; l < WARP; ++l) {
      const auto* from = static_cast<const Lane*>(lanes[l]);
      for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i)
          a[l / 4 + 8 * (i % 2)][2 * (l % 4) + 8 * (i / 2) + half] = widen(BFloat16{uint16_t(from->a[i] >> 16 * half)});
        for (int i = 0; i < 2; ++i)
          b[l / 4][2 * (l % 4) + 8 * i + half] = widen(BFloat16{uint16_t(from->b[i] >> 16 * half)});
      }
    }
    for (int l = 0; l < WARP; ++l) {
      auto* to = static_cast<Lane*>(lanes[l]);
      for (int i = 0; i < 4; ++i) {
        const float *row = a[l / 4 + 8 * (i / 2)], *column = b[2 * (l % 4) + i % 2];
        double sum = to->c[i];
        for (int k = 0; k < 16; ++k) sum += double(row[k]) * double(column[k]);
        to->c[i] = executor::toward_zero(sum);  // tensor cores truncate: the tests must hold with that
      }
    }
  });
#else
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8 × 8 matrices of 16-bit numbers from shared memory, transposed: lane l gives the 16-byte aligned start of row l
// % 8 of matrix l / 8, and gets rows 2 t and 2 t + 1 of column g of matrix i in r[i].
SK_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const BFloat16* row) {
#if defined(STITCHKERN_EXECUTOR)
  struct Lane {
    uint32_t* r;
    const BFloat16* row;
  } mine{r, row};
  executor::collective("ldmatrix_x4_trans", &mine, [](void* const* lanes) {
    for (int l = 0; l < WARP; ++l)
      if (uintptr_t(static_cast<const Lane*>(lanes[l])->row) % 16)
        executor::fail("ldmatrix: a row is not 16-byte aligned");
    for (int l = 0; l < WARP; ++l) {
      for (int i = 0; i < 4; ++i) {
        uint32_t both = 0;
        for (int half = 0; half < 2; ++half)
          both |= uint32_t(static_cast<const Lane*>(lanes[8 * i + 2 * (l % 4) + half])->row[l / 4].bits) << 16 * half;
        static_cast<Lane*>(lanes[l])->r[i] = both;
      }
    }
  });
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
#endif
}

}  // namespace stitchkern::device
