#include "offload/fake/fake_registrar.h"

#include <algorithm>
#include <iterator>

#include "csrc/base/check.h"

namespace zeromuon::offload {

std::string FakeRegistrar::register_memory(void* at, int64_t bytes) {
  if (!refusal_.empty()) return refusal_;
  const std::lock_guard lock(mutex_);
  const auto* begin = static_cast<const std::byte*>(at);
  const auto after = ranges_.lower_bound(begin + bytes);
  if (after != ranges_.begin()) {
    const auto& [other, length] = *std::prev(after);
    if (other + length > begin) return "it is registered already";
  }
  ranges_.emplace(begin, bytes);
  return "";
}

void FakeRegistrar::unregister_memory(void* at) {
  const std::lock_guard lock(mutex_);
  ranges_.erase(static_cast<const std::byte*>(at));
}

void FakeRegistrar::copied(const void* host, int64_t bytes) {
  const std::lock_guard lock(mutex_);
  const auto* begin = static_cast<const std::byte*>(host);
  const auto after = ranges_.lower_bound(begin + std::max<int64_t>(bytes, 1));
  const auto last = after == ranges_.begin() ? ranges_.end() : std::prev(after);
  if (last == ranges_.end() || last->first + last->second <= begin) {
    pageable_copied_bytes_ += bytes;
    return;
  }
  invariant(last->first <= begin && begin + bytes <= last->first + last->second,
            "fake registrar: a copy of ", bytes, " bytes at ", host,
            " reaches over the end of the registered ", last->second, " bytes at ", last->first);
}

int64_t FakeRegistrar::registered_bytes() const {
  const std::lock_guard lock(mutex_);
  int64_t sum = 0;
  for (const auto& [begin, bytes] : ranges_) sum += bytes;
  return sum;
}

int64_t FakeRegistrar::pageable_copied_bytes() const {
  const std::lock_guard lock(mutex_);
  return pageable_copied_bytes_;
}

}  // namespace zeromuon::offload
