#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <unordered_set>

#include "csrc/formats/format_error.h"
#include "csrc/formats/json.h"
#include "csrc/formats/safetensors.h"
#include "csrc/formats/torch_file.h"

namespace zeromuon::formats {
namespace {

constexpr uint64_t kAlignment = 64;  // of the data; the format itself asks for 8

uint64_t bytes_of(const PlannedTensor& tensor) {
  return static_cast<uint64_t>(numel_of(tensor.shape) * size_of(tensor.type));
}

std::string entry_text(const PlannedTensor& tensor, uint64_t begin) {
  const std::string type = safetensors_name_of(tensor.type);
  require(!type.empty(), "\"", tensor.name, "\": safetensors has no ", name_of(tensor.type),
          "; export it with another dtype, or exclude it");
  std::string sizes;
  for (const int64_t size : tensor.shape) {
    if (!sizes.empty()) sizes += ',';
    sizes += std::to_string(size);
  }
  return concat(json_string(tensor.name), ":{\"dtype\":\"", type, "\",\"shape\":[", sizes,
                "],\"data_offsets\":[", begin, ",", begin + bytes_of(tensor), "]}");
}

std::string metadata_text(const std::map<std::string, std::string>& metadata) {
  std::map<std::string, std::string> all = metadata;
  all.emplace("format", "pt");
  std::string out;
  for (const auto& [key, value] : all) {
    if (!out.empty()) out += ',';
    out += json_string(key) + ":" + json_string(value);
  }
  return "\"__metadata__\":{" + out + "}";
}

}  // namespace

SafetensorsWriter::SafetensorsWriter(const std::string& path,
                                     const std::vector<PlannedTensor>& tensors,
                                     const std::map<std::string, std::string>& metadata,
                                     bool replace)
    : file_(path, replace), offsets_(tensors.size()) {
  // Large elements first, so that each tensor is aligned to its own.
  std::vector<size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return size_of(tensors[a].type) > size_of(tensors[b].type);
  });
  std::string header = "{" + metadata_text(metadata);
  std::unordered_set<std::string> names = {"__metadata__"};
  uint64_t end = 0;
  for (const size_t i : order) {
    require(names.insert(tensors[i].name).second, "\"", tensors[i].name,
            "\": safetensors cannot hold two tensors of that name");
    header += "," + entry_text(tensors[i], end);
    offsets_[i] = end;
    end += bytes_of(tensors[i]);
  }
  header += "}";
  header.append((kAlignment - (header.size() + 8) % kAlignment) % kAlignment, ' ');
  require(header.size() <= SafetensorsFile::kMaxHeaderBytes, path, ": a header of ", header.size(),
          " bytes; safetensors allows 100 MB: write more shards");
  const uint64_t length = header.size();
  for (uint64_t& offset : offsets_) offset += 8 + length;
  file_.reserve(8 + length + end);
  file_.write_at(0, &length, sizeof length);
  file_.write_at(8, header.data(), header.size());
}

void SafetensorsWriter::write(int tensor, uint64_t offset, const void* data, uint64_t bytes) {
  file_.write_at(offsets_.at(tensor) + offset, data, bytes);
}

std::vector<std::vector<int>> plan_shards(const std::vector<PlannedTensor>& tensors,
                                          uint64_t max_bytes) {
  std::vector<std::vector<int>> shards(1);
  uint64_t used = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const uint64_t bytes = bytes_of(tensors[i]);
    if (!shards.back().empty() && max_bytes > 0 && used + bytes > max_bytes) {
      shards.emplace_back();
      used = 0;
    }
    shards.back().push_back(static_cast<int>(i));
    used += bytes;
  }
  return shards;
}

std::string shard_name(int shard, int shards) {
  if (shards == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", shard + 1, shards);
  return name;
}

void write_safetensors_index(const std::string& folder, const std::vector<PlannedTensor>& tensors,
                             const std::vector<std::vector<int>>& shards, bool replace) {
  uint64_t total = 0;
  std::map<std::string, std::string> files;
  for (size_t shard = 0; shard < shards.size(); ++shard) {
    for (const int i : shards[shard]) {
      total += bytes_of(tensors[i]);
      files[tensors[i].name] = shard_name(static_cast<int>(shard), static_cast<int>(shards.size()));
    }
  }
  std::string text =
      concat("{\n  \"metadata\": {\n    \"total_size\": ", total, "\n  },\n  \"weight_map\": {");
  bool first = true;
  for (const auto& [name, file] : files) {
    text += concat(first ? "\n    " : ",\n    ", json_string(name), ": ", json_string(file));
    first = false;
  }
  text += "\n  }\n}\n";
  const auto path = std::filesystem::path(folder) / "model.safetensors.index.json";
  write_text(path.string(), text, replace);
}

}  // namespace zeromuon::formats
