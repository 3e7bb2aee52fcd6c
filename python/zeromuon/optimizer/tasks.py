"""What the executor is told to do with a sub-group in one step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .. import _core
from ..deepspeed import layout
from .options import hyper_parameters


@dataclass(frozen=True)
class Request:
    """One sub-group to be stepped.

    gradient_scale: the float32 that its gradient is multiplied with first; 1.0 when that was done.
    low_precision: [L] bf16 or fp16 on the compute device, gets the new weights; None leaves them to DeepSpeed.
    """

    sub_group: layout.SubGroup
    gradient_scale: float = 1.0
    low_precision: torch.Tensor | None = None


@dataclass(frozen=True)
class Values:
    """What a sub-group is stepped with, beside the options. lr: of its role. count: 1 in the first step."""

    lr: float
    weight_decay: float
    count: int
    decoupled_decay: bool


def make_task(request: Request, state: dict, values: Values, options: dict):
    """_core.MuonTask or _core.AdamWTask, which hold references to the tensors. options: of the optimizer."""
    flat = request.sub_group.flat
    tensors = (request.sub_group.index, flat.data, flat.grad, state["exp_avg"])
    hyper = {
        **hyper_parameters(request.sub_group.role, options),
        "lr": values.lr,
        "weight_decay": values.weight_decay,
        "gradient_scale": request.gradient_scale,
    }
    if request.sub_group.role == "muon":
        return _core.MuonTask(*tensors, request.low_precision, **hyper)
    return _core.AdamWTask(
        *tensors,
        state["exp_avg_sq"],
        request.low_precision,
        **hyper,
        step=values.count,
        decoupled=values.decoupled_decay,
    )


def unexpected_shards(given: list, expected: layout.SubGroup) -> ValueError:
    """The error for flat shards that are not those which were bound."""
    return ValueError(
        f"ZeroMuon.step was given {len(given)} flat shards of {[flat.numel() for flat in given]} elements, expected "
        f"sub-group {expected.index} of {expected.flat.numel()}: DeepSpeed steps the sub-groups that were bound one by "
        f"one. If the engine was rebuilt or its parameters changed after attach(), build a new ZeroMuon for it"
    )
