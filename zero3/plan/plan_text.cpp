// A plan as text: the table that people read and the canonical form that ranks compare.
#include <algorithm>
#include <iomanip>
#include <sstream>

#include "csrc/base/check.h"
#include "zero3/plan/bucket_route.h"
#include "zero3/plan/step_costs.h"
#include "zero3/plan/step_plan.h"

namespace zeromuon::zero3 {
namespace {

void write_stages(std::ostream& out, const StepPlan& plan) {
  out << "    stages of a bucket:";
  for (const StageRow& row : plan.stages.bucket()) {
    out << " " << row.stage << " (" << name_of(row.lane) << ")";
  }
  out << "\n";
}

// What ranks compare of a row.
void write_row(std::ostream& out, const StageRow& row) {
  out << "stage " << row.stage << " " << row.body << " " << name_of(row.lane)
      << (row.urgency == offload::Urgency::kFiller ? " filler" : " urgent") << " dram "
      << row.cost.dram_bytes << " link " << row.cost.link_bytes << " device "
      << row.cost.device_bytes << " changes " << name_of(row.changes) << "\n";
}

double mebibytes(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// "3", or "0-7" of several: the owners of blocks [begin, end).
std::string owners_text(const SubGroupPlan& group, int begin, int end) {
  int least = group.blocks[begin].owner, most = least;
  for (int b = begin; b < end; ++b) {
    least = std::min(least, group.blocks[b].owner);
    most = std::max(most, group.blocks[b].owner);
  }
  return least == most ? concat(least) : concat(least, "-", most);
}

// One line for blocks [begin, end) of one kind.
void write_blocks(std::ostream& out, const StepPlan& plan, const SubGroupPlan& group, int begin,
                  int end) {
  const PlannedBlock& b = group.blocks[begin];
  const int count = end - begin;
  const std::string label = count == 1 ? group.label_of_block(begin) : group.name_of_block(begin);
  const std::string shape = concat(b.block.rows(), "x", b.block.cols());
  const ops::NewtonSchulzPlan& ns = plan.newton_schulz[b.newton_schulz];
  out << "    " << std::left << std::setw(52) << label << std::right << std::setw(20)
      << (count == 1 ? shape : concat(count, " x (", shape, ")")) << std::setw(15)
      << ops::name_of(ns.form) << std::setw(10) << name_of(ns.dtype) << std::setw(10)
      << std::setprecision(3) << count * b.flops * 1e-9 << std::setw(7)
      << owners_text(group, begin, end) << "\n";
}

// The end of the blocks from `begin` on, up to `end`, that `alike` does not tell from it.
template <typename Alike>
int end_of_run(const SubGroupPlan& group, int begin, int end, Alike alike) {
  int last = begin;
  while (last < end && alike(group.blocks[begin], group.blocks[last])) ++last;
  return last;
}

bool same_kind(const PlannedBlock& a, const PlannedBlock& b) { return a.kind() == b.kind(); }

bool same_kind_and_owner(const PlannedBlock& a, const PlannedBlock& b) {
  return same_kind(a, b) && a.owner == b.owner;
}

void write_sub_group(std::ostream& out, const StepPlan& plan, size_t index) {
  const SubGroupPlan& group = plan.sub_groups[index];
  const auto params = group.layout.params().size();
  out << "sub-group " << index << ": " << (group.role == Role::kMuon ? "muon" : "adamw") << ", "
      << params << " parameters, " << group.layout.shard_numel() << " elements per rank\n";
  for (size_t k = 0; k < group.buckets.size(); ++k) {
    int64_t numel = 0;
    const Bucket& bucket = group.buckets[k];
    for (int b = bucket.begin; b < bucket.end; ++b) numel += group.blocks[b].block.numel();
    out << "  bucket " << k << ": " << bucket.end - bucket.begin << " matrices, "
        << std::setprecision(1) << mebibytes(numel * size_of(plan.options.wire_dtype))
        << " MiB each way\n";
    for (int b = bucket.begin, end = b; b < bucket.end; b = end) {
      end = end_of_run(group, b, bucket.end, same_kind);
      write_blocks(out, plan, group, b, end);
    }
  }
}

// 16 hexadecimal digits.
std::string fnv1a(const std::string& text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) {
    hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  }
  std::ostringstream out;
  out << std::hex << std::setw(16) << std::setfill('0') << hash;
  return out.str();
}

// Where each rank holds which elements.
std::string range_text(const ParamShard& shard) {
  std::ostringstream out;
  for (const ShardRange& range : shard.ranges) {
    out << range.begin << "+" << range.numel << "@" << range.offset << " ";
  }
  return out.str();
}

}  // namespace

std::string StepPlan::table() const {
  std::ostringstream out;
  out << std::fixed;
  out << "step plan " << hash() << ": world size " << options.world_size << ", Newton-Schulz "
      << options.newton_schulz.coefficients.name << " x"
      << options.newton_schulz.coefficients.triples.size() << ", scale " << name_of(options.scale)
      << ", wire " << name_of(options.wire_dtype) << "\n";
  out << "    " << std::left << std::setw(52) << "matrix" << std::right << std::setw(20) << "shape"
      << std::setw(15) << "form" << std::setw(10) << "products" << std::setw(10) << "GFLOP"
      << std::setw(7) << "owner"
      << "\n";
  write_stages(out, *this);
  for (size_t i = 0; i < sub_groups.size(); ++i) write_sub_group(out, *this, i);
  for (size_t r = 0; r < loads.size(); ++r) {
    const offload::BufferSizes sizes = buffer_sizes(*this, static_cast<int>(r));
    out << "rank " << r << ": " << std::setprecision(1) << loads[r] * 1e3
        << " ms of Newton-Schulz expected" << (options.target.cuda ? "" : " on one core") << ", "
        << mebibytes(sizes.device_bytes()) << " MiB of buffers for " << sizes.slots
        << " buckets in flight";
    if (sizes.host_bytes() > 0) out << ", " << mebibytes(sizes.host_bytes()) << " MiB pinned";
    if (options.target.cuda) {
      const offload::Cost work = newton_schulz_cost(*this, static_cast<int>(r));
      out << "; a step's Newton-Schulz: " << work.launches << " launches, "
          << mebibytes(work.device_bytes) << " MiB read and written between products";
    }
    out << "\n";
  }
  return out.str();
}

std::string StepPlan::canonical_text() const {
  std::ostringstream out;
  out << std::setprecision(17);
  out << "world_size " << options.world_size << "\nscale " << name_of(options.scale) << "\nwire "
      << name_of(options.wire_dtype) << "\nbucket_bytes " << options.bucket_bytes << "\nslots "
      << options.slots << "\nstaged " << options.flow.staged << "\nsegments " << kSegmentAlignment
      << "\nmomentum " << name_of(options.flow.momentum) << " "
      << name_of(options.flow.momentum_dtype) << "\nsafety "
      << options.newton_schulz.coefficients.safety << "\nscale_rows "
      << options.newton_schulz.coefficients.scale_rows << "\n";
  for (const StageRow& row : stages.bucket()) write_row(out, row);
  for (const StageRow& row : stages.adamw) write_row(out, row);
  for (const ops::Triple& t : options.newton_schulz.coefficients.triples) {
    out << "triple " << t.a << " " << t.b << " " << t.c << "\n";
  }
  for (const ops::NewtonSchulzPlan& p : newton_schulz) {
    out << "shape " << p.arithmetic() << "\n";
  }
  for (size_t i = 0; i < sub_groups.size(); ++i) {
    const SubGroupPlan& group = sub_groups[i];
    out << "sub_group " << i << " " << (group.role == Role::kMuon ? "muon" : "adamw") << "\n";
    for (size_t p = 0; p < group.layout.params().size(); ++p) {
      const ParamShard& s = group.layout.params()[p];
      out << "param " << s.name << " numel " << s.numel << " ranges " << fnv1a(range_text(s))
          << " view " << s.rows << " " << s.cols << " decay " << group.decay[p] << "\n";
    }
    const int blocks = static_cast<int>(group.blocks.size());
    for (int b = 0, end = b; b < blocks; b = end) {
      end = end_of_run(group, b, blocks, same_kind_and_owner);
      const PlannedBlock& planned = group.blocks[b];
      std::string labels;
      for (int i = b; i < end; ++i) labels += group.label_of_block(i);
      out << "block " << group.label_of_block(b);
      if (end - b > 1) out << " and " << end - b - 1 << " more, " << fnv1a(labels);
      out << " shape " << planned.newton_schulz << " owner " << planned.owner << " scale "
          << planned.scale << "\n";
    }
    for (const Bucket& bucket : group.buckets) {
      out << "bucket " << bucket.begin << " " << bucket.end << "\n";
    }
  }
  return out.str();
}

std::string StepPlan::hash() const { return fnv1a(canonical_text()); }

std::string StepPlan::arithmetic_hash() const {
  std::vector<std::string> lines;
  for (const ops::NewtonSchulzPlan& p : newton_schulz) lines.push_back(p.arithmetic());
  std::sort(lines.begin(), lines.end());
  std::string text;
  for (const std::string& line : lines) text += line + "\n";
  return fnv1a(text);
}

}  // namespace zeromuon::zero3
