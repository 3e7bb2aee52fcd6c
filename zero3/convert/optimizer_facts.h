// What a conversion between optimizers needs to know of the source.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "zero3/convert/checkpoint.h"

namespace zeromuon::convert {

struct Hyper {
  double lr = 1e-3, adam_lr = 1e-3;          // as configured
  double lr_now = 1e-3, adam_lr_now = 1e-3;  // what a schedule made of them
  double momentum = 0.95, beta1 = 0.9, beta2 = 0.95, eps = 1e-8, weight_decay = 0;
  bool nesterov = true;
  bool scheduled = false;  // the groups have an initial_lr
};

// The hyper-parameters of the source; `numbers` replaces them by name. Raises ValueError for an
// unknown name or a value out of range.
Hyper hyper_of(const Checkpoint& source, const std::map<std::string, double>& numbers);

// The parameters in the order of the model, which its state dict keeps.
std::vector<int> model_order(const Checkpoint& source);

// Roles of all tensors, from the checkpoint or from `given` (name -> "muon" or "adamw"; tied names
// count, too). Raises ValueError when a trained parameter has none, or a role that its state does
// not fit.
std::vector<TensorRole> roles_of(const Checkpoint& source,
                                 std::map<std::string, std::string> given);

}  // namespace zeromuon::convert
