"""The lines at the top of a report: the processor, what caps it, threads and versions."""

from __future__ import annotations

import os
import platform
import re
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
BUSY_CORES = 0.1  # more than that of others is said
# Variables that make kernels slower or faster than the processor allows by itself.
CAPS = (
    "ZEROMUON_MAX_CPU_ISA ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA ONEDNN_DEFAULT_FPMATH_MODE DNNL_DEFAULT_FPMATH_MODE"
    " MKL_ENABLE_INSTRUCTIONS MKL_DEBUG_CPU_TYPE MKL_CBWR ATEN_CPU_CAPABILITY TORCHDYNAMO_DISABLE"
    " OMP_PROC_BIND OMP_PLACES GOMP_CPU_AFFINITY"
).split()


def header(threads: int) -> list[tuple[str, str]]:
    """(what, value) of this process."""
    caps = ", ".join(f"{name}={os.environ[name]}" for name in CAPS if name in os.environ)
    return [
        ("processor", f"{cpu_model()}, {cpu_flags()}"),
        ("instruction sets", instruction_sets()),
        ("threads", f"{threads} of {len(os.sched_getaffinity(0))} cores"),
        ("versions", ", ".join(f"{name} {value}" for name, value in versions().items())),
        ("environment", caps or "no caps set"),
    ]


def cpu_model() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text(), re.MULTILINE)
    return found.group(1) if found else platform.processor() or platform.machine()


def cpu_flags() -> str:
    """The instruction sets that matter here and that the processor has."""
    words = set(_CPUINFO.read_text().split())
    return " ".join(w for w in ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16") if w in words) or "no AVX2"


def instruction_sets() -> str:
    """What ours and torch use."""
    import torch

    from .... import _lab

    try:
        ours = _lab.chosen_cpu_kernels()
    except Exception as error:
        ours = f"unknown ({error})"
    return f"zeromuon's elementwise kernels {ours}, torch {torch.backends.cpu.get_cpu_capability()}"


def versions() -> dict[str, str]:
    import torch

    from .... import __version__

    onednn = re.search(r"(?:oneDNN\)?|MKL-DNN) v([\d.]+)", torch.__config__.show())
    packages = {name: installed(name) for name in ("torch", "deepspeed", "gram-newton-schulz")}
    return {"zeromuon": __version__, **packages, "torch's oneDNN": onednn.group(1) if onednn else "unknown"}


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class OtherLoad:
    """How many cores other processes keep busy, from now on. They slow some contenders more than others."""

    def __init__(self):
        self._start = self._now()

    def cores(self) -> float:
        """The mean since the start; 0 where the system does not tell."""
        (all_then, own_then, then), (all_now, own_now, now) = self._start, self._now()
        return max(0.0, (all_now - all_then - own_now + own_then) / max(now - then, 1e-3))

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """CPU seconds of the machine and of this process and its children, and the time."""
        import psutil

        all_cores, own = psutil.cpu_times(), os.times()
        busy = sum(all_cores) - all_cores.idle - getattr(all_cores, "iowait", 0.0) - getattr(all_cores, "guest", 0.0)
        return busy, sum(own[:4]), time.monotonic()


def load_words(cores: float) -> str:
    """What a report says about it. cores: kept busy by others on average."""
    advice = "; the machine was NOT idle, measure again when it is" if cores > BUSY_CORES else ""
    return f"kept {cores:.2f} cores busy on average{advice}"
