#include "zero3/plan/tiling.h"

#include <algorithm>
#include <iterator>
#include <map>

#include "csrc/base/check.h"

namespace zeromuon::zero3 {
namespace {

void check_inside(const ParamShard& p, const MatrixBlock& b) {
  const int64_t last = b.row_end + (b.count - 1) * b.period;
  require(0 <= b.row_begin && b.row_begin < b.row_end && 1 <= b.count && last <= p.rows &&
              0 <= b.col_begin && b.col_begin < b.col_end && b.col_end <= p.cols,
          "parameter \"", p.name, "\": block ", text_of(b), " is empty or outside its view (",
          p.rows, ", ", p.cols, ")");
  require(b.count == 1 || (b.cols() == p.cols && b.period >= b.row_end - b.row_begin),
          "parameter \"", p.name, "\": block ", text_of(b),
          " repeats rows that overlap or are not whole");
}

class Tiling {
 public:
  explicit Tiling(const ParamShard& param) : param_(param) {}

  void check(const std::vector<MatrixBlock>& blocks) {
    int64_t covered = 0;
    for (const MatrixBlock& b : blocks) {
      check_inside(param_, b);
      for (int64_t i = 0; i < b.count; ++i) {
        tiles_.push_back({b.row_begin + i * b.period, b.row_end + i * b.period, &b});
      }
      covered += b.numel();
    }
    std::stable_sort(tiles_.begin(), tiles_.end(),
                     [](const Tile& a, const Tile& b) { return a.row_begin < b.row_begin; });
    for (const Tile& tile : tiles_) place(tile);
    require(covered == param_.numel, "parameter \"", param_.name, "\": its blocks cover ", covered,
            " of ", param_.numel, " elements; the rest would have no owner");
  }

 private:
  struct Tile {
    int64_t row_begin, row_end;
    const MatrixBlock* block;
  };

  // Tiles come by their first row: those above end before it, or overlap where columns do.
  void place(const Tile& tile) {
    const MatrixBlock& b = *tile.block;
    auto above = above_.upper_bound(b.col_begin);
    if (above != above_.begin() && std::prev(above)->second.block->col_end > b.col_begin) --above;
    while (above != above_.end() && above->first < b.col_end) {
      const Tile& other = above->second;
      require(other.row_end <= tile.row_begin, "parameter \"", param_.name, "\": blocks ",
              text_of(*other.block), " and ", text_of(b),
              " overlap; an element would have two owners");
      above = above_.erase(above);
    }
    above_.emplace(b.col_begin, tile);
  }

  const ParamShard& param_;
  std::vector<Tile> tiles_;
  std::map<int64_t, Tile> above_;  // the last placed of each column, by its first column
};

}  // namespace

std::string text_of(const MatrixBlock& b) {
  const std::string repeated = b.count > 1 ? concat(" x", b.count, " every ", b.period) : "";
  return concat("[", b.row_begin, ":", b.row_end, repeated, ", ", b.col_begin, ":", b.col_end, "]");
}

void check_tiling(const ParamShard& param, const std::vector<MatrixBlock>& blocks) {
  Tiling(param).check(blocks);
}

}  // namespace zeromuon::zero3
