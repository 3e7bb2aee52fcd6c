#include "csrc/ops/newton_schulz/tuned_table.h"

#include <limits>
#include <string>

#include "csrc/base/check.h"

namespace zeromuon::ops {
namespace {

constexpr auto kBlas = ProductBackend::kBlas;
constexpr auto kOneDnn = ProductBackend::kOneDnn;
constexpr auto kTensors = ProductBackend::kTensors;
constexpr auto kF32 = DType::kFloat32;
constexpr auto kBF16 = DType::kBFloat16;
constexpr auto kF16 = DType::kFloat16;
constexpr auto kGram = ProductKind::kGram;
constexpr auto kSquare = ProductKind::kSquare;
constexpr auto kApply = ProductKind::kApply;
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

constexpr TunedProduct kTable[] = {
#include "csrc/ops/newton_schulz/tuned_table.inc"
};

// Of the target or of a lesser instruction set of its family; null: there is none.
const TunedProduct* find_in_family(ProductTarget target, DType dtype, ProductKind kind,
                                   int64_t short_side) {
  for (;; target.isa = static_cast<CpuIsa>(static_cast<int>(target.isa) - 1)) {
    const std::string name = row_name(target);
    for (const TunedProduct& row : kTable) {
      if (name == row.target && dtype == row.dtype && kind == row.kind &&
          short_side <= row.short_side) {
        return &row;
      }
    }
    if (target.cuda || target.isa <= CpuIsa::kAvx2) return nullptr;
  }
}

}  // namespace

std::span<const TunedProduct> tuned_products() { return kTable; }

std::string row_name(const ProductTarget& target) {
  const bool plain = target.cuda || target.isa == CpuIsa::kGeneric;
  return plain ? target.name() : concat(name_of(target.family), " ", target.name());
}

bool is_tuned(const ProductTarget& target, DType dtype) {
  if (!target.has_bfloat16() && dtype != DType::kFloat32) return false;
  return find_in_family(target, dtype, ProductKind::kGram, 1) != nullptr;
}

const TunedProduct& find_tuned(const ProductTarget& target, DType dtype, ProductKind kind,
                               int64_t short_side) {
  ProductTarget other = target;
  const TunedProduct* row = find_in_family(other, dtype, kind, short_side);
  if (row == nullptr) {
    other.family = CpuFamily::kAmd;  // of all rows
    row = find_in_family(other, dtype, kind, short_side);
  }
  if (row == nullptr) {
    other.isa = CpuIsa::kGeneric;
    row = find_in_family(other, dtype, kind, short_side);
  }
  invariant(row != nullptr, "the tuned table has no row for ", target.name(), ", ", name_of(dtype));
  return *row;
}

}  // namespace zeromuon::ops
