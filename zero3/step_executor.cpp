#include "zero3/step_executor.h"

#include <chrono>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

std::byte* bytes_of(const at::Tensor& t) { return static_cast<std::byte*>(t.data_ptr()); }
float* floats_of(const at::Tensor& t) { return static_cast<float*>(t.data_ptr()); }

std::string join(const std::vector<std::string>& parts) {
  std::string text;
  for (const std::string& part : parts) text += (text.empty() ? "" : ", ") + part;
  return text.empty() ? "nothing" : text;
}

// Calls body(run, r) for each contiguous run of a strided one: shard and block offset, length.
template <typename Body>
void for_runs(const StridedRun& run, Body body) {
  for (int64_t r = 0; r < run.count; ++r) {
    body(run.shard_offset + r * run.shard_stride, run.block_offset + r * run.block_stride,
         r * run.length);
  }
}

}  // namespace

const char* name_of(Stage stage) {
  constexpr const char* kNames[kStages] = {"momentum",          "gather_to_owner", "newton_schulz",
                                           "scatter_to_shards", "apply",           "adamw"};
  return kNames[static_cast<int>(stage)];
}

struct StepExecutor::MuonPointers {
  float* weight;
  const float* gradient;
  float* momentum;
};

StepExecutor::StepExecutor(StepPlan plan, const offload::Placement& placement,
                           std::unique_ptr<comm::Collectives> collectives)
    : plan_(std::move(plan)),
      placement_(placement),
      collectives_(std::move(collectives)),
      shard_device_(offload::make_device(placement.shard)),
      compute_device_(offload::make_device(placement.compute)),
      slot_(slot_sizes(plan_, collectives_->rank()), placement) {
  const int rank = collectives_->rank();
  require(collectives_->world_size() == plan_.options.world_size, "the process group has ",
          collectives_->world_size(), " ranks, the plan was made for ", plan_.options.world_size);
  for (const ops::NewtonSchulzPlan& shape : plan_.newton_schulz) {
    newton_schulz_.emplace_back(shape, compute_device_->products());
  }
  for (size_t g = 0; g < plan_.sub_groups.size(); ++g) {
    const SubGroupPlan& group = plan_.sub_groups[g];
    routes_.emplace_back();
    for (size_t k = 0; k < group.buckets.size(); ++k) {
      routes_.back().push_back(route_of(plan_, static_cast<int>(g), static_cast<int>(k), rank));
    }
    std::vector<DecayRange>& ranges = adamw_ranges_.emplace_back();
    for (size_t p = 0; p < group.layout.params().size(); ++p) {
      const ShardRange real = group.layout.real_range(static_cast<int>(p), rank);
      if (real.numel == 0) continue;
      const bool joins = !ranges.empty() && ranges.back().decay == group.decay[p] &&
                         ranges.back().range.offset + ranges.back().range.numel == real.offset;
      if (joins) {
        ranges.back().range.numel += real.numel;
      } else {
        ranges.push_back({real, group.decay[p]});
      }
    }
  }
}

template <typename Body>
auto StepExecutor::timed(Stage stage, Body body) {
  using Clock = std::chrono::steady_clock;
  struct Timer {
    double& seconds;
    Clock::time_point start = Clock::now();
    ~Timer() { seconds += std::chrono::duration<double>(Clock::now() - start).count(); }
  };
  stage_ = stage;
  const Timer timer{counters_.seconds[static_cast<int>(stage)]};
  return body();
}

// The life of one bucket.
void StepExecutor::run_bucket(int sub_group, int bucket, const MuonPointers& shard,
                              const MuonHyperParameters& hyper) {
  bucket_ = bucket;
  const BucketRoute& route = routes_[sub_group][bucket];
  const FlagWord momentum_flag =
      timed(Stage::kMomentum, [&] { return update_momentum(route, shard, hyper); });
  momenta_advanced_.push_back(concat("sub-group ", sub_group, " bucket ", bucket));
  timed(Stage::kGather, [&] {
    gather_to_owner(route, momentum_flag);
    raise_flags(slot_.owner_wire.data_ptr(), route.owner_bytes, sub_group, "momentum");
  });
  const FlagWord update_flag =
      timed(Stage::kNewtonSchulz, [&] { return orthogonalize(sub_group, route); });
  timed(Stage::kScatter, [&] {
    scatter_to_shards(route, update_flag);
    raise_flags(slot_.exchange_wire.data_ptr(), route.shard_bytes, sub_group,
                "Newton-Schulz result");
  });
  timed(Stage::kApply, [&] { apply(sub_group, route, shard, hyper); });
  applied_.push_back(concat("sub-group ", sub_group, " bucket ", bucket));
}

FlagWord StepExecutor::update_momentum(const BucketRoute& route, const MuonPointers& shard,
                                       const MuonHyperParameters& hyper) {
  const ops::MomentumElement element(hyper.kind, hyper.momentum, hyper.nesterov);
  const DType wire = plan_.options.wire_dtype;
  FlagWord flag = 0;
  for (const RoutePiece& piece : route.shard_pieces) {
    std::byte* out = bytes_of(slot_.shard_wire) + piece.wire_offset;
    for_runs(piece.run, [&](int64_t at, int64_t, int64_t done) {
      const bool finite =
          shard_device_->update_momentum(element, shard.gradient + at, shard.momentum + at,
                                         out + done * size_of(wire), wire, piece.run.length);
      if (!finite && flag == 0) flag = 1 + static_cast<FlagWord>(piece.block);
    });
  }
  return flag;
}

void StepExecutor::gather_to_owner(const BucketRoute& route, FlagWord flag) {
  if (placement_.staged()) slot_.exchange_wire.copy_(slot_.shard_wire);
  write_flags(slot_.exchange_wire.data_ptr(), route.shard_bytes, flag);
  collectives_->all_to_all_v({bytes_of(slot_.exchange_wire), route.shard_bytes,
                              bytes_of(slot_.owner_wire), route.owner_bytes});
}

FlagWord StepExecutor::orthogonalize(int sub_group, const BucketRoute& route) {
  unpack_matrices(route);
  const SubGroupPlan& group = plan_.sub_groups[sub_group];
  for (const OwnedBlock& owned : route.owned) {
    const ops::NewtonSchulz& ns = newton_schulz_[group.blocks[owned.block].newton_schulz];
    ns.run(floats_of(slot_.matrices) + owned.matrix_offset, floats_of(slot_.scratch));
    ++counters_.newton_schulz_matrices;
  }
  return pack_updates(route);
}

void StepExecutor::scatter_to_shards(const BucketRoute& route, FlagWord flag) {
  write_flags(slot_.owner_wire.data_ptr(), route.owner_bytes, flag);
  collectives_->all_to_all_v({bytes_of(slot_.owner_wire), route.owner_bytes,
                              bytes_of(slot_.exchange_wire), route.shard_bytes});
}

void StepExecutor::apply(int sub_group, const BucketRoute& route, const MuonPointers& shard,
                         const MuonHyperParameters& hyper) {
  if (placement_.staged()) slot_.shard_wire.copy_(slot_.exchange_wire);
  const SubGroupPlan& group = plan_.sub_groups[sub_group];
  const DType wire = plan_.options.wire_dtype;
  for (const RoutePiece& piece : route.shard_pieces) {
    const PlannedBlock& block = group.blocks[piece.block];
    const double decay = group.decay[block.block.param] ? hyper.weight_decay : 0.0;
    const ops::ApplyElement element(hyper.lr, decay, block.scale);
    const std::byte* in = bytes_of(slot_.shard_wire) + piece.wire_offset;
    for_runs(piece.run, [&](int64_t at, int64_t, int64_t done) {
      shard_device_->apply_update(element, shard.weight + at, in + done * size_of(wire), wire,
                                  piece.run.length);
    });
  }
}

void StepExecutor::unpack_matrices(const BucketRoute& route) {
  const DType wire = plan_.options.wire_dtype;
  for (const RoutePiece& piece : route.owner_pieces) {
    const std::byte* in = bytes_of(slot_.owner_wire) + piece.wire_offset;
    float* matrix = floats_of(slot_.matrices) + piece.matrix_offset;
    for_runs(piece.run, [&](int64_t, int64_t at, int64_t done) {
      compute_device_->decode_wire(in + done * size_of(wire), wire, matrix + at, piece.run.length);
    });
  }
}

FlagWord StepExecutor::pack_updates(const BucketRoute& route) {
  const DType wire = plan_.options.wire_dtype;
  FlagWord flag = 0;
  for (const RoutePiece& piece : route.owner_pieces) {
    std::byte* out = bytes_of(slot_.owner_wire) + piece.wire_offset;
    const float* matrix = floats_of(slot_.matrices) + piece.matrix_offset;
    for_runs(piece.run, [&](int64_t, int64_t at, int64_t done) {
      const bool finite = compute_device_->encode_wire(matrix + at, out + done * size_of(wire),
                                                       wire, piece.run.length);
      if (!finite && flag == 0) flag = 1 + static_cast<FlagWord>(piece.block);
    });
  }
  return flag;
}

void StepExecutor::write_flags(void* buffer, const std::vector<int64_t>& segment_bytes,
                               FlagWord flag) {
  auto* segment = static_cast<std::byte*>(buffer);
  for (const int64_t bytes : segment_bytes) {
    compute_device_->write_word(segment, flag);
    segment += bytes;
  }
}

void StepExecutor::raise_flags(const void* buffer, const std::vector<int64_t>& segment_bytes,
                               int sub_group, const char* what) {
  const auto* segment = static_cast<const std::byte*>(buffer);
  for (size_t peer = 0; peer < segment_bytes.size(); ++peer) {
    const FlagWord flag = compute_device_->read_word(segment);
    segment += segment_bytes[peer];
    if (flag == 0) continue;
    const int block = static_cast<int>(flag - 1);
    throw StepError(concat("the ", what, " of \"", plan_.sub_groups[sub_group].name_of_block(block),
                           "\" has a NaN or infinite value on rank ", peer));
  }
}

void StepExecutor::check_shard(int sub_group, Role role, const char* what,
                               const at::Tensor& tensor) const {
  require(0 <= sub_group && sub_group < static_cast<int>(plan_.sub_groups.size()), "sub-group ",
          sub_group, " is not in the plan, which has ", plan_.sub_groups.size());
  const SubGroupPlan& group = plan_.sub_groups[sub_group];
  invariant(group.role == role, "sub-group ", sub_group, " was called with the wrong role");
  const int64_t expected = group.layout.shard_numel();
  require(tensor.defined(), "sub-group ", sub_group, ": ", what, " is missing");
  require(tensor.numel() == expected && tensor.scalar_type() == at::kFloat &&
              tensor.is_contiguous() && tensor.device() == placement_.shard,
          "sub-group ", sub_group, ": ", what, " has ", tensor.numel(), " elements of ",
          tensor.scalar_type(), " on ", tensor.device(), ", the plan expects ", expected,
          " contiguous elements of Float on ", placement_.shard,
          "; the parameters changed after attach(): call attach() again");
}

// Sub-groups come in rising order within a step.
void StepExecutor::begin(int sub_group) {
  if (sub_group <= last_sub_group_ || step_ == 0) {
    ++step_;
    applied_.clear();
    momenta_advanced_.clear();
  }
  last_sub_group_ = sub_group;
  bucket_ = -1;
}

std::string StepExecutor::progress() const {
  return concat("applied in this step: ", join(applied_),
                "; momenta advanced: ", join(momenta_advanced_));
}

void StepExecutor::recover() {
  poison_.clear();
  last_sub_group_ = static_cast<int>(plan_.sub_groups.size()) - 1;
}

void StepExecutor::guard(int sub_group, const std::function<void()>& body) {
  if (!poison_.empty()) {
    throw StepError(concat("the optimizer is poisoned by an earlier failure: ", poison_));
  }
  begin(sub_group);
  try {
    body();
  } catch (const std::exception& error) {
    const std::string where = bucket_ < 0 ? "" : concat(", bucket ", bucket_);
    poison_ = concat("step ", step_, ", sub-group ", sub_group, where, ", stage ", name_of(stage_),
                     ", seen on rank ", collectives_->rank(), ": ", error.what(), " (", progress(),
                     "). Weights and states are between two steps: load a ", "checkpoint with its optimizer states to go on");
    throw StepError(poison_);
  }
}

void StepExecutor::muon_step(int sub_group, const MuonShard& shard,
                             const MuonHyperParameters& hyper) {
  check_shard(sub_group, Role::kMuon, "the master weight", shard.weight);
  check_shard(sub_group, Role::kMuon, "the gradient", shard.gradient);
  check_shard(sub_group, Role::kMuon, "the momentum", shard.momentum);
  guard(sub_group, [&] {
    const MuonPointers pointers{floats_of(shard.weight), floats_of(shard.gradient),
                                floats_of(shard.momentum)};
    for (size_t k = 0; k < routes_[sub_group].size(); ++k) {
      run_bucket(sub_group, static_cast<int>(k), pointers, hyper);
    }
  });
}

void StepExecutor::adamw_step(int sub_group, const AdamWShard& shard,
                              const AdamWHyperParameters& hyper) {
  check_shard(sub_group, Role::kAdamW, "the master weight", shard.weight);
  check_shard(sub_group, Role::kAdamW, "the gradient", shard.gradient);
  check_shard(sub_group, Role::kAdamW, "exp_avg", shard.exp_avg);
  check_shard(sub_group, Role::kAdamW, "exp_avg_sq", shard.exp_avg_sq);
  require(hyper.step >= 1, "adamw step must count from 1, got ", hyper.step);
  guard(sub_group, [&] {
    timed(Stage::kAdamW, [&] {
      for (const auto& [range, decay] : adamw_ranges_[sub_group]) {
        const ops::AdamWElement element(hyper.lr, hyper.beta1, hyper.beta2, hyper.eps,
                                        decay ? hyper.weight_decay : 0.0, hyper.step, hyper.decay);
        const int64_t at = range.offset;
        shard_device_->adamw(element, floats_of(shard.weight) + at, floats_of(shard.gradient) + at,
                             floats_of(shard.exp_avg) + at, floats_of(shard.exp_avg_sq) + at,
                             range.numel);
      }
    });
    applied_.push_back(concat("sub-group ", sub_group));
  });
}

}  // namespace zeromuon::zero3
