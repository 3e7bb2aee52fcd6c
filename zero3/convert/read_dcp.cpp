// torch.distributed.checkpoint folders: .metadata, and files in which every piece of a tensor is a
// torch file of its own.
#include <algorithm>
#include <map>
#include <utility>

#include "zero3/convert/read_formats.h"

namespace zeromuon::convert {
namespace {

using Shape = std::vector<int64_t>;

// A box of a tensor.
struct Box {
  Shape offsets, sizes;
};

// Where a box lies: a torch file inside a file.
struct Place {
  std::string file;
  int64_t offset = 0, bytes = 0;
};

// A run of row-major elements of the whole tensor.
struct Run {
  int64_t begin = 0;
  ByteRange range;
};

class DcpReader {
 public:
  explicit DcpReader(const fs::path& folder)
      : folder_(folder), name_((folder / ".metadata").string()), graph_(read_graph()) {
    out_.kind = Kind::kDcp;
    out_.folder = folder.string();
    out_.files.push_back(name_);
  }

  Checkpoint read() {
    read_places();
    const NodeId tensors = field(graph_.root(), "state_dict_metadata");
    for (const auto& [key, value] : graph_.dict_items(tensors)) {
      const std::string name(graph_.as_text(key));
      if (graph_.callable_name(value).ends_with(".TensorStorageMetadata")) {
        add_tensor(name, value);
      } else {
        ++others_;
      }
    }
    out_.facts.other_entries = others_;
    return std::move(out_);
  }

 private:
  PickleGraph read_graph() const {
    constexpr uint64_t kMaxBytes = 256ull << 20;
    const std::string bytes = formats::read_text(name_, kMaxBytes);
    return formats::read_pickle(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), name_,
                                0);
  }

  [[noreturn]] void fail(const std::string& expected, const std::string& got) const {
    refuse(name_, expected, got, kDamaged);
  }

  // Objects keep their fields in it.
  NodeId state_of(NodeId node) const {
    const formats::Call* call = graph_.as_call(node);
    return call == nullptr ? kNoNode : call->state;
  }

  NodeId field(NodeId node, const char* key) const {
    const NodeId found = graph_.get(state_of(node), key);
    if (found == kNoNode) fail(std::string("a field ") + key, graph_.describe(node, 60));
    return found;
  }

  Shape shape_of(NodeId node) const {
    Shape out;
    if (!graph_.as_shape(node, out)) fail("a shape", graph_.describe(node, 60));
    return out;
  }

  void read_places() {
    for (const auto& [key, value] : graph_.dict_items(field(graph_.root(), "storage_data"))) {
      if (state_of(key) == kNoNode) fail("an index", graph_.describe(key, 60));
      Shape offsets;
      graph_.as_shape(graph_.get(state_of(key), "offset"), offsets);
      Place place{std::string(graph_.as_text(field(value, "relative_path"))),
                  graph_.as_int(field(value, "offset"), -1),
                  graph_.as_int(field(value, "length"), -1)};
      const bool inside = is_file_name(place.file) && place.offset >= 0 && place.bytes >= 0;
      if (!inside) fail("a place in a file of the folder", graph_.describe(value, 80));
      places_[{std::string(graph_.as_text(field(key, "fqn"))), offsets}] = std::move(place);
    }
  }

  ElementType type_of(NodeId value) const {
    const NodeId state = state_of(field(value, "properties"));
    const auto& items = graph_.items(state);
    const std::string name =
        graph_.global_name(items.empty() ? graph_.get(state, "dtype") : items[0]);
    ElementType type;
    if (!name.starts_with("torch.") || !formats::parse_element_type(name.substr(6), type)) {
      fail("an element type that this version knows", graph_.describe(value, 80));
    }
    return type;
  }

  void add_tensor(const std::string& name, NodeId value) {
    NamedTensor tensor;
    tensor.name = name;
    tensor.value.type = type_of(value);
    tensor.value.shape = shape_of(field(value, "size"));
    if (tensor.value.numel() < 0) fail("a size that fits", graph_.describe(value, 80));
    std::vector<Run> runs;
    for (const NodeId node : graph_.items(field(value, "chunks"))) {
      const Box chunk{shape_of(field(node, "offsets")), shape_of(field(node, "sizes"))};
      add_runs(tensor, chunk, runs);
    }
    std::sort(runs.begin(), runs.end(),
              [](const Run& a, const Run& b) { return a.begin < b.begin; });
    int64_t end = 0;
    const int64_t size = size_of(tensor.value.type);
    for (Run& run : runs) {
      if (run.begin != end) fail("chunks that fill \"" + name + "\"", "holes or overlaps");
      end += static_cast<int64_t>(run.range.bytes) / size;
      tensor.value.ranges.push_back(std::move(run.range));
    }
    if (end != tensor.value.numel()) fail("chunks that fill \"" + name + "\"", "fewer elements");
    out_.tensors.push_back(std::move(tensor));
  }

  // The box's rows, as runs of the whole tensor.
  void add_runs(const NamedTensor& tensor, const Box& chunk, std::vector<Run>& runs) {
    const Shape& shape = tensor.value.shape;
    if (numel_of(chunk.sizes) == 0) return;
    bool fits = chunk.sizes.size() == shape.size() && chunk.offsets.size() == shape.size();
    for (size_t d = 0; fits && d < shape.size(); ++d) {
      fits = chunk.sizes[d] <= shape[d] && chunk.offsets[d] <= shape[d] - chunk.sizes[d];
    }
    if (!fits) fail("chunks inside \"" + tensor.name + "\"", "one that is not");
    const ByteRange whole = open_chunk(tensor, chunk);
    // Dimensions from `inner` on are whole: one run for each index of those before.
    size_t inner = shape.size();
    while (inner > 0 && chunk.sizes[inner - 1] == shape[inner - 1]) --inner;
    if (inner > 0) --inner;
    int64_t run = 1;
    for (size_t d = inner; d < shape.size(); ++d) run *= chunk.sizes[d];
    const int64_t count = numel_of(chunk.sizes) / run;
    constexpr size_t kMaxRuns = 1 << 22;
    if (static_cast<size_t>(count) > kMaxRuns - std::min(kMaxRuns, runs.size())) {
      fail("a tensor of at most 4 million runs", "more in \"" + tensor.name + "\"");
    }
    const auto bytes = static_cast<uint64_t>(run * size_of(tensor.value.type));
    Shape index(shape.size(), 0);
    for (int64_t i = 0; i < count; ++i) {
      int64_t begin = 0;
      for (size_t d = 0; d < shape.size(); ++d)
        begin = begin * shape[d] + chunk.offsets[d] + index[d];
      runs.push_back({begin, {whole.file, whole.offset + static_cast<uint64_t>(i) * bytes, bytes}});
      for (size_t d = inner; d-- > 0 && ++index[d] == chunk.sizes[d];) index[d] = 0;
    }
  }

  ByteRange open_chunk(const NamedTensor& tensor, const Box& chunk) {
    const auto found = places_.find({tensor.name, chunk.offsets});
    if (found == places_.end()) fail("the place of a chunk of \"" + tensor.name + "\"", "none");
    const Place& place = found->second;
    const std::string path = (folder_ / place.file).string();
    if (std::find(out_.files.begin(), out_.files.end(), path) == out_.files.end()) {
      out_.files.push_back(path);
    }
    const auto file = std::make_shared<const InputFile>(path, static_cast<uint64_t>(place.offset),
                                                        static_cast<uint64_t>(place.bytes));
    const TorchFile torch(file);
    file->park();
    const auto stored = torch.tensor(torch.root());
    if (!stored || stored->shape != chunk.sizes || stored->type != tensor.value.type ||
        !stored->contiguous()) {
      throw_format_error(path, place.offset, "the chunk of \"" + tensor.name + "\"",
                         "another value", kDamaged);
    }
    return {file, stored->file_offset, static_cast<uint64_t>(stored->bytes())};
  }

  fs::path folder_;
  std::string name_;
  PickleGraph graph_;
  Checkpoint out_;
  std::map<std::pair<std::string, Shape>, Place> places_;
  int others_ = 0;
};

}  // namespace

Checkpoint read_dcp(const fs::path& folder) { return DcpReader(folder).read(); }

}  // namespace zeromuon::convert
