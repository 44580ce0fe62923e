// A strided view of samples as rows of channels: what every streaming kernel reads. No torch, no CUDA headers.
//
// (n, c), (n, t, c), NCHW, channels_last and any slice of them are the same thing here: rows counted over up to three
// dimensions, each with its own stride, and channels with theirs. Nothing is ever transposed or made contiguous.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace stitchkern {

struct Rows {
  const void* data = nullptr;  // may be null when count == 0 or channels == 0
  DType dtype = DType::f32;
  int64_t size[3] = {0, 1, 1};    // rows are counted over these, the last fastest
  int64_t stride[3] = {0, 0, 0};  // in elements
  int64_t channels = 0;
  int64_t channel_stride = 0;  // in elements

  int64_t count() const { return size[0] * size[1] * size[2]; }

  SK_HOST_DEVICE int64_t offset(int64_t row) const {
    const int64_t outer = row / size[2];
    return (outer / size[1]) * stride[0] + (outer % size[1]) * stride[1] + (row - outer * size[2]) * stride[2];
  }

  // Merges dimensions that one stride can walk, so that (n, c) and channels_last become one long dimension (the last)
  // and NCHW becomes samples × positions.
  void collapse() {
    for (int pass = 0; pass < 2; ++pass) {
      for (int d = 1; d < 3; ++d) {
        if (size[d] == 1) {  // move the outer dimension in
          size[d] = size[d - 1], stride[d] = stride[d - 1];
          size[d - 1] = 1, stride[d - 1] = 0;
        } else if (size[d - 1] == 1 || stride[d - 1] == stride[d] * size[d]) {
          size[d] *= size[d - 1];
          size[d - 1] = 1, stride[d - 1] = 0;
        }
      }
    }
  }
};

}  // namespace stitchkern
