"""Where Muon's momentum lives: what may be asked for, and what "auto" takes.

With the shard on the CPU and Newton-Schulz on a GPU there are three homes; what each moves is in the stages of a plan that
is made for it, see Note [Bytes] in docs/memory.md.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

import torch

from ..ranks import machine

MEANINGS = {
    "cpu": "cpu (computed there)",
    "cpu_streamed": "cpu_streamed (stored on the CPU, computed on the device)",
    "device": "device",
}
# Of the free device memory, what "auto" may take for a state that its user offloaded.
_DEVICE_SHARE = 0.25
_FP32_BYTES = 4
_SAMPLE_BYTES = 64 * 2**20
_CACHES = 4  # what main memory is measured with is so many times the largest cache
# Of the rate of one large product: what those of Newton-Schulz reach, which are smaller. An estimate.
_SHARE_OF_PRODUCT_RATE = 0.8
_SAMPLES = 5


@dataclass(frozen=True)
class Rates:
    """Of one rank while all ranks of its host work."""

    to_device_bytes_per_s: float
    to_host_bytes_per_s: float
    dram_bytes_per_s: float
    device_bytes_per_s: float
    flops_per_s: float  # of matrix products on the device


class Choice(NamedTuple):
    home: str  # a value of the option momentum_device
    reason: str  # one line for people


# ---- what may be asked for -------------------------------------------------------------------------


def check_momentum_device(option: str, shard: torch.device, compute: torch.device) -> None:
    """Raises ValueError for a home that this placement of the flat shard does not have."""
    if shard != compute or option == "auto":
        return
    if option == "cpu_streamed":
        raise ValueError(
            f'momentum_device: got "cpu_streamed", and the flat shard and Newton-Schulz are both on {shard}: there is no '
            f'other device to stream to; use "auto"'
            + ("" if shard.type == "cpu" else ", or offload_optimizer.device cpu")
        )
    if option == "cpu" and shard.type != "cpu":
        raise ValueError(
            f'momentum_device: got "cpu", and the flat shard is on {shard}: the momentum is computed on the CPU where the '
            f'shard is there; set offload_optimizer.device to cpu, or use "auto"'
        )


def is_a_choice(option: str, shard: torch.device, compute: torch.device) -> bool:
    """Whether "auto" has more than one home to choose from."""
    return option == "auto" and shard != compute


# ---- what "auto" takes ------------------------------------------------------------------------------


def choose_momentum(plans: dict, rates: Rates, device_bytes: int, free_device_bytes: int) -> Choice:
    """The home whose busiest lane is done first, of equal ones that with the least work in all.

    plans: home -> the StepPlan made for it. device_bytes: what "device" takes of the device, states and buffers; it must
    fit into a quarter of free_device_bytes, of the rank that has the least: activations need the rest.
    """
    fits = device_bytes <= _DEVICE_SHARE * free_device_bytes
    homes = [home for home in plans if fits or home != "device"]
    times = {home: tuple(plans[home].seconds(**asdict(rates)).values()) for home in homes}  # of each lane
    best = min(times, key=lambda home: (max(times[home]), sum(times[home])))
    others = [f"{home} {_figures(plans[home])} take {_ms(times[home])}" for home in times if home != best]
    if "device" in plans and not fits:
        others.append(
            f"device does not fit: {device_bytes / 2**20:.0f} MiB, {free_device_bytes / 2**20:.0f} MiB are free"
        )
    reason = f"momentum: {MEANINGS[best]}: {_figures(plans[best])} take {_ms(times[best])}; " + "; ".join(others)
    return Choice(best, reason)


def bytes_per_parameter(plan) -> tuple[int, int, int]:
    """(to the device, to the host, DRAM) of a Muon parameter in a step of this plan."""
    rows = plan.stages
    up, down = (sum(r["link_bytes"] for r in rows if r["lane"] == lane) for lane in ("to_device", "to_host"))
    return up, down, sum(r["dram_bytes"] for r in rows)


def _figures(plan) -> str:
    up, down, dram = bytes_per_parameter(plan)
    return f"{up}+{down} B link and {dram} B DRAM per parameter"


def _ms(times: tuple[float, ...]) -> str:
    return f"{1e3 * max(times):.1f} ms"


def slowest(rates: list[Rates]) -> Rates:
    """Each rate of the rank where it is least, so that all ranks choose alike."""
    return Rates(**{f.name: min(getattr(r, f.name) for r in rates) for f in fields(Rates)})


# ---- measured rates ------------------------------------------------------------------------------------


def measure_rates(device: torch.device) -> Rates:
    """Takes well under a second on a GPU. All ranks of a host measure at once, as they will step at once.

    Raises RuntimeError when the device has no memory for it, about 200 MiB. The samples are random: zeros multiply faster.
    """
    generator = torch.Generator().manual_seed(0)
    numel = _SAMPLE_BYTES // _FP32_BYTES
    host_numel = max(numel, _CACHES * machine.last_cache_bytes() // _FP32_BYTES)
    pageable, addend = (torch.zeros(host_numel, dtype=torch.float32, device="cpu") for _ in range(2))
    pinned = torch.rand(numel, dtype=torch.float32, device="cpu", generator=generator).pin_memory()
    there, other = (torch.zeros(numel, dtype=torch.float32, device=device) for _ in range(2))
    square = torch.randn(4096, 4096, dtype=torch.float32, device="cpu", generator=generator).to(device, torch.bfloat16)
    out = torch.empty_like(square)
    product_s = _seconds(lambda: torch.mm(square, square, out=out), device)
    return Rates(
        to_device_bytes_per_s=_SAMPLE_BYTES / _seconds(lambda: there.copy_(pinned, non_blocking=True), device),
        to_host_bytes_per_s=_SAMPLE_BYTES / _seconds(lambda: pinned.copy_(there, non_blocking=True), device),
        dram_bytes_per_s=3 * _FP32_BYTES * host_numel / _seconds(lambda: pageable.add_(addend), device),
        device_bytes_per_s=3 * _SAMPLE_BYTES / _seconds(lambda: there.add_(other), device),
        flops_per_s=_SHARE_OF_PRODUCT_RATE * 2 * 4096**3 / product_s,
    )


def _seconds(work, device: torch.device) -> float:
    """The quickest of a few."""
    taken = []
    for _ in range(_SAMPLES):
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    return min(taken)
