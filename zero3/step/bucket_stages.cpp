#include "zero3/step/bucket_stages.h"

namespace zeromuon::zero3 {
namespace {

using offload::Alarm;
using offload::Device;
using offload::MomentumHome;

FlagWord* word_at(std::byte* at) { return reinterpret_cast<FlagWord*>(at); }

// Where a contiguous run lies: elements into the flat shard, into the bucket's pieces laid end to
// end, and into its block; bytes into the wire.
struct Run {
  int64_t shard, packed, block, wire, length;
};

template <typename Body>
void for_runs(const std::vector<RoutePiece>& pieces, int64_t wire_element_bytes, Body body) {
  for (const RoutePiece& piece : pieces) {
    for (int64_t r = 0; r < piece.run.count; ++r) {
      const int64_t done = r * piece.run.length;
      body(piece,
           Run{piece.run.shard_offset + r * piece.run.shard_stride, piece.packed_offset + done,
               piece.run.block_offset + r * piece.run.block_stride,
               piece.wire_offset + done * wire_element_bytes, piece.run.length});
    }
  }
}

FlagWord code_of(const RoutePiece& piece) { return 1 + static_cast<FlagWord>(piece.block); }

// The first segment's flag, to the head of every other.
void spread_flag(Device& device, std::byte* buffer, const std::vector<int64_t>& segment_bytes) {
  std::byte* segment = buffer;
  for (const int64_t bytes : segment_bytes) {
    if (segment != buffer) device.copy_word(word_at(segment), word_at(buffer));
    segment += bytes;
  }
}

void set_flags(Device& device, std::byte* buffer, const std::vector<int64_t>& segment_bytes) {
  for (const int64_t bytes : segment_bytes) {
    device.set_word(word_at(buffer), kFailedFlag);
    buffer += bytes;
  }
}

void read_flags(Device& device, std::byte* buffer, const std::vector<int64_t>& segment_bytes,
                std::span<FlagWord> words) {
  for (size_t peer = 0; peer < segment_bytes.size(); ++peer) {
    device.read_word(&words[peer], word_at(buffer));
    buffer += segment_bytes[peer];
  }
}

}  // namespace

void BucketStages::update_momentum_on_shard() const {
  update_momentum(backend.shard(), slot.shard_wire, false);
}

void BucketStages::update_momentum_on_device() const {
  update_momentum(*backend.compute, slot.exchange, true);
}

// packed: gradients lie in the slot, piece after piece, and so do momenta that are streamed.
void BucketStages::update_momentum(Device& device, std::byte* out, bool packed) const {
  const ops::MomentumElement element(hyper);
  const DType wire = plan.options.wire_dtype, stored = plan.options.flow.momentum_dtype;
  const bool streamed = packed && plan.options.flow.momentum == MomentumHome::kStreamed;
  const auto* gradient = packed ? reinterpret_cast<const float*>(slot.gradient) : shard.gradient;
  std::byte* momentum = streamed ? slot.momentum : shard.momentum;
  device.set_word(word_at(out), 0);
  for_runs(route.shard_pieces, size_of(wire), [&](const RoutePiece& piece, const Run& run) {
    const int64_t g = packed ? run.packed : run.shard, m = streamed ? run.packed : run.shard;
    device.update_momentum(
        element, {gradient + g, {momentum + m * size_of(stored), stored}, {out + run.wire, wire}},
        run.length, Alarm{word_at(out), code_of(piece)});
  });
  spread_flag(device, out, route.shard_bytes);
}

void BucketStages::wire_to_device() const {
  backend.compute->copy_to_device(slot.exchange, slot.shard_wire, total(route.shard_bytes));
}

void BucketStages::inputs_to_device() const {
  const int64_t stored = size_of(plan.options.flow.momentum_dtype);
  const bool streamed = plan.options.flow.momentum == MomentumHome::kStreamed;
  for_runs(route.shard_pieces, 0, [&](const RoutePiece&, const Run& run) {
    backend.compute->copy_to_device(slot.gradient + 4 * run.packed, shard.gradient + run.shard,
                                    4 * run.length);
    if (!streamed) return;
    backend.compute->copy_to_device(slot.momentum + stored * run.packed,
                                    shard.momentum + stored * run.shard, stored * run.length);
  });
}

void BucketStages::exchange(comm::Collectives& collectives, Direction direction, bool failed,
                            std::span<FlagWord> words) const {
  const bool gathers = direction == Direction::kGather;
  std::byte* const from = gathers ? slot.exchange : slot.owner_wire;
  std::byte* const to = gathers ? slot.owner_wire : slot.exchange;
  const auto& sends = gathers ? route.shard_bytes : route.owner_bytes;
  const auto& receives = gathers ? route.owner_bytes : route.shard_bytes;
  Device& device = *backend.compute;
  if (failed) set_flags(device, from, sends);
  collectives.all_to_all_v(
      {device.for_collectives(from), sends, device.for_collectives(to), receives});
  read_flags(device, to, receives, words);
}

void BucketStages::orthogonalize(std::span<const ops::NewtonSchulz> newton_schulz, float* matrices,
                                 float* scratch, std::vector<float*>& owned) const {
  unpack_matrices(matrices);
  for (const OwnedShape& shape : route.owned_shapes) {
    owned.clear();
    for (const int64_t offset : shape.matrix_offsets) owned.push_back(matrices + offset);
    backend.compute->orthogonalize(newton_schulz[shape.newton_schulz], owned, scratch, shape.lanes);
  }
  pack_updates(matrices);
}

void BucketStages::unpack_matrices(float* matrices) const {
  const DType wire = plan.options.wire_dtype;
  for_runs(route.owner_pieces, size_of(wire), [&](const RoutePiece& piece, const Run& run) {
    backend.compute->decode_wire({slot.owner_wire + run.wire, wire},
                                 matrices + piece.matrix_offset + run.block, run.length);
  });
}

void BucketStages::pack_updates(const float* matrices) const {
  const DType wire = plan.options.wire_dtype;
  Device& device = *backend.compute;
  device.set_word(word_at(slot.owner_wire), 0);
  for_runs(route.owner_pieces, size_of(wire), [&](const RoutePiece& piece, const Run& run) {
    device.encode_wire(matrices + piece.matrix_offset + run.block,
                       {slot.owner_wire + run.wire, wire}, run.length,
                       Alarm{word_at(slot.owner_wire), code_of(piece)});
  });
  spread_flag(device, slot.owner_wire, route.owner_bytes);
}

void BucketStages::results_to_host() const {
  backend.compute->copy_to_host(slot.shard_wire, slot.exchange, total(route.shard_bytes));
  if (plan.options.flow.momentum != MomentumHome::kStreamed) return;
  const int64_t stored = size_of(plan.options.flow.momentum_dtype);
  for_runs(route.shard_pieces, 0, [&](const RoutePiece&, const Run& run) {
    backend.compute->copy_to_host(shard.momentum + stored * run.shard,
                                  slot.momentum + stored * run.packed, stored * run.length);
  });
}

void BucketStages::apply() const {
  const DType wire = plan.options.wire_dtype;
  for_runs(route.shard_pieces, size_of(wire), [&](const RoutePiece& piece, const Run& run) {
    const PlannedBlock& block = group.blocks[piece.block];
    const ops::ApplyElement element(hyper, group.decay[block.block.param], block.scale);
    ops::Typed low;
    if (shard.low_precision != nullptr) {
      std::byte* base = casts_through_slot() ? slot.low_precision + 2 * run.packed
                                             : shard.low_precision + 2 * run.shard;
      low = {base, shard.low_dtype};
    }
    backend.shard().apply_update(
        element, {shard.weight + run.shard, {slot.shard_wire + run.wire, wire}, low}, run.length);
  });
}

void BucketStages::weights_to_device() const {
  for_runs(route.shard_pieces, 0, [&](const RoutePiece&, const Run& run) {
    backend.compute->copy_to_device(shard.low_precision + 2 * run.shard,
                                    slot.low_precision + 2 * run.packed, 2 * run.length);
  });
}

}  // namespace zeromuon::zero3
