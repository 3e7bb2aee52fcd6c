// safetensors files, alone and sharded as Hugging Face does.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "csrc/formats/element_type.h"
#include "csrc/formats/input_file.h"
#include "csrc/formats/output_file.h"

namespace zeromuon::formats {

// A longer name is refused, in every format: it would be printed, compared and sorted.
constexpr size_t kMaxTensorNameBytes = 64 << 10;

struct SafetensorsEntry {
  std::string name;
  ElementType type = ElementType::kFloat32;
  std::vector<int64_t> shape;
  uint64_t file_offset = 0;
  uint64_t bytes = 0;
};

// Thread: any, once constructed.
class SafetensorsFile {
 public:
  static constexpr uint64_t kMaxHeaderBytes = 100'000'000;

  // Raises FormatError: header beyond the file or 100 MB, invalid JSON, unknown types, sizes that
  // do not match shapes, holes, overlaps, bytes after the last tensor.
  explicit SafetensorsFile(const std::string& path);

  const InputFile& file() const { return *file_; }
  std::shared_ptr<const InputFile> shared_file() const { return file_; }
  const std::vector<SafetensorsEntry>& entries() const { return entries_; }  // by file offset
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

 private:
  std::shared_ptr<const InputFile> file_;
  std::vector<SafetensorsEntry> entries_;
  std::map<std::string, std::string> metadata_;
};

// model.safetensors.index.json: which file holds which tensor. Raises FormatError; file names with
// a slash are refused.
std::map<std::string, std::string> read_safetensors_index(const std::string& path);

struct PlannedTensor {
  std::string name;
  ElementType type = ElementType::kFloat32;
  std::vector<int64_t> shape;
};

// One file. Thread: write() from any number of threads; the rest from one.
class SafetensorsWriter {
 public:
  // Raises FormatError when the file cannot be made, or exists and `replace` is false. metadata:
  // beside {"format": "pt"}.
  SafetensorsWriter(const std::string& path, const std::vector<PlannedTensor>& tensors,
                    const std::map<std::string, std::string>& metadata, bool replace);

  // tensor: its number in `tensors`; offset: bytes into it.
  void write(int tensor, uint64_t offset, const void* data, uint64_t bytes);
  void finish() { file_.commit(); }

 private:
  OutputFile file_;
  std::vector<uint64_t> offsets_;  // in the file
};

// Which tensors go into which file, in order, none larger than `max_bytes` unless one tensor is.
std::vector<std::vector<int>> plan_shards(const std::vector<PlannedTensor>& tensors,
                                          uint64_t max_bytes);
// "model.safetensors", or "model-00002-of-00003.safetensors".
std::string shard_name(int shard, int shards);
// Writes model.safetensors.index.json into `folder`.
void write_safetensors_index(const std::string& folder, const std::vector<PlannedTensor>& tensors,
                             const std::vector<std::vector<int>>& shards, bool replace);

}  // namespace zeromuon::formats
