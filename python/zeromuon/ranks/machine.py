"""What this machine gives to this process: cores, memory, GPUs, bf16 instructions; less where a control group allows less.

Imports torch only where a GPU's device file exists. root: of the file system; tests make one of their own.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator
from pathlib import Path

GIB = 1 << 30
ROOT = Path("/")


def host_id(root: Path = ROOT) -> str:
    """Equal for processes of one running kernel, whose clock and memory they share; names of hosts need not differ."""
    try:
        return (root / "proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def core_count(root: Path = ROOT) -> int:
    """Cores that this process may use; a control group's share of the time of all counts as so many, rounded up."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    shares = [_core_share(group) for group in _control_groups("cpu", root)]
    return max(1, min([cores, *(math.ceil(share) for share in shares if share is not None)]))


def available_memory_bytes(root: Path = ROOT) -> int:
    """Main memory that can be taken now: the kernel's estimate, less where a control group or one around it allows less."""
    estimate = _statistic(root / "proc/meminfo", "MemAvailable:")
    if estimate is None:  # a kernel that makes none
        estimate = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 1024
    rooms = [_memory_room(group) for group in _control_groups("memory", root)]
    return min([1024 * estimate, *(max(0, room) for room in rooms if room is not None)])


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Folders of this process's group of version 1 or 2 and of all groups around it, as far as they are mounted here."""
    groups = _groups_of_this_process(root)
    for kind, mounted, below, options in _control_group_mounts(root):
        group = groups.get("" if kind == "cgroup2" else controller)
        if group is None or (kind == "cgroup" and controller not in options):
            continue
        inner = group.relative_to(below) if group.is_relative_to(below) else Path()  # else of another namespace
        yield from (mounted / part for part in (inner, *inner.parents))


def _groups_of_this_process(root: Path) -> dict[str, Path]:
    """Controller -> its group; "" for version 2."""
    lines = [line.split(":", 2) for line in _lines(root / "proc/self/cgroup")]
    return {name: Path(group) for _, names, group in lines for name in names.split(",")}


def _control_group_mounts(root: Path) -> Iterator[tuple[str, Path, Path, list[str]]]:
    """(version, where it is mounted, the group that this shows, options). Format: man 5 proc_pid_mountinfo."""
    for line in _lines(root / "proc/self/mountinfo"):
        place, _, system = line.partition(" - ")
        kind, _, options = system.split(" ", 2)
        if kind in ("cgroup", "cgroup2"):
            _, _, _, below, mounted, *_ = place.split(" ")
            yield kind, root / mounted.lstrip("/"), Path(below), options.split(",")


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []


def _number(file: Path) -> int | None:
    """None where there is no such file, or it says that there is no limit."""
    words = " ".join(_lines(file)).split()
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def _memory_room(group: Path) -> int | None:
    """Bytes that the group may still take, the file cache that it can give back included; None without a limit."""
    for limit, used, cache in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        most, now = _number(group / limit), _number(group / used)
        if most is not None and now is not None:
            return most - now + (_statistic(group / "memory.stat", cache) or 0)
    return None


def _statistic(file: Path, name: str) -> int | None:
    found = (line.split() for line in _lines(file))
    return next((int(words[1]) for words in found if words[:1] == [name]), None)


def _core_share(group: Path) -> float | None:
    """Cores' worth of time; None without a limit."""
    version_1 = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    words = " ".join(_lines(group / "cpu.max") or version_1).split()
    return int(words[0]) / int(words[1]) if len(words) == 2 and words[0].isdigit() else None


def identity(pid: int) -> str:
    """The process that now has this id, told from any other that has or had it: id, when it started, host. "" without one."""
    try:
        # Fields after the command, which stands in brackets and may hold anything: man 5 proc_pid_stat.
        started = Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
    return f"{pid} {started} {host_id()}"


def last_cache_bytes(root: Path = ROOT) -> int:
    """Of the largest cache of a core of this machine; 0 where the kernel does not say."""
    sizes = (root / "sys/devices/system/cpu/cpu0/cache").glob("index*/size")
    return max((1024 * int(text[:-1]) for size in sizes if (text := " ".join(_lines(size))).endswith("K")), default=0)


def gpu_count() -> int:
    """GPUs that torch can use; 0 when DS_ACCELERATOR=cpu or no device file exists."""
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not any(Path("/dev").glob("nvidia[0-9]*")):
        return 0
    import torch

    return torch.cuda.device_count()


def cpu_has_bf16() -> bool:
    """True where an x86 CPU multiplies bf16 in hardware (AVX512_BF16 or AMX)."""
    words = " ".join(_lines(Path("/proc/cpuinfo"))).split()
    return "amx_bf16" in words or "avx512_bf16" in words


def in_gib(size_bytes: float) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
