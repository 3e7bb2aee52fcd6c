// Where Muon's momentum lives and is computed.
#pragma once

#include <cstdint>

namespace zeromuon::offload {

// kShard:    with the flat shard, computed there; what travels to the compute device is the mixed
//            momentum in the wire dtype.
// kDevice:   on the compute device; gradients travel there.
// kStreamed: stored with the flat shard; gradients and momenta travel to the compute device, and
// the
//            momenta back.
enum class MomentumHome : uint8_t { kShard, kDevice, kStreamed };

constexpr const char* name_of(MomentumHome home) {
  if (home == MomentumHome::kShard) return "shard";
  return home == MomentumHome::kDevice ? "device" : "streamed";
}

}  // namespace zeromuon::offload
