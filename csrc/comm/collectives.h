// The collectives of a step, over c10d (NCCL, gloo) or inside one process for tests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <stdexcept>
#include <string>

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

// Some rank aborted the group; what() is the cause that it gave.
class Aborted : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Thread: used by one thread at a time, but for abort(). Every rank must make the same calls in the
// same order.
class Collectives {
 public:
  virtual ~Collectives() = default;

  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  // Returns when `receive` holds what the peers sent and `send` may be written again; on a GPU,
  // when that is in the order of the calling thread's stream. Raises Aborted after an abort().
  void all_to_all_v(const Exchange& exchange);

  // Ends the collectives of all ranks, those under way and all later ones, which raise Aborted with
  // the first cause, which is returned. The group cannot be used again. From any thread.
  virtual std::string abort(const std::string& cause) = 0;

  // With what some rank aborted, empty when this rank can see none: a rank that is late finds its
  // exchanges done by the others before they gave up. From any thread.
  virtual std::string cause() { return {}; }

  // Whether an exchange that was aborted may still read and write its buffers.
  virtual bool pending() const { return false; }

  const Traffic& traffic() const { return traffic_; }

 protected:
  virtual void do_all_to_all_v(const Exchange& exchange) = 0;

 private:
  Traffic traffic_;
};

}  // namespace zeromuon::comm
