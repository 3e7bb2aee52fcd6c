// The plan of an optimizer step: which matrices move together, who owns each, what Newton-Schulz
// does with it. Pure data without a tensor in it, the same on every rank; the executor follows it.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "csrc/base/dtype.h"
#include "csrc/ops/newton_schulz/plan.h"
#include "zero3/plan/shard_layout.h"
#include "zero3/plan/stages.h"
#include "zero3/plan/zero3_partition.h"

namespace zeromuon::zero3 {

enum class Role : uint8_t { kMuon, kAdamW };
enum class Scale : uint8_t { kMatchRmsAdamW, kOriginal, kSpectralUnclamped, kNone };

Scale parse_scale(const std::string& name);
const char* name_of(Scale scale);

// The factor s of W -= lr*s*O for a matrix of `rows` outputs and `cols` inputs:
//   match_rms_adamw      0.2*sqrt(max(rows, cols))    (Moonlight, arXiv 2502.16982)
//   original             sqrt(max(1, rows/cols))      (K. Jordan; DeepSpeed; torch.optim.Muon)
//   spectral_unclamped   sqrt(rows/cols)
//   none                 1
double scale_factor(Scale scale, int64_t rows, int64_t cols);

// What the host says of one parameter.
struct ParamSpec {
  Zero3Param shard;
  bool decay = true;                // weight decay applies
  bool transposed = false;          // stored as (inputs, outputs): the scale uses out/in
  std::vector<MatrixBlock> blocks;  // Muon only; empty: the whole 2-D view is one block
};

// A flat shard that DeepSpeed steps as one: its parameters all have one role.
struct SubGroupSpec {
  Role role = Role::kMuon;
  std::vector<ParamSpec> params;
};

struct PlanOptions {
  int world_size = 1;
  ops::NewtonSchulzRequest newton_schulz;
  ops::ProductTarget target;  // what Newton-Schulz runs on
  // Small matrices that a rank works on at once: sizes buffers only, no bit of a result depends on
  // it.
  int lanes = 1;
  Scale scale = Scale::kMatchRmsAdamW;
  DType wire_dtype = DType::kFloat32;
  int64_t bucket_bytes = 0;         // fp32 matrix bytes per rank that move together; 0: chosen
  int slots = 0;                    // buckets in flight; 0: chosen
  int64_t max_bytes_in_flight = 0;  // of all buffers of a rank; 0: no limit
  Flow flow;
};

struct PlannedBlock {
  MatrixBlock block;
  int newton_schulz = 0;  // index into StepPlan::newton_schulz
  double flops = 0;       // operations of the tiles computed
  double seconds = 0;     // expected of one core
  double scale = 1;
  int owner = 0;

  // Blocks of one kind, in a sub-group, differ in their place alone.
  std::pair<int, int> kind() const { return {block.param, newton_schulz}; }
};

// Blocks [begin, end) of a sub-group, whose parameters are in model order.
struct Bucket {
  int begin = 0, end = 0;
};

struct SubGroupPlan {
  Role role;
  ShardLayout layout;
  std::vector<bool> decay;  // per parameter
  std::vector<PlannedBlock> blocks;
  std::vector<Bucket> buckets;

  const std::string& name_of_block(int block) const;
  // With its rows and columns, where it is not the whole parameter.
  std::string label_of_block(int block) const;
};

struct StepPlan {
  PlanOptions options;
  StageTable stages;
  std::vector<ops::NewtonSchulzPlan> newton_schulz;  // one per shape
  std::vector<SubGroupPlan> sub_groups;
  std::vector<double>
      loads;  // [W] Newton-Schulz seconds of each rank, as the tuned table expects them of one core

  // A table for people.
  std::string table() const;
  // Every decision, one line each: what `hash` covers and ranks are compared by.
  std::string canonical_text() const;
  // 16 hexadecimal digits (FNV-1a, 64 bit) of canonical_text().
  std::string hash() const;
  // The same of what the bits of every Newton-Schulz depend on; the same at every world size.
  std::string arithmetic_hash() const;
};

// Chooses bucket_bytes and slots where they are 0, such that the buffers of no rank exceed
// max_bytes_in_flight; the plan's options hold what was chosen. Raises ValueError for layouts that
// do not add up, blocks that overlap, leave a part of their parameter without an owner, or reach
// outside it, and for a limit that no choice keeps (names the least).
StepPlan make_step_plan(const PlanOptions& options, const std::vector<SubGroupSpec>& sub_groups);

}  // namespace zeromuon::zero3
