// Files of torch.save: a pickle and the bytes of its tensors.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "csrc/formats/element_type.h"
#include "csrc/formats/pickle.h"
#include "csrc/formats/zip_reader.h"

namespace zeromuon::formats {

// A tensor of a torch file. Offsets and strides are checked: every element lies in the storage.
struct StoredTensor {
  ElementType type = ElementType::kFloat32;
  std::vector<int64_t> shape, strides;  // strides in elements
  uint64_t file_offset = 0;             // of element 0
  std::string storage;                  // key of its storage: equal ones share memory
  bool requires_grad = false;

  int64_t numel() const;
  int64_t bytes() const { return numel() * size_of(type); }
  bool contiguous() const;
};

// No tensor has more: so bytes, and chunks of any number of ranks, fit 64 bits.
constexpr int64_t kMaxNumel = int64_t{1} << 56;

// The product, or -1 when it is more than kMaxNumel or a size is negative.
int64_t numel_of(const std::vector<int64_t>& shape);

// Thread: any, once constructed.
class TorchFile {
 public:
  // Raises FormatError.
  explicit TorchFile(const std::string& path);
  explicit TorchFile(std::shared_ptr<const InputFile> file);

  const std::string& path() const { return zip_->file().path(); }
  const InputFile& file() const { return zip_->file(); }
  std::shared_ptr<const InputFile> shared_file() const { return file_; }
  const ZipReader& zip() const { return *zip_; }
  // What all records lie in: the name, without ending, of the file as it was written.
  std::string archive_name() const { return prefix_.substr(0, prefix_.size() - 1); }
  const PickleGraph& graph() const { return graph_; }
  NodeId root() const { return graph_.root(); }
  // The tensor that a node stands for (a parameter, a typed tensor or a plain one). Made anew
  // at every call: a hostile pickle may say the same large shape a million times.
  std::optional<StoredTensor> tensor(NodeId node) const;
  // Where the bytes of a storage key lie; null for an unknown key.
  const ZipRecord* storage_record(const std::string& key) const;

 private:
  void find_prefix();
  void check_byte_order() const;
  void check_tensors() const;

  std::shared_ptr<const InputFile> file_;
  std::unique_ptr<ZipReader> zip_;
  std::string prefix_;  // of the record names, with its slash
  PickleGraph graph_;
};

}  // namespace zeromuon::formats
