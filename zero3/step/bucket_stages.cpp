#include "zero3/step/bucket_stages.h"

namespace zeromuon::zero3 {
namespace {

using offload::Alarm;
using offload::Device;
using enum offload::SlotBuffer;

FlagWord* word_at(std::byte* at) { return reinterpret_cast<FlagWord*>(at); }

// Where a contiguous run lies: elements into the flat shard, into the bucket's pieces laid end to
// end, and into the matrix buffer; bytes into the wire. block: index in the sub-group.
struct Run {
  int64_t shard, packed, matrix, wire, length;
  int block;

  FlagWord code() const { return 1 + static_cast<FlagWord>(block); }
};

template <typename Body>
void for_runs(const std::vector<RoutePiece>& pieces, int64_t wire_element_bytes, Body body) {
  for (const RoutePiece& piece : pieces) {
    for (int64_t r = 0; r < piece.run.count; ++r) {
      const int64_t done = r * piece.run.length;
      body(Run{piece.run.shard_offset + r * piece.run.shard_stride, piece.packed_offset + done,
               piece.matrix_offset + piece.run.block_offset + r * piece.run.block_stride,
               piece.wire_offset + done * wire_element_bytes, piece.run.length, piece.block_of(r)});
    }
  }
}

// body(shard, packed, length) of each range that is contiguous in both, in elements.
template <typename Body>
void for_copies(const std::vector<RoutePiece>& pieces, Body body) {
  for (const RoutePiece& piece : pieces) {
    const StridedRun& run = piece.run;
    const bool touch = run.shard_stride == run.length;
    const int64_t copies = touch ? 1 : run.count, length = touch ? run.numel() : run.length;
    for (int64_t r = 0; r < copies; ++r) {
      body(run.shard_offset + r * run.shard_stride, piece.packed_offset + r * length, length);
    }
  }
}

}  // namespace

RunStorage::RunStorage(const BucketRoute& route) {
  const auto count = [](const std::vector<RoutePiece>& pieces) {
    size_t runs = 0;
    for (const RoutePiece& piece : pieces) runs += static_cast<size_t>(piece.run.count);
    return runs;
  };
  elements.reserve(count(route.shard_pieces));
  runs.reserve(std::max(count(route.shard_pieces), count(route.owner_pieces)));
}

// Where the momentum's kernel finds its arrays. packed: laid end to end in the slot, else at their
// places in the flat shard.
struct BucketStages::MomentumSource {
  Device& device;
  const float* gradient;
  bool gradient_packed;
  std::byte* momentum;
  bool momentum_packed;
};

void BucketStages::momentum_on_shard() const {
  mix({backend.shard(), call.gradient, false, call.momentum, false}, slot[kShardWire]);
}

void BucketStages::momentum_on_device() const {
  const auto* gradient = reinterpret_cast<const float*>(slot[kGradient]);
  mix({*backend.compute, gradient, true, call.momentum, false}, slot[kExchange]);
}

void BucketStages::momentum_streamed() const {
  const auto* gradient = reinterpret_cast<const float*>(slot[kGradient]);
  mix({*backend.compute, gradient, true, slot[kMomentum], true}, slot[kExchange]);
}

void BucketStages::mix(const MomentumSource& source, std::byte* out) const {
  const ops::MomentumElement element(call.hyper);
  const DType wire = plan.options.wire_dtype, stored = plan.options.flow.momentum_dtype;
  source.device.set_word(word_at(out), 0);
  std::vector<ops::Run>& runs = work.runs;
  runs.clear();
  for_runs(route.shard_pieces, size_of(wire), [&](const Run& run) {
    const int64_t g = source.gradient_packed ? run.packed : run.shard;
    const int64_t m = source.momentum_packed ? run.packed : run.shard;
    runs.push_back({{g, m, run.wire / size_of(wire)}, run.length, run.code()});
  });
  source.device.update_momenta(element, {source.gradient, {source.momentum, stored}, {out, wire}},
                               runs, word_at(out));
  source.device.spread_word({out, route.shard_flags});
}

void BucketStages::wire_to_device() const {
  backend.compute->copy_to_device(slot[kExchange], slot[kShardWire], total(route.shard_bytes));
}

void BucketStages::gradient_to_device() const {
  for_copies(route.shard_pieces, [&](int64_t shard, int64_t packed, int64_t length) {
    backend.compute->copy_to_device(slot[kGradient] + sizeof(float) * packed, call.gradient + shard,
                                    sizeof(float) * length);
  });
}

void BucketStages::gradient_and_momentum_to_device() const {
  gradient_to_device();
  const int64_t stored = size_of(plan.options.flow.momentum_dtype);
  for_copies(route.shard_pieces, [&](int64_t shard, int64_t packed, int64_t length) {
    backend.compute->copy_to_device(slot[kMomentum] + stored * packed,
                                    call.momentum + stored * shard, stored * length);
  });
}

void BucketStages::exchange(comm::Collectives& collectives, Direction direction, bool failed,
                            std::span<FlagWord> words) const {
  const bool gathers = direction == Direction::kGather;
  std::byte* const from = gathers ? slot[kExchange] : slot[kOwnerWire];
  std::byte* const to = gathers ? slot[kOwnerWire] : slot[kExchange];
  const auto& sends = gathers ? route.shard_bytes : route.owner_bytes;
  const auto& receives = gathers ? route.owner_bytes : route.shard_bytes;
  Device& device = *backend.compute;
  if (failed) {
    device.set_word(word_at(from), kFailedFlag);
    device.spread_word({from, gathers ? route.shard_flags : route.owner_flags});
  }
  collectives.all_to_all_v(
      {device.for_collectives(from), sends, device.for_collectives(to), receives});
  device.read_words(words.data(), {to, gathers ? route.owner_flags : route.shard_flags});
}

void BucketStages::orthogonalize() const {
  unpack_matrices();
  for (const OwnedShape& shape : route.owned_shapes) {
    bench.owned.clear();
    for (const int64_t offset : shape.matrix_offsets) {
      bench.owned.push_back(bench.matrices + offset);
    }
    backend.compute->orthogonalize(bench.shapes[shape.newton_schulz], bench.owned, bench.scratch,
                                   shape.lanes);
  }
  pack_updates();
}

void BucketStages::unpack_matrices() const {
  const DType wire = plan.options.wire_dtype;
  std::vector<ops::Run>& runs = work.runs;
  runs.clear();
  for_runs(route.owner_pieces, size_of(wire), [&](const Run& run) {
    runs.push_back({{run.wire / size_of(wire), run.matrix}, run.length});
  });
  backend.compute->decode_runs({slot[kOwnerWire], wire}, bench.matrices, runs);
}

void BucketStages::pack_updates() const {
  const DType wire = plan.options.wire_dtype;
  Device& device = *backend.compute;
  std::byte* const out = slot[kOwnerWire];
  device.set_word(word_at(out), 0);
  std::vector<ops::Run>& runs = work.runs;
  runs.clear();
  for_runs(route.owner_pieces, size_of(wire), [&](const Run& run) {
    runs.push_back({{run.matrix, run.wire / size_of(wire)}, run.length, run.code()});
  });
  device.encode_runs(bench.matrices, {out, wire}, runs, word_at(out));
  device.spread_word({out, route.owner_flags});
}

void BucketStages::update_to_host() const {
  backend.compute->copy_to_host(slot[kShardWire], slot[kExchange], total(route.shard_bytes));
}

void BucketStages::update_and_momentum_to_host() const {
  update_to_host();
  const int64_t stored = size_of(plan.options.flow.momentum_dtype);
  for_copies(route.shard_pieces, [&](int64_t shard, int64_t packed, int64_t length) {
    backend.compute->copy_to_host(call.momentum + stored * shard, slot[kMomentum] + stored * packed,
                                  stored * length);
  });
}

void BucketStages::apply() const { update_weights(false); }

void BucketStages::apply_through_slot() const { update_weights(true); }

// The word that the scatter brought has been read: it serves again.
void BucketStages::update_weights(bool through_slot) const {
  const DType wire = plan.options.wire_dtype;
  FlagWord* const word = word_at(slot[kShardWire]);
  backend.shard().set_word(word, 0);
  auto& [runs, elements] = work;
  runs.clear();
  elements.clear();
  for_runs(route.shard_pieces, size_of(wire), [&](const Run& run) {
    const PlannedBlock& block = group.blocks[run.block];
    elements.emplace_back(call.hyper, group.decay[block.block.param], block.scale);
    runs.push_back({{run.shard, run.wire / size_of(wire), through_slot ? run.packed : run.shard},
                    run.length,
                    run.code()});
  });
  ops::Typed cast;
  if (low() != nullptr) {
    cast = {through_slot ? slot[kLowPrecision] : low(), call.low_precision.dtype};
  }
  backend.shard().apply_updates(elements, {call.weight, {slot[kShardWire], wire}, cast}, runs,
                                word);
  backend.shard().read_word(alarm, word);
}

void BucketStages::weights_to_device() const {
  if (low() == nullptr) return;
  for_copies(route.shard_pieces, [&](int64_t shard, int64_t packed, int64_t length) {
    backend.compute->copy_to_device(low() + kCastBytes * shard,
                                    slot[kLowPrecision] + kCastBytes * packed, kCastBytes * length);
  });
}

std::byte* ChunkStages::low() const {
  auto* const base = static_cast<std::byte*>(call.low_precision.data);
  return base == nullptr ? nullptr : base + kCastBytes * chunk.range.offset;
}

void ChunkStages::adamw() const { adamw(low()); }

void ChunkStages::adamw_through_slot() const { adamw(low() == nullptr ? nullptr : staging); }

void ChunkStages::adamw(std::byte* low) const {
  const int64_t at = chunk.range.offset;
  const ops::AdamWElement element(call.hyper, chunk.decay);
  backend.shard().set_word(word, 0);
  backend.shard().adamw(element,
                        {call.weight + at, call.gradient + at, call.exp_avg + at,
                         call.exp_avg_sq + at, ops::Typed(low, call.low_precision.dtype)},
                        chunk.range.numel, Alarm{word, 1});
  backend.shard().read_word(alarm, word);
}

void ChunkStages::weights_to_device() const {
  if (low() == nullptr) return;
  backend.compute->copy_to_device(low(), staging, kCastBytes * chunk.range.numel);
}

StageBodies product_bodies() {
  using B = BucketStages;
  using C = ChunkStages;
  return {{{"momentum_on_shard", &B::momentum_on_shard},
           {"wire_to_device", &B::wire_to_device},
           {"gradient_to_device", &B::gradient_to_device},
           {"momentum_on_device", &B::momentum_on_device},
           {"gradient_and_momentum_to_device", &B::gradient_and_momentum_to_device},
           {"momentum_streamed", &B::momentum_streamed},
           {"newton_schulz", &B::orthogonalize},
           {"update_to_host", &B::update_to_host},
           {"update_and_momentum_to_host", &B::update_and_momentum_to_host},
           {"apply", &B::apply},
           {"apply_through_slot", &B::apply_through_slot},
           {"weights_to_device", &B::weights_to_device}},
          {{"adamw", [](const C& chunk) { chunk.adamw(); }},
           {"adamw_through_slot", &C::adamw_through_slot},
           {"weights_to_device", &C::weights_to_device}}};
}

}  // namespace zeromuon::zero3
