#include "zero3/plan/step_plan.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/plan/ownership.h"

namespace zeromuon::zero3 {
namespace {

constexpr const char* kScales[] = {"match_rms_adamw", "original", "spectral_unclamped", "none"};

std::string text_of(const MatrixBlock& b) {
  return concat("[", b.row_begin, ":", b.row_end, ", ", b.col_begin, ":", b.col_end, "]");
}

bool overlap(const MatrixBlock& a, const MatrixBlock& b) {
  return a.row_begin < b.row_end && b.row_begin < a.row_end && a.col_begin < b.col_end &&
         b.col_begin < a.col_end;
}

// Blocks of one parameter must tile its view: then every element has exactly one owner.
void check_blocks(const ParamShard& p, const std::vector<MatrixBlock>& blocks) {
  int64_t covered = 0;
  for (size_t i = 0; i < blocks.size(); ++i) {
    const MatrixBlock& b = blocks[i];
    require(0 <= b.row_begin && b.row_begin < b.row_end && b.row_end <= p.rows &&
                0 <= b.col_begin && b.col_begin < b.col_end && b.col_end <= p.cols,
            "parameter \"", p.name, "\": block ", text_of(b), " is empty or outside its view (",
            p.rows, ", ", p.cols, ")");
    for (size_t j = 0; j < i; ++j) {
      require(!overlap(b, blocks[j]), "parameter \"", p.name, "\": blocks ", text_of(blocks[j]),
              " and ", text_of(b), " overlap; an element would have two owners");
    }
    covered += b.numel();
  }
  require(covered == p.numel, "parameter \"", p.name, "\": its blocks cover ", covered, " of ",
          p.numel, " elements; the rest would have no owner");
}

StageTable table_of(const PlanOptions& options) {
  return stages_of(options.flow, options.wire_dtype, options.target.cuda && !options.flow.staged);
}

class Planner {
 public:
  explicit Planner(const PlanOptions& options)
      : ownership_(options.world_size), plan_{options, table_of(options), {}, {}, {}} {}

  void add(const SubGroupSpec& spec) {
    plan_.sub_groups.push_back(layout_of(spec));
    if (spec.role != Role::kMuon) return;
    SubGroupPlan& group = plan_.sub_groups.back();
    for (size_t p = 0; p < spec.params.size(); ++p) add_blocks(group, spec.params[p], p);
    make_buckets(group);
    for (const Bucket& bucket : group.buckets) assign_owners(group, bucket);
  }

  StepPlan finish() && {
    plan_.loads = ownership_.loads();
    return std::move(plan_);
  }

 private:
  SubGroupPlan layout_of(const SubGroupSpec& spec) const {
    std::vector<Zero3Param> shards;
    std::vector<bool> decay;
    for (const ParamSpec& p : spec.params) {
      require(p.shard.numel > 0, "parameter \"", p.shard.name, "\" has no elements");
      shards.push_back(p.shard);
      decay.push_back(p.decay);
    }
    return {spec.role, zero3_layout(plan_.options.world_size, shards), std::move(decay), {}, {}};
  }

  void add_blocks(SubGroupPlan& group, const ParamSpec& spec, size_t param) {
    const ParamShard& p = group.layout.params()[param];
    require(p.rows > 0, "parameter \"", p.name, "\" has role muon but no 2-D view");
    std::vector<MatrixBlock> blocks = spec.blocks;
    if (blocks.empty()) blocks.push_back({0, 0, p.rows, 0, p.cols});
    check_blocks(p, blocks);
    for (MatrixBlock b : blocks) {
      b.param = static_cast<int>(param);
      PlannedBlock planned{b, shape_index(b.rows(), b.cols()), 0, 0, 1, 0};
      const ops::NewtonSchulzPlan& shape = plan_.newton_schulz[planned.newton_schulz];
      planned.flops = ops::newton_schulz_flops(shape, true);
      planned.seconds = shape.seconds;
      planned.scale = spec.transposed ? scale_factor(plan_.options.scale, b.cols(), b.rows())
                                      : scale_factor(plan_.options.scale, b.rows(), b.cols());
      group.blocks.push_back(planned);
    }
  }

  int shape_index(int64_t rows, int64_t cols) {
    auto& plans = plan_.newton_schulz;
    const auto same = std::find_if(plans.begin(), plans.end(),
                                   [&](const auto& p) { return p.rows == rows && p.cols == cols; });
    if (same == plans.end()) {
      plans.push_back(
          ops::plan_newton_schulz(rows, cols, plan_.options.newton_schulz, plan_.options.target));
      return static_cast<int>(plans.size()) - 1;
    }
    return static_cast<int>(same - plans.begin());
  }

  // A bucket closes before it would hold more than bucket_bytes per rank; one matrix is the least.
  void make_buckets(SubGroupPlan& group) const {
    const int64_t limit = plan_.options.bucket_bytes * plan_.options.world_size;
    int64_t bytes = 0;
    for (int b = 0; b < static_cast<int>(group.blocks.size()); ++b) {
      const int64_t block_bytes = group.blocks[b].block.numel() * 4;
      if (group.buckets.empty() || bytes + block_bytes > limit) {
        group.buckets.push_back({b, b});
        bytes = 0;
      }
      group.buckets.back().end = b + 1;
      bytes += block_bytes;
    }
  }

  void assign_owners(SubGroupPlan& group, const Bucket& bucket) {
    std::vector<double> costs;
    for (int b = bucket.begin; b < bucket.end; ++b) costs.push_back(group.blocks[b].seconds);
    const std::vector<int> owners = ownership_.assign(costs);
    for (int b = bucket.begin; b < bucket.end; ++b) {
      group.blocks[b].owner = owners[b - bucket.begin];
    }
  }

  Ownership ownership_;
  StepPlan plan_;
};

}  // namespace

Scale parse_scale(const std::string& name) {
  return static_cast<Scale>(index_of(kScales, name, "scale"));
}

const char* name_of(Scale scale) { return kScales[static_cast<int>(scale)]; }

double scale_factor(Scale scale, int64_t rows, int64_t cols) {
  const double ratio = static_cast<double>(rows) / static_cast<double>(cols);
  switch (scale) {
    case Scale::kMatchRmsAdamW:
      return 0.2 * std::sqrt(static_cast<double>(std::max(rows, cols)));
    case Scale::kOriginal:
      return std::sqrt(std::max(1.0, ratio));
    case Scale::kSpectralUnclamped:
      return std::sqrt(ratio);
    case Scale::kNone:
      return 1.0;
  }
  return 1.0;
}

const std::string& SubGroupPlan::name_of_block(int block) const {
  return layout.params()[blocks[block].block.param].name;
}

namespace {

constexpr int64_t kLeastBucket = int64_t{8} << 20, kMostBucket = int64_t{128} << 20;
constexpr int kBucketsWanted = 20;  // so that the first's way in and the last's way out are short

StepPlan plan_with(const PlanOptions& options, const std::vector<SubGroupSpec>& sub_groups) {
  Planner planner(options);
  for (const SubGroupSpec& spec : sub_groups) planner.add(spec);
  return std::move(planner).finish();
}

int64_t most_buffer_bytes(const StepPlan& plan) {
  int64_t most = 0;
  for (int rank = 0; rank < plan.options.world_size; ++rank) {
    most = std::max(most, buffer_sizes(plan, rank).total_bytes());
  }
  return most;
}

int64_t wanted_bucket_bytes(const PlanOptions& options,
                            const std::vector<SubGroupSpec>& sub_groups) {
  int64_t bytes = 0;
  for (const SubGroupSpec& spec : sub_groups) {
    if (spec.role != Role::kMuon) continue;
    for (const ParamSpec& p : spec.params) bytes += 4 * p.shard.numel;
  }
  return std::clamp(bytes / options.world_size / kBucketsWanted, kLeastBucket, kMostBucket);
}

}  // namespace

StepPlan make_step_plan(const PlanOptions& options, const std::vector<SubGroupSpec>& sub_groups) {
  require(options.bucket_bytes >= 0, "bucket_bytes must not be negative, got ",
          options.bucket_bytes);
  require(options.world_size > 0, "world size must be positive, got ", options.world_size);
  require(options.slots >= 0, "slots must not be negative, got ", options.slots);
  require(options.lanes > 0, "lanes must be positive, got ", options.lanes);
  require(!options.newton_schulz.coefficients.triples.empty(),
          "ns: a plan needs a coefficient set");
  PlanOptions chosen = options;
  if (chosen.bucket_bytes == 0) chosen.bucket_bytes = wanted_bucket_bytes(options, sub_groups);
  if (chosen.slots == 0) chosen.slots = table_of(options).slots;
  const int64_t limit = options.max_bytes_in_flight;
  for (;;) {
    StepPlan plan = plan_with(chosen, sub_groups);
    const int64_t needed = limit > 0 ? most_buffer_bytes(plan) : 0;
    if (needed <= limit) return plan;
    // Smaller buckets first: they cost calls, fewer slots cost overlap.
    if (options.bucket_bytes == 0 && chosen.bucket_bytes > 1) {
      chosen.bucket_bytes /= 2;
    } else if (options.slots == 0 && chosen.slots > 1) {
      --chosen.slots;
    } else {
      throw_value_error(concat("max_bytes_in_flight: got ", limit, ", the least that works is ",
                               needed,
                               " bytes per rank with one matrix in flight; give that much, ",
                               "or leave the option out"));
    }
  }
}

}  // namespace zeromuon::zero3
