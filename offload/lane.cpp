#include "offload/lane.h"

#include "csrc/base/check.h"

namespace zeromuon::offload {

void Lanes::add(std::unique_ptr<Lane> lane, std::initializer_list<LaneKind> kinds) {
  invariant(lane != nullptr && kinds.size() > 0, "lanes: expected a lane and what it serves");
  for (const LaneKind kind : kinds) {
    Lane*& place = by_kind_[static_cast<int>(kind)];
    invariant(place == nullptr, "lanes: two lanes for ", name_of(kind));
    place = lane.get();
  }
  lanes_.push_back(std::move(lane));
}

std::string Lanes::states() const {
  std::string text;
  for (const std::unique_ptr<Lane>& lane : lanes_) text += lane->state() + "\n";
  return text;
}

}  // namespace zeromuon::offload
