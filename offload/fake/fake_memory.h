// Memory of a device that the host may not touch, and that notices who writes beside it.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "offload/device.h"
#include "offload/mapping.h"

namespace zeromuon::offload {

// Note [Fake memory]
// The pointers of an allocation are reserved addresses without memory: arithmetic works, and
// touching one is a segmentation fault. Device operations find the memory behind them, the backing,
// which begins as NaN (all bits set) and lies between two guard zones of a known pattern.
//
// Thread: any, at the same time. Lives at least as long as what it allocated.
class FakeMemory : public std::enable_shared_from_this<FakeMemory> {
 public:
  // What a pointer is used for, for people. Static strings.
  struct Use {
    const char* operation;
    const char* array;
    std::string name() const;
  };

  Memory allocate(int64_t bytes);

  // The backing of [device, device + bytes). Raises InternalError naming the use when the range is
  // not inside one allocation or not aligned, and after a damaged guard zone was seen. Null is
  // null when bytes is 0.
  std::byte* backing(const void* device, int64_t bytes, int64_t alignment_bytes,
                     const Use& use) const;
  // Raises InternalError when any of [host, host + bytes) is fake memory or its backing.
  void expect_host(const void* host, int64_t bytes, const Use& use) const;

  // Raises InternalError when a guard zone of a living allocation is damaged, or one was on
  // release.
  void check() const;

 private:
  struct Allocation {
    explicit Allocation(int64_t size, int64_t number);
    std::byte* begin() const { return addresses.data(); }
    std::byte* memory() const;
    std::string name() const;
    std::string damage() const;  // empty: none

    int64_t bytes, number;  // number: counted from 1
    Mapping addresses, guarded;
  };

  void release(std::byte* begin);
  const Allocation* find(const void* device) const;  // holding mutex_

  mutable std::mutex mutex_;  // all below
  std::map<const std::byte*, std::unique_ptr<const Allocation>> allocations_;
  int64_t made_ = 0;
  std::string damage_;  // the first that was seen on release
};

}  // namespace zeromuon::offload
