"""A row about a stage that the product does not have. It returns a dict."""

from __future__ import annotations

import torch
import torch.distributed as dist

from tests.multirank import world

SHAPES = ((12, 8), (30, 7), (8, 40), (5, 5))
FACTORS = (0.5, 2.0, 4.0, 0.25)  # powers of two: the product is exact


def added_stage() -> dict:
    """One step from zero weights without and with a factor for every block, multiplied on its owner."""
    from zeromuon import _core, _lab

    plan, group, cpu = _plan(_core), dist.group.WORLD, torch.device("cpu")
    plain = _core.StepExecutor(plan, group, cpu, cpu, cpu_kernels="auto", stage_timeout_s=0.0)
    plain_weights, _ = _step(_core, plain)
    weights, trace = _step(_core, _lab.executor_with_factors(plan, group, list(FACTORS)))
    bucket = [e["stage"] for e in sorted(trace, key=lambda e: e["begin_ns"]) if e["bucket"] == 0]
    return {
        "multiplied": world.on_all_ranks([torch.equal(w, f * p) for w, f, p in zip(weights, FACTORS, plain_weights)]),
        "moved": world.on_all_ranks([bool(p.any()) or p.numel() == 0 for p in plain_weights]),
        "stages": bucket,
    }


def _chunk(rows: int, cols: int) -> int:
    return -(-rows * cols // dist.get_world_size())


def _plan(core):
    params, offset = [], 0
    for index, (rows, cols) in enumerate(SHAPES):
        params.append(
            core.ParamSpec(
                name=f"w{index}",
                numel=rows * cols,
                chunk=_chunk(rows, cols),
                shard_offset=offset,
                rows=rows,
                cols=cols,
                decay=True,
                transposed=False,
            )
        )
        offset += _chunk(rows, cols)
    options = core.PlanOptions(
        world_size=dist.get_world_size(),
        newton_schulz=core.NewtonSchulzRequest(
            form="standard", dtype="float32", coefficients=core.CoefficientSet("jordan")
        ),
        target=core.this_cpu(),
        lanes=1,
        scale="none",
        wire_dtype="float32",
        bucket_bytes=256,
        flow=core.Flow(staged=False, momentum_home="shard", momentum_dtype="float32", casts="none"),
    )
    return core.make_step_plan(options, [core.SubGroupSpec("muon", params)])


def _step(core, executor) -> tuple[list[torch.Tensor], list[dict]]:
    """This rank's part of every weight, and what the lanes did."""
    numel = sum(_chunk(*shape) for shape in SHAPES)
    gradient = torch.randn(numel, generator=torch.Generator().manual_seed(3 + dist.get_rank()))
    weight = torch.zeros(numel)
    hyper = {"lr": 1.0, "weight_decay": 0.0, "cautious_wd": False}
    hyper |= {"momentum": 0.9, "momentum_kind": "ema", "nesterov": True}
    executor.record_trace(True)
    executor.step([core.MuonTask(0, weight, gradient, torch.zeros(numel), None, **hyper)])
    parts, offset = [], 0
    for rows, cols in SHAPES:
        chunk = _chunk(rows, cols)
        real = min(max(rows * cols - dist.get_rank() * chunk, 0), chunk)
        parts.append(weight[offset : offset + real])
        offset += chunk
    return parts, executor.take_trace()
