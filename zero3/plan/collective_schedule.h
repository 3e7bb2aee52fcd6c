// The order in which the collectives of a call are issued, the same on every rank.
//
// Note [Slots cannot deadlock]
// Bucket k holds a slot from before its momentum until after its apply, and slots are given out in
// the order of the buckets. Let S be their number. The collectives go through when
//   (1) every bucket is gathered and scattered once, gathered first, each in rising order of
//       buckets, and
//   (2) bucket k-S is scattered before bucket k is gathered, for every k >= S.
// Proof, by induction over the order: when a collective is next, all before it are done. If it
// scatters k, its gather is before it by (1), so k holds its slot and only Newton-Schulz of k
// stands between them, which waits for nothing else. If it gathers k, then k-S is scattered by (2),
// and all buckets before k-S with it by (1); their applies wait for nothing, so their slots come
// back, and among the S slots one is for k. Nobody waits for a slot while it holds one. Without (2)
// buckets k-S+1..k-1 and k-S hold all slots, and k waits for the collective that stands behind it.
#pragma once

#include <cstdint>
#include <vector>

namespace zeromuon::zero3 {

enum class Direction : uint8_t { kGather, kScatter };

struct Ticket {
  int bucket;  // of the call, counted over its sub-groups
  Direction direction;

  bool operator==(const Ticket&) const = default;
};

// As many buckets are gathered ahead as slots allow when one of them is still being applied and,
// with 4 slots or more, one comes in: gathered further ahead, results wait for the next gather.
std::vector<Ticket> collective_schedule(int buckets, int slots);

// Raises InternalError, naming what is wrong, for an order that breaks (1) or (2) of
// Note [Slots cannot deadlock].
void check_schedule(const std::vector<Ticket>& schedule, int buckets, int slots);

}  // namespace zeromuon::zero3
