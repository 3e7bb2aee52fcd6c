#include "csrc/comm/c10d_collectives.h"

#include <ATen/ops/from_blob.h>

#include <numeric>
#include <utility>

namespace zeromuon::comm {
namespace {

at::Tensor bytes_at(const std::byte* data, int64_t numel, c10::Device device) {
  // from_blob has no const form; the group only reads what is sent.
  return at::from_blob(const_cast<std::byte*>(data), {numel},
                       at::TensorOptions().dtype(at::kByte).device(device));
}

}  // namespace

C10dCollectives::C10dCollectives(c10::intrusive_ptr<c10d::ProcessGroup> group, c10::Device device)
    : group_(std::move(group)), device_(device) {}

void C10dCollectives::do_all_to_all_v(const Exchange& exchange) {
  send_splits_.assign(exchange.send_bytes.begin(), exchange.send_bytes.end());
  receive_splits_.assign(exchange.receive_bytes.begin(), exchange.receive_bytes.end());
  const int64_t sent = std::reduce(send_splits_.begin(), send_splits_.end());
  const int64_t received = std::reduce(receive_splits_.begin(), receive_splits_.end());
  at::Tensor output = bytes_at(exchange.receive, received, device_);
  at::Tensor input = bytes_at(exchange.send, sent, device_);
  group_->all_to_all_single(output, input, receive_splits_, send_splits_)->wait();
}

}  // namespace zeromuon::comm
