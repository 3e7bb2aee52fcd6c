// Collectives over a torch.distributed process group.
#pragma once

#include <c10/core/Device.h>

#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "csrc/comm/collectives.h"

namespace zeromuon::comm {

class C10dCollectives final : public Collectives {
 public:
  // `device` is where the buffers of every exchange lie; the group's backend must serve it.
  C10dCollectives(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device);

  int rank() const override { return group_->getRank(); }
  int world_size() const override { return group_->getSize(); }

 private:
  void do_all_to_all_v(const Exchange& exchange) override;

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  c10::Device device_;
  std::vector<int64_t> send_splits_, receive_splits_;
};

}  // namespace zeromuon::comm
