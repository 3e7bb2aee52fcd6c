#include "zero3/convert/names.h"

#include <algorithm>
#include <set>
#include <utility>

#include "csrc/formats/json.h"
#include "csrc/formats/safetensors.h"
#include "zero3/convert/outputs.h"
#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

// Names of tensors come from the first file that says them.
std::string file_with_names(const Checkpoint& checkpoint) {
  if (!checkpoint.model_files.empty()) return checkpoint.model_files[0]->path();
  return checkpoint.files.size() == 1 ? checkpoint.files[0] : checkpoint.folder;
}

using Pairs = std::set<std::pair<char, char>>;

Pairs pairs_of(const std::string& text) {
  Pairs out;
  for (size_t i = 1; i < text.size(); ++i) out.emplace(text[i - 1], text[i]);
  return out;
}

// 2 |A and B| / (|A| + |B|) of pairs of neighbouring characters.
double likeness(const Pairs& a, const Pairs& b) {
  const auto common =
      std::count_if(a.begin(), a.end(), [&](const auto& pair) { return b.contains(pair); });
  return a.empty() || b.empty() ? 0 : 2.0 * static_cast<double>(common) / (a.size() + b.size());
}

std::string nearest_names(const std::vector<std::string>& names, const std::string& pattern) {
  constexpr size_t kShown = 3, kCompared = 20000;
  constexpr double kAlike = 0.3;
  std::vector<std::pair<double, std::string>> found;
  const Pairs wanted = pairs_of(pattern);
  for (size_t i = 0; i < std::min(names.size(), kCompared); ++i) {
    const double alike = likeness(wanted, pairs_of(names[i]));
    if (alike >= kAlike) found.emplace_back(-alike, names[i]);
  }
  std::sort(found.begin(), found.end());
  std::string out;
  for (size_t i = 0; i < std::min(found.size(), kShown); ++i) {
    out += (i == 0 ? "near it: " : ", ") + found[i].second;
  }
  return out.empty() ? "`zeromuon ckpt inspect --all` lists the names" : out;
}

}  // namespace

void check_names(const Checkpoint& checkpoint) {
  const auto check = [&](const char* what, const std::string& text) {
    if (formats::is_utf8(text)) return;
    refuse(file_with_names(checkpoint), std::string(what) + " in UTF-8", "\"" + text + "\"",
           "load it with Python, give it another name, and save it again");
  };
  for (const NamedTensor& tensor : checkpoint.tensors) {
    if (tensor.name.size() > formats::kMaxTensorNameBytes) {
      refuse(file_with_names(checkpoint), "names of tensors of at most 64 KiB",
             concat(tensor.name.size(), " bytes"), "give it another name, and save it again");
    }
    check("the name of a tensor", tensor.name);
    for (const auto& [state, source] : tensor.states) check("the name of a state", state);
  }
  for (const auto& [alias, stored] : checkpoint.aliases) {
    check("a tied name", alias);
    check("a tied name", stored);
  }
  for (const auto& [name, fact] : texts_of(checkpoint.facts)) {
    check("the name of an entry", name);
    check("a text", fact);
  }
}

void check_new_tag(const std::string& tag, const char* option) {
  require(is_file_name(tag) && formats::is_utf8(tag), option,
          ": expected the name of a folder, in UTF-8 and without a slash, got \"", tag,
          "\"; choose another name with ", option);
  require(tag != "latest" && tag != "latest_universal", option,
          ": expected the name of a folder, got \"", tag,
          "\", the file beside it that names the newest one; choose another name with ", option);
}

std::string tag_of_folder(const std::string& folder) {
  std::error_code error;
  const fs::path whole = fs::absolute(folder, error).lexically_normal();
  return (whole.filename().empty() ? whole.parent_path() : whole).filename().string();
}

void check_patterns(const Checkpoint& checkpoint, const char* option,
                    const std::vector<std::string>& patterns) {
  if (patterns.empty()) return;
  std::vector<std::string> names;
  for (const NamedTensor& tensor : checkpoint.tensors) names.push_back(tensor.name);
  for (const auto& [alias, stored] : checkpoint.aliases) names.push_back(alias);
  for (const std::string& pattern : patterns) {
    const bool used = std::any_of(names.begin(), names.end(), [&](const std::string& name) {
      return matches_any({pattern}, name);
    });
    if (used) continue;
    throw_value_error(concat(option, ": expected a pattern that matches a tensor, got \"", pattern,
                             "\", which matches none of ", names.size(), " names; ",
                             nearest_names(names, pattern)));
  }
}

}  // namespace zeromuon::convert
