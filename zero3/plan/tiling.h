// That the blocks of a parameter are all of it, each element once.
#pragma once

#include <string>
#include <vector>

#include "zero3/plan/shard_layout.h"

namespace zeromuon::zero3 {

// Rows and columns, as Python writes slices; "x4 every 9" after rows that repeat.
std::string text_of(const MatrixBlock& block);

// Blocks of one parameter must tile its view: then every element has exactly one owner. Raises
// ValueError with the parameter and the blocks at fault.
void check_tiling(const ParamShard& param, const std::vector<MatrixBlock>& blocks);

}  // namespace zeromuon::zero3
