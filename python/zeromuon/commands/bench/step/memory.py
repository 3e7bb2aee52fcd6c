"""Main memory of this process while a step runs, and what the optimizer allocates in it. No torch."""

from __future__ import annotations

import re
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # proc(5): sets VmHWM to what the process has resident now


class Peak:
    """The most that the process has resident from now on. Raises OSError where the kernel does not let it be reset."""

    def __init__(self):
        _CLEAR.write_text(_RESET_PEAK)
        self._before = resident_bytes("VmRSS")

    def peak_bytes(self) -> int:
        return resident_bytes("VmHWM")

    def growth_bytes(self) -> int:
        """The peak less what was there before."""
        return max(0, self.peak_bytes() - self._before)


def resident_bytes(field: str) -> int:
    """field: "VmRSS" now, "VmHWM" at most."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if not found:
        raise OSError(f"{_STATUS}: expected a line {field}, found none; this bench needs Linux")
    return int(found.group(1)) * 1024


def count_in(optimizer) -> dict[str, int]:
    """Counts in every call of optimizer.step() from now on; _core.count_allocations() was called before. DeepSpeed's own
    allocations, around those calls, are not counted.

    tensor_storage: calls of libtorch's CPU allocator. large_buffers: of the module's operator new with 4 KiB or more. calls:
    of step().
    """
    from .... import _core

    counted, step = {"tensor_storage": 0, "large_buffers": 0, "calls": 0}, optimizer.step

    def counting_step(*arguments, **named):
        before = _core.allocation_count()
        result = step(*arguments, **named)
        after = _core.allocation_count()
        for name in ("tensor_storage", "large_buffers"):
            counted[name] += after[name] - before[name]
        counted["calls"] += 1
        return result

    optimizer.step = counting_step
    return counted
