// Collectives between threads of one process: the ranks of a test.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "csrc/comm/collectives.h"

namespace zeromuon::comm {

// What the ranks share. Each rank posts its exchange in its own slot between two barriers.
// Thread: all ranks; every member is guarded by mutex_, but for posted_[r], which rank r writes
// before the first barrier of an exchange and others read before the second.
class InProcessBoard {
 public:
  explicit InProcessBoard(int world_size) : posted_(world_size) {}
  int world_size() const { return static_cast<int>(posted_.size()); }

 private:
  friend class InProcessCollectives;
  void arrive_and_wait();
  std::string abort(const std::string& cause);
  std::string cause();

  std::vector<const Exchange*> posted_;  // [W]
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrived_ = 0;
  int64_t round_ = 0;
  std::optional<std::string> aborted_;
};

// Thread: one object per rank, each used by one thread.
class InProcessCollectives final : public Collectives {
 public:
  // Of memory that is not the host's: returns when the bytes are there.
  using Copy = std::function<void(std::byte* to, const std::byte* from, int64_t bytes)>;

  InProcessCollectives(std::shared_ptr<InProcessBoard> board, int rank, Copy copy = {})
      : board_(std::move(board)), rank_(rank), copy_(std::move(copy)) {}

  int rank() const override { return rank_; }
  int world_size() const override { return board_->world_size(); }
  std::string abort(const std::string& cause) override { return board_->abort(cause); }
  std::string cause() override { return board_->cause(); }

 private:
  void do_all_to_all_v(const Exchange& exchange) override;

  std::shared_ptr<InProcessBoard> board_;
  int rank_;
  Copy copy_;  // null: of host memory
};

}  // namespace zeromuon::comm
