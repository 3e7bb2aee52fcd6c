// What check_schedule() accepts goes through with the slots that there are, and what it refuses for
// its slots gets stuck: played with tokens, apart from the code that makes and checks schedules.
#include "zero3/plan/collective_schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

using Schedule = std::vector<Ticket>;

bool accepted(const Schedule& schedule, int buckets, int slots) {
  try {
    check_schedule(schedule, buckets, slots);
    return true;
  } catch (const InternalError&) {
    return false;
  }
}

// Buckets take slots in their order and give them back when they are scattered; collectives go one
// after the other. Whatever can happen does, which loses nothing: a move never hinders another.
class Game {
 public:
  Game(const Schedule& schedule, int buckets, int slots)
      : schedule_(schedule), gathered_(buckets), holds_(buckets), free_(slots) {}

  // Whether all collectives are issued in the end.
  bool finishes() {
    while (take_slot() || issue()) continue;
    return next_ == schedule_.size();
  }

 private:
  bool take_slot() {
    if (free_ == 0 || next_bucket_ == holds_.size()) return false;
    --free_;
    holds_[next_bucket_++] = true;
    return true;
  }

  bool issue() {
    if (next_ == schedule_.size()) return false;
    const auto [bucket, direction] = schedule_[next_];
    const bool gathers = direction == Direction::kGather;
    if (!holds_[bucket] || gathered_[bucket] == gathers) return false;
    if (gathers) {
      gathered_[bucket] = true;
    } else {
      holds_[bucket] = false;
      ++free_;
    }
    ++next_;
    return true;
  }

  const Schedule& schedule_;
  std::vector<char> gathered_, holds_;  // per bucket
  int free_;
  size_t next_ = 0, next_bucket_ = 0;
};

bool finishes(const Schedule& schedule, int buckets, int slots) {
  return Game(schedule, buckets, slots).finishes();
}

Schedule sorted_tickets(int buckets) {
  Schedule all;
  for (int k = 0; k < buckets; ++k) {
    all.push_back({k, Direction::kGather});
    all.push_back({k, Direction::kScatter});
  }
  return all;
}

std::string text_of(const Schedule& schedule, int slots) {
  std::string text = concat(slots, " slots:");
  for (const auto& [bucket, direction] : schedule) {
    text += concat(direction == Direction::kGather ? " g" : " s", bucket);
  }
  return text;
}

// Calls body with every order that keeps (1) of Note [Slots cannot deadlock].
template <typename Body>
void for_ordered(int buckets, Schedule& begun, int gathered, int scattered, const Body& body) {
  if (scattered == buckets) return body(begun);
  const auto go_on = [&](Ticket next, int g, int s) {
    begun.push_back(next);
    for_ordered(buckets, begun, g, s, body);
    begun.pop_back();
  };
  if (gathered < buckets) go_on({gathered, Direction::kGather}, gathered + 1, scattered);
  if (scattered < gathered) go_on({scattered, Direction::kScatter}, gathered, scattered + 1);
}

TEST(CollectiveSchedule, IsAcceptedAndFinishesForEveryNumberOfBucketsAndSlots) {
  for (int buckets = 0; buckets <= 40; ++buckets) {
    for (int slots = 1; slots <= 6; ++slots) {
      const Schedule schedule = collective_schedule(buckets, slots);
      EXPECT_TRUE(accepted(schedule, buckets, slots)) << text_of(schedule, slots);
      EXPECT_TRUE(finishes(schedule, buckets, slots)) << text_of(schedule, slots);
    }
  }
}

TEST(CollectiveSchedule, IsRefusedWithTwoCollectivesInAnotherOrderUnlessThatOrderIsSafe) {
  int refused = 0;
  for (int buckets = 1; buckets <= 8; ++buckets) {
    for (int slots = 1; slots <= 4; ++slots) {
      const Schedule schedule = collective_schedule(buckets, slots);
      for (size_t i = 0; i < schedule.size(); ++i) {
        for (size_t j = i + 1; j < schedule.size(); ++j) {
          Schedule swapped = schedule;
          std::swap(swapped[i], swapped[j]);
          if (!accepted(swapped, buckets, slots)) {
            ++refused;
          } else {
            EXPECT_TRUE(finishes(swapped, buckets, slots)) << text_of(swapped, slots);
          }
        }
      }
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(CollectiveSchedule, IsRefusedWhenACollectiveIsMissingOrDoubled) {
  for (int slots = 1; slots <= 3; ++slots) {
    const Schedule schedule = collective_schedule(5, slots);
    for (size_t i = 0; i < schedule.size(); ++i) {
      Schedule missing = schedule, doubled = schedule;
      missing.erase(missing.begin() + static_cast<int64_t>(i));
      doubled.insert(doubled.begin() + static_cast<int64_t>(i), schedule[i]);
      EXPECT_FALSE(accepted(missing, 5, slots)) << text_of(missing, slots);
      EXPECT_FALSE(accepted(doubled, 5, slots)) << text_of(doubled, slots);
    }
  }
}

// Of all orders that keep (1), those that keep (2) finish and the others get stuck.
TEST(CollectiveSchedule, OfOrderedCollectivesExactlyTheAcceptedOnesFinish) {
  int stuck = 0, through = 0;
  for (int buckets = 1; buckets <= 5; ++buckets) {
    for (int slots = 1; slots <= 3; ++slots) {
      Schedule begun;
      for_ordered(buckets, begun, 0, 0, [&](const Schedule& schedule) {
        const bool ends = finishes(schedule, buckets, slots);
        EXPECT_EQ(accepted(schedule, buckets, slots), ends) << text_of(schedule, slots);
        ++(ends ? through : stuck);
      });
    }
  }
  EXPECT_GT(stuck, 50);
  EXPECT_GT(through, 50);
}

TEST(CollectiveSchedule, NoOrderThatIsAcceptedGetsStuck) {
  std::mt19937_64 generator(17);
  int taken = 0;
  for (int buckets = 1; buckets <= 5; ++buckets) {
    Schedule order = sorted_tickets(buckets);
    for (int slots = 1; slots <= 3; ++slots) {
      for (int k = 0; k < 5000; ++k) {
        std::shuffle(order.begin(), order.end(), generator);
        if (!accepted(order, buckets, slots)) continue;
        ++taken;
        EXPECT_TRUE(finishes(order, buckets, slots)) << text_of(order, slots);
      }
    }
  }
  EXPECT_GT(taken, 1000);
}

}  // namespace
}  // namespace zeromuon::zero3
