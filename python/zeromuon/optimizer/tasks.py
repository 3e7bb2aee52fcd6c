"""What the executor is told to do with a sub-group in one step."""

from __future__ import annotations

from dataclasses import dataclass

from .. import _core
from ..deepspeed.layout import Request
from .options import hyper_parameters


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
    told = {"lr": values.lr, "weight_decay": values.weight_decay, "gradient_scale": request.gradient_scale}
    hyper = hyper_parameters(request.sub_group.role, options) | told
    if request.sub_group.role == "muon":
        return _core.MuonTask(*tensors, request.low_precision, **hyper)
    tensors = (*tensors, state["exp_avg_sq"], request.low_precision)
    return _core.AdamWTask(*tensors, **hyper, step=values.count, decoupled=values.decoupled_decay)
