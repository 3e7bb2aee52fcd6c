"""Binds a ZeroMuon to DeepSpeed's ZeRO-3 optimizer: reads the layout, plans, compares the ranks."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Callable

import torch
import torch.distributed as dist

from . import _core, host


@dataclass
class Binding:
    """What a bound optimizer steps with; made once, never changed."""

    zero3: object
    sub_groups: list[host.SubGroup]
    plan: object  # _core.StepPlan
    executor: object  # _core.StepExecutor


def bind(optimizer, specs: dict, params: list, options: dict, allocate: Callable | None = None) -> Binding:
    """Plans the step of `optimizer` and makes its buffers. Called by all ranks of the group at the same point.

    options: of the optimizer, and whatever else must be equal on all ranks. allocate: makes the states of a sub-group.
    Raises ValueError, on every rank, when a rank cannot bind or two ranks differ in options or plan.
    """
    zero3 = host.find_zero3(params)
    group = host.process_group(zero3)
    ranks_here = _ranks_on_this_host(group)
    # A rank that cannot bind tells the others before it raises: they would wait for it.
    try:
        host.check_supported(zero3, optimizer)
        made, error = _make(zero3, group, specs, options, optimizer.state, ranks_here), None
        for sub_group in made.sub_groups if allocate else ():
            allocate(sub_group)
    except Exception as caught:  # whatever it is, the others must hear of it
        made, error = None, caught
    _agree(group, options, made.plan if made else None, error)
    return made


def _make(zero3, group, specs, options, states, ranks_here: int) -> Binding:
    sub_groups, plan = _plan(zero3, group, specs, options)
    _check_memory(plan, dist.get_rank(group), sub_groups, states, ranks_here)
    executor = _core.StepExecutor(plan, group, sub_groups[0].flat.device, host.compute_device())
    return Binding(zero3, sub_groups, plan, executor)


def _ranks_on_this_host(group) -> int:
    names = [None] * dist.get_world_size(group)
    dist.all_gather_object(names, socket.gethostname(), group=group)
    return names.count(socket.gethostname())


def _plan(zero3, group, specs, options):
    sub_groups = host.read_sub_groups(zero3, specs)
    host.check_layout(zero3, sub_groups, dist.get_rank(group))
    plan = _core.make_step_plan(
        world_size=dist.get_world_size(group),
        form=options["ns_form"],
        coefficients=_core.CoefficientSet(options["ns"]),
        scale=options["scale"],
        wire_dtype=_wire_dtype(options["wire_dtype"], sub_groups),
        sub_groups=host.core_sub_groups(zero3, sub_groups),
    )
    _check_momentum_device(options["momentum_device"], sub_groups[0].flat.device)
    return sub_groups, plan


def _wire_dtype(option: str, sub_groups) -> str:
    """"auto" is float32 when the model trains in float32, else bfloat16."""
    if option != "auto":
        return option
    dtypes = {p.ds_tensor.dtype for g in sub_groups for p in g.params}
    return "float32" if dtypes == {torch.float32} else "bfloat16"


def _check_momentum_device(option: str, shard: torch.device) -> None:
    """Momentum is computed where the flat shard is."""
    here = "cpu" if shard.type == "cpu" else "device"
    compute = "cpu" if host.compute_device().type == "cpu" else "device"
    if option in ("auto", here) or (option == "device" and here == compute):
        return
    raise ValueError(
        f'momentum_device: got "{option}", and the flat shard is on {shard}; in this version the '
        f'momentum lives with the shard: use "auto", or change offload_optimizer'
    )


def _check_memory(plan, rank: int, sub_groups, there: dict, ranks_here: int) -> None:
    """Raises MemoryError when the buffers of the plan, and the states that are not `there` yet, do not fit in free
    memory."""
    shard, compute = sub_groups[0].flat.device, host.compute_device()
    buffers = plan.buffer_bytes(rank)
    states = sum((4 if g.role == "muon" else 8) * g.flat.numel() for g in sub_groups if g.flat not in there)
    needed = {shard.type: states}
    needed[compute.type] = needed.get(compute.type, 0) + buffers
    for kind, required in needed.items():
        free = _free_bytes(kind, ranks_here)
        if required > free:
            raise MemoryError(
                f"rank {rank}: the optimizer needs {required / 2**20:.0f} MiB of {kind} memory "
                f"(states {states / 2**20:.0f} MiB, buffers {buffers / 2**20:.0f} MiB), "
                f"{free / 2**20:.0f} MiB are free for it; use more ranks, offload_optimizer, or a "
                f"smaller model"
            )


def _free_bytes(kind: str, ranks_here: int) -> int:
    """Free memory that one rank may count on; host memory is shared by the ranks of this host."""
    if kind != "cpu":
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available // ranks_here


def _agree(group, options: dict, plan, error) -> None:
    """Every rank learns what every rank planned and was told; all raise or none does."""
    mine = {"hash": plan.hash if plan else None, "error": None if error is None else str(error), "options": options}
    theirs = [None] * dist.get_world_size(group)
    dist.all_gather_object(theirs, mine, group=group)
    failed = [(r, t["error"]) for r, t in enumerate(theirs) if t["error"] is not None]
    if error is not None:
        raise error
    if failed:
        raise ValueError(f"rank {failed[0][0]} cannot bind ZeroMuon: {failed[0][1]}")
    for key in options:
        for rank, other in enumerate(theirs):
            if other["options"][key] != theirs[0]["options"][key]:
                raise ValueError(
                    f"{key}: rank 0 has {theirs[0]['options'][key]}, rank {rank} has {other['options'][key]}; every rank "
                    f"must build the same ZeroMuon options"
                )
    if len({t["hash"] for t in theirs}) == 1:
        return
    texts = [None] * len(theirs)
    dist.all_gather_object(texts, plan.canonical_text().splitlines(), group=group)
    other = next(r for r, t in enumerate(theirs) if t["hash"] != theirs[0]["hash"])
    pairs = list(zip(texts[0], texts[other])) + [(f"{len(texts[0])} lines", f"{len(texts[other])} lines")]
    first, second = next((a, b) for a, b in pairs if a != b)
    raise ValueError(
        f"the ranks planned different steps: rank 0 has `{first}`, rank {other} has `{second}`; every "
        f"rank must build the same model and the same ZeroMuon options"
    )
