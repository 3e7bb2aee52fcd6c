#include "csrc/formats/torch_file.h"

#include <utility>

#include "csrc/formats/format_error.h"

namespace zeromuon::formats {
namespace {

constexpr uint64_t kMaxPickleBytes = 256ull << 20;
constexpr const char* kSaveAgain = "save it again with torch.save of torch 1.6 or newer";

// A storage's persistent id: ("storage", type, key, location, elements).
struct StorageId {
  ElementType type = ElementType::kUInt8;
  bool untyped = false;
  std::string key;
  int64_t elements = 0;  // bytes when untyped
};

bool parse_storage(const PickleGraph& graph, NodeId node, StorageId& out) {
  const NodeId id = graph.persistent_id(node);
  if (id == kNoNode || graph.items(id).size() < 5) return false;
  const auto& parts = graph.items(id);
  std::string type = graph.global_name(parts[1]);
  type = type.substr(type.rfind('.') + 1);
  out.untyped = type == "UntypedStorage";
  out.key = std::string(graph.as_text(parts[2]));
  out.elements = graph.as_int(parts[4], -1);
  return graph.as_text(parts[0]) == "storage" && !out.key.empty() && out.elements >= 0 &&
         (out.untyped || parse_storage_name(type, out.type));
}

// The arguments of the function that makes a tensor: storage, offset, size, stride,
// requires_grad...
struct Rebuild {
  const std::vector<NodeId>* arguments = nullptr;
  bool untyped = false;  // names its element type
  bool requires_grad = false;
};

bool is_rebuild(const std::string& name) {
  return name == "torch._utils._rebuild_tensor_v2" || name == "torch._utils._rebuild_tensor" ||
         name == "torch._utils._rebuild_tensor_v3";
}

// Looks through parameters and typed tensors at what they hold. False for all else.
bool find_rebuild(const PickleGraph& graph, NodeId node, Rebuild& out) {
  constexpr int kMaxLayers = 4;
  for (int layer = 0; layer < kMaxLayers; ++layer) {
    const Call* call = graph.as_call(node);
    if (call == nullptr) return false;
    std::string name = graph.global_name(call->callable);
    const std::vector<NodeId>* arguments = &graph.items(call->arguments);
    if (name == "torch._tensor._rebuild_from_type_v2" && arguments->size() >= 3) {
      // (function, type, arguments, state)
      name = graph.global_name((*arguments)[0]);
      arguments = &graph.items((*arguments)[2]);
      if (!is_rebuild(name)) return false;
    }
    if (is_rebuild(name)) {
      out.arguments = arguments;
      out.untyped = name.back() == '3';
      return true;
    }
    const bool parameter = name == "torch._utils._rebuild_parameter" ||
                           name == "torch._utils._rebuild_parameter_with_state";
    if (!parameter || arguments->size() < 2) return false;
    out.requires_grad = graph.as_bool((*arguments)[1], false);
    node = (*arguments)[0];
  }
  return false;
}

bool parse_torch_dtype(const PickleGraph& graph, NodeId node, ElementType& out) {
  const std::string name = graph.global_name(node);
  return name.starts_with("torch.") && parse_element_type(name.substr(6), out);
}

// One past the last element that the view touches; -1 when that does not fit.
int64_t extent_of(const StoredTensor& tensor, int64_t offset) {
  int64_t last = offset;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    int64_t step;
    if (tensor.shape[i] == 0) return offset;
    if (__builtin_mul_overflow(tensor.shape[i] - 1, tensor.strides[i], &step) ||
        __builtin_add_overflow(last, step, &last)) {
      return -1;
    }
  }
  return last == INT64_MAX ? -1 : last + 1;
}

}  // namespace

int64_t numel_of(const std::vector<int64_t>& shape) {
  int64_t product = 1;
  bool fits = true;
  for (const int64_t size : shape) {
    if (size == 0) return 0;
    fits = fits && size > 0 && !__builtin_mul_overflow(product, size, &product);
  }
  return fits && product <= kMaxNumel ? product : -1;
}

int64_t StoredTensor::numel() const { return numel_of(shape); }

bool StoredTensor::contiguous() const {
  if (numel() <= 1) return true;
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) return false;
    expected *= shape[i];
  }
  return true;
}

TorchFile::TorchFile(const std::string& path) : TorchFile(std::make_shared<InputFile>(path)) {}

TorchFile::TorchFile(std::shared_ptr<const InputFile> file) : file_(std::move(file)) {
  const std::string& path = file_->path();
  uint8_t head[2] = {};
  if (file_->size() >= 2) file_->read(0, head, 2);
  if (head[0] != 'P' || head[1] != 'K') {
    throw_format_error(path, 0, "a zip archive of torch.save",
                       file_->size() == 0 ? "an empty file" : "other bytes",
                       head[0] == 0x80
                           ? concat("it looks like the format before torch 1.6: ", kSaveAgain)
                           : std::string(kDamaged));
  }
  zip_ = std::make_unique<ZipReader>(file_);
  find_prefix();
  check_byte_order();
  const ZipRecord& pickle = *zip_->find(prefix_ + "data.pkl");
  const std::vector<uint8_t> bytes = zip_->read(pickle, kMaxPickleBytes);
  graph_ = read_pickle(bytes.data(), bytes.size(), zip_->where(pickle),
                       static_cast<int64_t>(pickle.data_offset));
  check_tensors();
}

void TorchFile::find_prefix() {
  constexpr std::string_view kName = "/data.pkl";
  int found = 0;
  for (const ZipRecord& record : zip_->records()) {
    const std::string_view name = record.name;
    if (!name.ends_with(kName) || name.find('/') != name.size() - kName.size()) continue;
    prefix_ = name.substr(0, name.size() - kName.size() + 1);
    ++found;
  }
  if (found != 1) {
    throw_format_error(path(), -1, "one record NAME/data.pkl", concat(found),
                       "this zip archive was not written by torch.save");
  }
}

void TorchFile::check_byte_order() const {
  const ZipRecord* record = zip_->find(prefix_ + "byteorder");
  if (record == nullptr) return;
  const std::vector<uint8_t> bytes = zip_->read(*record, 16);
  const std::string text(bytes.begin(), bytes.end());
  if (text != "little") {
    throw_format_error(zip_->where(*record), static_cast<int64_t>(record->data_offset), "little",
                       "\"" + text.substr(0, 8) + "\"",
                       "load and save the file on a little-endian machine");
  }
}

const ZipRecord* TorchFile::storage_record(const std::string& key) const {
  return zip_->find(prefix_ + "data/" + key);
}

std::optional<StoredTensor> TorchFile::tensor(NodeId node) const {
  Rebuild rebuild;
  if (!find_rebuild(graph_, node, rebuild)) return std::nullopt;
  const auto fail = [&](const std::string& expected, const std::string& got) {
    throw_format_error(path() + ": " + prefix_ + "data.pkl", -1, expected,
                       got + " in " + graph_.describe(node, 120), kDamaged);
  };
  const auto& arguments = *rebuild.arguments;
  StorageId storage;
  StoredTensor out;
  out.requires_grad = rebuild.requires_grad;
  if (arguments.size() < 4 || !parse_storage(graph_, arguments[0], storage) ||
      !graph_.as_shape(arguments[2], out.shape) || !graph_.as_shape(arguments[3], out.strides) ||
      out.shape.size() != out.strides.size()) {
    fail("a tensor of storage, offset, size and stride", "something else");
  }
  if (arguments.size() > 4) {
    out.requires_grad = out.requires_grad || graph_.as_bool(arguments[4], false);
  }
  out.type = storage.type;
  if (rebuild.untyped || storage.untyped) {
    const bool known = rebuild.untyped && arguments.size() > 6 &&
                       parse_torch_dtype(graph_, arguments[6], out.type);
    if (!known) {
      throw_format_error(path() + ": " + prefix_ + "data.pkl", -1,
                         "an element type that this version knows",
                         "another one in " + graph_.describe(node, 120), kUnknownType);
    }
  }
  const ZipRecord* record = storage_record(storage.key);
  if (record == nullptr) fail("a record data/" + storage.key, "none");
  const int64_t unit = storage.untyped ? 1 : size_of(storage.type);
  int64_t bytes = 0;
  if (__builtin_mul_overflow(storage.elements, unit, &bytes) ||
      record->bytes != static_cast<uint64_t>(bytes)) {
    throw_format_error(zip_->where(*record), static_cast<int64_t>(record->data_offset),
                       concat(storage.elements, " elements of ", unit, " bytes"),
                       concat(record->bytes, " bytes"), kDamaged);
  }
  const int64_t offset = graph_.as_int(arguments[1], -1);
  const int64_t extent = offset < 0 ? -1 : extent_of(out, offset);
  int64_t view_bytes = 0;  // of a view that repeats elements, more than the storage's
  const bool fits =
      out.numel() >= 0 && !__builtin_mul_overflow(out.numel(), size_of(out.type), &view_bytes);
  if (extent < 0 || !fits || extent > bytes / size_of(out.type)) {
    fail(concat("a view inside the ", bytes / size_of(out.type), " elements of data/", storage.key),
         concat("elements up to ", extent));
  }
  out.storage = storage.key;
  out.file_offset = record->data_offset + static_cast<uint64_t>(offset * size_of(out.type));
  return out;
}

void TorchFile::check_tensors() const {
  for (NodeId node = 0; node < graph_.size(); ++node) {
    if (graph_.kind(node) == NodeKind::kCall) tensor(node);
  }
}

}  // namespace zeromuon::formats
