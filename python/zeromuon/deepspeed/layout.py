"""How DeepSpeed's ZeRO-3 optimizer lays out weights, shards and gradients, and on which ranks and devices."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from .. import _core
from ..base import built
from ..selection.rules import ParamSpec
from .release import SUPPORTED, deepspeed_version


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


@dataclass(frozen=True)
class Request:
    """One sub-group to be stepped.

    gradient_scale: the float32 that its gradient is multiplied with first; 1.0 when that was done.
    low_precision: [L] bf16 or fp16 on the compute device, gets the new weights; None leaves them to DeepSpeed.
    """

    sub_group: SubGroup
    gradient_scale: float = 1.0
    low_precision: torch.Tensor | None = None


def unexpected_shards(given: list, expected: SubGroup) -> ValueError:
    """The error for flat shards that are not those which were bound."""
    return ValueError(
        f"ZeroMuon.step was given {len(given)} flat shards of {[flat.numel() for flat in given]} elements, expected "
        f"sub-group {expected.index} of {expected.flat.numel()}: DeepSpeed steps the sub-groups that were bound one by "
        f"one. If the engine was rebuilt or its parameters changed after attach(), build a new ZeroMuon for it"
    )


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


def stepped_optimizer(engine):
    """What the engine's ZeRO optimizer steps; what the engine itself steps where it has none, None without an engine."""
    outer = getattr(engine, "optimizer", None)
    return getattr(outer, "optimizer", None) or outer


def process_group(zero3):
    """The data-parallel group over which ZeRO-3 partitions its first sub-group, and supported ones all."""
    of_sub_groups = getattr(zero3, "sub_group_process_groups", None)
    first = of_sub_groups[0] if of_sub_groups else getattr(zero3, "dp_process_group", None)
    return first or torch.distributed.group.WORLD


def compute_device() -> torch.device:
    """Where collectives and Newton-Schulz run: this rank's accelerator as DeepSpeed sees it."""
    from deepspeed.accelerator import get_accelerator

    return torch.device(get_accelerator().current_device_name())


def check_build() -> None:
    """Raises ValueError when this build cannot work where collectives and Newton-Schulz would run."""
    device = compute_device()
    if device.type == "cuda" and (obstacle := built.obstacle_on_gpu(torch.cuda.get_device_capability(device))):
        raise ValueError(obstacle)


def gpu_id(device: torch.device) -> str | None:
    """Equal for ranks that share a GPU; None for a CPU."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None


def gpu_kind(device: torch.device) -> str:
    """Of GPUs on which, with this torch, a product has the same bits."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}, torch {torch.__version__}, CUDA {torch.version.cuda}"


def shard_device(zero3) -> torch.device | None:
    """Where the flat shards are; None where this object has none."""
    flats = getattr(zero3, "fp32_partitioned_groups_flat", None)
    return flats[0].device if flats else None


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
        blocks=spec.blocks,
    )


def trains_in_float32(sub_groups: list[SubGroup]) -> bool:
    """Whether forward and backward see float32 weights alone."""
    return {p.ds_tensor.dtype for g in sub_groups for p in g.params} == {torch.float32}


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


def local_place(zero3, param) -> tuple[int, int, int]:
    """(first, count, offset): the elements of a parameter that this rank holds, padding left out, and where they begin in
    its flat shard."""
    group = process_group(zero3)
    ranks = torch.distributed.get_world_size(group), torch.distributed.get_rank(group)
    _, offset, _ = zero3.grad_position[zero3.get_param_id(param)]
    return *_core.zero3_range(param.ds_numel, *ranks), offset


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
