// A staged backend without a GPU: what everything above Device is tested on.
#pragma once

#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "offload/backend.h"
#include "offload/fake/fake_device.h"

namespace zeromuon::offload {

// What an injected fault throws.
class InjectedFault : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Happens to one task of a stage.
struct Fault {
  // kThrowBefore: the body does not run. kThrowAfter: it has run. kDelay: it runs late.
  enum class Kind : uint8_t { kThrowBefore, kThrowAfter, kDelay };

  std::string stage;  // as Task::stage
  int64_t call = 1;   // which one, counted from 1 over the backend's life
  Kind kind = Kind::kThrowBefore;
  int64_t delay_ms = 0;
};

// How often each stage was begun.
// Thread: any, at the same time.
class StageCalls {
 public:
  int64_t next(const std::string& stage);
  std::map<std::string, int64_t> counts() const;

 private:
  mutable std::mutex mutex_;
  std::map<std::string, int64_t> counts_;  // mutex_
};

struct FakeDeviceOptions {
  uint64_t seed = 0;               // of the delays
  int64_t longest_delay_us = 300;  // before and after a body; 0: no delays
  int threads_per_lane = 1;        // of the OpenMP teams
  // Each lane of the device has a stream: an operation's effect comes any time before the next mark
  // or wait that it stands before, and lanes hand over by marks.
  bool streams = false;
  ops::CpuKernels kernels = ops::CpuKernels::kAuto;
  std::vector<Fault> faults = {};
  std::string registration_refused = {};  // why host memory stays pageable; empty: it does not
  // Counts into it when given.
  std::shared_ptr<StageCalls> calls = nullptr;
};

// The flat shard in host memory, a FakeDevice for the rest, and a thread for each kind of
// lane. Raises ValueError for a fault that cannot happen and for kernels that cannot run here.
Backend make_fake_backend(const FakeDeviceOptions& options);

}  // namespace zeromuon::offload
