#include "csrc/comm/collectives.h"

#include "csrc/base/check.h"

namespace zeromuon::comm {

void Collectives::all_to_all_v(const Exchange& exchange) {
  const auto ranks = static_cast<size_t>(world_size());
  invariant(exchange.send_bytes.size() == ranks && exchange.receive_bytes.size() == ranks,
            "all_to_all_v: expected ", ranks, " segment sizes, got ", exchange.send_bytes.size(),
            " to send and ", exchange.receive_bytes.size(), " to receive");
  do_all_to_all_v(exchange);
  ++traffic_.calls;
  for (size_t peer = 0; peer < ranks; ++peer) {
    const bool self = static_cast<int>(peer) == rank();
    (self ? traffic_.bytes_self : traffic_.bytes_sent) += exchange.send_bytes[peer];
  }
}

}  // namespace zeromuon::comm
