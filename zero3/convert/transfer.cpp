#include "zero3/convert/transfer.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "csrc/base/check.h"
#include "csrc/formats/crc32.h"
#include "zero3/convert/elements.h"

namespace zeromuon::convert {
namespace {

// Some threads wait for the disk while others convert.
constexpr int kMinThreads = 8, kMaxThreads = 16;
constexpr int64_t kMinMemory = 1 << 20, kMaxChunk = 2 << 20, kMinChunk = 64 << 10;
constexpr int kBuffersPerThread = 3;  // read, converted, and what the C library holds
constexpr auto kProgressEvery = std::chrono::milliseconds(100);

// Runs `work` on the threads until it returns false on each; the calling thread tells the progress.
// Thread: run() once, from the thread that calls the verb.
class Workers {
 public:
  Workers(const RunOptions& run, int64_t bytes_total) : run_(run), total_(bytes_total) {}

  void run(int threads, const std::function<bool()>& work) {
    std::vector<std::thread> pool = start(threads, work);
    std::exception_ptr cancelled;
    try {
      tell_until_done();
    } catch (...) {
      cancelled = std::current_exception();
      stop_ = true;
    }
    for (std::thread& thread : pool) thread.join();
    if (cancelled) std::rethrow_exception(cancelled);
    if (first_error_) std::rethrow_exception(first_error_);
  }

  void count(int64_t bytes) { done_ += bytes; }

 private:
  // As many threads as the system gives, at least one.
  std::vector<std::thread> start(int threads, const std::function<bool()>& work) {
    std::vector<std::thread> pool;
    pool.reserve(threads);
    running_ = threads;
    try {
      while (static_cast<int>(pool.size()) < threads) pool.emplace_back([&] { loop(work); });
    } catch (const std::system_error& error) {
      const std::lock_guard lock(mutex_);
      running_ -= threads - static_cast<int>(pool.size());
      require(!pool.empty(), "cannot start a thread: ", error.what(),
              "; the limits of this process are too low: look at ulimit -v and -u");
    }
    return pool;
  }

  void loop(const std::function<bool()>& work) {
    try {
      while (!stop_ && work()) {
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      if (!first_error_) first_error_ = std::current_exception();
      stop_ = true;
    }
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) finished_.notify_all();
  }

  void tell_until_done() {
    std::unique_lock lock(mutex_);
    while (running_ > 0) {
      finished_.wait_for(lock, kProgressEvery);
      if (!run_.progress || stop_) continue;
      lock.unlock();
      run_.progress({done_, total_});
      lock.lock();
    }
    lock.unlock();
    if (run_.progress && !stop_) run_.progress({done_, total_});
  }

  const RunOptions& run_;
  const int64_t total_;
  std::atomic<int64_t> done_ = 0;
  std::atomic<bool> stop_ = false;
  std::mutex mutex_;
  std::condition_variable finished_;
  int running_ = 0;                 // mutex_
  std::exception_ptr first_error_;  // mutex_
};

int64_t chunks_of(const Block& block, int64_t chunk_numel) {
  return (block.numel() + chunk_numel - 1) / chunk_numel;
}

// A view through strides is read whole for each chunk: it is one chunk, unless it repeats elements.
bool is_one_chunk(const Block& block) {
  constexpr int64_t kRepeats = 4;
  if (block.pieces.size() != 1 || block.pieces[0].source.strides.empty()) return false;
  const TensorSource& source = block.pieces[0].source;
  return source.bytes() / kRepeats <= static_cast<int64_t>(source.ranges.at(0).bytes);
}

int64_t chunk_numel_of(const Block& block, int64_t chunk_bytes) {
  if (is_one_chunk(block)) return std::max<int64_t>(1, block.numel());
  int64_t widest = size_of(block.type);
  for (const Piece& piece : block.pieces) {
    widest = std::max(widest, size_of(piece.source.type));
  }
  return std::max<int64_t>(1, chunk_bytes / widest);
}

// An output in the works. Thread: `next_*` under Scheduler's lock; the rest as said.
struct ActiveOutput {
  std::string path;
  std::unique_ptr<OpenOutput> output;
  std::vector<BlockReader> readers;
  std::vector<std::vector<uint32_t>> crcs;  // of the chunks; each written by one thread
  int next_block = 0;
  int64_t next_chunk = 0;
  std::atomic<int64_t> chunks_left = 0;
};

struct Chunk {
  std::shared_ptr<ActiveOutput> output;
  int block = 0;
  int64_t index = 0, begin = 0, numel = 0;
};

// Hands out chunks in the order of the outputs, opening each output when its turn comes.
// Thread: any.
class Scheduler {
 public:
  Scheduler(std::vector<PlannedOutput> outputs, int64_t chunk_bytes)
      : outputs_(std::move(outputs)), chunk_bytes_(chunk_bytes) {}

  // False when all are handed out. An output without elements comes as one empty chunk.
  bool next(Chunk& out) {
    const std::lock_guard lock(mutex_);
    while (true) {
      if (active_ != nullptr && take_chunk(out)) return true;
      active_.reset();
      if (next_output_ == outputs_.size()) return false;
      open(outputs_[next_output_++]);
      if (active_->chunks_left > 0) continue;
      active_->chunks_left = 1;
      out = {std::exchange(active_, nullptr), -1, 0, 0, 0};
      return true;
    }
  }

  int64_t chunk_numel(const Block& block) const { return chunk_numel_of(block, chunk_bytes_); }

 private:
  void open(PlannedOutput& planned) {
    auto active = std::make_shared<ActiveOutput>();
    active->path = planned.path;
    active->output = planned.open();
    planned.open = nullptr;
    int64_t chunks = 0;
    for (const Block& block : active->output->blocks()) {
      active->readers.emplace_back(block);
      const int64_t count = chunks_of(block, chunk_numel(block));
      active->crcs.emplace_back(active->output->wants_crc() ? count : 0);
      chunks += count;
    }
    active->chunks_left = chunks;
    active_ = std::move(active);
  }

  bool take_chunk(Chunk& out) {
    const std::vector<Block>& blocks = active_->output->blocks();
    for (; active_->next_block < static_cast<int>(blocks.size()); ++active_->next_block) {
      const Block& block = blocks[active_->next_block];
      const int64_t size = chunk_numel(block), begin = active_->next_chunk * size;
      if (begin < block.numel()) {
        out = {active_, active_->next_block, active_->next_chunk, begin,
               std::min(size, block.numel() - begin)};
        ++active_->next_chunk;
        return true;
      }
      active_->next_chunk = 0;
    }
    return false;
  }

  std::mutex mutex_;
  std::vector<PlannedOutput> outputs_;
  size_t next_output_ = 0;
  int64_t chunk_bytes_;
  std::shared_ptr<ActiveOutput> active_;
};

void set_crcs(ActiveOutput& active, const Scheduler& scheduler) {
  const std::vector<Block>& blocks = active.output->blocks();
  for (size_t b = 0; b < blocks.size(); ++b) {
    const int64_t size = size_of(blocks[b].type), chunk = scheduler.chunk_numel(blocks[b]);
    uint32_t crc = 0;
    for (size_t i = 0; i < active.crcs[b].size(); ++i) {
      const int64_t begin = static_cast<int64_t>(i) * chunk;
      const int64_t bytes = std::min(chunk, blocks[b].numel() - begin) * size;
      crc = formats::crc32_combine(crc, active.crcs[b][i], static_cast<uint64_t>(bytes));
    }
    active.output->set_crc(static_cast<int>(b), crc);
  }
}

// Blocks that are read and go nowhere else.
class VisitedBlocks : public OpenOutput {
 public:
  VisitedBlocks(const std::vector<Block>& blocks, const VisitChunk& visit)
      : blocks_(blocks), visit_(visit) {}

  const std::vector<Block>& blocks() const override { return blocks_; }
  void write(int block, uint64_t offset, const void* data, uint64_t bytes) override {
    const auto size = static_cast<uint64_t>(size_of(blocks_[block].type));
    visit_(block, static_cast<int64_t>(offset / size), static_cast<const uint8_t*>(data),
           static_cast<int64_t>(bytes / size));
  }
  void finish() override {}

 private:
  const std::vector<Block>& blocks_;
  const VisitChunk& visit_;
};

}  // namespace

int64_t Block::numel() const {
  int64_t sum = 0;
  for (const Piece& piece : pieces) sum += piece.numel;
  return sum;
}

Resources resources_of(const RunOptions& run) {
  require(run.max_memory_bytes >= kMinMemory, "max_memory: expected at least 1 MiB, got ",
          run.max_memory_bytes, " bytes");
  require(run.threads >= 0, "threads: expected 0 or more, got ", run.threads);
  const int cores = static_cast<int>(std::thread::hardware_concurrency());
  int threads = run.threads > 0 ? run.threads : std::clamp(cores, kMinThreads, kMaxThreads);
  threads = static_cast<int>(
      std::clamp<int64_t>(run.max_memory_bytes / kBuffersPerThread / kMinChunk, 1, threads));
  const int64_t chunk = run.max_memory_bytes / kBuffersPerThread / threads;
  return {std::clamp(chunk / 4096 * 4096, kMinChunk, kMaxChunk), threads};
}

BlockReader::BlockReader(const Block& block) : block_(block) {
  int64_t start = 0;
  for (const Piece& piece : block.pieces) {
    starts_.push_back(start);
    start += piece.numel;
  }
}

void BlockReader::read(int64_t begin, int64_t numel, uint8_t* out,
                       std::vector<uint8_t>& scratch) const {
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), begin);
  const int64_t size = size_of(block_.type);
  for (auto i = static_cast<size_t>(after - starts_.begin()) - 1; numel > 0; ++i) {
    const Piece& piece = block_.pieces[i];
    const int64_t skip = begin - starts_[i], count = std::min(numel, piece.numel - skip);
    if (count <= 0) continue;
    if (piece.source.ranges.empty()) {
      std::fill(out, out + count * size, uint8_t{0});
    } else if (piece.source.type == block_.type) {
      read_elements(piece.source, piece.begin + skip, count, out);
      check_range(piece, convert_elements(block_.type, out, block_.type, out, count, piece.factor));
    } else {
      scratch.resize(static_cast<size_t>(count * size_of(piece.source.type)));
      read_elements(piece.source, piece.begin + skip, count, scratch.data());
      check_range(piece, convert_elements(piece.source.type, scratch.data(), block_.type, out,
                                          count, piece.factor));
    }
    out += count * size;
    begin += count;
    numel -= count;
  }
}

void BlockReader::check_range(const Piece& piece, int64_t lost) const {
  if (lost == 0) return;
  const char* type = name_of(block_.type);
  throw_format_error(
      piece.source.ranges.front().file->path(), -1,
      concat("values", block_.name.empty() ? "" : " of \"" + block_.name + "\"", " within ", type),
      concat(lost, " beyond it, which would become infinite"),
      "take bfloat16 or float32, for all (--dtype) or for this tensor (--dtype-for NAME=TYPE)");
}

void write_outputs(std::vector<PlannedOutput> outputs, const RunOptions& run,
                   const std::function<void(const std::string&)>& finished) {
  const Resources resources = resources_of(run);
  int64_t total = 0;
  for (const PlannedOutput& output : outputs) total += output.bytes;
  Scheduler scheduler(std::move(outputs), resources.chunk_bytes);
  Workers workers(run, total);
  std::mutex finished_mutex;
  workers.run(resources.threads, [&] {
    thread_local std::vector<uint8_t> buffer, scratch;
    Chunk chunk;
    if (!scheduler.next(chunk)) {
      buffer = {};
      scratch = {};
      return false;
    }
    ActiveOutput& active = *chunk.output;
    if (chunk.numel > 0) {
      const int64_t size = size_of(active.output->blocks()[chunk.block].type);
      const auto bytes = static_cast<size_t>(chunk.numel * size);
      buffer.resize(bytes);
      active.readers[chunk.block].read(chunk.begin, chunk.numel, buffer.data(), scratch);
      if (active.output->wants_crc()) {
        active.crcs[chunk.block][chunk.index] = formats::crc32(0, buffer.data(), bytes);
      }
      active.output->write(chunk.block, static_cast<uint64_t>(chunk.begin * size), buffer.data(),
                           bytes);
      workers.count(static_cast<int64_t>(bytes));
    }
    if (--active.chunks_left > 0) return true;
    if (active.output->wants_crc()) set_crcs(active, scheduler);
    active.output->finish();
    const std::lock_guard lock(finished_mutex);
    finished(active.path);
    return true;
  });
}

void read_blocks(const std::vector<Block>& blocks, const RunOptions& run, const VisitChunk& visit) {
  PlannedOutput visited;
  for (const Block& block : blocks) visited.bytes += block.bytes();
  visited.open = [&] { return std::make_unique<VisitedBlocks>(blocks, visit); };
  write_outputs({std::move(visited)}, run, [](const std::string&) {});
}

}  // namespace zeromuon::convert
