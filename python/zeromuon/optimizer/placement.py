"""Where Muon's momentum lives: what may be asked for, and what "auto" takes.

Note [Momentum bytes]
With the shard on the CPU and Newton-Schulz on a GPU there are three homes, and a step moves, per Muon parameter of a
rank's shard (w: bytes on the wire, m: of the momentum, p: of the low-precision weight, 0 without one):

    home           to the device    to the host    host DRAM
    cpu            w + p            w              4 + 2m + 2w + apply    the momentum is computed on the CPU
    cpu_streamed   4 + m + p        m + w          4 + 2m + apply         gradients and momenta travel
    device         4 + p            w              4 + apply              gradients travel; m bytes of device memory

where apply = 8 + 2w + 2p: the update arrives and is read, the weights are read and written. DeepSpeed's own
copy of the gradients to the CPU, in the backward pass, is the same for all and not counted. The AdamW part of the
shard is computed on the CPU in each: 28 + 2p bytes of DRAM and p to the device per parameter. Link directions, DRAM and
device work at the same time, so a home takes as long as its busiest resource.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields

import torch

MEANINGS = {
    "cpu": "cpu (computed there)",
    "cpu_streamed": "cpu_streamed (stored on the CPU, computed on the device)",
    "device": "device",
}
# Of the free device memory, what "auto" may take for a state that its user offloaded.
_DEVICE_SHARE = 0.25
_FP32_BYTES = 4
_SAMPLE_BYTES = 64 * 2**20
_SAMPLES = 5


@dataclass(frozen=True)
class Rates:
    """Of one rank while all ranks of its host work: bytes per second, and floating-point operations per second."""

    to_device: float
    to_host: float
    dram: float
    device_memory: float
    flops: float  # of matrix products on the device


@dataclass(frozen=True)
class Load:
    """What a rank's step has to do. numels: of its flat shard. Bytes: of one element."""

    muon_numel: int
    adamw_numel: int
    wire_bytes: int
    momentum_bytes: int
    low_precision_bytes: int  # 0: the step writes no low-precision weights
    newton_schulz_flops: float


@dataclass(frozen=True)
class Choice:
    """home: a value of the option momentum_device. reason: one line for people."""

    home: str
    reason: str


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


def choose_momentum(rates: Rates, load: Load, free_device_bytes: int) -> Choice:
    """The home whose busiest resource is done first, of equal ones that with the least work in all; see
    Note [Momentum bytes].

    free_device_bytes: of the rank that has the least. "device" must fit into a quarter of it: activations need the rest.
    """
    needed = load.muon_numel * load.momentum_bytes
    fits = needed <= _DEVICE_SHARE * free_device_bytes
    homes = [home for home in MEANINGS if fits or home != "device"]
    times = {home: _times(home, rates, load) for home in homes}
    best = min(homes, key=lambda home: (max(times[home]), sum(times[home])))
    others = [f"{home} {_figures(home, load)} take {_ms(times[home])}" for home in homes if home != best]
    if not fits:
        others.append(f"device does not fit: {needed / 2**20:.0f} MiB, {free_device_bytes / 2**20:.0f} MiB are free")
    reason = f"momentum: {MEANINGS[best]}: {_figures(best, load)} take {_ms(times[best])}; " + "; ".join(others)
    return Choice(best, reason)


def bytes_per_parameter(home: str, load: Load) -> tuple[int, int, int]:
    """(to the device, to the host, DRAM) of a Muon parameter; see Note [Momentum bytes]."""
    w, m, p, g = load.wire_bytes, load.momentum_bytes, load.low_precision_bytes, _FP32_BYTES
    apply = 2 * _FP32_BYTES + 2 * w + 2 * p
    if home == "cpu":
        return w + p, w, g + 2 * m + 2 * w + apply
    if home == "cpu_streamed":
        return g + m + p, m + w, g + 2 * m + apply
    return g + p, w, g + apply


def _times(home: str, rates: Rates, load: Load) -> tuple[float, ...]:
    """Seconds of each resource."""
    up, down, dram = (load.muon_numel * b for b in bytes_per_parameter(home, load))
    up += load.adamw_numel * load.low_precision_bytes
    dram += load.adamw_numel * (7 * _FP32_BYTES + 2 * load.low_precision_bytes)
    on_device = 0 if home == "cpu" else load.muon_numel * (_FP32_BYTES + 2 * load.momentum_bytes + load.wire_bytes)
    device = load.newton_schulz_flops / rates.flops + on_device / rates.device_memory
    return up / rates.to_device, down / rates.to_host, dram / rates.dram, device


def _figures(home: str, load: Load) -> str:
    up, down, dram = bytes_per_parameter(home, load)
    return f"{up}+{down} B link and {dram} B DRAM per parameter"


def _ms(times: tuple[float, ...]) -> str:
    return f"{1e3 * max(times):.1f} ms"


def newton_schulz_flops(shapes: list[tuple[int, int]], iterations: int, world_size: int) -> float:
    """Of the standard form, on a rank that owns an equal share: X X^T, its square and the product with X per iteration."""
    of_matrix = (iterations * 2.0 * (2 * min(s) ** 2 * max(s) + min(s) ** 3) for s in shapes)
    return sum(of_matrix) / world_size


def slowest(rates: list[Rates]) -> Rates:
    """Each rate of the rank where it is least, so that all ranks choose alike."""
    return Rates(**{f.name: min(getattr(r, f.name) for r in rates) for f in fields(Rates)})


# ---- measured rates ------------------------------------------------------------------------------------


def measure_rates(device: torch.device) -> Rates:
    """Takes well under a second on a GPU. All ranks of a host measure at once, as they will step at once.

    Raises RuntimeError when the device has no memory for it, about 200 MiB.
    """
    numel = _SAMPLE_BYTES // _FP32_BYTES
    pinned, pageable = torch.zeros(numel).pin_memory(), torch.zeros(numel)
    there, other = torch.zeros(numel, device=device), torch.zeros(numel, device=device)
    square = torch.zeros(4096, 4096, dtype=torch.bfloat16, device=device)
    out = torch.empty_like(square)
    return Rates(
        to_device=_SAMPLE_BYTES / _seconds(lambda: there.copy_(pinned, non_blocking=True), device),
        to_host=_SAMPLE_BYTES / _seconds(lambda: pinned.copy_(there, non_blocking=True), device),
        dram=3 * _SAMPLE_BYTES / _seconds(lambda: pageable.add_(pinned), device),
        device_memory=3 * _SAMPLE_BYTES / _seconds(lambda: there.add_(other), device),
        flops=2 * 4096**3 / _seconds(lambda: torch.mm(square, square, out=out), device),
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
