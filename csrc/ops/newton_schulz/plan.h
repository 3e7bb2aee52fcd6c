// What Newton-Schulz will do with a matrix of one shape: pure data, a function of the shape and the
// options only (never of timing, threads, rank or world size), so that results are reproducible.
#pragma once

#include <cstdint>
#include <string>

#include "csrc/ops/newton_schulz/coefficients.h"

namespace zeromuon::ops {

enum class NewtonSchulzForm : uint8_t { kAuto, kStandard, kGram };

// Raises ValueError naming the valid forms.
NewtonSchulzForm parse_form(const std::string& name);
const char* name_of(NewtonSchulzForm form);

// m: short side, n: long side of the matrix.
struct NewtonSchulzPlan {
  int64_t rows = 0;
  int64_t cols = 0;
  NewtonSchulzForm form = NewtonSchulzForm::kStandard;  // never kAuto
  CoefficientSet coefficients;
  int64_t scratch_numel = 0;  // fp32 elements of scratch that one matrix needs

  bool tall() const { return rows > cols; }
  int64_t short_side() const { return tall() ? cols : rows; }
  int64_t long_side() const { return tall() ? rows : cols; }
};

// kAuto is standard up to an aspect ratio of 1.5 and Gram above it, where it needs fewer
// operations.
NewtonSchulzPlan plan_newton_schulz(int64_t rows, int64_t cols, NewtonSchulzForm form,
                                    const CoefficientSet& coefficients);

// Floating-point operations of the products of one matrix, symmetric products counted at half.
double newton_schulz_flops(const NewtonSchulzPlan& plan);

}  // namespace zeromuon::ops
