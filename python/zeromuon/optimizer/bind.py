"""Binds a ZeroMuon to DeepSpeed's ZeRO-3 optimizer: reads the layout, plans, compares the ranks."""

from __future__ import annotations

import operator
import secrets
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Callable

import torch
import torch.distributed as dist

from .. import _core
from ..base.warn import warn
from ..deepspeed import layout, loop, support
from ..deepspeed.watch import waits_in
from ..ranks import leave, machine
from . import limits, placement
from .options import MOMENTUM_HOMES


@dataclass(frozen=True)
class Backend:
    """What plans are carried out on. staged: of the devices of the flat shard and of the collectives, whether they are
    two. make_executor: called as _core.StepExecutor."""

    staged: Callable = operator.ne
    make_executor: Callable = _core.StepExecutor


backend = Backend()  # tests put a fake device here


@dataclass
class Binding:
    """What a bound optimizer steps with; made once, never changed."""

    zero3: object
    sub_groups: list[layout.SubGroup]
    plan: object  # _core.StepPlan
    executor: object  # _core.StepExecutor
    fused: bool  # whether the loop over sub-groups is taken over
    momentum_home: str  # "cpu", "cpu_streamed" or "device"
    momentum_dtype: torch.dtype
    momentum_on_device: bool  # apart from the shard

    @property
    def has_own_momentum(self) -> bool:
        """Whether :meth:`new_momentum` is elsewhere than torch would make it."""
        return self.momentum_on_device or self.momentum_home == "cpu_streamed"

    def new_momentum(self, flat: torch.Tensor) -> torch.Tensor:
        """[L] zeros where and as the momentum of this flat shard is kept."""
        if self.momentum_home == "cpu_streamed":
            return self.executor.registered_zeros(flat.numel(), str(self.momentum_dtype).removeprefix("torch."))
        device = layout.compute_device() if self.momentum_on_device else flat.device
        return torch.zeros(flat.numel(), dtype=self.momentum_dtype, device=device)


@dataclass(frozen=True)
class _Ranks:
    """What the ranks told each other before they plan. rates: None unless the home of the momentum is to be chosen and
    every rank could measure. free_device_bytes: of the rank that has the least. name: of this binding, of rank 0's choice."""

    on_this_host: int
    on_this_gpu: int
    cpu_threads: list[int]  # of each
    name: str
    rates: placement.Rates | None
    free_device_bytes: int


def bind(optimizer, specs: dict, params: list, options: dict, allocate: Callable | None = None) -> Binding:
    """Plans the step of `optimizer` and makes its buffers. Called by all ranks of the group at the same point.

    options: of the optimizer, and whatever else must be equal on all ranks. allocate: makes the states of a sub-group of
    a binding. Raises ValueError, on every rank, when a rank cannot bind or two ranks differ in options or plan.
    """
    zero3 = layout.find_zero3(params)
    leave.let_threads_finish_at_exit()
    with waits_in(zero3, "the binding of ZeroMuon"):
        return _bind_together(optimizer, zero3, specs, options, allocate)


def _bind_together(optimizer, zero3, specs: dict, options: dict, allocate: Callable | None) -> Binding:
    group = layout.process_group(zero3)
    ranks = _exchange(zero3, group, options)
    # A rank that cannot bind tells the others before it raises: they would wait for it.
    try:
        support.check_supported(zero3, optimizer)
        made, error = _make(zero3, group, specs, options, optimizer.state, ranks), None
        for sub_group in made.sub_groups if allocate else ():
            allocate(made, sub_group)
    except Exception as caught:  # whatever it is, the others must hear of it
        made, error = None, caught
    _agree(group, {**options, "the fused step": made.fused if made else None}, made, error)
    return made


def _exchange(zero3, group, options: dict) -> _Ranks:
    """Whatever a rank lacks, it takes part: its error comes later, where all hear of it."""
    compute = layout.compute_device()
    shard = layout.shard_device(zero3)
    rates = free = None
    if shard is not None and placement.is_a_choice(options["momentum_device"], shard, compute):
        free = _free_bytes(compute, 1)
        try:
            rates = placement.measure_rates(compute)
        except RuntimeError as error:
            warn(f"momentum_device auto: the rates of {compute} could not be measured ({error})", stacklevel=4)
    told, host = [None] * dist.get_world_size(group), machine.host_id()
    gpu = layout.gpu_id(compute) or host
    mine = (host, gpu, machine.core_count(), limits.told_threads(), rates, free, secrets.token_hex(8))
    dist.all_gather_object(told, mine, group=group)
    hosts, gpus, cores, threads, all_rates, all_free, names = zip(*told)
    measured = None if None in all_rates else placement.slowest(list(all_rates))
    return _Ranks(
        hosts.count(host),
        gpus.count(gpu),
        [
            limits.cpu_threads(options["cpu_threads"], most, hosts.count(other), said)
            for most, other, said in zip(cores, hosts, threads)
        ],
        names[0],
        measured,
        min((f for f in all_free if f is not None), default=0),
    )


def _make(zero3, group, specs, options, states, ranks: _Ranks) -> Binding:
    sub_groups = layout.read_sub_groups(zero3, specs)
    layout.check_layout(zero3, sub_groups)
    shard, compute = sub_groups[0].flat.device, layout.compute_device()
    fused = _takes_over(zero3, options["fused_step"], dist.get_rank(group) == 0)
    staged = backend.staged(shard, compute)
    casts = _casts(zero3, sub_groups) if fused else "none"
    core_groups = layout.core_sub_groups(zero3, sub_groups)

    def plan_for(home: str, **least):
        flow = _core.Flow(
            staged=staged,
            momentum_home=MOMENTUM_HOMES[home] if staged else "shard",
            momentum_dtype=options["momentum_dtype"],
            casts=casts,
        )
        plan_options = _plan_options(options, compute, ranks.cpu_threads, sub_groups, flow, **least)
        return _core.make_step_plan(plan_options, core_groups)

    home, plan = _planned(options, sub_groups, plan_for, ranks, group)
    momentum_dtype, on_device = getattr(torch, options["momentum_dtype"]), staged and home == "device"
    rank = dist.get_rank(group)
    least = partial(plan_for, home, bucket_bytes=1, slots=1)
    _check_memory(plan, least, rank, sub_groups, states, ranks, (momentum_dtype, on_device))
    timeout_s, warning = limits.stage_timeout_s(options["stage_timeout_s"], group, compute)
    if rank == 0:
        if warning:
            warn(warning, stacklevel=5)
        _say_threads(ranks, shard)
        _say_products(options, plan, compute)
    executor = _with_an_empty_cache(
        lambda: backend.make_executor(
            plan,
            group,
            shard,
            compute,
            cpu_kernels=options["cpu_kernels"],
            stage_timeout_s=timeout_s,
            name=ranks.name,
            cpu_threads=ranks.cpu_threads[rank],
        )
    )
    return Binding(zero3, sub_groups, plan, executor, fused, home, momentum_dtype, on_device)


def _say_threads(ranks: _Ranks, shard: torch.device) -> None:
    """Where the CPU works with another number of threads than torch here."""
    threads = ranks.cpu_threads[0]
    if shard.type == "cpu" and threads != torch.get_num_threads():
        print(f"zeromuon: cpu_threads {threads} on each of {ranks.on_this_host} ranks of this host", flush=True)


def _say_products(options: dict, plan, compute: torch.device) -> None:
    """On a GPU, of products in float32: what the other data type would save, or why it was not taken."""
    in_float32 = sorted({shape for shape, dtype in plan.products if dtype == "float32"})
    if compute.type != "cuda" or not in_float32:
        return
    if options["ns_dtype"] == "float16":
        warn(
            f"ns_dtype: float16 was asked for, and float32 is taken for {len(in_float32)} shapes: with the coefficients that ns "
            f"names, factors of Newton-Schulz would leave the range of float16",
            stacklevel=6,
        )
    elif options["ns_dtype"] == "auto":
        print(
            "zeromuon: float32 training multiplies Newton-Schulz' factors in float32, without TF32; "
            '"ns_dtype": "float16" keeps two to three digits of an update and multiplies many times faster',
            flush=True,
        )


def _with_an_empty_cache(make: Callable):
    """What `make` makes. Where the device has no memory left for it, once more without what torch's allocator keeps."""
    try:
        return make()
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        torch.cuda.empty_cache()
        return make()


def _plan_options(options: dict, compute: torch.device, cpu_threads: list[int], sub_groups, flow, **least):
    """least: bucket_bytes and slots, in place of those that the plan chooses within max_bytes_in_flight."""
    most, wire = options["max_bytes_in_flight"], options["wire_dtype"]
    if wire == "auto":
        wire = "float32" if layout.trains_in_float32(sub_groups) else "bfloat16"
    return _core.PlanOptions(
        world_size=len(cpu_threads),
        newton_schulz=_core.NewtonSchulzRequest(
            form=options["ns_form"],
            dtype=_ns_dtype(options, sub_groups),
            coefficients=_core.CoefficientSet(options["ns"]),
        ),
        target=_core.cuda_target(layout.gpu_kind(compute)) if compute.type == "cuda" else _core.this_cpu(),
        lanes=min(cpu_threads),
        scale=options["scale"],
        wire_dtype=wire,
        max_bytes_in_flight=0 if most == "auto" or least else most,
        flow=flow,
        **least,
    )


def _ns_dtype(options: dict, sub_groups) -> str:
    """As the plan takes it: its "auto" is that of 16-bit training. Who trains in float32 wants the digits."""
    dtype = options["ns_dtype"]
    return "float32" if dtype == "auto" and layout.trains_in_float32(sub_groups) else dtype


def _takes_over(zero3, option: str, is_first_rank: bool) -> bool:
    """Whether the fused step runs. Raises ValueError when it was asked for and cannot; "auto" says why not on rank 0."""
    obstacle = None if option == "off" else loop.obstacle_to_fused_step(zero3)
    if obstacle and option == "on":
        raise ValueError(
            f'fused_step: got "on", and {obstacle}; use "auto" or "off", which step the sub-groups one by one'
        )
    if obstacle and is_first_rank:
        warn(
            f"fused_step auto: {obstacle}. The sub-groups are stepped one by one: the same numbers, without overlap "
            f'between them; "fused_step": "off" says so without this warning',
            stacklevel=6,
        )
    return option != "off" and obstacle is None


def _casts(zero3, sub_groups) -> str:
    """Where the low-precision weights lie that the kernels write, with_shard or on_device; "none" unless that is one data
    type in one place for all sub-groups."""
    found = set()
    for group in sub_groups:
        low = loop.low_precision_shard(zero3, group.index)
        found.add(None if low is None else (low.dtype, low.device == group.flat.device))
    only = found.pop() if len(found) == 1 else None
    if only is None:
        return "none"
    return "with_shard" if only[1] else "on_device"


def _planned(options: dict, sub_groups, plan_for: Callable, ranks: _Ranks, group) -> tuple:
    """The home of the momentum ("cpu", "cpu_streamed" or "device") and the plan for it. Rank 0 prints what "auto" took
    where there was a choice, and why."""
    option, shard, compute = options["momentum_device"], sub_groups[0].flat.device, layout.compute_device()
    if not backend.staged(shard, compute):
        placement.check_momentum_device(option, shard, compute)
        home = "cpu" if shard.type == "cpu" else "device"
        return home, plan_for(home)
    if option != "auto":
        return option, plan_for(option)
    plans = _candidates(plan_for)
    if ranks.rates is None:
        home = next(iter(plans))
        reason = "momentum: cpu (computed there): the rates of the device could not be measured"
    else:
        device_bytes = _device_bytes(plans, options, sub_groups, dist.get_world_size(group))
        home, reason = placement.choose_momentum(plans, ranks.rates, device_bytes, ranks.free_device_bytes)
    if dist.get_rank(group) == 0:
        print(f"zeromuon: {reason}", flush=True)
    return home, plans[home]


def _candidates(plan_for: Callable) -> dict:
    """A plan for each home, without those that max_bytes_in_flight refuses. Raises ValueError when it refuses all."""
    plans, refused = {}, None
    for home in placement.MEANINGS:
        try:
            plans[home] = plan_for(home)
        except ValueError as error:
            refused = refused or error
    if not plans:
        raise refused
    return plans


def _device_bytes(plans: dict, options: dict, sub_groups, world_size: int) -> int:
    """Of the home "device": momenta and, on the rank with most, buffers."""
    if "device" not in plans:
        return 0
    numel = sum(g.flat.numel() for g in sub_groups if g.role == "muon")
    buffers = max(plans["device"].buffer_bytes(rank)["device"] for rank in range(world_size))
    return numel * getattr(torch, options["momentum_dtype"]).itemsize + buffers


def _check_memory(
    plan, least: Callable, rank: int, sub_groups, there: dict, ranks: _Ranks, momentum: tuple[torch.dtype, bool]
) -> None:
    """Raises MemoryError when the buffers of the plan, and the states that are not `there` yet, do not fit in free
    memory. least: makes the plan with the smallest buffers. momentum: its data type, and whether it is on the device apart
    from the shard."""
    device = layout.compute_device()
    shard, compute = sub_groups[0].flat.device.type, device.type
    buffers, states = _buffers(plan, rank, compute), Counter()
    for g in (g for g in sub_groups if g.flat not in there):
        muon = g.role == "muon"
        states[compute if muon and momentum[1] else shard] += g.flat.numel() * (momentum[0].itemsize if muon else 8)
    for kind in dict.fromkeys((shard, compute, "cpu")):
        on, sharing = (torch.device("cpu"), ranks.on_this_host) if kind == "cpu" else (device, ranks.on_this_gpu)
        needed, free = states[kind] + buffers[kind], _free_bytes(on, sharing)
        if needed > free:
            smallest = least()
            least_buffers = [_buffers(smallest, r, compute) for r in range(len(ranks.cpu_threads))]
            raise MemoryError(
                f"rank {rank}: the optimizer needs {needed / 2**20:.0f} MiB of {kind} memory "
                f"(states {states[kind] / 2**20:.0f} MiB, buffers {buffers[kind] / 2**20:.0f} MiB), "
                f"{free / 2**20:.0f} MiB are free for it; " + _smaller(least_buffers, rank, kind, states, free)
            )


def _buffers(plan, rank: int, compute: str) -> Counter:
    """Bytes of a rank's buffers in each kind of memory."""
    planned = plan.buffer_bytes(rank)
    buffers = Counter({compute: planned["device"]})
    buffers["cpu"] += planned["host"]
    return buffers


def _smaller(least: list[Counter], rank: int, kind: str, states: Counter, free: int) -> str:
    """What to do. least: the smallest buffers, of each rank."""
    needed = states[kind] + least[rank][kind]
    works = f"the least that works is {needed / 2**20:.0f} MiB, with one matrix in flight"
    if needed <= free:
        return f'{works}: "max_bytes_in_flight": {max(sum(buffers.values()) for buffers in least)}'
    return f"{works}; use more ranks, offload_optimizer, or a smaller model"


def _free_bytes(device: torch.device, ranks: int) -> int:
    """Free memory that one of the `ranks` that share it may count on, with what torch's allocator holds and nothing uses."""
    if device.type == "cpu":
        return machine.available_memory_bytes() // ranks
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] // ranks + cached


def _agree(group, options: dict, made: Binding | None, error) -> None:
    """Every rank learns what every rank planned and was told; all raise or none does. Rank 0 warns of what an executor
    warns of, on any rank."""
    plan = made.plan if made else None
    mine = {
        "hash": plan.hash if plan else None,
        "error": None if error is None else str(error),
        "options": options,
        "warning": made.executor.warning() if made else "",
    }
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
        _warn(group, [t["warning"] for t in theirs])
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


def _warn(group, said: list[str]) -> None:
    if dist.get_rank(group) != 0:
        return
    for text in dict.fromkeys(filter(None, said)):
        ranks = ", ".join(str(rank) for rank, other in enumerate(said) if other == text)
        warn(f"on rank {ranks}: {text}", stacklevel=4)
