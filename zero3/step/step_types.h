// What a step is told: tensors, hyper-parameters and what to do with them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <variant>

#include "csrc/ops/elements.h"
#include "zero3/plan/stages.h"

namespace zeromuon::zero3 {

using ops::AdamWHyperParameters;
using ops::MuonHyperParameters;

// One sub-group's tensors, [L] contiguous. L: the flat shard's elements, padding included.
// low_precision: bf16 or fp16, gets the new weight; on the compute device or on the shard's;
// undefined: not written.
struct MuonShard {
  at::Tensor weight, gradient;  // fp32, shard device
  at::Tensor momentum;          // the plan's momentum dtype; on the device of its home
  at::Tensor low_precision = {};
};
struct AdamWShard {
  at::Tensor weight, gradient, exp_avg, exp_avg_sq;  // fp32, shard device
  at::Tensor low_precision = {};
};

struct MuonTask {
  int sub_group;
  MuonShard shard;
  MuonHyperParameters hyper;
};
struct AdamWTask {
  int sub_group;
  AdamWShard shard;
  AdamWHyperParameters hyper;
};
using SubGroupTask = std::variant<MuonTask, AdamWTask>;

// A step that broke half way. The executor is poisoned: every later call raises this, too.
class StepError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Counters {
  std::map<std::string, double> seconds = zero_seconds();  // that lanes were busy with each stage
  double wall_seconds = 0;                                 // of all calls
  int64_t newton_schulz_matrices = 0;

 private:
  static std::map<std::string, double> zero_seconds() {
    std::map<std::string, double> zeros;
    for (const char* stage : kStageNames) zeros[stage] = 0.0;
    return zeros;
  }
};

// One task of a lane. Times are nanoseconds of the lanes' clock.
struct TraceEvent {
  const char* stage;  // static string
  offload::LaneKind lane;
  int sub_group, bucket;
  int64_t begin_ns, end_ns;
};

}  // namespace zeromuon::zero3
