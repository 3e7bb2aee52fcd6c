// What the stages of a bucket do: the bodies of its tasks.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "csrc/comm/collectives.h"
#include "offload/backend.h"
#include "offload/slots.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/plan/collective_schedule.h"
#include "zero3/step/step_types.h"

namespace zeromuon::zero3 {

// Addresses of a Muon sub-group's tensors; see MuonShard.
struct MuonPointers {
  float* weight;
  const float* gradient;
  std::byte* momentum;
  std::byte* low_precision;  // null: not written
  DType low_dtype;
  bool low_with_shard;  // written where the weights are; else copied to the compute device
};

// One bucket of one call, in its slot. Each function is the body of one task of the lane that it
// names. Sizes and offsets come from the route.
// Thread: one task of a bucket at a time.
struct BucketStages {
  const StepPlan& plan;
  const SubGroupPlan& group;
  const BucketRoute& route;
  offload::Backend& backend;
  const MuonPointers& shard;
  const MuonHyperParameters& hyper;
  const offload::Slot& slot;

  bool momentum_on_shard() const {
    return !backend.staged() || plan.options.flow.momentum == offload::MomentumHome::kShard;
  }

  // Shard lane: mixed momentum -> slot.shard_wire.
  void update_momentum_on_shard() const;
  // To-device lane: slot.shard_wire -> slot.exchange.
  void wire_to_device() const;
  // To-device lane: gradients, and momenta that are streamed, -> slot.gradient, slot.momentum.
  void inputs_to_device() const;
  // Compute lane: slot.gradient and momentum -> slot.exchange.
  void update_momentum_on_device() const;
  // Collective lane. failed: this rank cannot go on, and says so. words: [W], gets every peer's
  // flag.
  void exchange(comm::Collectives& collectives, Direction direction, bool failed,
                std::span<FlagWord> words) const;
  // Compute lane, owner: slot.owner_wire -> Newton-Schulz -> slot.owner_wire. matrices, scratch:
  // shared by all buckets. owned: scratch list.
  void orthogonalize(std::span<const ops::NewtonSchulz> newton_schulz, float* matrices,
                     float* scratch, std::vector<float*>& owned) const;
  // To-host lane: slot.exchange -> slot.shard_wire, and momenta that are streamed go home.
  void results_to_host() const;
  // Shard lane: slot.shard_wire -> weights, and their cast.
  void apply() const;
  // To-device lane: cast weights -> the compute device.
  void weights_to_device() const;

  bool casts_through_slot() const {
    return shard.low_precision != nullptr && backend.staged() && !shard.low_with_shard;
  }

 private:
  void update_momentum(offload::Device& device, std::byte* out, bool packed) const;
  void unpack_matrices(float* matrices) const;
  void pack_updates(const float* matrices) const;
};

}  // namespace zeromuon::zero3
