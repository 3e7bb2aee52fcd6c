"""What this package reads of DeepSpeed's ZeRO-3 optimizer; with host_loop.py, and nothing else does.

Every attribute of DeepSpeed that the binding relies on is named here and checked before use, so that
a release that moved one ends in an error that names it instead of in wrong numbers.
"""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass

import torch

from .. import _core
from ..selection.rules import ParamSpec

SUPPORTED = "0.18.0 to 0.19.8"  # releases of DeepSpeed, see docs/integration.md

REQUIRED_ATTRIBUTES = (
    "optimizer",
    "fp16_groups",
    "fp32_partitioned_groups_flat",
    "grad_position",
    "param_names",
    "sub_group_to_group_id",
    "dp_process_group",
    "offload_optimizer",
    "partial_offload",
    "swap_optimizer",
    "get_param_id",
    "_overflow_clean_up",
    "_update_scale",
    "_post_step",
    "_pre_step",
    "partition_grads",
    "micro_step_id",
    "dtype",
)


@dataclass
class SubGroup:
    """One flat shard that DeepSpeed steps as a whole.

    flat: [L] fp32 master weights of this rank, padding included. gradients appear in ``flat.grad``.
    """

    index: int
    group: int  # index of the parameter group that it was cut from
    role: str
    flat: torch.Tensor
    params: list
    specs: list[ParamSpec]


def deepspeed_version() -> str:
    import deepspeed

    return deepspeed.__version__


def check_signature(function, expected: list[str]) -> None:
    """Raises ValueError when a function of DeepSpeed takes other parameters than those named."""
    names = list(inspect.signature(function).parameters)
    if names != expected:
        raise ValueError(
            f"DeepSpeed {deepspeed_version()}: {function.__qualname__} takes {names}, expected {expected}; use a "
            f"supported release ({SUPPORTED})"
        )


def is_zero3(optimizer) -> bool:
    """Whether this is a ZeRO-3 optimizer with all that the binding relies on."""
    return all(hasattr(optimizer, name) for name in REQUIRED_ATTRIBUTES)


def find_zero3(params):
    """The ZeRO-3 optimizer that owns `params`. Raises ValueError when there is none."""
    owner = next((p._z3_optimizer for p in params if hasattr(p, "_z3_optimizer")), None)
    if owner is None:
        raise ValueError(
            "ZeroMuon works under DeepSpeed ZeRO stage 3 only, and these parameters are not "
            "partitioned by it; set zero_optimization.stage to 3 (stages 0 to 2: use a Muon made for "
            "whole parameters, such as torch.optim.Muon)"
        )
    return owner


def check_supported(zero3, optimizer) -> None:
    """Raises ValueError for an unknown DeepSpeed, a configuration that is not supported, or an engine that
    steps another optimizer than `optimizer`."""
    missing = [name for name in REQUIRED_ATTRIBUTES if not hasattr(zero3, name)]
    if missing:
        raise ValueError(
            f"DeepSpeed {deepspeed_version()}: its ZeRO-3 optimizer ({type(zero3).__name__}) has no "
            f"attribute {', '.join(missing)}, which zeromuon needs; use a supported release ({SUPPORTED})"
        )
    _refuse(_facts_of_zero3(zero3))
    if any(g is not process_group(zero3) for g in getattr(zero3, "sub_group_process_groups", [])):
        raise ValueError(f"ZeroMuon: {_EXPERT_PARALLEL}")
    if zero3.optimizer is not optimizer:
        raise ValueError(
            f"this ZeroMuon is not the optimizer of the engine: DeepSpeed steps a "
            f"{type(zero3.optimizer).__name__}; with offload and an optimizer object set "
            f"zero_force_ds_cpu_optimizer to false, or name ZeroMuon in the JSON config"
        )


@dataclass(frozen=True)
class _Facts:
    """What of a DeepSpeed configuration decides whether it is supported."""

    super_offload: bool
    zenflow: bool
    nvme: bool
    offload_ratio: float
    mics: bool
    hpz_size: int
    tensor_parallel_size: int
    expert_parallel: bool


def check_config(engine) -> None:
    """Raises ValueError for a DeepSpeed configuration that is not supported, before the engine builds on it."""
    stage = int(engine.zero_optimization_stage())
    if stage != 3:
        raise ValueError(
            f"ZeroMuon needs zero_optimization.stage 3, the config says {stage}; for stages 0 to 2 use a Muon made for "
            f"whole parameters, such as torch.optim.Muon or DeepSpeed's own"
        )
    zero, offload = engine._config.zero_config, engine._config.zero_config.offload_optimizer
    expert = getattr(engine._config, "expert_parallel_config", None)
    _refuse(
        _Facts(
            super_offload=bool(getattr(offload, "super_offload", False)),
            zenflow=getattr(zero, "zenflow", None) is not None,
            nvme=offload is not None and str(getattr(offload.device, "value", offload.device)) == "nvme",
            offload_ratio=1.0 if offload is None else offload.ratio,
            mics=getattr(zero, "mics_shard_size", -1) > 0,
            hpz_size=getattr(zero, "zero_hpz_partition_size", 1),
            tensor_parallel_size=engine.autotp_size() if hasattr(engine, "autotp_size") else 1,
            expert_parallel=bool(getattr(expert, "enabled", False)),
        )
    )


def _facts_of_zero3(zero3) -> _Facts:
    tensor_parallel = getattr(zero3, "model_parallel_group", None)
    return _Facts(
        super_offload="SuperOffload" in type(zero3).__name__,
        zenflow=bool(getattr(zero3, "zenflow", False)),
        nvme=zero3.swap_optimizer,
        offload_ratio=zero3.partial_offload if zero3.offload_optimizer else 1.0,
        mics=type(zero3).__name__.startswith("MiCS"),
        hpz_size=getattr(zero3, "zero_hpz_partition_size", 1),
        tensor_parallel_size=1 if tensor_parallel is None else torch.distributed.get_world_size(tensor_parallel),
        expert_parallel=False,  # seen by its process groups
    )


def _refuse(facts: _Facts) -> None:
    """Raises ValueError with why not and what instead for the first fact that is not supported."""
    refused = (
        (facts.super_offload, "SuperOffload steps its own CPU Adam and is not supported; remove super_offload"),
        (facts.zenflow, "ZenFlow steps its own Adam and is not supported; remove zenflow"),
        (
            facts.nvme,
            "offload_optimizer.device nvme is not supported: DeepSpeed swaps the states out between "
            "sub-groups; use cpu or none",
        ),
        (
            facts.offload_ratio != 1.0,
            f"offload_optimizer.ratio is {facts.offload_ratio}; with another value than 1.0 DeepSpeed steps a part of the "
            f"model with its own Adam; set it to 1.0",
        ),
        (facts.mics, "MiCS shards over a part of the ranks and is not supported; remove mics_shard_size"),
        (
            facts.hpz_size > 1,
            "zero_hpz_partition_size above 1 (hpZ of ZeRO++) is not supported: it keeps a second set "
            "of shards that was not shown to stay equal; set it to 1",
        ),
        (
            facts.tensor_parallel_size > 1,
            "tensor parallelism (AutoTP or an mpu) is not supported: a rank would hold a "
            "part of each matrix; set tensor_parallel.autotp_size to 1",
        ),
        (facts.expert_parallel, _EXPERT_PARALLEL),
    )
    for applies, message in refused:
        if applies:
            raise ValueError(f"ZeroMuon: {message}")


_EXPERT_PARALLEL = (
    "expert parallelism (AutoEP) partitions sub-groups over different process groups and is not supported; turn "
    "expert_parallel off, or set its size to 1"
)


def refuse_offload_states(zero3) -> None:
    """Makes engine.offload_states() end in an error that says why; DeepSpeed asserts its FusedAdam there."""

    def offload_states(*_args, **_keywords):
        raise ValueError(
            "offload_states() is not supported with ZeroMuon: the step holds on to where its states are; to keep them "
            "on the CPU use zero_optimization.offload_optimizer.device cpu"
        )

    zero3.offload_states = offload_states


def process_group(zero3):
    """The data-parallel group over which ZeRO-3 partitions its first sub-group, and supported ones all."""
    of_sub_groups = getattr(zero3, "sub_group_process_groups", None)
    first = of_sub_groups[0] if of_sub_groups else getattr(zero3, "dp_process_group", None)
    return first or torch.distributed.group.WORLD


def compute_device() -> torch.device:
    """Where collectives and Newton-Schulz run: this rank's accelerator as DeepSpeed sees it."""
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def read_sub_groups(zero3, specs: dict[int, ParamSpec]) -> list[SubGroup]:
    """The sub-groups in stepping order. `specs` maps ``id(parameter)`` to its spec; names are DeepSpeed's.

    Raises ValueError when a flat shard is not fp32 or a parameter is not one of the optimizer's.
    """
    sub_groups = []
    for index, params in enumerate(zero3.fp16_groups):
        flat = zero3.fp32_partitioned_groups_flat[index]
        if flat.dtype != torch.float32:
            raise ValueError(
                f"sub-group {index}: master weights are {flat.dtype}, expected torch.float32; leave "
                f"fp32_optimizer_states and master_weights at their defaults"
            )
        unknown = [p for p in params if id(p) not in specs]
        if unknown:
            raise ValueError(
                f"sub-group {index} holds {len(unknown)} parameters that this optimizer was not "
                f"built with; build it from the parameters of the model given to initialize()"
            )
        chosen = [dataclasses.replace(specs[id(p)], name=zero3.param_names[p]) for p in params]
        roles = {s.role for s in chosen}
        if len(roles) != 1:
            raise ValueError(f"sub-group {index} mixes roles {sorted(roles)}: DeepSpeed merged groups")
        sub_groups.append(
            SubGroup(index, int(zero3.sub_group_to_group_id[index]), roles.pop(), flat, list(params), chosen)
        )
    return sub_groups


def _param_spec(zero3, sub_group: SubGroup, param, spec: ParamSpec):
    group, offset, chunk = zero3.grad_position[zero3.get_param_id(param)]
    if group != sub_group.index:
        raise ValueError(
            f'parameter "{spec.name}": DeepSpeed {deepspeed_version()} places its gradient in '
            f"sub-group {group}, its weight in sub-group {sub_group.index}; not supported"
        )
    return _core.ParamSpec(
        name=spec.name,
        numel=param.ds_numel,
        chunk=chunk,
        shard_offset=offset,
        rows=spec.rows,
        cols=spec.cols,
        decay=spec.decay,
        transposed=spec.transposed,
    )


def core_sub_groups(zero3, sub_groups: list[SubGroup]):
    """The same as plain data for the planner."""
    return [
        _core.SubGroupSpec(g.role, [_param_spec(zero3, g, p, s) for p, s in zip(g.params, g.specs)]) for g in sub_groups
    ]


def real_numel(zero3, param) -> int:
    """Elements of a parameter on this rank, padding left out."""
    group = process_group(zero3)
    world_size, rank = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    return _core.zero3_range(param.ds_numel, world_size, rank)[1]


def check_layout(zero3, sub_groups: list[SubGroup]) -> None:
    """Compares the flat master weights with each parameter's own shard, padding left out.

    Raises ValueError naming the parameter and the DeepSpeed release when they differ.
    """
    for group in sub_groups:
        total = sum(zero3.grad_position[zero3.get_param_id(p)][2] for p in group.params)
        if total != group.flat.numel():
            raise ValueError(
                f"DeepSpeed {deepspeed_version()}: sub-group {group.index} has {group.flat.numel()} "
                f"elements on this rank, its parameters add up to {total}; not supported"
            )
        for param, spec in zip(group.params, group.specs):
            _, offset, _ = zero3.grad_position[zero3.get_param_id(param)]
            real = real_numel(zero3, param)
            _check_same(param, spec.name, group.flat.detach()[offset : offset + real], real)


def _check_same(param, name: str, master: torch.Tensor, real: int) -> None:
    shard = param.ds_tensor.detach().reshape(-1)[:real]
    if shard.numel() < real:
        return  # swapped out: there is nothing to compare with
    if not torch.equal(master.to(shard.dtype).to(shard.device), shard):
        raise ValueError(
            f'the master weights of "{name}" are not equal to its own shard. Either the weights were changed after '
            f"deepspeed.initialize (under GatheredParameters, say), which DeepSpeed would undo at the first step: change "
            f"them before it, or with safe_set_full_fp32_param; or DeepSpeed {deepspeed_version()} keeps them elsewhere "
            f"in the flat shard: use a supported release ({SUPPORTED})"
        )


def local_gradient(zero3, sub_group: SubGroup, position: int):
    """This rank's share of a parameter's reduced gradient, padding left out; a view, or None when there is none yet.

    position: of the parameter in its sub-group. Still multiplied with the loss scale, and not clipped.
    """
    _, offset, chunk = zero3.grad_position[zero3.get_param_id(sub_group.params[position])]
    gradient = sub_group.flat.grad  # with offload at all times, else only while the sub-group is stepped
    if gradient is not None:
        part = gradient[offset : offset + chunk]
    else:
        parts = getattr(zero3, "averaged_gradients", {}).get(sub_group.index)
        part = parts[position] if parts else None
    if part is None:
        return None
    return part.detach().reshape(-1)[: real_numel(zero3, sub_group.params[position])]
