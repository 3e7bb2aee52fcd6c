"""Cores and free memory, read from files of a machine that is made here: control groups of version 1 and 2, nested, unlimited;
which hosts are one."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests import processes
from zeromuon.ranks import machine

GIB = 1 << 30
UNLIMITED_V1 = 0x7FFFFFFFFFFFF000


@pytest.fixture
def host(tmp_path):
    """A machine with 64 GiB free, without control groups."""
    write(tmp_path / "proc/meminfo", f"MemTotal: {128 * GIB // 1024} kB\nMemAvailable:   {64 * GIB // 1024} kB\n")
    return tmp_path


def write(file: Path, text: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def mount(host: Path, *lines: str) -> None:
    write(host / "proc/self/mountinfo", "23 1 0:20 / / rw - ext4 /dev/root rw\n" + "\n".join(lines))


def version_2(host: Path, group: str, below: str = "/") -> Path:
    write(host / "proc/self/cgroup", f"0::{group}")
    mount(host, f"31 23 0:28 {below} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate")
    return host / "sys/fs/cgroup"


def version_1(host: Path, group: str, below: str = "/") -> Path:
    write(host / "proc/self/cgroup", f"4:memory:{group}\n3:cpu,cpuacct:{group}\n1:name=systemd:/\n0::/")
    mount(
        host,
        f"35 31 0:32 {below} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
        f"36 31 0:33 {below} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct",
        "41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw",
    )
    return host / "sys/fs/cgroup"


def limit_2(group: Path, most: object, used: int, cache: int = 0) -> None:
    write(group / "memory.max", most)
    write(group / "memory.current", used)
    write(group / "memory.stat", f"anon 1\ninactive_file {cache}\nactive_file 7")


def limit_1(group: Path, most: int, used: int, cache: int = 0) -> None:
    write(group / "memory.limit_in_bytes", most)
    write(group / "memory.usage_in_bytes", used)
    write(group / "memory.stat", f"inactive_file 5\ntotal_inactive_file {cache}")


def test_without_control_groups_the_kernel_s_estimate_counts(host):
    assert machine.available_memory_bytes(host) == 64 * GIB


def test_a_group_of_version_2_leaves_its_limit_less_what_it_cannot_give_back(host):
    limit_2(version_2(host, "/"), 8 * GIB, used=5 * GIB, cache=2 * GIB)
    assert machine.available_memory_bytes(host) == 5 * GIB


def test_a_group_of_version_1_leaves_its_limit_less_what_it_cannot_give_back(host):
    limit_1(version_1(host, "/") / "memory", 8 * GIB, used=5 * GIB, cache=2 * GIB)
    assert machine.available_memory_bytes(host) == 5 * GIB


def test_groups_without_a_limit_leave_the_kernel_s_estimate(host):
    root = version_2(host, "/a/b")
    for group in (root / "a", root / "a/b"):
        limit_2(group, "max", used=5 * GIB)
    assert machine.available_memory_bytes(host) == 64 * GIB
    limit_1(version_1(host, "/") / "memory", UNLIMITED_V1, used=5 * GIB)
    assert machine.available_memory_bytes(host) == 64 * GIB


@pytest.mark.parametrize("inner, outer", [(4, 16), (16, 4)])
def test_the_tightest_of_nested_groups_counts(host, inner, outer):
    root = version_2(host, "/a/b/c")
    limit_2(root / "a/b/c", "max", used=GIB)
    limit_2(root / "a/b", inner * GIB, used=GIB)
    limit_2(root / "a", outer * GIB, used=GIB)
    assert machine.available_memory_bytes(host) == 3 * GIB
    root = version_1(host, "/a/b") / "memory"
    limit_1(root / "a/b", inner * GIB, used=GIB)
    limit_1(root / "a", outer * GIB, used=GIB)
    assert machine.available_memory_bytes(host) == 3 * GIB


def test_the_host_s_limit_does_not_hide_the_kernel_s_estimate(host):
    limit_2(version_2(host, "/"), 100 * GIB, used=GIB)
    assert machine.available_memory_bytes(host) == 64 * GIB


def test_a_group_that_is_full_leaves_nothing(host):
    limit_2(version_2(host, "/"), 8 * GIB, used=9 * GIB)
    assert machine.available_memory_bytes(host) == 0


@pytest.mark.parametrize("make, limit, part", [(version_2, limit_2, ""), (version_1, limit_1, "memory")])
@pytest.mark.parametrize("group, below", [("/docker/4f/inner", "/docker/4f"), ("/docker/4f/inner", "/docker/4f/inner")])
def test_in_a_container_the_mount_shows_only_its_own_groups(host, make, limit, part, group, below):
    shown = make(host, group, below) / part
    limit(shown, 2 * GIB, used=GIB)
    limit(shown / Path(group).relative_to(below), 3 * GIB, used=GIB)
    limit(host / "sys/fs/cgroup/docker", 1, used=1)  # not of this process: the mount shows other names
    assert machine.available_memory_bytes(host) == (GIB if below != group else 2 * GIB)


def test_a_group_of_another_namespace_is_the_one_that_is_mounted(host):
    limit_2(version_2(host, "/", below="/.."), 2 * GIB, used=GIB)
    assert machine.available_memory_bytes(host) == GIB


def test_a_group_that_limits_only_cores_does_not_hide_memory(host):
    root = version_1(host, "/a")
    write(root / "cpu,cpuacct/a/cpu.cfs_quota_us", 150000)
    write(root / "cpu,cpuacct/a/cpu.cfs_period_us", 100000)
    assert machine.available_memory_bytes(host) == 64 * GIB


@pytest.fixture
def eight_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


def test_cores_are_those_of_the_affinity(host, eight_cores):
    assert machine.core_count(host) == 8


@pytest.mark.parametrize(
    "quota, cores", [("250000 100000", 3), ("max 100000", 8), ("10000 100000", 1), ("1600000 100000", 8)]
)
def test_a_share_of_time_in_version_2_counts_as_cores(host, eight_cores, quota, cores):
    root = version_2(host, "/a/b")
    write(root / "a/cpu.max", quota)
    write(root / "a/b/cpu.max", "max 100000")
    assert machine.core_count(host) == cores


@pytest.mark.parametrize("quota, cores", [(200000, 2), (-1, 8)])
def test_a_share_of_time_in_version_1_counts_as_cores(host, eight_cores, quota, cores):
    root = version_1(host, "/a/b")
    write(root / "cpu,cpuacct/a/cpu.cfs_quota_us", quota)
    write(root / "cpu,cpuacct/a/cpu.cfs_period_us", 100000)
    assert machine.core_count(host) == cores


def test_this_machine_has_cores_and_memory():
    assert machine.core_count() >= 1 and machine.available_memory_bytes() > 0


def test_the_largest_cache_of_a_core_is_the_last(host):
    assert machine.last_cache_bytes(host) == 0
    for index, size in enumerate(("48K", "32K", "2048K", "262144K")):
        write(host / f"sys/devices/system/cpu/cpu0/cache/index{index}/size", size)
    assert machine.last_cache_bytes(host) == 256 << 20


ON_A_KERNEL_OF_ITS_OWN = """mount --bind {boot} /proc/sys/kernel/random/boot_id || exit 77
exec {python} {script} {memory}
"""


def said_on_hosts_of_one_name(folder: Path, boots: list[str], free_mib: int) -> list[str]:
    """What each of two ranks says of its binding; all of this machine's free memory is so many MiB by then."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    memory = folder / "meminfo"
    write(
        memory, "".join(f"{name}: {free_mib << 10} kB\n" for name in ("MemTotal", "MemFree", "MemAvailable", "Buffers"))
    )
    script, ranks, said = Path(__file__).with_name("hosts_of_one_name.py"), [], []
    with contextlib.ExitStack() as ends:
        for rank, boot in enumerate(boots):
            write(own := folder / f"boot{rank}", boot)
            line = ON_A_KERNEL_OF_ITS_OWN.format(boot=own, python=sys.executable, script=script, memory=memory)
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            names |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": 1, "TORCHDYNAMO_DISABLE": 1}
            given = {"env": {**os.environ, **{name: str(value) for name, value in names.items()}}}
            given |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            ranks.append(ends.enter_context(processes.running(["unshare", "--mount", "bash", "-c", line], **given)))
        for rank, process in enumerate(ranks):
            output, _ = process.communicate(timeout=120)
            if process.returncode in (1, 77) and ("unshare:" in output or "mount:" in output):
                pytest.skip("this process may not make mount namespaces")
            said += [line for line in output.splitlines() if line.startswith(f"rank {rank}: ")] or [output[-3000:]]
    return said


@pytest.mark.full
@pytest.mark.parametrize(
    "boots, says", [(["a", "b"], ": bound"), (["a", "a"], "MiB are free for it")], ids=["two", "one"]
)
def test_ranks_on_two_hosts_of_one_name_have_the_memory_of_a_host_each(tmp_path, boots, says):
    """Enough for one rank and not for two: 2048 x 2048 momenta, and the buffers of a matrix."""
    said = said_on_hosts_of_one_name(tmp_path, boots, free_mib=220)
    assert all(says in line for line in said), said


def test_hosts_of_one_name_are_told_apart_by_their_kernel(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.socket, "gethostname", lambda: "node")
    ids = [machine.host_id(tmp_path / name) for name in ("a", "b")]
    assert ids == ["node", "node"], "a kernel that tells nothing"
    for name in ("a", "b"):
        write(tmp_path / name / "proc/sys/kernel/random/boot_id", f"boot of {name}")
    assert [machine.host_id(tmp_path / name) for name in ("a", "b")] == ["boot of a", "boot of b"]
