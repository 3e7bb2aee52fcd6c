#include "offload/fake/fake_memory.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::offload {
namespace {

constexpr int64_t kGuardBytes = 4096;
constexpr int kPoison = 0xff;  // a NaN in every element type
constexpr std::byte kGuard{0xa5};

bool overlap(const std::byte* a, int64_t a_bytes, const std::byte* b, int64_t b_bytes) {
  const std::less<const std::byte*> before;
  return before(a, b + b_bytes) && before(b, a + a_bytes);
}

// Of the guard zone at `zone`: how many bytes are not what they were.
int64_t overwritten(const std::byte* zone) {
  return kGuardBytes - std::count(zone, zone + kGuardBytes, kGuard);
}

[[noreturn]] void refuse(const FakeMemory::Use& use, const std::string& why) {
  throw_internal_error(concat("fake memory: ", use.name(), ": ", why));
}

}  // namespace

std::string FakeMemory::Use::name() const { return concat(operation, ": ", array); }

// A page more than needed, so that the end of one allocation is not the beginning of another.
FakeMemory::Allocation::Allocation(int64_t size, int64_t count)
    : bytes(size),
      number(count),
      addresses(size + page_bytes(), Mapping::Access::kNone),
      guarded(size + 2 * kGuardBytes, Mapping::Access::kReadWrite) {
  const auto guard = std::to_integer<int>(kGuard);
  std::memset(guarded.data(), guard, kGuardBytes);
  std::memset(memory(), kPoison, static_cast<size_t>(bytes));
  std::memset(memory() + bytes, guard, kGuardBytes);
}

std::byte* FakeMemory::Allocation::memory() const { return guarded.data() + kGuardBytes; }

std::string FakeMemory::Allocation::name() const {
  return concat("allocation ", number, " (", bytes, " bytes at ", begin(), ")");
}

std::string FakeMemory::Allocation::damage() const {
  const int64_t before = overwritten(guarded.data()), after = overwritten(memory() + bytes);
  if (before + after == 0) return "";
  return concat("fake memory: ", before, " bytes before and ", after, " bytes behind ", name(),
                " were overwritten");
}

Memory FakeMemory::allocate(int64_t bytes) {
  invariant(bytes >= 0, "fake memory: asked for ", bytes, " bytes");
  const std::lock_guard lock(mutex_);
  auto made = std::make_unique<const Allocation>(bytes, ++made_);
  std::byte* const begin = made->begin();
  allocations_.emplace(begin, std::move(made));
  return Memory(begin, [self = shared_from_this()](std::byte* at) { self->release(at); });
}

void FakeMemory::release(std::byte* begin) {
  const std::lock_guard lock(mutex_);
  const auto found = allocations_.find(begin);
  if (damage_.empty()) damage_ = found->second->damage();
  allocations_.erase(found);
}

const FakeMemory::Allocation* FakeMemory::find(const void* device) const {
  const auto* at = static_cast<const std::byte*>(device);
  const auto after = allocations_.upper_bound(at);
  if (after == allocations_.begin()) return nullptr;
  const Allocation& candidate = *std::prev(after)->second;
  return at < candidate.begin() + candidate.addresses.bytes() ? &candidate : nullptr;
}

// Texts are made for errors only: these run before every operation.
std::byte* FakeMemory::backing(const void* device, int64_t bytes, int64_t alignment_bytes,
                               const Use& use) const {
  const std::lock_guard lock(mutex_);
  if (!damage_.empty()) throw_internal_error(concat(damage_, "; seen before ", use.name()));
  if (device == nullptr && bytes == 0) return nullptr;
  const Allocation* of = find(device);
  if (of == nullptr) {
    refuse(use, concat(device, " is in no allocation of this device: host memory, or released"));
  }
  const int64_t offset = static_cast<const std::byte*>(device) - of->begin();
  if (bytes < 0 || bytes > of->bytes - offset) {
    refuse(use, concat(bytes, " bytes from ", offset, " on are not all in ", of->name()));
  }
  if (offset % alignment_bytes != 0) {
    refuse(use, concat("offset ", offset, " in ", of->name(), " is not a multiple of ",
                       alignment_bytes));
  }
  return of->memory() + offset;
}

void FakeMemory::expect_host(const void* host, int64_t bytes, const Use& use) const {
  const auto* at = static_cast<const std::byte*>(host);
  const std::lock_guard lock(mutex_);
  for (const auto& [begin, allocation] : allocations_) {
    const Mapping &addresses = allocation->addresses, &guarded = allocation->guarded;
    if (overlap(at, bytes, addresses.data(), addresses.bytes()) ||
        overlap(at, bytes, guarded.data(), guarded.bytes())) {
      refuse(use, concat("expected host memory, got ", host, ", which is in ", allocation->name()));
    }
  }
}

void FakeMemory::check() const {
  const std::lock_guard lock(mutex_);
  invariant(damage_.empty(), damage_);
  for (const auto& [begin, allocation] : allocations_) {
    const std::string damage = allocation->damage();
    invariant(damage.empty(), damage);
  }
}

}  // namespace zeromuon::offload
