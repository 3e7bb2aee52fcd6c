// The collectives of a step, over c10d (NCCL, gloo) or inside one process for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace zeromuon::comm {

// One all-to-all with per-peer sizes. Segments lie one after the other in rank order, without gaps.
struct Exchange {
  const std::byte* send;
  std::span<const int64_t> send_bytes;  // [W], to each peer
  std::byte* receive;
  std::span<const int64_t> receive_bytes;  // [W], from each peer
};

struct Traffic {
  int64_t bytes_sent = 0;  // to other ranks
  int64_t bytes_self = 0;  // from a rank to itself
  int64_t calls = 0;
};

// Thread: used by one thread at a time. Every rank must make the same calls in the same order.
class Collectives {
 public:
  virtual ~Collectives() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Returns when `receive` holds what the peers sent and `send` may be written again.
  void all_to_all_v(const Exchange& exchange);

  const Traffic& traffic() const { return traffic_; }

 protected:
  virtual void do_all_to_all_v(const Exchange& exchange) = 0;

 private:
  Traffic traffic_;
};

}  // namespace zeromuon::comm
