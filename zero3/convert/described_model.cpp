#include "zero3/convert/described_model.h"

#include <algorithm>
#include <set>
#include <sstream>

#include "csrc/base/check.h"

namespace zeromuon::convert {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::ostringstream out;
  for (size_t i = 0; i < shape.size(); ++i) out << (i == 0 ? "" : "x") << shape[i];
  return shape.empty() ? "scalar" : out.str();
}

// `name` with * for each number between dots.
std::string without_numbers(const std::string& name) {
  std::istringstream in(name);
  std::string out, part;
  while (std::getline(in, part, '.')) {
    const bool number = !part.empty() && std::all_of(part.begin(), part.end(),
                                                     [](char c) { return c >= '0' && c <= '9'; });
    out += (number ? "*" : part) + ".";
  }
  return out;
}

}  // namespace

void DescribedModel::check(const std::map<std::string, std::vector<int64_t>>& found,
                           bool whole) const {
  std::set<std::string> names, kinds;
  std::vector<std::string> missing, more;
  for (const DescribedTensor& tensor : tensors) {
    names.insert(tensor.name);
    kinds.insert(without_numbers(tensor.name));
    const auto here = found.find(tensor.name);
    if (here == found.end()) {
      if (tensor.needed) missing.push_back(tensor.name);
      continue;
    }
    require(here->second == tensor.shape, folder, ": its config.json describes another model: \"",
            tensor.name, "\" is ", shape_text(tensor.shape), " there, and ",
            shape_text(here->second),
            " in the checkpoint; name the folder of the model that was trained");
  }
  if (!whole || tensors.empty()) return;
  for (const auto& [name, shape] : found) {
    if (!names.contains(name) && kinds.contains(without_numbers(name))) more.push_back(name);
  }
  const std::vector<std::string>& apart = missing.empty() ? more : missing;
  if (apart.empty()) return;
  throw_value_error(concat(
      folder, ": its config.json describes another model: ", apart.size(), " tensors are ",
      missing.empty() ? "in the checkpoint and not there" : "there and not in the checkpoint",
      ", \"", apart.front(), "\" the first; name the folder of the model that was trained"));
}

}  // namespace zeromuon::convert
