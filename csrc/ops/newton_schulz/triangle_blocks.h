// How a symmetric product of whole passes is halved.
#pragma once

#include <cstdint>

#include "csrc/base/dtype.h"

namespace zeromuon::ops {

// The lower triangle of a square, cut into `count` x `count` blocks of equal size; 1: the whole
// square, both triangles.
struct TriangleBlocks {
  int count = 1;

  int64_t numel() const { return int64_t{count} * (count + 1) / 2; }
  // Of the square that is really computed.
  double fraction() const { return static_cast<double>(count + 1) / (2 * count); }
};

struct BlockPlace {
  int row, col;
};

// The index-th block, row by row.
ZM_HOST_DEVICE inline BlockPlace block_at(int index) {
  int row = 0;
  while ((row + 1) * (row + 2) / 2 <= index) ++row;
  return {row, index - row * (row + 1) / 2};
}

}  // namespace zeromuon::ops
