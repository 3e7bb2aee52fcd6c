// Whether the bytes of torch files are those that were written: the CRCs of their records.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "zero3/convert/checkpoint.h"
#include "zero3/convert/transfer.h"

namespace zeromuon::convert {

// Collects records, then reads each once. What has no CRCs (safetensors) is passed over.
// Thread: one at a time.
class CrcCheck {
 public:
  // Every record of a torch file.
  void add(const std::shared_ptr<const InputFile>& file);
  // The records in which the bytes of the tensor lie.
  void add(const TensorSource& source);

  // What is wrong, in order of the files. bytes_read: is raised.
  std::vector<formats::Finding> run(const RunOptions& run, int64_t& bytes_read) const;
  // Raises FormatError for the first thing that is wrong.
  void require_whole(const RunOptions& run) const;

 private:
  // The ranges that are wanted; none: the whole file.
  struct Wanted {
    std::shared_ptr<const InputFile> file;
    bool all = false;
    std::map<uint64_t, uint64_t> ranges;  // begin -> end, the furthest of those that begin there
  };
  Wanted* wanted(const std::shared_ptr<const InputFile>& file);

  std::vector<Wanted> files_;
  std::map<const InputFile*, size_t> numbers_;
};

// All that a verb may copy from the checkpoint. Raises FormatError for the first thing that is
// wrong.
void require_whole(const Checkpoint& source, const RunOptions& run);

}  // namespace zeromuon::convert
