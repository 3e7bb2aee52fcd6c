// The bodies of tasks by the names that the rows of a plan give them.
#pragma once

#include <functional>
#include <map>
#include <string>

#include "zero3/step/bucket_stages.h"

namespace zeromuon::zero3 {

// One chunk of an AdamW sub-group in one call.
// Thread: one task of a chunk at a time.
struct ChunkStages {
  offload::Backend& backend;
  const AdamWCall& call;
  const AdamWChunk& chunk;
  std::byte* staging;  // pinned, of the chunk's worker; null where casts need no way to the device

  // The weight's cast goes to where it lies, or to `staging`.
  void adamw() const;
  void adamw_through_slot() const;
  void weights_to_device() const;

 private:
  std::byte* low() const;  // of the chunk; null: not written
  void adamw(std::byte* low) const;
};

struct StageBodies {
  std::map<std::string, std::function<void(const BucketStages&)>> bucket;
  std::map<std::string, std::function<void(const ChunkStages&)>> chunk;
};

// All that stages_of() names.
StageBodies product_bodies();

}  // namespace zeromuon::zero3
