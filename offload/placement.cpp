#include "offload/placement.h"

#include "csrc/base/check.h"

namespace zeromuon::offload {

Placement choose_placement(c10::Device shard, c10::Device compute) {
  require(shard.is_cpu() || shard == compute, "placement: the flat shard is on ", shard.str(),
          " and the process group works on ", compute.str(),
          "; expected the shard on the same device or on the CPU (offload_optimizer)");
  return {shard, compute};
}

}  // namespace zeromuon::offload
