// Where Muon's momentum lives and is computed.
#pragma once

#include <cstdint>
#include <string>

#include "csrc/base/check.h"

namespace zeromuon::offload {

// kShard:    with the flat shard, computed there; what travels to the compute device is the mixed
//            momentum in the wire dtype.
// kDevice:   on the compute device; gradients travel there.
// kStreamed: stored with the flat shard; gradients and momenta travel to the compute device, and
//            the momenta back.
enum class MomentumHome : uint8_t { kShard, kDevice, kStreamed };

constexpr const char* kMomentumHomeNames[] = {"shard", "device", "streamed"};

constexpr const char* name_of(MomentumHome home) {
  return kMomentumHomeNames[static_cast<int>(home)];
}

// Raises ValueError naming the valid names.
inline MomentumHome parse_momentum_home(const std::string& name) {
  return static_cast<MomentumHome>(index_of(kMomentumHomeNames, name, "momentum_home"));
}

}  // namespace zeromuon::offload
