#include "zero3/convert/checkpoint.h"

#include <algorithm>

namespace zeromuon::convert {

const char* name_of(Kind kind) {
  constexpr const char* kNames[] = {"ZeRO-3", "universal", "safetensors", "torch", "DCP"};
  return kNames[static_cast<int>(kind)];
}

const char* name_of(TensorRole role) {
  constexpr const char* kNames[] = {"", "muon", "adamw", "frozen", "buffer"};
  return kNames[static_cast<int>(role)];
}

std::map<std::string, std::string> texts_of(const Facts& facts) {
  std::map<std::string, std::string> out;
  const std::pair<const char*, const std::optional<int64_t>*> numbers[] = {
      {"global_steps", &facts.global_steps},     {"global_samples", &facts.global_samples},
      {"skipped_steps", &facts.skipped_steps},   {"optimizer_step", &facts.optimizer_step},
      {"sub_group_size", &facts.sub_group_size}, {"saved_on_ranks", &facts.saved_on_ranks},
      {"other_entries", &facts.other_entries}};
  for (const auto& [name, number] : numbers) {
    if (*number) out[name] = concat(**number);
  }
  const std::pair<const char*, const std::optional<std::string>*> texts[] = {
      {"optim_prefix", &facts.optim_prefix},
      {"optimizer_type", &facts.optimizer_type},
      {"ds_version", &facts.ds_version}};
  for (const auto& [name, text] : texts) {
    if (*text) out[name] = **text;
  }
  if (facts.dtype) out["dtype"] = name_of(*facts.dtype);
  for (const auto& [key, value] : facts.metadata) out["metadata." + key] = value;
  return out;
}

const NamedTensor* Checkpoint::find(const std::string& name) const {
  const auto found = std::find_if(tensors.begin(), tensors.end(),
                                  [&](const NamedTensor& t) { return t.name == name; });
  return found == tensors.end() ? nullptr : &*found;
}

std::string Checkpoint::optimizer_name() const {
  constexpr const char* kNames[] = {"", "AdamW", "ZeroMuon", "Muon (DeepSpeed)"};
  if (optimizer == Optimizer::kOther) return facts.optimizer_type.value_or("");
  return kNames[static_cast<int>(optimizer)];
}

}  // namespace zeromuon::convert
