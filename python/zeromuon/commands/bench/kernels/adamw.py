"""Elementwise passes of the optimizer: AdamW, momentum, apply; beside DeepSpeed's, torch's and what the memory gives.

All contenders of a case work on the same tensors, which are far larger than the caches. Legend: N parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from .... import _lab
from ....ranks.machine import available_memory_bytes
from ..core import interrupt
from ..core.results import MISSING, OURS, PEER, ROOF, Case, Row, rows_of
from ..core.session import Session
from ..core.timing import Contender, measure, reason
from . import deepspeed_adam

PART = "adamw"
DEFAULT_NUMEL = 64_000_000
HYPER = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
BETA = 0.95
CHAIN, CPU_ADAM = "DeepSpeed's chain", "DeepSpeedCPUAdam"
TORCH_FUSED, TORCH_OPS = "torch AdamW, fused", "torch operations"
COPY, TRIAD = "copy roof", "triad roof"
_BYTES_PER_PARAMETER = 60  # of memory that the tensors below take
_MEMORY_SHARE = 0.5
_SECONDS_PER_CASE = 20.0
_BUDGET_SHARE = 0.3


class Tensors:
    """[N] fp32, where nothing else is said."""

    def __init__(self, numel: int):
        torch.manual_seed(0)
        self.gradient = torch.empty(numel).normal_(0, 1e-2)
        self.weight = torch.nn.Parameter(torch.empty(numel).normal_())
        self.weight.grad = self.gradient
        self.gradient_bf16, self.low = self.gradient.bfloat16(), self.weight.detach().bfloat16()  # [N] bf16
        self.exp_avg, self.exp_avg_sq = self.gradient * 0.5, self.gradient.square()
        self.source, self.target = torch.ones(numel * 15 // 4), torch.ones(numel * 15 // 4)  # [3.75 N], of the roofs
        self.third = torch.ones(numel * 5 // 2)  # [2.5 N]


def numel_that_fits(wanted: int) -> int:
    """`wanted`, or what half of the free memory holds."""
    return max(1024, min(wanted, int(available_memory_bytes() * _MEMORY_SHARE) // _BYTES_PER_PARAMETER))


@dataclass(frozen=True)
class _Plan:
    """A case to be. bytes_each: read and written per parameter by one pass. ours: takes `kernels`. peers: name -> (function
    that makes what to run, which raises when it cannot; note)."""

    key: str
    title: str
    bytes_each: int
    ours: Callable
    peers: dict[str, tuple[Callable[[], Callable], str]]
    has_onednn: bool = True


def run(numel: int, session: Session) -> None:
    """Measures the cases of this part. numel: parameters."""
    budget, say = session.budget, session.progress.say
    missing = deepspeed_adam.build(say, min(deepspeed_adam.BUILD_SECONDS, budget.left() / 2))
    say(f"AdamW: making {numel / 1e6:.0f} M parameters")
    tensors = Tensors(numel)
    plans = _plans(tensors, missing)
    seconds = min(_SECONDS_PER_CASE, budget.left() * _BUDGET_SHARE / len(plans))
    for number, plan in enumerate(plans, 1):
        interrupt.point()
        say(f"AdamW, case {number} of {len(plans)}: {plan.title}")
        session.add(_measured(plan, tensors, seconds, session.progress.round))


def _measured(plan: _Plan, tensors: Tensors, seconds: float, on_round: Callable[[int], None]) -> Case:
    numel = tensors.weight.numel()
    contenders, absent = _contenders(plan, plan.bytes_each * numel)
    racing = [*contenders, *_roofs(tensors, plan.bytes_each * numel)]
    rows = rows_of(racing, measure(racing, seconds, on_round))
    title = f"{plan.title}, {numel / 1e6:g} M parameters, {plan.bytes_each} bytes each"
    return Case(PART, plan.key, title, "B/s", [*rows[: len(contenders)], *absent, *rows[len(contenders) :]])


def _contenders(plan: _Plan, work: float) -> tuple[list[Contender], list[Row]]:
    """Those that can run, and a row for each that cannot."""
    contenders, absent = [Contender("zeromuon", lambda _: plan.ours(kernels="auto"), kind=OURS, work=work)], []
    name, why = "zeromuon, onednn", dict(_lab.cpu_kernels())["onednn"]
    if plan.has_onednn and why:
        absent.append(Row(name, OURS, MISSING, why))
    elif plan.has_onednn:
        contenders.append(Contender(name, lambda _: plan.ours(kernels="onednn"), kind=OURS, work=work))
    for name, (make, note) in plan.peers.items():
        try:
            contenders.append(Contender(name, make(), note=note))
        except Exception as error:
            absent.append(Row(name, PEER, MISSING, reason(error)))
    return contenders, absent


def _roofs(t: Tensors, work: int) -> list[Contender]:
    """Copy and triad that read and write the same bytes as one pass of ours."""
    half, third = work // 8, work // 12
    copied = t.target[:half], t.source[:half]
    added = t.target[:third], t.source[:third], t.third[:third], 0.5
    return [
        Contender(COPY, lambda _: _lab.stream_copy_(*copied), kind=ROOF, work=work),
        Contender(TRIAD, lambda _: _lab.stream_triad_(*added), kind=ROOF, work=work),
    ]


# ---- the cases -----------------------------------------------------------------------------------


def _plans(t: Tensors, no_cpu_adam: str) -> list[_Plan]:
    """no_cpu_adam: why DeepSpeedCPUAdam cannot run, or ""."""
    return [*_adamw_plans(t, no_cpu_adam), _momentum_plan(t), _apply_plan(t)]


def _adamw_plans(t: Tensors, no_cpu_adam: str) -> list[_Plan]:
    def ours(gradient: torch.Tensor, low: torch.Tensor | None) -> Callable:
        return partial(_lab.adamw_, t.weight.detach(), gradient, t.exp_avg, t.exp_avg_sq, low, step=10, **HYPER)

    def adam():
        if no_cpu_adam:
            raise RuntimeError(no_cpu_adam)
        return deepspeed_adam.optimizer(t.weight, t.exp_avg, t.exp_avg_sq, HYPER)

    def chain(gradient_bf16: torch.Tensor | None = None) -> Callable:
        return deepspeed_adam.chain(adam(), t.weight, t.low, gradient_bf16)

    scaled = {CHAIN: (chain, "scale, step, bf16 copy")}
    converted = {CHAIN: (lambda: chain(t.gradient_bf16), "fp32 copy of the gradient, scale, step, bf16 copy")}
    alone = {CPU_ADAM: (lambda: _step_of(adam()), ""), TORCH_FUSED: (lambda: _step_of(_torch_fused(t)), "")}
    return [
        _Plan("fp32", "fp32 gradient, bf16 weight written", 30, ours(t.gradient, t.low), scaled),
        _Plan("bf16", "bf16 gradient, bf16 weight written", 28, ours(t.gradient_bf16, t.low), converted),
        _Plan("plain", "fp32 gradient, no bf16 weight", 28, ours(t.gradient, None), alone),
    ]


def _torch_fused(t: Tensors):
    adam = torch.optim.AdamW([t.weight], fused=True, **HYPER)
    adam.state[t.weight] = {"step": torch.tensor(1.0), "exp_avg": t.exp_avg, "exp_avg_sq": t.exp_avg_sq}
    return adam


def _step_of(optimizer) -> Callable:
    return lambda _: optimizer.step()


def _momentum_plan(t: Tensors) -> _Plan:
    ours = partial(_lab.momentum_, t.gradient, t.exp_avg, t.low, beta=BETA)
    mixed = t.target[: t.gradient.numel()]  # ready, so that no new pages are paid for

    def in_torch(_) -> None:
        t.exp_avg.lerp_(t.gradient, 1 - BETA)
        t.low.copy_(torch.lerp(t.gradient, t.exp_avg, BETA, out=mixed))

    peers = {TORCH_OPS: (lambda: in_torch, "lerp_, lerp, copy_")}
    return _Plan("momentum", "momentum, bf16 wire", 14, ours, peers)


def _apply_plan(t: Tensors) -> _Plan:
    weight = t.weight.detach()
    ours = partial(_lab.apply_, weight, t.gradient, t.low, lr=1e-3, weight_decay=0.1, scale=0.2)

    def in_torch(_) -> None:
        weight.mul_(1 - 1e-3 * 0.1)
        weight.add_(t.gradient, alpha=-1e-3 * 0.2)
        t.low.copy_(weight)

    peers = {TORCH_OPS: (lambda: in_torch, "mul_, add_, copy_")}
    return _Plan("apply", "apply an update, bf16 weight written", 14, ours, peers, has_onednn=False)
