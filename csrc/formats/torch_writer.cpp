#include "csrc/formats/torch_writer.h"

#include <filesystem>
#include <utility>

#include "csrc/formats/crc32.h"
#include "csrc/formats/format_error.h"

namespace zeromuon::formats {
namespace {

// The folder inside the archive: the file's name without its ending, as torch.save does.
std::string prefix_of(const std::string& path) {
  const std::string stem = std::filesystem::path(path).stem().string();
  return (stem.empty() ? "archive" : stem) + "/";
}

struct SmallRecord {
  const char* name;
  const char* text;
};

constexpr SmallRecord kSmallRecords[] = {{".format_version", "1"},
                                         {".storage_alignment", "64"},
                                         {"byteorder", "little"},
                                         {"version", "3\n"}};

}  // namespace

TorchFileWriter::TorchFileWriter(std::string path, bool replace)
    : path_(std::move(path)), prefix_(prefix_of(path_)), zip_(path_, replace) {}

int TorchFileWriter::add_storage(ElementType type, uint64_t bytes) {
  storages_.push_back({type, bytes, kNoNode, -1});
  return static_cast<int>(storages_.size()) - 1;
}

NodeId TorchFileWriter::persistent_of(int number) {
  Storage& storage = storages_.at(number);
  if (storage.persistent != kNoNode) return storage.persistent;
  const std::string type = storage_name_of(storage.type);
  const int64_t unit = type.empty() ? 1 : size_of(storage.type);
  const NodeId word = graph_.string("storage");
  const NodeId global = type.empty() ? graph_.global("torch.storage", "UntypedStorage")
                                     : graph_.global("torch", type);
  const NodeId key = graph_.string(std::to_string(number)), location = graph_.string("cpu");
  const NodeId elements = graph_.integer(static_cast<int64_t>(storage.bytes) / unit);
  const NodeId id = graph_.sequence(NodeKind::kTuple, {word, global, key, location, elements});
  return storage.persistent = graph_.persistent(id);
}

NodeId TorchFileWriter::add_tensor(int storage, ElementType type, const std::vector<int64_t>& shape,
                                   int64_t offset, const std::vector<int64_t>& strides,
                                   bool requires_grad) {
  std::vector<int64_t> steps = strides;
  if (steps.empty()) {
    steps.assign(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;)
      steps[i - 1] = steps[i] * std::max<int64_t>(shape[i], 1);
  }
  const auto tuple = [&](const std::vector<int64_t>& numbers) {
    std::vector<NodeId> nodes;
    for (const int64_t number : numbers) nodes.push_back(graph_.integer(number));
    return graph_.sequence(NodeKind::kTuple, std::move(nodes));
  };
  const bool untyped = *storage_name_of(type) == '\0';
  std::vector<NodeId> arguments = {
      persistent_of(storage), graph_.integer(offset),        tuple(shape),
      tuple(steps),           graph_.boolean(requires_grad), graph_.ordered_dict()};
  if (untyped) arguments.push_back(graph_.global("torch", name_of(type)));
  Call call;
  call.callable =
      graph_.global("torch._utils", untyped ? "_rebuild_tensor_v3" : "_rebuild_tensor_v2");
  call.arguments = graph_.sequence(NodeKind::kTuple, std::move(arguments));
  return graph_.call(std::move(call));
}

int TorchFileWriter::storage_for(const TorchFile& source, NodeId persistent) {
  // The type that the storage was saved with, so that its id stays as it was.
  const PickleGraph& graph = source.graph();
  const auto& parts = graph.items(graph.persistent_id(persistent));
  const std::string key = parts.size() > 2 ? std::string(graph.as_text(parts[2])) : std::string();
  const ZipRecord* record = source.storage_record(key);
  if (record == nullptr) {
    throw_format_error(source.path(), -1, "a record data/" + key, "none", kDamaged);
  }
  const auto [found, added] = storage_of_copy_.emplace(source.path() + "\n" + key, 0);
  if (added) {
    ElementType type = ElementType::kFloat8E4M3;  // any that is stored untyped
    std::string name = graph.global_name(parts[1]);
    parse_storage_name(name.substr(name.rfind('.') + 1), type);
    found->second = add_storage(type, record->bytes);
    copied_.push_back({found->second, source.shared_file(), record->data_offset, record->bytes});
  }
  return found->second;
}

PickleCopier& TorchFileWriter::copier_of(const TorchFile& source) {
  std::unique_ptr<PickleCopier>& copier = copiers_[source.path()];
  if (copier == nullptr) {
    copier = std::make_unique<PickleCopier>(source.graph(), graph_, [this, &source](NodeId node) {
      const bool storage = source.graph().kind(node) == NodeKind::kPersistent;
      return storage ? persistent_of(storage_for(source, node)) : kNoNode;
    });
  }
  return *copier;
}

NodeId TorchFileWriter::copy_of(const TorchFile& source, NodeId node) {
  return copier_of(source).copy(node);
}

NodeId TorchFileWriter::copy_apart(const TorchFile& source, const StoredTensor& tensor) {
  invariant(tensor.contiguous(), source.path(), ": copy_apart() of a view");
  const auto bytes = static_cast<uint64_t>(tensor.bytes());
  const int storage = add_storage(tensor.type, bytes);
  copied_.push_back({storage, source.shared_file(), tensor.file_offset, bytes});
  return add_tensor(storage, tensor.type, tensor.shape);
}

NodeId TorchFileWriter::add_constant(ElementType type, const std::vector<int64_t>& shape,
                                     std::string content) {
  const int storage = add_storage(type, content.size());
  constants_.emplace_back(storage, std::move(content));
  return add_tensor(storage, type, shape);
}

void TorchFileWriter::replace(const TorchFile& source, NodeId node, NodeId replacement) {
  copier_of(source).record(node, replacement);
}

void TorchFileWriter::begin(NodeId root) {
  const std::vector<uint8_t> pickle = write_pickle(graph_, root, path_);
  std::vector<std::pair<int, std::string_view>> texts;
  const auto add = [&](const std::string& name, std::string_view text) {
    texts.emplace_back(zip_.add(prefix_ + name, text.size()), text);
  };
  add("data.pkl", {reinterpret_cast<const char*>(pickle.data()), pickle.size()});
  for (const SmallRecord& record : kSmallRecords) add(record.name, record.text);
  for (size_t i = 0; i < storages_.size(); ++i) {
    storages_[i].record = zip_.add(prefix_ + "data/" + std::to_string(i), storages_[i].bytes);
  }
  for (const auto& [storage, content] : constants_) {
    texts.emplace_back(storages_[storage].record, content);
  }
  zip_.begin();
  for (const auto& [record, text] : texts) {
    zip_.write(record, 0, text.data(), text.size());
    zip_.set_crc(record, crc32(0, text.data(), text.size()));
  }
}

void TorchFileWriter::write(int storage, uint64_t offset, const void* data, uint64_t bytes) {
  zip_.write(storages_.at(storage).record, offset, data, bytes);
}

void TorchFileWriter::set_crc(int storage, uint32_t crc) {
  zip_.set_crc(storages_.at(storage).record, crc);
}

void TorchFileWriter::finish(bool sync_parent) { zip_.finish(sync_parent); }

}  // namespace zeromuon::formats
