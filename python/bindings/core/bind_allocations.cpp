// Counts what the core and libtorch's CPU allocator allocate: a step must not allocate buffers.
#include <c10/core/Allocator.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "python/bindings/core/bindings.h"

namespace {

constexpr std::size_t kLargeBytes = 4096;
std::atomic<int64_t> tensor_storage{0};
std::atomic<int64_t> large_buffers{0};

void* allocate(std::size_t bytes) {
  if (bytes >= kLargeBytes) large_buffers.fetch_add(1, std::memory_order_relaxed);
  return std::malloc(bytes == 0 ? 1 : bytes);
}

void* allocate_or_throw(std::size_t bytes) {
  if (void* memory = allocate(bytes)) return memory;
  throw std::bad_alloc();
}

void* allocate_aligned(std::size_t bytes, std::align_val_t alignment) {
  if (bytes >= kLargeBytes) large_buffers.fetch_add(1, std::memory_order_relaxed);
  const auto line = static_cast<std::size_t>(alignment);
  if (void* memory = std::aligned_alloc(line, (bytes + line - 1) / line * line)) return memory;
  throw std::bad_alloc();
}

class CountingAllocator final : public c10::Allocator {
 public:
  explicit CountingAllocator(c10::Allocator* wrapped) : wrapped_(wrapped) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes > 0) tensor_storage.fetch_add(1, std::memory_order_relaxed);
    return wrapped_->allocate(bytes);
  }
  c10::DeleterFnPtr raw_deleter() const override { return wrapped_->raw_deleter(); }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    wrapped_->copy_data(to, from, bytes);
  }

 private:
  c10::Allocator* wrapped_;  // lives as long as the process
};

}  // namespace

// These replace the allocation functions for this module only: it is linked with
// -Bsymbolic-functions. Both sides end in malloc and free, so memory may cross the border.
void* operator new(std::size_t bytes) { return allocate_or_throw(bytes); }
void* operator new[](std::size_t bytes) { return allocate_or_throw(bytes); }
void* operator new(std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void* operator new[](std::size_t bytes, const std::nothrow_t&) noexcept { return allocate(bytes); }
void* operator new(std::size_t bytes, std::align_val_t a) { return allocate_aligned(bytes, a); }
void* operator new[](std::size_t bytes, std::align_val_t a) { return allocate_aligned(bytes, a); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }

namespace py = pybind11;

namespace zeromuon::bindings {
namespace {

// Wraps libtorch's CPU allocator of this process; counting then never stops.
void count_allocations() {
  static CountingAllocator* counting = nullptr;
  if (counting != nullptr) return;
  counting = new CountingAllocator(c10::GetAllocator(c10::kCPU));  // must outlive every tensor
  c10::SetAllocator(c10::kCPU, counting, /*priority=*/255);
}

py::dict allocation_count() {
  return py::dict(py::arg("tensor_storage") = tensor_storage.load(),
                  py::arg("large_buffers") = large_buffers.load());
}

}  // namespace

void bind_allocations(py::module_& m) {
  m.def("count_allocations", &count_allocations,
        "Starts counting allocations in this process; for tests and measurements: it costs an "
        "atomic addition per allocation.");
  m.def("allocation_count", &allocation_count,
        "Calls since count_allocations(): libtorch's CPU allocator, of at least one byte, and "
        "operator new of this module with 4 KiB or more.");
}

}  // namespace zeromuon::bindings
