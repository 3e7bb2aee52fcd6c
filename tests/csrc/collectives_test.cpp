#include <gtest/gtest.h>

#include <cstring>
#include <numeric>
#include <vector>

#include "csrc/base/check.h"
#include "csrc/comm/in_process_collectives.h"
#include "tests/csrc/ranks.h"

namespace zeromuon::comm {
namespace {

// Rank a sends a + 2*b + 1 bytes of value 16*a + b to rank b.
TEST(InProcessCollectives, EveryPeerReceivesItsOwnUnevenSegment) {
  constexpr int kWorld = 4;
  auto board = std::make_shared<InProcessBoard>(kWorld);
  const auto bytes = [](int from, int to) { return int64_t{from} + 2 * to + 1; };
  const auto errors = testing::on_ranks(kWorld, [&](int rank) {
    InProcessCollectives collectives(board, rank);
    std::vector<int64_t> out, in;
    std::vector<std::byte> send;
    for (int peer = 0; peer < kWorld; ++peer) {
      out.push_back(bytes(rank, peer));
      in.push_back(bytes(peer, rank));
      send.insert(send.end(), out.back(), std::byte(16 * rank + peer));
    }
    std::vector<std::byte> receive(std::reduce(in.begin(), in.end()));
    for (int round = 0; round < 3; ++round) {
      std::fill(receive.begin(), receive.end(), std::byte{0xff});
      collectives.all_to_all_v({send.data(), out, receive.data(), in});
      size_t at = 0;
      for (int peer = 0; peer < kWorld; ++peer) {
        for (int64_t i = 0; i < in[peer]; ++i) {
          require(receive[at++] == std::byte(16 * peer + rank), "wrong byte from rank ", peer);
        }
      }
    }
    require(collectives.traffic().calls == 3, "calls");
    require(collectives.traffic().bytes_self == 3 * bytes(rank, rank), "bytes to itself");
    require(collectives.traffic().bytes_sent ==
                3 * (std::reduce(out.begin(), out.end()) - bytes(rank, rank)),
            "bytes to others");
  });
  for (const std::string& error : errors) EXPECT_EQ(error, "");
}

TEST(InProcessCollectives, TheWrongNumberOfSegmentsIsAnInternalError) {
  InProcessCollectives collectives(std::make_shared<InProcessBoard>(1), 0);
  const std::vector<int64_t> two = {0, 0}, one = {0};
  EXPECT_THROW(collectives.all_to_all_v({nullptr, two, nullptr, one}), InternalError);
}

}  // namespace
}  // namespace zeromuon::comm
