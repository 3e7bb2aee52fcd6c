// The element-wise kernels of csrc/ops/elementwise.h on CUDA memory, with the same arithmetic
// (csrc/ops/elements.h). How they are ordered and what they raise: csrc/cuda/runtime.h.
#pragma once

#include <span>

#include "csrc/cuda/runtime.h"
#include "csrc/ops/arrays.h"
#include "csrc/ops/elements.h"

namespace zeromuon::cuda {

using ops::Alarm;

void update_momentum(StreamRef stream, const ops::MomentumElement& element,
                     const ops::MomentumArrays& arrays, int64_t numel, Alarm alarm);
void apply_update(StreamRef stream, const ops::ApplyElement& element,
                  const ops::ApplyArrays& arrays, int64_t numel, Alarm alarm);
void adamw(StreamRef stream, const ops::AdamWElement& element, const ops::AdamWArrays& arrays,
           int64_t numel, Alarm alarm);
void encode_wire(StreamRef stream, const float* values, const ops::Typed& wire, int64_t numel,
                 Alarm alarm);
void decode_wire(StreamRef stream, const ops::ConstTyped& wire, float* values, int64_t numel);

// The same on runs of the arrays, kRunsOfALaunch of them by one kernel. word: of several runs that
// ring in one kernel it tells the least code. elements: of each run.
using ops::kRunsOfALaunch;

void update_momenta(StreamRef stream, const ops::MomentumElement& element,
                    const ops::MomentumArrays& arrays, std::span<const ops::Run> runs,
                    uint64_t* word);
void apply_updates(StreamRef stream, std::span<const ops::ApplyElement> elements,
                   const ops::ApplyArrays& arrays, std::span<const ops::Run> runs, uint64_t* word);
void encode_runs(StreamRef stream, const float* values, const ops::Typed& wire,
                 std::span<const ops::Run> runs, uint64_t* word);
void decode_runs(StreamRef stream, const ops::ConstTyped& wire, float* values,
                 std::span<const ops::Run> runs);

}  // namespace zeromuon::cuda
