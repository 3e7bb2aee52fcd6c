"""Plays the step of a model on a machine: the only part of this bench that needs the core. Lanes: see outcome.py."""

from __future__ import annotations

from collections import defaultdict
from itertools import accumulate, pairwise

import torch  # noqa: F401  (before the core, which links against it)

from .... import _core, _lab
from .models import Parameter
from .outcome import COEFFICIENTS, NEWTON_SCHULZ, WIRE_BYTES, WIRE_DTYPE, Played
from .rates import Machine, Scenario

# Elements of a rank, DeepSpeed's default of zero_optimization.sub_group_size.
SUB_GROUP_NUMEL = 10**9


def play(scenario: Scenario) -> Played:
    """Plays it as the pipeline does it, and serially."""
    plan = make_plan(scenario)
    step = play_plan(plan, scenario)
    serial = play_plan(make_plan(scenario, slots=1), scenario, fused=False)
    ranks = range(scenario.world_size)
    buffers = [plan.buffer_bytes(rank) for rank in ranks]
    (resources, busiest), world = _resources(step, scenario), scenario.world_size
    sent = [bytes_sent / scenario.model.muon_numel for bytes_sent in step["wire_bytes"]]
    return Played(
        key=scenario.key,
        balanced=scenario.balanced,
        makespan_s=step["makespan_s"],
        resources=resources,
        busiest=busiest,
        owner_s=max(_work(events, scenario.machine, NEWTON_SCHULZ) for events in step["events"]),
        serial_s=serial["makespan_s"],
        wire_mean=sum(sent) / world,
        wire_most=max(sent),
        wire_floor=2 * WIRE_BYTES * (world - 1) / world / world,
        device_bytes=max(b["device"] for b in buffers),
        pinned_bytes=max(b["host"] for b in buffers),
    )


def make_plan(scenario: Scenario, slots: int = 0):
    """The plan of a staged step with low-precision weights; slots 0: as the planner chooses."""
    specs = [
        _core.SubGroupSpec(role, _specs(group, scenario.world_size))
        for role, parameters in (("muon", scenario.model.muon), ("adamw", scenario.model.adamw))
        for group in sub_groups(parameters, scenario.world_size)
    ]
    request = _core.NewtonSchulzRequest(form="auto", dtype="auto", coefficients=_core.CoefficientSet(COEFFICIENTS))
    flow = _core.Flow(
        staged=True, momentum_home=scenario.home, momentum_dtype=scenario.momentum_dtype, casts="on_device"
    )
    options = _core.PlanOptions(
        world_size=scenario.world_size,
        newton_schulz=request,
        target=_core.cuda_target(),
        lanes=1,
        scale="match_rms_adamw",
        wire_dtype=WIRE_DTYPE,
        slots=slots,
        flow=flow,
    )
    return _core.make_step_plan(options, specs)


def sub_groups(
    parameters: tuple[Parameter, ...], world_size: int, most_numel: int = SUB_GROUP_NUMEL
) -> list[tuple[Parameter, ...]]:
    """A parameter group cut as ZeRO-3 cuts it. most_numel: elements of a rank that close a sub-group."""
    ends = [0, *accumulate(_core.zero3_sub_groups([p.numel for p in parameters], world_size, most_numel))]
    return [parameters[begin:end] for begin, end in pairwise(ends)]


def _specs(group: tuple[Parameter, ...], world_size: int) -> list:
    specs, offset = [], 0
    for p in group:
        chunk, rows = _core.zero3_chunk(p.numel, world_size), p.rows if p.cols else 0
        place = {"chunk": chunk, "shard_offset": offset, "transposed": False}
        specs.append(_core.ParamSpec(name=p.name, numel=p.numel, rows=rows, cols=p.cols, decay=p.cols > 0, **place))
        offset += chunk
    return specs


def play_plan(plan, scenario: Scenario, fused: bool = True) -> dict:
    return _lab.play_step(plan, **scenario.machine.rates, fused=fused)


def _resources(step: dict, scenario: Scenario) -> tuple[dict[str, float], str]:
    """Lane -> the most work of a rank; and the largest, by lane and rank. What the lanes are busy with, less the latency of
    every task; of collective what is sent, because a collective takes all ranks as long as the one with most."""
    machine = scenario.machine
    times = {}
    for rank, events in enumerate(step["events"]):
        lanes = {e["lane"] for e in events} - {"collective"}
        times |= {(lane, rank): _work([e for e in events if e["lane"] == lane], machine) for lane in lanes}
        times["collective", rank] = step["wire_bytes"][rank] / machine.rates["wire_bytes_per_s"]
    most = defaultdict(float)
    for (lane, _), seconds in times.items():
        most[lane] = max(most[lane], seconds)
    lane, rank = max(times, key=times.__getitem__)
    return dict(most), f"{lane} of rank {rank}"


def _work(events: list[dict], machine: Machine, stage: str | None = None) -> float:
    """Seconds of the tasks (of a stage), without their latency."""
    of_stage = [e for e in events if stage in (None, e["stage"])]
    busy = 1e-9 * sum(e["end_ns"] - e["begin_ns"] for e in of_stage)
    return max(0.0, busy - len(of_stage) * machine.rates["task_latency_s"])
