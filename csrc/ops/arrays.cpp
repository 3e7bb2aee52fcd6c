#include "csrc/ops/arrays.h"

#include "csrc/base/check.h"

namespace zeromuon::ops {
namespace {

void expect_wide(const char* where, const char* what, DType dtype) {
  require(dtype != DType::kFloat16, where, ": expected ", what, " in float32 or bfloat16, got ",
          name_of(dtype));
}

void expect_low(const char* where, const Typed& low) {
  require(low.data == nullptr || low.dtype != DType::kFloat32, where,
          ": expected the low-precision output in bfloat16 or float16, got ", name_of(low.dtype));
}

}  // namespace

void check(const AdamWArrays& a) {
  expect_wide("adamw", "the gradient", a.gradient.dtype);
  expect_wide("adamw", "exp_avg", a.exp_avg.dtype);
  expect_low("adamw", a.low_precision);
  require(a.exp_avg.dtype == a.exp_avg_sq.dtype,
          "adamw: expected exp_avg and exp_avg_sq in one dtype, got ", name_of(a.exp_avg.dtype),
          " and ", name_of(a.exp_avg_sq.dtype));
}

void check(const MomentumArrays& a) {
  expect_wide("momentum", "the gradient", a.gradient.dtype);
  expect_wide("momentum", "the momentum", a.momentum.dtype);
  expect_wide("momentum", "the wire", a.wire.dtype);
}

void check(const ApplyArrays& a) {
  expect_wide("apply", "the update", a.update.dtype);
  expect_low("apply", a.low_precision);
}

void check_wire(const ConstTyped& wire) { expect_wide("Newton-Schulz", "the wire", wire.dtype); }

}  // namespace zeromuon::ops
