"""Elementwise passes of the optimizer: AdamW, momentum, apply; beside DeepSpeed's, torch's and what the memory gives.

All contenders of a case work on the same tensors, which are far larger than the caches. Legend: N parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from .... import _lab
from ....ranks.machine import available_memory_bytes
from . import deepspeed_adam
from ..core import interrupt
from ..core.progress import Progress
from ..core.results import MISSING, OURS, PEER, ROOF, Case, Row, rows_of
from ..core.timing import Budget, Contender, measure, reason

PART = "adamw"
DEFAULT_NUMEL = 64_000_000
HYPER = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
BETA = 0.95
CHAIN, CPU_ADAM, TORCH_FUSED, TORCH_OPS = (
    "DeepSpeed's chain",
    "DeepSpeedCPUAdam",
    "torch AdamW, fused",
    "torch operations",
)
COPY, TRIAD = "copy roof", "triad roof"
_BYTES_PER_PARAMETER = 60  # of memory that the tensors below take
_MEMORY_SHARE = 0.5
_SECONDS_PER_CASE = 20.0
_BUDGET_SHARE = 0.3


@dataclass
class Tensors:
    """weight: nn.Parameter, [N] fp32, with .grad. gradient, exp_avg, exp_avg_sq: [N] fp32. gradient_bf16, low: [N] bf16.
    source, target: [3.75 N] fp32, third: [2.5 N] fp32, of the roofs."""

    weight: torch.nn.Parameter
    gradient: torch.Tensor
    gradient_bf16: torch.Tensor
    exp_avg: torch.Tensor
    exp_avg_sq: torch.Tensor
    low: torch.Tensor
    source: torch.Tensor
    target: torch.Tensor
    third: torch.Tensor


def numel_that_fits(wanted: int) -> int:
    """`wanted`, or what half of the free memory holds."""
    return max(1024, min(wanted, int(available_memory_bytes() * _MEMORY_SHARE) // _BYTES_PER_PARAMETER))


def make_tensors(numel: int) -> Tensors:
    torch.manual_seed(0)
    gradient = torch.empty(numel).normal_(0, 1e-2)
    weight = torch.nn.Parameter(torch.empty(numel).normal_())
    weight.grad = gradient
    source, target = torch.ones(numel * 15 // 4), torch.ones(numel * 15 // 4)
    return Tensors(
        weight,
        gradient,
        gradient.bfloat16(),
        gradient * 0.5,
        gradient.square(),
        weight.detach().bfloat16(),
        source,
        target,
        torch.ones(numel * 5 // 2),
    )


@dataclass(frozen=True)
class _Plan:
    """A case to be. bytes_each: read and written per parameter by one pass. ours: kernels -> what to run. peers: name ->
    function that makes what to run; it raises when it cannot."""

    key: str
    title: str
    bytes_each: int
    ours: Callable[[str], Callable]
    peers: dict[str, Callable[[], Callable]]
    notes: dict[str, str]
    has_onednn: bool = True


def run(numel: int, budget: Budget, progress: Progress, add: Callable[[Case], None]) -> None:
    """Measures the cases of this part and gives each to `add` as it is done. numel: parameters."""
    missing = deepspeed_adam.build(progress.say, min(deepspeed_adam.BUILD_SECONDS, budget.left() / 2))
    progress.say(f"AdamW: making {numel / 1e6:.0f} M parameters")
    tensors = make_tensors(numel)
    plans = _plans(tensors, missing)
    seconds = min(_SECONDS_PER_CASE, budget.left() * _BUDGET_SHARE / len(plans))
    for number, plan in enumerate(plans, 1):
        interrupt.point()
        progress.say(f"AdamW, case {number} of {len(plans)}: {plan.title}")
        add(_measured(plan, tensors, seconds, progress))


def _measured(plan: _Plan, tensors: Tensors, seconds: float, progress: Progress) -> Case:
    numel = tensors.weight.numel()
    work = plan.bytes_each * numel
    contenders, absent = _contenders(plan, tensors, work)
    samples = measure(contenders, seconds, progress.round)
    title = f"{plan.title}, {numel / 1e6:g} M parameters, {plan.bytes_each} bytes each"
    rows = rows_of(contenders, samples)
    peers = [row for row in rows if row.kind != ROOF]
    return Case(PART, plan.key, title, "B/s", [*peers, *absent, *rows[len(peers) :]])


def _contenders(plan: _Plan, tensors: Tensors, work: float) -> tuple[list[Contender], list[Row]]:
    """Those that can run, roofs last, and a row for each that cannot."""
    contenders, absent = [Contender("zeromuon", plan.ours("auto"), kind=OURS, work=work)], []
    why = _why_no_onednn() if plan.has_onednn else ""
    if plan.has_onednn and why:
        absent.append(Row("zeromuon, onednn", OURS, MISSING, why))
    elif plan.has_onednn:
        contenders.append(Contender("zeromuon, onednn", plan.ours("onednn"), kind=OURS, work=work))
    for name, make in plan.peers.items():
        try:
            contenders.append(Contender(name, make(), note=plan.notes.get(name, "")))
        except Exception as error:
            absent.append(Row(name, PEER, MISSING, reason(error)))
    return [*contenders, *_roofs(tensors, work)], absent


def _why_no_onednn() -> str:
    try:
        return dict(_lab.cpu_kernels()).get("onednn", "not in this build")
    except Exception as error:
        return reason(error)


def _roofs(t: Tensors, work: float) -> list[Contender]:
    """Copy and triad that read and write the same bytes as one pass of ours."""
    half, third = int(work) // 8, int(work) // 12
    return [
        Contender(COPY, lambda _: _lab.stream_copy_(t.target[:half], t.source[:half]), kind=ROOF, work=work),
        Contender(
            TRIAD,
            lambda _: _lab.stream_triad_(t.target[:third], t.source[:third], t.third[:third], 0.5),
            kind=ROOF,
            work=work,
        ),
    ]


# ---- the cases -----------------------------------------------------------------------------------


def _plans(t: Tensors, no_cpu_adam: str) -> list[_Plan]:
    """no_cpu_adam: why DeepSpeedCPUAdam cannot run, or ""."""

    def deepspeed(make: Callable[[], Callable]) -> Callable[[], Callable]:
        def made():
            if no_cpu_adam:
                raise RuntimeError(no_cpu_adam)
            return make()

        return made

    def adam():
        return deepspeed_adam.optimizer(t.weight, t.exp_avg, t.exp_avg_sq, HYPER)

    chain = deepspeed(lambda: deepspeed_adam.chain(adam(), t.weight, t.low))
    chain_bf16 = deepspeed(lambda: deepspeed_adam.chain(adam(), t.weight, t.low, t.gradient_bf16))
    alone = deepspeed(lambda: _step_of(adam()))
    scaled = {CHAIN: "scale, step, bf16 copy"}
    converted = {CHAIN: "fp32 copy of the gradient, scale, step, bf16 copy"}
    return [
        _Plan("fp32", "fp32 gradient, bf16 weight written", 30, _adamw(t, t.gradient, t.low), {CHAIN: chain}, scaled),
        _Plan(
            "bf16",
            "bf16 gradient, bf16 weight written",
            28,
            _adamw(t, t.gradient_bf16, t.low),
            {CHAIN: chain_bf16},
            converted,
        ),
        _Plan(
            "plain",
            "fp32 gradient, no bf16 weight",
            28,
            _adamw(t, t.gradient, None),
            {CPU_ADAM: alone, TORCH_FUSED: lambda: _step_of(_torch_fused(t))},
            {},
        ),
        _Plan(
            "momentum",
            "momentum, bf16 wire",
            14,
            _momentum(t),
            {TORCH_OPS: lambda: _momentum_in_torch(t)},
            {TORCH_OPS: "lerp_, lerp, copy_"},
        ),
        _Plan(
            "apply",
            "apply an update, bf16 weight written",
            14,
            _apply(t),
            {TORCH_OPS: lambda: _apply_in_torch(t)},
            {TORCH_OPS: "mul_, add_, copy_"},
            has_onednn=False,
        ),
    ]


def _adamw(t: Tensors, gradient, low) -> Callable[[str], Callable]:
    weight = t.weight.detach()
    return lambda kernels: (
        lambda _: _lab.adamw_(weight, gradient, t.exp_avg, t.exp_avg_sq, low, step=10, kernels=kernels, **HYPER)
    )


def _momentum(t: Tensors) -> Callable[[str], Callable]:
    return lambda kernels: lambda _: _lab.momentum_(t.gradient, t.exp_avg, t.low, beta=BETA, kernels=kernels)


def _momentum_in_torch(t: Tensors) -> Callable:
    mixed = t.target[: t.gradient.numel()]  # ready, so that no new pages are paid for

    def run(_):
        t.exp_avg.lerp_(t.gradient, 1 - BETA)
        t.low.copy_(torch.lerp(t.gradient, t.exp_avg, BETA, out=mixed))

    return run


def _apply(t: Tensors) -> Callable[[str], Callable]:
    weight = t.weight.detach()
    return lambda kernels: (
        lambda _: _lab.apply_(weight, t.gradient, t.low, lr=1e-3, weight_decay=0.1, scale=0.2, kernels=kernels)
    )


def _apply_in_torch(t: Tensors) -> Callable:
    weight = t.weight.detach()

    def run(_):
        weight.mul_(1 - 1e-3 * 0.1)
        weight.add_(t.gradient, alpha=-1e-3 * 0.2)
        t.low.copy_(weight)

    return run


def _torch_fused(t: Tensors):
    adam = torch.optim.AdamW([t.weight], fused=True, **HYPER)
    adam.state[t.weight] = {"step": torch.tensor(1.0), "exp_avg": t.exp_avg, "exp_avg_sq": t.exp_avg_sq}
    return adam


def _step_of(optimizer) -> Callable:
    return lambda _: optimizer.step()
