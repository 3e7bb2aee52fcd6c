#include "zero3/step/stage_bodies.h"

namespace zeromuon::zero3 {

std::byte* ChunkStages::low() const {
  auto* const base = static_cast<std::byte*>(call.low_precision.data);
  return base == nullptr ? nullptr : base + kCastBytes * chunk.range.offset;
}

void ChunkStages::adamw() const { adamw(low()); }

void ChunkStages::adamw_through_slot() const { adamw(low() == nullptr ? nullptr : staging); }

void ChunkStages::adamw(std::byte* low) const {
  const int64_t at = chunk.range.offset;
  const ops::AdamWElement element(call.hyper, chunk.decay);
  backend.shard().adamw(element,
                        {call.weight + at, call.gradient + at, call.exp_avg + at,
                         call.exp_avg_sq + at, ops::Typed(low, call.low_precision.dtype)},
                        chunk.range.numel);
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
