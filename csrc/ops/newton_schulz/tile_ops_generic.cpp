#include "csrc/ops/newton_schulz/tile_ops.h"

namespace zeromuon::ops::generic {
namespace {

void round8(const float* in, BFloat16* out) {
  for (int i = 0; i < 8; ++i) encode(in[i], out[i]);
}

struct Block8 {
  float rows[8][8];

  static Block8 load(const float* in, int64_t stride) {
    Block8 block;
    for (int r = 0; r < 8; ++r) {
      for (int c = 0; c < 8; ++c) block.rows[r][c] = in[r * stride + c];
    }
    return block;
  }
  void store(float* out, int64_t stride) const {
    for (int r = 0; r < 8; ++r) {
      for (int c = 0; c < 8; ++c) out[r * stride + c] = rows[r][c];
    }
  }
  void store_rounded(BFloat16* out, int64_t stride) const {
    for (int r = 0; r < 8; ++r) {
      for (int c = 0; c < 8; ++c) encode(rows[r][c], out[r * stride + c]);
    }
  }
  void scale(float alpha) {
    for (auto& row : rows) {
      for (float& value : row) value = alpha * value;
    }
  }
  void combine(float alpha, float beta, const Block8& addend) {
    for (int r = 0; r < 8; ++r) {
      for (int c = 0; c < 8; ++c) rows[r][c] = alpha * rows[r][c] + beta * addend.rows[r][c];
    }
  }
  void transpose() {
    for (int r = 0; r < 8; ++r) {
      for (int c = 0; c < r; ++c) {
        const float other = rows[r][c];
        rows[r][c] = rows[c][r];
        rows[c][r] = other;
      }
    }
  }
};

}  // namespace

#include "csrc/ops/newton_schulz/tile_ops.inc"

}  // namespace zeromuon::ops::generic
