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
constexpr auto kGram = ProductKind::kGram;
constexpr auto kSquare = ProductKind::kSquare;
constexpr auto kApply = ProductKind::kApply;
constexpr int64_t kAny = std::numeric_limits<int64_t>::max();

constexpr TunedProduct kTable[] = {
#include "csrc/ops/newton_schulz/tuned_table.inc"
};

}  // namespace

std::span<const TunedProduct> tuned_products() { return kTable; }

const TunedProduct& find_tuned(const ProductTarget& target, DType dtype, ProductKind kind,
                               int64_t short_side) {
  ProductTarget nearest = target;
  while (true) {
    const std::string name = nearest.name();
    for (const TunedProduct& row : kTable) {
      if (name == row.target && dtype == row.dtype && kind == row.kind &&
          short_side <= row.short_side) {
        return row;
      }
    }
    invariant(nearest.isa != CpuIsa::kGeneric, "the tuned table has no row for ", target.name(),
              ", ", name_of(dtype));
    nearest.isa = static_cast<CpuIsa>(static_cast<int>(nearest.isa) - 1);
  }
}

}  // namespace zeromuon::ops
