// What a Newton-Schulz by whole passes takes of a device. Counted by running it on operations that
// only count: there is no second description of it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "csrc/ops/newton_schulz/plan.h"

namespace zeromuon::ops {

// bytes: of passes over memory; what products read and write hides behind their operations.
struct DeviceWork {
  int64_t launches = 0, bytes = 0;
  double flops = 0;  // of what is really computed
};

// How fast a device is. What is not known takes no time.
struct DeviceRates {
  double flops_per_s = std::numeric_limits<double>::infinity();
  double bytes_per_s = std::numeric_limits<double>::infinity();
  double launch_s = 0;  // of the host
};

// The host launches ahead of the device: whichever takes longer.
inline double seconds_of(const DeviceWork& work, const DeviceRates& rates) {
  const double device =
      work.flops / rates.flops_per_s + static_cast<double>(work.bytes) / rates.bytes_per_s;
  return std::max(device, static_cast<double>(work.launches) * rates.launch_s);
}

// Of `count` matrices of the plan's shape, in batches as NewtonSchulz::run takes them. Nothing
// where the plan is not for whole passes.
DeviceWork newton_schulz_work(const NewtonSchulzPlan& plan, int64_t count);

}  // namespace zeromuon::ops
