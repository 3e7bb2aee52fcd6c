"""What this machine has: cores, memory, GPUs, bf16 instructions. Nothing here imports torch unless a GPU's device file exists."""

from __future__ import annotations

import os
from pathlib import Path

GIB = 1 << 30


def core_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def available_memory_bytes() -> int:
    """Main memory that can be taken now: the kernel's estimate, less where a control group allows less."""
    return min([_meminfo_available(), *_cgroup_room()])


def _meminfo_available() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _cgroup_room() -> list[int]:
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        cache = _cgroup_file_cache()
        return [] if limit == "max" else [int(limit) - used + cache]
    except (OSError, ValueError):
        return []


def _cgroup_file_cache() -> int:
    for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines():
        if line.startswith("inactive_file "):
            return int(line.split()[1])
    return 0


def gpu_count() -> int:
    """GPUs that torch can use; 0 when DS_ACCELERATOR=cpu or no device file exists."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count()


def cpu_has_bf16() -> bool:
    """True where an x86 CPU multiplies bf16 in hardware (AVX512_BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return " amx_bf16" in flags or " avx512_bf16" in flags


def gpu_has_bf16() -> bool:
    """True where the first GPU computes in bf16."""
    import torch

    return torch.cuda.is_bf16_supported()


def in_gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
