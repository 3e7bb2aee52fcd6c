// What Newton-Schulz will do with a matrix of one shape: pure data, a function of the shape, the
// options and the kind of machine only (never of timing, threads, rank or world size), so that
// results are reproducible.
//
// m: short side, n: long side. Internally the matrix is wide, (m, n): a tall one is transposed.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "csrc/base/cpu.h"
#include "csrc/base/dtype.h"
#include "csrc/ops/newton_schulz/coefficients.h"
#include "csrc/ops/newton_schulz/triangle_blocks.h"

namespace zeromuon::ops {

// Note [Forms]
// A form is a way of cutting the iterations into segments. A segment of one iteration works on X:
// A = X X^T, X <- a X + (b A + c A A) X. A longer one iterates on R = X X^T (m x m), accumulates
// the polynomial Q, and ends with X <- Q X: fewer operations where n is large, but what rounding
// does to R comes back multiplied by the inverse of the smallest singular value.
//   standard       every iteration by itself
//   gram           one segment; with bf16 products, R and Q stay fp32
//   gram_restarts  segments of 1, 2, 2, ...: R is taken afresh before it drifts. With float16 of 2,
//                  3, 3, ... where the first two iterations raise a small singular value less than
//                  20 times: so often comes back what rounding does to the first R
enum class NewtonSchulzForm : uint8_t { kAuto, kStandard, kGram, kGramRestarts };

// Raises ValueError naming the valid forms.
NewtonSchulzForm parse_form(const std::string& name);
const char* name_of(NewtonSchulzForm form);

// Data type of the operands of the products; results are fp32 always.
enum class NewtonSchulzDType : uint8_t { kAuto, kFloat32, kBFloat16, kFloat16 };

// Raises ValueError naming the valid ones.
NewtonSchulzDType parse_newton_schulz_dtype(const std::string& name);

// kBlas: libtorch's BLAS, one thread a tile. kTensors: whole products by libtorch, any device.
enum class ProductBackend : uint8_t { kBlas, kOneDnn, kTensors };
const char* name_of(ProductBackend backend);

// Where a Newton-Schulz will run.
struct ProductTarget {
  CpuIsa isa = CpuIsa::kGeneric;
  bool onednn = false;
  bool cuda = false;
  std::string gpu = {};  // which kind, where it is one: bits are equal on one kind only
  CpuFamily family = CpuFamily::kAmd;

  bool has_bfloat16() const { return cuda || (onednn && isa >= CpuIsa::kAvx512Bf16); }
  std::string name() const;
  std::string full_name() const;  // with the kind of GPU
};

// This processor with the libraries of this build, within ZEROMUON_MAX_CPU_ISA and, with oneDNN,
// ONEDNN_MAX_CPU_ISA. Needs the library that runs it, not only plans.
ProductTarget this_cpu();
// A GPU of such a kind; also what the batched libtorch path is tested with.
inline ProductTarget cuda_target(std::string gpu = {}) {
  return {.cuda = true, .gpu = std::move(gpu)};
}

// A rectangle of a product's result, computed by one thread with one matrix product.
struct Tile {
  int64_t row, col, rows, cols;
};

// How one product is computed. The tiles depend on the shape only, and one thread computes a whole
// tile, so that the bits of a result do not depend on the number of threads; and a symmetric result
// costs half, because only the tiles of one triangle are computed.
struct ProductPlan {
  ProductBackend backend = ProductBackend::kBlas;
  // Symmetric factors are read transposed, which some kernels prefer.
  bool transposed = false;
  std::vector<Tile> tiles;  // largest first; empty for kTensors
  TriangleBlocks blocks;    // of a symmetric result, for kTensors

  // Of a symmetric result of so many elements, and of those that are really computed.
  double computed_numel(double numel) const;
};

// Note [Units]
// float16 has 11 bits between 2^-14 and 2^16. Each factor is stored in it as a multiple of a power
// of two, which is exact and leaves a factor 2 to the largest value that it can have for
// singular values of X up to the set's largest_sigma: entries are never larger than the largest
// singular value. So what the range costs is below 2^-28 of that. The units are those of the set
// and the form, and the products' alpha takes them away.
struct Units {
  int x = 0, r = 0, q = 0;  // exponents, of X, R, and of P, Q and what is between them
};

struct NewtonSchulzPlan {
  int64_t rows = 0;
  int64_t cols = 0;
  NewtonSchulzForm form = NewtonSchulzForm::kStandard;  // never kAuto
  DType dtype = DType::kFloat32;
  std::string target;  // the kind of machine
  CoefficientSet coefficients;
  std::vector<int> segments;  // iterations each; see Note [Forms]
  Units units;                // 0 but for float16
  ProductPlan gram;           // X X^T
  ProductPlan square;         // of two m x m polynomials
  ProductPlan apply;          // m x m times m x n
  int batch = 1;              // matrices that go through the products together (kTensors)
  int64_t scratch_numel = 0;  // fp32 elements of scratch that one batch needs
  double seconds = 0;         // what the table expects one matrix to take on one core

  bool tall() const { return rows > cols; }
  // Whether every matrix is in float16 and nothing else: Note [float16 alone].
  bool float16_alone() const;
  int64_t short_side() const { return tall() ? cols : rows; }
  int64_t long_side() const { return tall() ? rows : cols; }
  // Whether products of m x m matrices round their factors to `dtype`.
  bool rounds_squares() const {
    return dtype != DType::kFloat32 && form != NewtonSchulzForm::kGram;
  }
  // Matrices so small that threads take one each instead of sharing one.
  bool takes_lanes() const {
    return short_side() <= 512 && apply.backend != ProductBackend::kTensors;
  }
  // Everything that the bits of a result depend on, in one line.
  std::string arithmetic() const;
};

struct NewtonSchulzRequest {
  NewtonSchulzForm form = NewtonSchulzForm::kAuto;
  NewtonSchulzDType dtype = NewtonSchulzDType::kAuto;
  CoefficientSet coefficients;
};

// kAuto takes the form and the data type that the tuned table expects to be fastest, among the
// pairs that are safe for the coefficient set, and of the data types those that were measured on
// the processor's own family; a pair that is named is taken as it is. Raises
// ValueError for an empty matrix, and for bfloat16 and float16 on a target that has no hardware for
// it. float16 is float32 where a set would leave its range: see can_be_float16().
NewtonSchulzPlan plan_newton_schulz(int64_t rows, int64_t cols, const NewtonSchulzRequest& request,
                                    const ProductTarget& target);

// Whether every factor of the form has a place in float16: of triples that reach above 2^12 none is
// left for the small ones.
bool can_be_float16(const CoefficientSet& set, NewtonSchulzForm form);

// Floating-point operations of the products of one matrix. `computed` counts the tiles that are
// really computed, diagonal ones whole; otherwise a symmetric product counts as half.
double newton_schulz_flops(const NewtonSchulzPlan& plan, bool computed = false);

}  // namespace zeromuon::ops
