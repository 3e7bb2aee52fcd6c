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

using Shapes = std::map<std::string, std::vector<int64_t>>;

// What stands before the names of a model without a head where it is a part of a model with one:
// of the prefixes with which a name is found, the one that finds the most; "" where names are found
// as they are, or none is.
std::string prefix_of(const std::vector<DescribedTensor>& tensors, const Shapes& found) {
  const auto finds = [&](const std::string& prefix) {
    return std::count_if(tensors.begin(), tensors.end(), [&](const DescribedTensor& tensor) {
      return found.contains(prefix + tensor.name);
    });
  };
  std::string best;
  auto most = finds("");
  if (most > 0 || tensors.empty()) return best;
  const std::string ending = "." + tensors.front().name;
  for (const auto& [name, shape] : found) {
    if (!name.ends_with(ending)) continue;
    const std::string prefix = name.substr(0, name.size() - tensors.front().name.size());
    if (const auto count = finds(prefix); count > most) {
      most = count;
      best = prefix;
    }
  }
  return best;
}

}  // namespace

void DescribedModel::check(const Shapes& found, bool whole) const {
  const std::string prefix = prefix_of(tensors, found);
  std::set<std::string> names, kinds, found_kinds;
  std::vector<std::string> missing, more;
  for (const auto& [name, shape] : found) found_kinds.insert(without_numbers(name));
  for (const DescribedTensor& tensor : tensors) {
    const std::string name = prefix + tensor.name, kind = without_numbers(name);
    names.insert(name);
    kinds.insert(kind);
    const auto here = found.find(name);
    if (here == found.end()) {
      // With a head a model may do without a part, as a pooler, but not without a layer.
      if (tensor.needed && (prefix.empty() || found_kinds.contains(kind))) {
        missing.push_back(tensor.name);
      }
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
