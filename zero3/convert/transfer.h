// Moves tensors from files to files in bounded memory: reads, converts and writes chunks on several
// threads.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "zero3/convert/checkpoint.h"

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

// `numel` elements of `source` from `begin` on, in row-major order. Without source: zeros.
struct Piece {
  TensorSource source;
  int64_t begin = 0, numel = 0;
  double factor = 1;  // multiplies floating elements
};

// What fills one tensor or storage of an output, in order.
struct Block {
  std::string name;  // of the tensor, for errors
  ElementType type = ElementType::kFloat32;
  std::vector<Piece> pieces;

  int64_t numel() const;
  int64_t bytes() const { return numel() * size_of(type); }
};

// A file that is being written. Thread: write() from several, the rest from one at a time.
class OpenOutput {
 public:
  virtual ~OpenOutput() = default;
  virtual const std::vector<Block>& blocks() const = 0;
  virtual bool wants_crc() const { return false; }
  virtual void write(int block, uint64_t offset, const void* data, uint64_t bytes) = 0;
  virtual void set_crc(int, uint32_t) {}
  virtual void finish() = 0;  // the file gets its name
};

// A file to be written. It is opened when its turn comes: there may be more files than a process
// may open.
struct PlannedOutput {
  std::string path;
  int64_t bytes = 0;  // of its blocks
  std::function<std::unique_ptr<OpenOutput>()> open;
};

// Writes the outputs in order. `finished(path)` is called from one thread at a time once a file has
// its name. The first error stops all threads and is raised; unfinished files are removed. Raises
// FormatError for a finite element that its output's type cannot hold.
void write_outputs(std::vector<PlannedOutput> outputs, const RunOptions& run,
                   const std::function<void(const std::string&)>& finished);

// What verify and diff do: every chunk of every block once, on several threads.
// visit(block, first element, elements, count): elements as stored in `Block::type`.
using VisitChunk =
    std::function<void(int block, int64_t begin, const uint8_t* elements, int64_t count)>;
void read_blocks(const std::vector<Block>& blocks, const RunOptions& run, const VisitChunk& visit);

// Elements [begin, begin + numel) of a block, into `out` of numel * size bytes.
class BlockReader {
 public:
  explicit BlockReader(const Block& block);
  // Raises FormatError for a finite element that the block's type cannot hold.
  void read(int64_t begin, int64_t numel, uint8_t* out, std::vector<uint8_t>& scratch) const;

 private:
  void check_range(const Piece& piece, int64_t lost) const;

  const Block& block_;
  std::vector<int64_t> starts_;  // of the pieces
};

// Bytes that one thread works on at once, and how many threads.
struct Resources {
  int64_t chunk_bytes = 0;
  int threads = 1;
};
// Raises ValueError when max_memory_bytes is below 1 MiB.
Resources resources_of(const RunOptions& run);

}  // namespace zeromuon::convert
