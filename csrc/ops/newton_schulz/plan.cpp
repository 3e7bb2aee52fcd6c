#include "csrc/ops/newton_schulz/plan.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <span>
#include <sstream>

#include "csrc/base/check.h"
#include "csrc/ops/newton_schulz/scratch.h"
#include "csrc/ops/newton_schulz/tuned_table.h"
#include "csrc/ops/newton_schulz/work.h"

namespace zeromuon::ops {
namespace {

constexpr const char* kForms[] = {"auto", "standard", "gram", "gram_restarts"};
constexpr const char* kDTypes[] = {"auto", "float32", "bfloat16", "float16"};
constexpr const char* kBackends[] = {"blas", "onednn", "libtorch"};

// Matrices of one shape that a GPU works on together: enough to fill it with small ones, and a
// fixed number, the last batch padded, because cuBLAS picks its kernels by it.
constexpr int64_t kCudaBatch = 8;
constexpr int64_t kCudaBatchNumel = int64_t{1} << 22, kFloat16BatchNumel = int64_t{1} << 23;

// From which side on the blocks of a triangle fill a GPU, and how many rows of them there are.
constexpr int64_t kLeastBlockedSide = 2048;
constexpr int kBlockRows = 8;
// What keeps blocks on packs of 16 bytes, and their tiles whole.
constexpr int64_t kBlockMultiple = 64;

// See Note [float16 alone].
constexpr double kMostGain = 1 << 13;
// See Note [Forms].
constexpr double kMostFirstGain = 20;

// By how much the first iterations raise a small singular value.
double gain_of(const CoefficientSet& set, size_t iterations) {
  double gain = 1;
  for (size_t k = 0; k < std::min(iterations, set.triples.size()); ++k)
    gain *= std::abs(set.triples[k].a);
  return gain;
}

// More than that is a mistake, and its tiles alone would fill memory.
constexpr int64_t kLargestSide = int64_t{1} << 24;

std::vector<int> segments_of(NewtonSchulzForm form, DType dtype, const CoefficientSet& set) {
  const auto iterations = static_cast<int>(set.triples.size());
  if (form == NewtonSchulzForm::kGram) return {iterations};
  if (form == NewtonSchulzForm::kStandard) return std::vector<int>(iterations, 1);
  const bool longer = dtype == DType::kFloat16 && gain_of(set, 2) <= kMostFirstGain;
  const int first = longer ? 2 : 1, longest = first + 1;
  std::vector<int> segments = {std::min(first, iterations)};
  for (int left = iterations - first; left > 0; left -= longest) {
    segments.push_back(std::min(longest, left));
  }
  return segments;
}

// The largest magnitudes that the factors of a form have, see Units.
struct Magnitudes {
  double x = 1, r = 1, q = 1;
};

// For one singular value.
void follow(double x, std::span<const Triple> triples, const std::vector<int>& segments,
            Magnitudes& most) {
  const auto see = [](double& largest, double value) {
    largest = std::max(largest, std::abs(value));
  };
  for (const int length : segments) {
    see(most.x, x);
    double r = x * x, q = 1;
    see(most.r, r);
    for (int k = 0; k < length; ++k) {
      const Triple& t = triples[k];
      const double p = t.a + t.b * r + t.c * r * r;
      q *= p;
      see(most.q, p);
      if (length > 1) {
        see(most.q, q);
        if (k + 1 < length) see(most.q, p * r);
      }
      r *= p * p;
      if (k + 1 < length) see(most.r, r);
    }
    x *= q;
    triples = triples.subspan(length);
  }
}

Magnitudes magnitudes(const CoefficientSet& set, const std::vector<int>& segments) {
  constexpr int kPoints = 2200;
  Magnitudes most;
  for (int i = 0; i <= kPoints; ++i) {
    follow(set.largest_sigma * i / kPoints, set.triples, segments, most);
  }
  return most;
}

int unit_of(double largest) { return 14 - static_cast<int>(std::ceil(std::log2(largest))); }

void add_grid(std::vector<Tile>& tiles, const Tile& area, int64_t size) {
  for (int64_t r = 0; r < area.rows; r += size) {
    for (int64_t c = 0; c < area.cols; c += size) {
      tiles.push_back({area.row + r, area.col + c, std::min(size, area.rows - r),
                       std::min(size, area.cols - c)});
    }
  }
}

// The lower triangle of the square that begins at (at, at), in tiles of `size`; those on the
// diagonal are cut again into tiles of half that size, until it is `leaf`.
void add_triangle(std::vector<Tile>& tiles, int64_t at, int64_t side, int64_t size, int64_t leaf) {
  for (int64_t r = 0; r < side; r += size) {
    const int64_t rows = std::min(size, side - r);
    if (r > 0) add_grid(tiles, {at + r, at, rows, r}, size);
    if (size > leaf) {
      add_triangle(tiles, at + r, rows, std::max(leaf, size / 2), leaf);
    } else {
      tiles.push_back({at + r, at + r, rows, rows});
    }
  }
}

struct Operations {
  double gram = 0, square = 0, apply = 0;  // number of products of each kind
};

Operations count_products(const NewtonSchulzPlan& plan) {
  Operations count;
  size_t next = 0;
  for (const int length : plan.segments) {
    count.gram += 1;
    count.apply += 1;
    for (int k = 0; k < length; ++k) {
      const bool first = k == 0, last = k + 1 == length;
      count.square += plan.coefficients.triples[next++].c != 0 ? 1 : 0;
      count.square += (first ? 0 : 1) + (last ? 0 : 2);
    }
  }
  return count;
}

// Of one matrix of a full batch, on a GPU as the table and these figures have it: high-bandwidth
// memory, and the host's time to launch a kernel, which runs ahead of the GPU.
constexpr DeviceRates kNominalGpu{.bytes_per_s = 3.0e12, .launch_s = 8e-6};

double seconds_on_device(const NewtonSchulzPlan& plan, const ProductTarget& target) {
  DeviceRates rates = kNominalGpu;
  rates.flops_per_s =
      1e9 * find_tuned(target, plan.dtype, ProductKind::kApply, plan.short_side()).gflops;
  return seconds_of(newton_schulz_work(plan, plan.batch), rates) / plan.batch;
}

double seconds_of(const NewtonSchulzPlan& plan, const ProductTarget& target) {
  if (plan.apply.backend == ProductBackend::kTensors) return seconds_on_device(plan, target);
  const auto rate = [&](ProductKind kind, DType dtype) {
    return 1e9 * find_tuned(target, dtype, kind, plan.short_side()).gflops;
  };
  const Operations count = count_products(plan);
  const double m = static_cast<double>(plan.short_side());
  const double n = static_cast<double>(plan.long_side());
  const DType squares = plan.rounds_squares() ? plan.dtype : DType::kFloat32;
  const double gram = 2 * n * plan.gram.computed_numel(m * m);
  const double square = 2 * m * plan.square.computed_numel(m * m);
  return count.gram * gram / rate(ProductKind::kGram, plan.dtype) +
         count.square * square / rate(ProductKind::kSquare, squares) +
         count.apply * 2 * m * m * n / rate(ProductKind::kApply, plan.dtype);
}

NewtonSchulzPlan plan_one(int64_t rows, int64_t cols, NewtonSchulzForm form, DType dtype,
                          const CoefficientSet& coefficients, const ProductTarget& target) {
  NewtonSchulzPlan plan;
  plan.rows = rows;
  plan.cols = cols;
  plan.form = form;
  plan.dtype = dtype;
  plan.target = target.full_name();
  plan.coefficients = coefficients;
  plan.segments = segments_of(form, dtype, coefficients);
  if (dtype == DType::kFloat16) {
    const Magnitudes most = magnitudes(coefficients, plan.segments);
    plan.units = {unit_of(most.x), unit_of(most.r), unit_of(most.q)};
  }
  const int64_t m = plan.short_side(), n = plan.long_side();
  const DType squares = plan.rounds_squares() ? dtype : DType::kFloat32;
  plan.gram = cut_product(find_tuned(target, dtype, ProductKind::kGram, m), m, m, true);
  plan.square = cut_product(find_tuned(target, squares, ProductKind::kSquare, m), m, m, true);
  plan.apply = cut_product(find_tuned(target, dtype, ProductKind::kApply, m), m, n, false);
  if (plan.float16_alone()) {
    plan.batch = static_cast<int>(std::clamp<int64_t>(kFloat16BatchNumel / (m * n), 1, kCudaBatch));
    const bool blocked = m >= kLeastBlockedSide && m % (kBlockRows * kBlockMultiple) == 0;
    plan.gram.blocks = plan.square.blocks = {blocked ? kBlockRows : 1};
  } else if (target.cuda && m * n <= kCudaBatchNumel / kCudaBatch) {
    plan.batch = static_cast<int>(kCudaBatch);
  }
  plan.scratch_numel = scratch_numel(plan);
  plan.seconds = seconds_of(plan, target);
  return plan;
}

std::vector<DType> candidates(const NewtonSchulzRequest& request, const ProductTarget& target) {
  const NewtonSchulzDType dtype = request.dtype;
  if (dtype == NewtonSchulzDType::kFloat32) return {DType::kFloat32};
  require(dtype != NewtonSchulzDType::kFloat16 || target.cuda,
          "ns_dtype: float16 needs a GPU; this is ", target.name(),
          ", which has no such products: \"auto\" takes what it has");
  if (target.cuda && dtype != NewtonSchulzDType::kBFloat16) {
    return {DType::kFloat32, DType::kFloat16};
  }
  if (dtype == NewtonSchulzDType::kAuto && !is_tuned(target, DType::kBFloat16)) {
    return {DType::kFloat32};
  }
  require(target.has_bfloat16(),
          "ns_dtype: bfloat16 needs a processor with AVX512_BF16 or AMX, and "
          "a build with oneDNN; this one is ",
          target.name(), " (within ZEROMUON_MAX_CPU_ISA, where that is set)",
          ", where a bfloat16 product is hundreds of times slower: \"auto\" would use float32");
  if (dtype == NewtonSchulzDType::kBFloat16) return {DType::kBFloat16};
  return {DType::kFloat32, DType::kBFloat16};
}

// A matrix of few rows has its singular values near 1 after normalisation, where cubic and others
// turn what bf16 rounds into 0.35 (1x7); from 64 rows on it is 0.03.
constexpr int64_t kLeastBFloat16Side = 64;

bool is_safe(DType dtype, NewtonSchulzForm form, const CoefficientSet& coefficients) {
  if (dtype == DType::kFloat32) return true;
  if (dtype == DType::kFloat16 && !can_be_float16(coefficients, form)) return false;
  const RoundedUse use = dtype == DType::kFloat16 ? coefficients.float16 : coefficients.bfloat16;
  switch (form) {
    case NewtonSchulzForm::kStandard:
      return use >= RoundedUse::kStandardForm;
    case NewtonSchulzForm::kGramRestarts:
      return use >= RoundedUse::kRestarts;
    default:
      return use == RoundedUse::kEveryForm;
  }
}

bool has_float16(const NewtonSchulzRequest& request) {
  using enum NewtonSchulzForm;
  if (request.form != kAuto) return can_be_float16(request.coefficients, request.form);
  return can_be_float16(request.coefficients, kStandard);
}

// What "auto" leaves open is filled with what is safe; who names bfloat16 gets it, in the form that
// is named or else in the standard one at least.
bool is_allowed(const NewtonSchulzRequest& request, DType dtype, NewtonSchulzForm form,
                int64_t short_side) {
  const bool tiny = dtype != DType::kFloat32 && short_side < kLeastBFloat16Side;
  if (request.dtype == NewtonSchulzDType::kFloat16) {
    if (dtype == DType::kFloat32) return !has_float16(request);
    return can_be_float16(request.coefficients, form);
  }
  if (is_safe(dtype, form, request.coefficients) && !tiny) return true;
  return request.dtype == NewtonSchulzDType::kBFloat16 &&
         (request.form == form || form == NewtonSchulzForm::kStandard);
}

// The Gram forms take over at an aspect ratio of 1.5: on nearly square matrices they save little
// and amplify the rounding of R most. Restarts serve bf16 only.
std::vector<NewtonSchulzForm> candidates(NewtonSchulzForm form, DType dtype, int64_t rows,
                                         int64_t cols) {
  using enum NewtonSchulzForm;
  if (form != kAuto) return {form};
  if (2 * std::max(rows, cols) < 3 * std::min(rows, cols)) return {kStandard};
  if (dtype == DType::kFloat32) return {kStandard, kGram};
  return {kStandard, kGram, kGramRestarts};
}

void describe(std::ostream& out, const char* kind, const ProductPlan& product) {
  out << " " << kind << " " << name_of(product.backend);
  if (product.transposed) out << "^T";
  if (!product.tiles.empty()) {
    const auto& [first, last] = std::pair(product.tiles.front(), product.tiles.back());
    out << " " << product.tiles.size() << "x" << first.rows << "x" << first.cols << "-" << last.rows
        << "x" << last.cols;
  }
}

}  // namespace

ProductPlan cut_product(const TunedProduct& tuned, int64_t rows, int64_t cols, bool symmetric) {
  ProductPlan plan{tuned.backend, tuned.transposed, {}, {}};
  if (tuned.backend == ProductBackend::kTensors) return plan;
  if (symmetric) {
    add_triangle(plan.tiles, 0, rows, tuned.tile, std::min(tuned.tile, tuned.leaf));
  } else {
    add_grid(plan.tiles, {0, 0, rows, cols}, tuned.tile);
  }
  // Whatever number of threads takes them in this order ends nearly together.
  std::stable_sort(plan.tiles.begin(), plan.tiles.end(),
                   [](const Tile& a, const Tile& b) { return a.rows * a.cols > b.rows * b.cols; });
  return plan;
}

NewtonSchulzForm parse_form(const std::string& name) {
  return static_cast<NewtonSchulzForm>(index_of(kForms, name, "ns_form"));
}

NewtonSchulzDType parse_newton_schulz_dtype(const std::string& name) {
  return static_cast<NewtonSchulzDType>(index_of(kDTypes, name, "ns_dtype"));
}

const char* name_of(NewtonSchulzForm form) { return kForms[static_cast<int>(form)]; }
const char* name_of(ProductBackend backend) { return kBackends[static_cast<int>(backend)]; }

std::string ProductTarget::name() const {
  return cuda ? "cuda" : concat(name_of(isa), onednn ? "+onednn" : "");
}

std::string ProductTarget::full_name() const {
  return gpu.empty() ? name() : concat(name(), " (", gpu, ")");
}

double ProductPlan::computed_numel(double numel) const {
  if (tiles.empty()) return numel * (blocks.count > 1 ? blocks.fraction() : 1.0);
  double sum = 0;
  for (const Tile& tile : tiles) sum += static_cast<double>(tile.rows * tile.cols);
  return sum;
}

bool NewtonSchulzPlan::float16_alone() const {
  return dtype == DType::kFloat16 && rounds_squares() && !coefficients.scale_rows &&
         gain_of(coefficients, coefficients.triples.size()) <= kMostGain;
}

std::string NewtonSchulzPlan::arithmetic() const {
  std::ostringstream out;
  out << rows << " " << cols << " on " << target << " " << name_of(form) << " " << name_of(dtype);
  describe(out, "gram", gram);
  describe(out, "square", square);
  describe(out, "apply", apply);
  if (square.blocks.count > 1) out << " blocks " << square.blocks.count;
  if (float16_alone()) out << " float16 alone";
  if (dtype == DType::kFloat16) out << " units " << units.x << " " << units.r << " " << units.q;
  if (batch > 1) out << " batch " << batch;
  return out.str();
}

NewtonSchulzPlan plan_newton_schulz(int64_t rows, int64_t cols, const NewtonSchulzRequest& request,
                                    const ProductTarget& target) {
  require(rows > 0 && cols > 0, "Newton-Schulz needs a matrix, got shape (", rows, ", ", cols, ")");
  require(std::max(rows, cols) <= kLargestSide, "Newton-Schulz: expected sides of at most ",
          kLargestSide, ", got shape (", rows, ", ", cols, ")");
  require(!request.coefficients.triples.empty(), "Newton-Schulz needs at least one triple");
  std::optional<NewtonSchulzPlan> best;
  for (const DType dtype : candidates(request, target)) {
    for (const NewtonSchulzForm form : candidates(request.form, dtype, rows, cols)) {
      if (!is_allowed(request, dtype, form, std::min(rows, cols))) continue;
      NewtonSchulzPlan plan = plan_one(rows, cols, form, dtype, request.coefficients, target);
      if (!best || plan.seconds < best->seconds) best = std::move(plan);
    }
  }
  invariant(best.has_value(), "no form is left for ", request.coefficients.name);
  return std::move(*best);
}

bool can_be_float16(const CoefficientSet& set, NewtonSchulzForm form) {
  constexpr double kLargest = 4096;
  const Magnitudes most = magnitudes(set, segments_of(form, DType::kFloat16, set));
  return std::max({most.x, most.r, most.q}) <= kLargest;
}

double newton_schulz_flops(const NewtonSchulzPlan& plan, bool computed) {
  const Operations count = count_products(plan);
  const double m = static_cast<double>(plan.short_side());
  const double n = static_cast<double>(plan.long_side());
  const double half = m * m / 2;
  const double gram = computed ? plan.gram.computed_numel(m * m) : half;
  const double square = computed ? plan.square.computed_numel(m * m) : half;
  return count.gram * 2 * n * gram + count.square * 2 * m * square + count.apply * 2 * m * m * n;
}

}  // namespace zeromuon::ops
