#include "zero3/step/step_call.h"

#include <bit>

namespace zeromuon::zero3 {
namespace {

// FNV-1a over whole words.
class Digest {
 public:
  void add(uint64_t word) { value_ = (value_ ^ word) * 1099511628211ull; }
  void add(double value) { add(std::bit_cast<uint64_t>(value)); }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 14695981039346656037ull;
};

}  // namespace

uint64_t digest_of_values(const StepCall& call) {
  Digest digest;
  for (const MuonCall& muon : call.muon) {
    const MuonHyperParameters& h = muon.hyper;
    for (const double value : {h.lr, h.weight_decay, h.momentum}) digest.add(value);
    digest.add(static_cast<uint64_t>(h.nesterov));
  }
  for (const AdamWCall& adamw : call.adamw) {
    const AdamWHyperParameters& h = adamw.hyper;
    for (const double value : {h.lr, h.weight_decay, h.beta1, h.beta2, h.eps}) digest.add(value);
    digest.add(static_cast<uint64_t>(h.step));
  }
  return digest.value();
}

}  // namespace zeromuon::zero3
