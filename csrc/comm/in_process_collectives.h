// Collectives between threads of one process: the ranks of a test.
#pragma once

#include <barrier>
#include <memory>
#include <vector>

#include "csrc/comm/collectives.h"

namespace zeromuon::comm {

// What the ranks share. Each rank posts its exchange in its own slot between two barriers.
class InProcessBoard {
 public:
  explicit InProcessBoard(int world_size) : posted_(world_size), barrier_(world_size) {}
  int world_size() const { return static_cast<int>(posted_.size()); }

 private:
  friend class InProcessCollectives;
  std::vector<const Exchange*> posted_;  // [W], slot r written by rank r before the first barrier
  std::barrier<> barrier_;
};

// Thread: one object per rank, each used by one thread.
class InProcessCollectives final : public Collectives {
 public:
  InProcessCollectives(std::shared_ptr<InProcessBoard> board, int rank)
      : board_(std::move(board)), rank_(rank) {}

  int rank() const override { return rank_; }
  int world_size() const override { return board_->world_size(); }

 private:
  void do_all_to_all_v(const Exchange& exchange) override;

  std::shared_ptr<InProcessBoard> board_;
  int rank_;
};

}  // namespace zeromuon::comm
