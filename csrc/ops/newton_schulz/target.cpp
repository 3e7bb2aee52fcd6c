#include <algorithm>

#include "csrc/ops/newton_schulz/plan.h"
#ifdef ZEROMUON_WITH_ONEDNN
#include "csrc/ops/onednn/matmul.h"
#endif

namespace zeromuon::ops {

ProductTarget this_cpu() {
#ifdef ZEROMUON_WITH_ONEDNN
  return {onednn::max_isa(), true, false};
#else
  return {max_cpu_isa(), false, false};
#endif
}

}  // namespace zeromuon::ops
