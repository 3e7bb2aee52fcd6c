// What a model's configuration says of its tensors, to be compared with those of a checkpoint.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace zeromuon::convert {

struct DescribedTensor {
  std::string name;
  std::vector<int64_t> shape;
  bool needed = true;  // false: another of the model has the same values, or it is no parameter
};

// Without tensors: nothing is known of the model.
struct DescribedModel {
  std::string folder;  // of the configuration
  std::vector<DescribedTensor> tensors;

  // found: name -> shape of what a checkpoint has; whole: they are all of it. Raises ValueError for
  // shapes that differ, and where they are all for tensors that one side lacks: of the found ones
  // those that are named as the model's are but for a number (a further layer). The model may be
  // the base of the checkpoint's, whose names then have a prefix ("bert.") and more beside them.
  void check(const std::map<std::string, std::vector<int64_t>>& found, bool whole) const;
};

}  // namespace zeromuon::convert
