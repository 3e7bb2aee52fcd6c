// What the rest of zeromuon needs of the CUDA runtime besides kernels, without its headers.
//
// Unless it says otherwise, a call here and in elementwise.h puts its work in the order of the
// stream and returns. The current device must be the stream's. Raises std::runtime_error with
// CUDA's reason, also for work before it that failed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace zeromuon::cuda {

// Refers to a stream that another owns (cudaStream_t; libtorch's pools keep theirs for good).
struct StreamRef {
  void* handle = nullptr;  // null: the default stream of the current device
};

// A place in the order of a stream. Who waits for it sleeps: a thread that spins takes a core from
// the kernels of the CPU.
// Thread: record() before all else; any, at the same time, from then on.
class Event {
 public:
  // Of the current device.
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(StreamRef stream);
  // Blocks the host until the work of the stream before record() is done.
  void wait();
  // Whether it is.
  bool reached();
  // What is put on `stream` from here on comes after that work.
  void hold(StreamRef stream);

 private:
  void* handle_ = nullptr;
};

// Blocks the host until all work of the stream is done. Nothing else here but Event::wait() waits
// on purpose; copies of memory that is not registered may.
void synchronize(StreamRef stream);

// Host memory of a copy lies either in one registered range or in none.
void copy_to_device(StreamRef stream, void* device, const void* host, int64_t bytes);
void copy_to_host(StreamRef stream, void* host, const void* device, int64_t bytes);

// Words of device memory, 8-byte aligned; `host` is as in the copies.
void set_word(StreamRef stream, uint64_t* at, uint64_t value);
void read_word(StreamRef stream, uint64_t* host, const uint64_t* at);
// Of words that lie `offsets` bytes behind `buffer`: the first one's value to all others.
void spread_word(StreamRef stream, std::byte* buffer, std::span<const int64_t> offsets);
// host: one for each. room: bytes from `buffer` on, of which the first word's are the first, that
// this may use.
void read_words(StreamRef stream, uint64_t* host, std::byte* buffer,
                std::span<const int64_t> offsets, int64_t room);

// Page-locks [memory, memory + bytes), of whole pages, for the copies of every device of this
// process. Waits. Returns "", or why it could not be done; the memory is then as before.
std::string register_memory(void* memory, int64_t bytes);
// For what was registered, once no copy uses it. Waits. What CUDA still reports then is about work
// before it or the end of the process, and is dropped.
void unregister_memory(void* memory) noexcept;

// What the calling thread does during the life of this object, under a name for profilers (NVTX).
// Thread: made and destroyed by one thread, nested ones in reverse order.
class Range {
 public:
  explicit Range(const char* name);
  ~Range();
  Range(const Range&) = delete;
  Range& operator=(const Range&) = delete;
};

}  // namespace zeromuon::cuda
