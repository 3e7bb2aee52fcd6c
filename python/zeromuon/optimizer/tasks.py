"""What the executor is told to do with a sub-group in one step."""

from __future__ import annotations

from .. import _core
from ..deepspeed.layout import Request
from .options import hyper_parameters


def make_task(request: Request, state: dict, options: dict, values: dict, count: int, decoupled_decay: bool):
    """_core.MuonTask or _core.AdamWTask, which hold references to the tensors.

    options: of the optimizer. values: of the parameter group, in place of those. count: 1 in the first step.
    """
    flat = request.sub_group.flat
    tensors = (request.sub_group.index, flat.data, flat.grad, state["exp_avg"])
    told = {**values, "gradient_scale": request.gradient_scale}
    hyper = hyper_parameters(request.sub_group.role, options) | told
    if request.sub_group.role == "muon":
        return _core.MuonTask(*tensors, request.low_precision, **hyper)
    tensors = (*tensors, state["exp_avg_sq"], request.low_precision)
    return _core.AdamWTask(*tensors, **hyper, step=count, decoupled=decoupled_decay)
