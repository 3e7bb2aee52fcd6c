// Lanes without work: tasks take the time that given rates make of their cost, on a virtual clock.
// Bodies are not run and no memory is touched, so a schedule of any size can be played in one
// thread.
#pragma once

#include "offload/backend.h"
#include "offload/rates.h"
#include "zero3/played/virtual_clock.h"

namespace zeromuon::offload {

// Staged: a flat shard on the CPU of the process, compute on its device. Clock and fabric must live
// longer.
Backend make_virtual_backend(VirtualClock& clock, VirtualFabric& fabric, int process,
                             const Rates& rates);

}  // namespace zeromuon::offload
