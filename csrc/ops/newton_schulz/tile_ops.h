// What is done to a tile of a product while it is in the cache, compiled once per instruction set.
// Same bits from all: every operation is rounded on its own (no contraction).
#pragma once

#include <cstdint>

#include "csrc/base/dtype.h"

namespace zeromuon::ops {

// rows x cols elements at `out`, which holds the bare product. Strides in elements.
struct FinishTile {
  int64_t rows, cols;
  int64_t stride;  // of out, mirror and their rounded copies
  float* out;
  const float* addend;  // null where beta is 0
  int64_t addend_stride;
  BFloat16* rounded;         // null: not written
  float* mirror;             // where the transpose goes; null: not written
  BFloat16* mirror_rounded;  // null: not written
  float alpha, beta;
  // A tile on the diagonal of a symmetric result: `mirror` is `out` itself, only what is below the
  // diagonal is read, and `diagonal` is added to the elements on it.
  bool on_diagonal;
  float diagonal;
};

struct TileOps {
  // out = alpha*out + beta*addend, its rounded copy, and the transpose of both.
  void (*finish)(const FinishTile& tile);
  // out[c, r] = in[r, c], rows x cols of `in`.
  void (*transpose)(const float* in, int64_t in_stride, float* out, int64_t out_stride,
                    int64_t rows, int64_t cols);
  // out[i] = float(in[i] * factor), the product in double; rounded may be null.
  void (*scale)(const float* in, double factor, float* out, BFloat16* rounded, int64_t numel);
  void (*round)(const float* in, BFloat16* rounded, int64_t numel);
  // Sum of squares in double, in eight interleaved partial sums added up in order.
  double (*sum_of_squares)(const float* in, int64_t numel);
};

// The ones for this processor.
const TileOps& tile_ops();

namespace generic {
const TileOps& tile_ops();
}
namespace avx2 {
const TileOps& tile_ops();  // x86-64 only
}

}  // namespace zeromuon::ops
