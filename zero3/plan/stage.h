// What a bucket or a range of a sub-group goes through.
#pragma once

#include <cstdint>

namespace zeromuon::zero3 {

enum class Stage : uint8_t {
  kMomentum,
  kToDevice,
  kGather,
  kNewtonSchulz,
  kScatter,
  kToHost,
  kApply,
  kAdamW,
  kWeightsToDevice,
  kClosing
};
constexpr int kStages = 10;
const char* name_of(Stage stage);

}  // namespace zeromuon::zero3
