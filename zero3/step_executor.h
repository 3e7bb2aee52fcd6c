// Carries out a StepPlan on one rank: momentum on the shard, all-to-all, Newton-Schulz on the
// owner, all-to-all, apply on the shard.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <exception>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "csrc/comm/collectives.h"
#include "csrc/ops/newton_schulz/newton_schulz.h"
#include "offload/device.h"
#include "offload/slots.h"
#include "zero3/bucket_route.h"
#include "zero3/step_plan.h"

namespace zeromuon::zero3 {

enum class Stage : uint8_t { kMomentum, kGather, kNewtonSchulz, kScatter, kApply, kAdamW };
constexpr int kStages = 6;
const char* name_of(Stage stage);

struct MuonHyperParameters {
  double lr, weight_decay, momentum;
  ops::MomentumKind kind;
  bool nesterov;
};

struct AdamWHyperParameters {
  double lr, weight_decay, beta1, beta2, eps;
  int64_t step;  // 1 at the first step
  ops::Decay decay = ops::Decay::kDecoupled;
};

// One sub-group's tensors, [L] fp32 contiguous on the shard device. L: the flat shard's elements,
// padding included.
struct MuonShard {
  at::Tensor weight, gradient, momentum;
};
struct AdamWShard {
  at::Tensor weight, gradient, exp_avg, exp_avg_sq;
};

// A step that broke half way. The executor is poisoned: every later call raises this, too.
class StepError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

struct Counters {
  std::array<double, kStages> seconds{};
  int64_t newton_schulz_matrices = 0;
};

// Thread: one step at a time, from one thread; every rank calls with the same sub-groups in the
// same order.
class StepExecutor {
 public:
  StepExecutor(StepPlan plan, const offload::Placement& placement,
               std::unique_ptr<comm::Collectives> collectives);

  const StepPlan& plan() const { return plan_; }
  const Counters& counters() const { return counters_; }
  const comm::Traffic& traffic() const { return collectives_->traffic(); }

  // Raises ValueError when a tensor is not what the plan expects (nothing is changed then), and
  // StepError when a value is not finite on any rank or a stage fails.
  void muon_step(int sub_group, const MuonShard& shard, const MuonHyperParameters& hyper);
  void adamw_step(int sub_group, const AdamWShard& shard, const AdamWHyperParameters& hyper);

  // Weights and states were loaded anew: what went wrong before is past. All ranks, together.
  void recover();

 private:
  struct MuonPointers;
  // A contiguous range of a flat shard without padding, decayed alike.
  struct DecayRange {
    ShardRange range;
    bool decay;
  };

  void run_bucket(int sub_group, int bucket, const MuonPointers& shard,
                  const MuonHyperParameters& hyper);
  FlagWord update_momentum(const BucketRoute& route, const MuonPointers& shard,
                           const MuonHyperParameters& hyper);
  void gather_to_owner(const BucketRoute& route, FlagWord flag);
  FlagWord orthogonalize(int sub_group, const BucketRoute& route);
  void scatter_to_shards(const BucketRoute& route, FlagWord flag);
  void apply(int sub_group, const BucketRoute& route, const MuonPointers& shard,
             const MuonHyperParameters& hyper);

  void unpack_matrices(const BucketRoute& route);
  FlagWord pack_updates(const BucketRoute& route);
  void write_flags(void* buffer, const std::vector<int64_t>& segment_bytes, FlagWord flag);
  void raise_flags(const void* buffer, const std::vector<int64_t>& segment_bytes, int sub_group,
                   const char* what);

  void check_shard(int sub_group, Role role, const char* what, const at::Tensor& tensor) const;
  void begin(int sub_group);
  void guard(int sub_group, const std::function<void()>& body);
  std::string progress() const;

  template <typename Body>
  auto timed(Stage stage, Body body);

  StepPlan plan_;
  offload::Placement placement_;
  std::unique_ptr<comm::Collectives> collectives_;
  std::unique_ptr<offload::Device> shard_device_, compute_device_;
  std::vector<ops::NewtonSchulz> newton_schulz_;       // one per shape
  std::vector<std::vector<BucketRoute>> routes_;       // per sub-group and bucket
  std::vector<std::vector<DecayRange>> adamw_ranges_;  // per sub-group
  offload::Slot slot_;

  // Where the step is; what an error names.
  int64_t step_ = 0;
  int last_sub_group_ = -1;
  int bucket_ = -1;
  Stage stage_ = Stage::kMomentum;
  std::vector<std::string> applied_, momenta_advanced_;
  std::string poison_;
  Counters counters_;
};

}  // namespace zeromuon::zero3
