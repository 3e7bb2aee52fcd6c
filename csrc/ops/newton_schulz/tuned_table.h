// Measured once per kind of machine by `zeromuon bench tune`, checked in, never measured at run
// time: results must not depend on timing.
#pragma once

#include <span>
#include <string>

#include "csrc/ops/newton_schulz/plan.h"

namespace zeromuon::ops {

enum class ProductKind : uint8_t { kGram, kSquare, kApply };

// How a product of one kind is cut on one kind of machine, for short sides up to `short_side`.
struct TunedProduct {
  const char* target;  // row_name() of a ProductTarget
  DType dtype;
  ProductKind kind;
  int64_t short_side;
  ProductBackend backend;
  int tile;         // rows and columns of a tile
  int leaf;         // symmetric results: of a tile on the diagonal
  bool transposed;  // see ProductPlan
  int gflops;       // per core, of the tiles computed
};

std::span<const TunedProduct> tuned_products();

// Family and name() of a CPU, name() of what has no family: "amd avx2+onednn", "generic", "cuda".
std::string row_name(const ProductTarget& target);

// Whether products of such factors were measured on the target itself: its family, and its
// instruction set or one below it that has the hardware for them.
bool is_tuned(const ProductTarget& target, DType dtype);

// The row for a product. Targets that were not tuned take the rows of the nearest one below them,
// and those of another family where their own has none.
const TunedProduct& find_tuned(const ProductTarget& target, DType dtype, ProductKind kind,
                               int64_t short_side);

// The tiles of a rows x cols result as a row of the table cuts it.
ProductPlan cut_product(const TunedProduct& tuned, int64_t rows, int64_t cols, bool symmetric);

}  // namespace zeromuon::ops
