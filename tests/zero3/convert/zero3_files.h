// ZeRO-3 checkpoints in small, written the way DeepSpeed writes them.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "csrc/formats/crc32.h"
#include "csrc/formats/output_file.h"
#include "csrc/formats/torch_writer.h"

namespace zeromuon::convert {

struct SmallParameter {
  std::string name;
  std::vector<int64_t> shape;
};

// Two sub-groups, a tied head, a frozen weight and a buffer; element i of parameter p is
// 100 p + i, its exp_avg and exp_avg_sq a half and a quarter of that. Padding is NaN.
struct SmallCheckpoint {
  int world_size = 2;
  int64_t steps = 7;
  std::vector<std::vector<SmallParameter>> groups = {{{"emb", {5, 3}}, {"w", {4, 2}}},
                                                     {{"bias", {1}}, {"v", {3, 3}}}};
  bool nan_in_weights = false;
};

class SmallWriter {
 public:
  SmallWriter(const SmallCheckpoint& what, const std::string& folder)
      : what_(what), folder_(folder) {}

  void write() {
    formats::make_folders(folder_ + "/step7");
    for (int rank = 0; rank < what_.world_size; ++rank) {
      write_model(rank);
      write_optim(rank);
    }
    formats::write_text(folder_ + "/latest", "step7", true);
  }

 private:
  using NodeId = formats::NodeId;

  struct Storage {
    int number;
    std::vector<float> values;
  };

  int64_t chunk_of(int64_t numel) const {
    return (numel + what_.world_size - 1) / what_.world_size;
  }

  NodeId tensor(formats::TorchFileWriter& writer, std::vector<float> values,
                std::vector<int64_t> shape) {
    const int storage = writer.add_storage(formats::ElementType::kFloat32, 4 * values.size());
    storages_.push_back({storage, std::move(values)});
    return writer.add_tensor(storage, formats::ElementType::kFloat32, shape);
  }

  void finish(formats::TorchFileWriter& writer, NodeId root) {
    writer.begin(root);
    for (const Storage& s : storages_) {
      writer.write(s.number, 0, s.values.data(), 4 * s.values.size());
      writer.set_crc(s.number, formats::crc32(0, s.values.data(), 4 * s.values.size()));
    }
    storages_.clear();
    writer.finish();
  }

  std::vector<float> shard(int parameter, int64_t numel, int rank, float factor) const {
    const int64_t chunk = chunk_of(numel);
    std::vector<float> out;
    for (int64_t i = rank * chunk; i < (rank + 1) * chunk; ++i) {
      const bool real = i < numel;
      out.push_back(real ? factor * static_cast<float>(100 * parameter + i) : NAN);
      if (real && i == 0 && what_.nan_in_weights) out.back() = NAN;
    }
    return out;
  }

  void write_model(int rank) {
    formats::TorchFileWriter writer(
        folder_ + "/step7/zero_pp_rank_" + std::to_string(rank) + "_mp_rank_00_model_states.pt",
        true);
    formats::PickleGraph& g = writer.graph();
    const NodeId module = g.ordered_dict(), root = g.dict(), frozen = g.ordered_dict(),
                 fragments = g.ordered_dict(), shared = g.dict(), config = g.dict(),
                 zero = g.dict();
    g.set(module, "buffer", tensor(writer, {1, 2, 3}, {3}));
    std::vector<NodeId> shapes;
    for (const auto& group : what_.groups) {
      const NodeId dict = g.ordered_dict();
      for (const SmallParameter& p : group) {
        g.set(dict, p.name, g.size_of_shape(p.shape));
        g.set(module, p.name, tensor(writer, {}, {0}));
      }
      shapes.push_back(dict);
    }
    g.set(frozen, "frozen", g.size_of_shape({7}));
    g.set(fragments, "frozen", tensor(writer, shard(9, 7, rank, 1), {chunk_of(7)}));
    if (rank == 0) g.set(shared, "head", g.string("emb"));
    g.set(zero, "sub_group_size", g.integer(1000));
    g.set(config, "zero_optimization", zero);
    g.set(root, "module", module);
    g.set(root, "buffer_names", g.sequence(formats::NodeKind::kList, {g.string("buffer")}));
    g.set(root, "param_shapes", g.sequence(formats::NodeKind::kList, shapes));
    g.set(root, "frozen_param_shapes", frozen);
    g.set(root, "frozen_param_fragments", fragments);
    g.set(root, "shared_params", shared);
    g.set(root, "global_steps", g.integer(what_.steps));
    g.set(root, "dp_world_size", g.integer(what_.world_size));
    g.set(root, "ds_config", config);
    finish(writer, root);
  }

  NodeId flat(formats::TorchFileWriter& writer, size_t group, int rank, float factor) {
    std::vector<float> values;
    int parameter = static_cast<int>(10 * group);
    for (const SmallParameter& p : what_.groups[group]) {
      const auto part = shard(parameter++, formats::numel_of(p.shape), rank, factor);
      values.insert(values.end(), part.begin(), part.end());
    }
    const auto numel = static_cast<int64_t>(values.size());
    return tensor(writer, std::move(values), {numel});
  }

  void write_optim(int rank) {
    formats::TorchFileWriter writer(
        folder_ + "/step7/zero_pp_rank_" + std::to_string(rank) + "_mp_rank_00_optim_states.pt",
        true);
    formats::PickleGraph& g = writer.graph();
    const NodeId root = g.dict(), outer = g.dict(), inner = g.dict(), state = g.dict(),
                 group = g.dict();
    std::vector<NodeId> flats, numbers;
    for (size_t i = 0; i < what_.groups.size(); ++i) {
      const NodeId values = g.dict(), number = g.integer(static_cast<int64_t>(i));
      g.set(values, "step", g.integer(what_.steps));
      g.set(values, "exp_avg", flat(writer, i, rank, 0.5F));
      g.set(values, "exp_avg_sq", flat(writer, i, rank, 0.25F));
      g.mutable_dict_items(state).emplace_back(number, values);
      flats.push_back(flat(writer, i, rank, 1));
      numbers.push_back(g.integer(static_cast<int64_t>(i)));
    }
    g.set(group, "lr", g.real(1e-3));
    g.set(group, "betas", g.sequence(formats::NodeKind::kTuple, {g.real(0.9), g.real(0.99)}));
    g.set(group, "params", g.sequence(formats::NodeKind::kList, numbers));
    g.set(inner, "state", state);
    g.set(inner, "param_groups", g.sequence(formats::NodeKind::kList, {group}));
    g.set(outer, "partition_count", g.integer(what_.world_size));
    g.set(outer, "optimizer_state_dict", inner);
    g.set(outer, "fp32_flat_groups", g.sequence(formats::NodeKind::kList, flats));
    g.set(root, "optimizer_state_dict", outer);
    finish(writer, root);
  }

  SmallCheckpoint what_;
  std::string folder_;
  std::vector<Storage> storages_;
};

}  // namespace zeromuon::convert
