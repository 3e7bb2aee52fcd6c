// What all verbs of the checkpoint tool share.
#pragma once

#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

namespace zeromuon::convert {

// Bytes of tensors read so far, of all that will be.
struct Progress {
  int64_t bytes_done = 0, bytes_total = 0;
};

// Called between chunks from the thread that called the verb, at most every 100 ms. It may throw to
// cancel: the verb then stops its threads, removes unfinished files and lets the exception through.
using ProgressCallback = std::function<void(const Progress&)>;

struct RunOptions {
  int64_t max_memory_bytes = 256 << 20;  // of buffers; at least 1 MiB
  int threads = 0;                       // 0: one per core, at most 16
  bool force = false;                    // replace outputs that exist
  bool resume = false;                   // keep finished outputs of an interrupted run
  ProgressCallback progress;
};

}  // namespace zeromuon::convert
