// How fast a machine is, and the time that a task takes of a lane at such rates.
#pragma once

#include <limits>

#include "csrc/ops/newton_schulz/work.h"
#include "offload/lane.h"

namespace zeromuon::offload {

// Of one process. What is not known takes no time.
struct Rates {
  static constexpr double kNoTime = std::numeric_limits<double>::infinity();

  double dram_bytes_per_s = kNoTime;       // that its CPU reads and writes
  double to_device_bytes_per_s = kNoTime;  // link, each direction on its own
  double to_host_bytes_per_s = kNoTime;
  double flops_per_s = kNoTime;         // matrix products
  double wire_bytes_per_s = kNoTime;    // in a collective, each way on its own
  double wire_latency_s = 0;            // of a collective
  double task_latency_s = 0;            // of any other task
  double device_bytes_per_s = kNoTime;  // that its device reads and writes
  double launch_s = 0;                  // of a kernel; the host runs ahead of the device
};

inline double seconds_of(const Cost& cost, LaneKind lane, const Rates& rates) {
  const auto take = [](auto amount, double rate) { return static_cast<double>(amount) / rate; };
  if (lane == LaneKind::kCollective) {
    return rates.wire_latency_s + take(cost.wire_bytes, rates.wire_bytes_per_s);
  }
  const double link =
      lane == LaneKind::kToHost ? rates.to_host_bytes_per_s : rates.to_device_bytes_per_s;
  const double device =
      ops::seconds_of(ops::DeviceWork{cost.launches, cost.device_bytes, cost.flops},
                      {rates.flops_per_s, rates.device_bytes_per_s, rates.launch_s});
  return rates.task_latency_s + take(cost.dram_bytes, rates.dram_bytes_per_s) +
         take(cost.link_bytes, link) + device;
}

}  // namespace zeromuon::offload
