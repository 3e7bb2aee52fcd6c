#include "csrc/comm/c10d_collectives.h"

#include <ATen/ops/from_blob.h>

#include <chrono>
#include <numeric>
#include <thread>
#include <utility>

#include "csrc/base/check.h"

namespace zeromuon::comm {
namespace {

constexpr const char* kCauseKey = "zeromuon/abort_cause/";
// The longest wait for an answer of the store: one whose host is gone takes minutes to say so,
// whatever timeout it has.
constexpr std::chrono::milliseconds kStorePatience{3000};
// How long a rank whose collective failed waits to be told why.
constexpr std::chrono::milliseconds kCausePatience{3000}, kCausePoll{50};

at::Tensor bytes_at(const std::byte* data, int64_t numel, c10::Device device) {
  // from_blob has no const form; the group only reads what is sent.
  return at::from_blob(const_cast<std::byte*>(data), {numel},
                       at::TensorOptions().dtype(at::kByte).device(device));
}

// torch has had two names for it; up to 2.12 there is only the second.
template <typename Group>
c10::intrusive_ptr<c10d::Work> all_to_all(Group& group, at::Tensor& output, at::Tensor& input,
                                          std::vector<int64_t>& output_splits,
                                          std::vector<int64_t>& input_splits,
                                          const c10d::AllToAllOptions& options) {
  if constexpr (requires {
                  group.all_to_all_single(output, input, output_splits, input_splits, options);
                }) {
    return group.all_to_all_single(output, input, output_splits, input_splits, options);
  } else {
    return group.alltoall_base(output, input, output_splits, input_splits, options);
  }
}

bool is_nccl(c10d::ProcessGroup& group, c10::Device device) {
  return group.getBackend(device.type())->getBackendName().find("nccl") != std::string::npos;
}

}  // namespace

C10dCollectives::C10dCollectives(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device,
                                 const std::string& name, bool on_callers_stream)
    : group_(std::move(group)),
      device_(device),
      is_nccl_(is_nccl(*group_, device)),
      cause_key_(kCauseKey + name) {
  options_.asyncOp = !(is_nccl_ && on_callers_stream);
}

void C10dCollectives::do_all_to_all_v(const Exchange& exchange) {
  send_splits_.assign(exchange.send_bytes.begin(), exchange.send_bytes.end());
  receive_splits_.assign(exchange.receive_bytes.begin(), exchange.receive_bytes.end());
  const int64_t sent = std::reduce(send_splits_.begin(), send_splits_.end());
  const int64_t received = std::reduce(receive_splits_.begin(), receive_splits_.end());
  at::Tensor output = bytes_at(exchange.receive, received, device_);
  at::Tensor input = bytes_at(exchange.send, sent, device_);
  try {
    wait(all_to_all(*group_, output, input, receive_splits_, send_splits_, options_));
  } catch (const Aborted&) {
    throw;
  } catch (const std::exception&) {
    rethrow_with_cause();
  }
}

// gloo's own wait is not ended by an abort, but by its timeout of half an hour, wherever its
// tensors are.
void C10dCollectives::wait(const c10::intrusive_ptr<c10d::Work>& work) {
  if (!is_nccl_) {
    Waiting& waiting = *waiting_;
    std::unique_lock lock(waiting.mutex);
    waiting.done = false;
    lock.unlock();
    work->getFuture()->addCallback([held = waiting_](c10::ivalue::Future&) {
      const std::lock_guard guard(held->mutex);
      held->done = true;
      held->changed.notify_all();
    });
    lock.lock();
    waiting.changed.wait(lock, [&] { return waiting.done || waiting.aborted.has_value(); });
    pending_ = !waiting.done;
    if (pending_) throw Aborted(*waiting.aborted);
  }
  if (work) work->wait();  // none of what is in the caller's stream
}

// The group ends first: its other ranks then ask the store themselves, and wait a while for the
// cause.
std::string C10dCollectives::abort(const std::string& cause) {
  std::string trouble;
  try {
    group_->getBackend(device_.type())->abort();
  } catch (const std::exception& error) {
    trouble = concat(" (the process group could not be aborted: ", error.what(), ")");
  }
  const auto first = ask_store([key = cause_key_, cause](c10d::Store& store) {
    // compareSet keeps the first cause.
    const auto kept = store.compareSet(key, {}, std::vector<uint8_t>(cause.begin(), cause.end()));
    return std::string(kept.begin(), kept.end());
  });
  if (!first) trouble += " (the other ranks could not be told: the group's store does not answer)";
  const std::string told = first.value_or(cause) + trouble;
  const std::lock_guard guard(waiting_->mutex);
  if (!waiting_->aborted) waiting_->aborted = told;
  waiting_->changed.notify_all();
  return told;
}

// The answer of the group's store; nullopt where it fails, or takes too long: the thread that asks
// is then left behind, and no other question is asked before it has its answer.
std::optional<std::string> C10dCollectives::ask_store(
    std::function<std::string(c10d::Store&)> question) {
  struct Answer {
    bool there = false;
    std::optional<std::string> text;
  };
  const auto answer = std::make_shared<Answer>();
  std::unique_lock lock(waiting_->mutex);
  const auto free = [&] { return waiting_->unanswered == 0; };
  if (!waiting_->changed.wait_for(lock, kStorePatience, free)) return std::nullopt;
  ++waiting_->unanswered;
  std::thread([answer, question = std::move(question), store = group_->getStore(),
               held = waiting_] {
    std::optional<std::string> text;
    try {
      text = question(*store);
    } catch (const std::exception&) {  // no answer
    }
    const std::lock_guard guard(held->mutex);
    answer->text = std::move(text);
    answer->there = true;
    --held->unanswered;
    held->changed.notify_all();
  }).detach();
  waiting_->changed.wait_for(lock, kStorePatience, [&] { return answer->there; });
  return answer->text;
}

std::optional<std::string> C10dCollectives::cause_in_store() {
  return ask_store([key = cause_key_](c10d::Store& store) {
    if (!store.check({key})) return std::string();
    const auto bytes = store.get(key);
    return std::string(bytes.begin(), bytes.end());
  });
}

// Where the store's host is gone, the next exchange fails and says so.
std::string C10dCollectives::cause() { return cause_in_store().value_or(""); }

// Inside a handler: the error of this rank's backend says less than the rank that aborted.
void C10dCollectives::rethrow_with_cause() {
  const auto error = std::current_exception();
  const auto end = std::chrono::steady_clock::now() + kCausePatience;
  std::optional<std::string> told;
  while ((told = cause_in_store()) && told->empty() && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(kCausePoll);
  }
  if (told && !told->empty()) throw Aborted(*told);
  std::rethrow_exception(error);
}

}  // namespace zeromuon::comm
