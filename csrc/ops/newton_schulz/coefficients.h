// Coefficient sets of the Newton-Schulz iteration X <- a X + (b A + c A A) X, A = X X^T.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace zeromuon::ops {

struct Triple {
  double a, b, c;
};

// In which forms a set is known to bear products of 16-bit factors, each of the list with those
// before it: on Gaussian matrices and on
// spectra that fall over three and five decades, the largest singular value stays within 0.05 of
// the exact one. In bf16 others overshoot (polar_express +0.12, cans +1.2 even in the standard
// form; polar_express +0.4, cans +0.6 with restarts), and of a user's own set nothing is known.
enum class RoundedUse : uint8_t { kNone, kStandardForm, kRestarts, kEveryForm };

struct CoefficientSet {
  std::string name;
  std::vector<Triple> triples;  // one per iteration, at least one
  double safety = 1.0;          // the input is divided by safety * ||X||_F
  bool scale_rows = false;      // AOL: rows scaled by 1/sqrt(sum_j |X X^T|_ij) before iteration 1
  std::string source;
  // Up to which singular values of the normalised input the set is looked at. None is above 1, and
  // some sets diverge there; of a user's own set nothing is known, so that it must bear more.
  double largest_sigma = 1.0;
  RoundedUse bfloat16 = RoundedUse::kNone;
  RoundedUse float16 = RoundedUse::kEveryForm;
};

// The named sets, in documentation order.
const std::vector<CoefficientSet>& coefficient_sets();

// Raises ValueError with the valid names when there is no such set.
const CoefficientSet& find_coefficient_set(std::string_view name);

// A user's own set. Raises ValueError when it is empty or a number is not finite.
CoefficientSet custom_coefficient_set(std::vector<Triple> triples);

}  // namespace zeromuon::ops
