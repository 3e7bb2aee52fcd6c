// Counts what the core and libtorch's CPU allocator allocate: a step must not allocate buffers.
#pragma once

#include <cstdint>

namespace zeromuon::bindings {

struct AllocationCounts {
  int64_t tensor_storage;  // calls of libtorch's CPU allocator with at least one byte
  int64_t large_buffers;   // operator new of this module with at least 4 KiB
};

// Wraps libtorch's CPU allocator of this process; counting then never stops. Only for tests and
// measurements: it costs an atomic addition per allocation.
void count_allocations();

AllocationCounts allocation_counts();

}  // namespace zeromuon::bindings
