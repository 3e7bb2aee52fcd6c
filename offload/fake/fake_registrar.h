// What a GPU's driver would know of host memory.
#pragma once

#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "offload/pinned_arena.h"

namespace zeromuon::offload {

// Checks what CUDA checks, and counts what a copy would find pageable.
// Thread: any, at the same time.
class FakeRegistrar final : public Registrar {
 public:
  // refusal: why nothing can be registered; empty: it can.
  explicit FakeRegistrar(std::string refusal = {}) : refusal_(std::move(refusal)) {}

  std::string register_memory(void* at, int64_t bytes) override;
  void unregister_memory(void* at) override;

  // A copy between the device and [host, host + bytes). Raises InternalError where a part of it is
  // registered and another is not, or is by another registration.
  void copied(const void* host, int64_t bytes);

  int64_t registered_bytes() const;
  // Of all copies so far: that went to or came from memory that is not registered.
  int64_t pageable_copied_bytes() const;

 private:
  const std::string refusal_;
  mutable std::mutex mutex_;  // all below
  std::map<const std::byte*, int64_t, std::less<>> ranges_;
  int64_t pageable_copied_bytes_ = 0;
};

}  // namespace zeromuon::offload
