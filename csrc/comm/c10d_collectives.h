// Collectives over a torch.distributed process group.
#pragma once

#include <c10/core/Device.h>

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <vector>

#include "csrc/comm/collectives.h"

namespace zeromuon::comm {

class C10dCollectives final : public Collectives {
 public:
  // device: where the buffers of every exchange lie; the group's backend must serve it. name: equal
  // on all ranks of the group, and of nothing else that used the group's store.
  // on_callers_stream: NCCL works on the stream of who calls, with its priority, not on its own.
  C10dCollectives(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device,
                  const std::string& name, bool on_callers_stream = false);

  int rank() const override { return group_->getRank(); }
  int world_size() const override { return group_->getSize(); }
  // Ends the backend's connections; the cause goes to the other ranks through the group's store.
  std::string abort(const std::string& cause) override;
  std::string cause() override;
  bool pending() const override { return pending_; }

 private:
  void do_all_to_all_v(const Exchange& exchange) override;
  void wait(const c10::intrusive_ptr<c10d::Work>& work);
  std::optional<std::string> ask_store(std::function<std::string(c10d::Store&)> question);
  std::optional<std::string> cause_in_store();  // nullopt: the store does not answer
  [[noreturn]] void rethrow_with_cause();

  // Shared with what is called when a work is done, which may be after this object.
  struct Waiting {
    std::mutex mutex;  // both below
    std::condition_variable changed;
    bool done = false;
    std::optional<std::string> aborted;
    int unanswered = 0;  // questions to the store
  };

  c10::intrusive_ptr<c10d::ProcessGroup> group_;
  c10::Device device_;
  bool is_nccl_;
  c10d::AllToAllOptions options_;
  std::string cause_key_;
  std::vector<int64_t> send_splits_, receive_splits_;
  std::shared_ptr<Waiting> waiting_ = std::make_shared<Waiting>();
  bool pending_ = false;
};

}  // namespace zeromuon::comm
