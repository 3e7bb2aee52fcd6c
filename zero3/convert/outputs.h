// What the verbs that write share: names of outputs, the journal of finished ones, roles of files.
#pragma once

#include <fstream>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "csrc/formats/folder_lock.h"
#include "csrc/formats/safetensors.h"
#include "zero3/convert/transfer.h"
#include "zero3/convert/verbs.h"

namespace zeromuon::convert {

// Which outputs of this very run (same sources, same options) are finished. It lies in the output
// folder while the verb works, and goes when it is done. Meanwhile the folder is locked, and the
// run of `zeromuon finetune` that it is in. Thread: one at a time.
class Journal {
 public:
  // place: the output folder, or the one output file, beside which others may be written at the
  // same time. what: verb and options, as text. Raises FormatError when an output is a file of the
  // source, or exists and neither --force nor --resume goes with it, and when another process
  // writes there.
  Journal(const std::string& place, const std::string& what, const Checkpoint& source,
          const RunOptions& run, const std::vector<std::string>& outputs);

  bool finished(const std::string& output) const { return finished_.contains(output); }
  int kept() const { return static_cast<int>(finished_.size()); }
  // Before the first output: whatever a kill leaves from now on, --resume knows whose it is.
  void begin();
  // The output is on disk. A line that a crash loses only costs its file's time again.
  void add(const std::string& output);
  // The run failed: there is nothing to go on with when no output is done.
  void give_up();
  void remove();

 private:
  void lock(const fs::path& folder);
  void read_old(const std::vector<std::string>& outputs);

  std::vector<std::unique_ptr<formats::FolderLock>> locks_;
  std::string path_, head_, kept_lines_;
  std::ofstream lines_;  // opened by begin()
  std::set<std::string> finished_;
};

// A torch file from blocks: one storage for each, in order of their numbers, then copied storages.
class TorchOutput : public OpenOutput {
 public:
  TorchOutput(const std::string& path, bool replace) : writer_(path, replace) {}

  TorchFileWriter& writer() { return writer_; }
  // A tensor of its own storage that the block fills. strides: empty for row-major.
  NodeId add_tensor(Block block, const std::vector<int64_t>& shape, bool requires_grad = false,
                    const std::vector<int64_t>& strides = {});
  // One stored element that stands for `numel`.
  NodeId add_repeated(Block block, int64_t numel) {
    return add_tensor(std::move(block), {numel}, false, {0});
  }
  // After the last tensor: adds copied storages and begins the file.
  void begin(NodeId root);

  const std::vector<Block>& blocks() const override { return blocks_; }
  bool wants_crc() const override { return true; }
  void write(int block, uint64_t offset, const void* data, uint64_t bytes) override;
  void set_crc(int block, uint32_t crc) override;
  void finish() override { writer_.finish(false); }  // write_journalled() syncs the folder

 private:
  TorchFileWriter writer_;
  std::vector<Block> blocks_;
  std::vector<int> storages_;  // of the blocks
};

// The journal that an unfinished run left in the folder; "" without.
std::string journal_in(const std::string& folder);

std::vector<std::string> paths_of(const std::vector<PlannedOutput>& outputs);

// Writes those outputs that the journal does not have, and syncs their folders.
void write_journalled(std::vector<PlannedOutput> outputs, Journal& journal, const RunOptions& run,
                      OutputReport& report);

// A block that copies `source`, converted to `type`.
Block block_of(const TensorSource& source, ElementType type);

// Whether a glob of `patterns` matches, or is the name itself: brackets occur in names. Raises
// ValueError for an empty pattern.
bool matches_any(const std::vector<std::string>& patterns, const std::string& name);

// Raises ValueError that lists what is possible when the verb does not go with this kind, and
// FormatError where it would copy files that stand in each other's place.
void check_verb(const Checkpoint& checkpoint, const std::string& verb);

}  // namespace zeromuon::convert
