#include "zero3/plan/step_plan.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <span>
#include <utility>

#include "csrc/base/check.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/plan/ownership.h"
#include "zero3/plan/tiling.h"

namespace zeromuon::zero3 {
namespace {

constexpr const char* kScales[] = {"match_rms_adamw", "original", "spectral_unclamped", "none"};

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
    check_tiling(p, blocks);
    const auto first = static_cast<ptrdiff_t>(group.blocks.size());
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
    std::stable_sort(group.blocks.begin() + first, group.blocks.end(),
                     [](const auto& a, const auto& b) { return a.kind() < b.kind(); });
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
  // A parameter that one bucket does not hold goes into several, each with blocks from all over it:
  // those that lie side by side are on one rank, which would send and get all of them.
  void make_buckets(SubGroupPlan& group) const {
    const int64_t limit = plan_.options.bucket_bytes * plan_.options.world_size;
    std::vector<PlannedBlock> ordered;
    int64_t bytes = limit + 1;  // of the last bucket; the first is yet to be opened
    const auto open = [&] {
      const int at = static_cast<int>(ordered.size());
      group.buckets.push_back({at, at});
      bytes = 0;
    };
    const auto put = [&](const PlannedBlock& block) {
      ordered.push_back(block);
      ++group.buckets.back().end;
      bytes += 4 * block.block.numel();
    };
    for (const std::span<const PlannedBlock> blocks : by_param(group.blocks)) {
      const int64_t all = 4 * group.layout.params()[blocks[0].block.param].numel;
      if (bytes + all > limit) open();
      const auto count = static_cast<int64_t>(blocks.size());
      const int64_t each = std::max<int64_t>(1, count * limit / all);  // blocks in a bucket
      const int64_t buckets = all <= limit ? 1 : (count + each - 1) / each;
      std::vector<std::vector<PlannedBlock>> parts(buckets);
      for (int64_t begin = 0, end = 0; begin < count; begin = end) {
        while (end < count && blocks[end].kind() == blocks[begin].kind()) ++end;
        for (int64_t b = begin; b < end; ++b) {
          parts[part_of(b - begin, end - begin, begin, buckets)].push_back(blocks[b]);
        }
      }
      for (int64_t k = 0; k < buckets; ++k) {
        if (k > 0) open();
        for (const PlannedBlock& block : parts[k]) put(block);
      }
      if (buckets > 1) bytes = limit + 1;
    }
    group.blocks = std::move(ordered);
  }

  // Which of `parts` takes block number b of `count` of one kind, of which those before were
  // `first`. Where there are enough, each takes as many that lie side by side from each rank's
  // share, so that they travel together; else it takes every n-th.
  int64_t part_of(int64_t b, int64_t count, int64_t first, int64_t parts) const {
    const int64_t world = plan_.options.world_size;
    if (count < world * parts) return (first + b) % parts;
    const int64_t share = b * world / count;
    const int64_t begin = (share * count + world - 1) / world;
    const int64_t end = ((share + 1) * count + world - 1) / world;
    // Rounding makes some parts of a share larger: other ones in each.
    return ((b - begin) * parts / (end - begin) + share) % parts;
  }

  // Runs of blocks of one parameter each.
  static std::vector<std::span<const PlannedBlock>> by_param(std::span<const PlannedBlock> blocks) {
    std::vector<std::span<const PlannedBlock>> out;
    for (size_t begin = 0, end = 0; begin < blocks.size(); begin = end) {
      while (end < blocks.size() && blocks[end].block.param == blocks[begin].block.param) ++end;
      out.push_back(blocks.subspan(begin, end - begin));
    }
    return out;
  }

  void assign_owners(SubGroupPlan& group, const Bucket& bucket) {
    std::vector<double> costs;
    std::vector<int> homes;
    for (int b = bucket.begin; b < bucket.end; ++b) {
      costs.push_back(group.blocks[b].seconds);
      homes.push_back(home_of(group.layout, group.blocks[b].block));
    }
    const std::vector<int> owners = ownership_.assign(costs, homes);
    // Blocks of one kind cost the same: with their owners in order those of an owner travel
    // together.
    std::map<std::pair<int, int>, std::vector<int>> of_kind;
    for (int b = bucket.begin; b < bucket.end; ++b) {
      of_kind[group.blocks[b].kind()].push_back(owners[b - bucket.begin]);
    }
    for (auto& [kind, sorted] : of_kind) std::sort(sorted.rbegin(), sorted.rend());
    for (int b = bucket.begin; b < bucket.end; ++b) {
      std::vector<int>& left = of_kind[group.blocks[b].kind()];
      group.blocks[b].owner = left.back();
      left.pop_back();
    }
  }

  // The rank that holds most of a block, so that little of it would travel; Ownership::kNoHome
  // where none does.
  int home_of(const ShardLayout& layout, const MatrixBlock& block) const {
    const BlockLines lines = layout.lines(block);
    const int64_t middle = lines.first + lines.count / 2 * lines.stride + lines.length / 2;
    for (int rank = 0; rank < plan_.options.world_size; ++rank) {
      const ShardRange& held = layout.real_range(block.param, rank);
      if (middle < held.begin || middle >= held.begin + held.numel) continue;
      int64_t numel = 0;
      for (const StridedRun& run : layout.runs(block, rank)) numel += run.numel();
      return 4 * numel >= 3 * block.numel() ? rank : Ownership::kNoHome;
    }
    return Ownership::kNoHome;
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

std::string SubGroupPlan::label_of_block(int block) const {
  const MatrixBlock& b = blocks[block].block;
  const ParamShard& p = layout.params()[b.param];
  return b.numel() == p.numel ? p.name : p.name + text_of(b);
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
