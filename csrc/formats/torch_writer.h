// Writes files that torch.load and DeepSpeed read, tensor by tensor.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "csrc/formats/element_type.h"
#include "csrc/formats/pickle_graph.h"
#include "csrc/formats/torch_file.h"
#include "csrc/formats/zip_writer.h"

namespace zeromuon::formats {

// Build a graph whose tensors come from add_tensor() (several may share a storage), then begin(),
// write() every storage, set_crc() each, finish().
// Thread: write() from any number of threads; the rest from one.
class TorchFileWriter {
 public:
  // Raises FormatError when the file cannot be made, or exists and `replace` is false.
  TorchFileWriter(std::string path, bool replace);

  PickleGraph& graph() { return graph_; }

  // A new storage of `bytes` bytes; returns its number.
  int add_storage(ElementType type, uint64_t bytes);
  // A contiguous tensor at element `offset` of a storage; strides: in elements, empty for
  // row-major.
  NodeId add_tensor(int storage, ElementType type, const std::vector<int64_t>& shape,
                    int64_t offset = 0, const std::vector<int64_t>& strides = {},
                    bool requires_grad = false);
  // A copy of a node of another file, which must outlive the writer. Its tensors get storages that
  // are to be copied from there.
  NodeId copy_of(const TorchFile& source, NodeId node);
  // A copy of a contiguous tensor with a storage of its own at every call, for values that are
  // changed in place: copy_of() shares the storage among all copies of a tensor.
  NodeId copy_apart(const TorchFile& source, const StoredTensor& tensor);
  // A tensor of this content.
  NodeId add_constant(ElementType type, const std::vector<int64_t>& shape, std::string content);
  // Whatever copy_of() meets as `node` of `source` becomes `replacement`. Before the copy.
  void replace(const TorchFile& source, NodeId node, NodeId replacement);

  // Storages whose bytes come from other files, by copy_of().
  struct CopiedStorage {
    int storage = 0;
    std::shared_ptr<const InputFile> file;
    uint64_t file_offset = 0, bytes = 0;
  };
  const std::vector<CopiedStorage>& copied() const { return copied_; }

  void begin(NodeId root);
  void write(int storage, uint64_t offset, const void* data, uint64_t bytes);
  void set_crc(int storage, uint32_t crc);
  void finish(bool sync_parent = true);  // as OutputFile::commit()

 private:
  struct Storage {
    ElementType type = ElementType::kFloat32;
    uint64_t bytes = 0;
    NodeId persistent = kNoNode;
    int record = -1;
  };
  NodeId persistent_of(int storage);
  int storage_for(const TorchFile& source, NodeId persistent);
  PickleCopier& copier_of(const TorchFile& source);

  std::string path_, prefix_;
  ZipWriter zip_;
  PickleGraph graph_;
  std::vector<Storage> storages_;
  std::vector<CopiedStorage> copied_;
  std::vector<std::pair<int, std::string>> constants_;    // storages and their content
  std::unordered_map<std::string, int> storage_of_copy_;  // path and key of the source
  std::unordered_map<std::string, std::unique_ptr<PickleCopier>> copiers_;  // by path
};

}  // namespace zeromuon::formats
