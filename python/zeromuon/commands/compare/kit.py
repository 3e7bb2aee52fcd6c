"""A small model on real ZeRO-3 and the reference beside it: what the rows of compare and the multirank tests share."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import nn

JORDAN = [(3.4445, -4.775, 2.0315)] * 5
BAR = 2e-6  # of weights, per unit of the largest one and at least of one


def allow_fp16_on_cpus() -> None:
    """DeepSpeed trains in fp16 only where the accelerator lists it; torch's CPU kernels can, if slowly."""
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.supported_dtypes = lambda: [torch.float32, torch.bfloat16, torch.float16]
    accelerator.is_fp16_supported = lambda: True


def initialize(model: nn.Module, config: dict, **given):
    """The engine, quietly. given: to deepspeed.initialize; without optimizer and model_parameters all parameters."""
    import deepspeed

    if not given.get("optimizer"):
        given.setdefault("model_parameters", list(model.parameters()))
    with contextlib.redirect_stdout(io.StringIO()):
        return deepspeed.initialize(model=model, config=config, **given)[0]


def under_zero_init(build: Callable[[], nn.Module], config: dict) -> nn.Module:
    """The weights of build(), partitioned from the start."""
    import deepspeed

    whole = build().state_dict()
    with deepspeed.zero.Init(config_dict_or_path=config):
        model = build()
    for name, param in model.named_parameters():
        with deepspeed.zero.GatheredParameters([param], modifier_rank=0):
            if dist.get_rank() == 0:
                param.data.copy_(whole[name])
    return model


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """name -> whole fp32 master weight of every trained parameter, on the CPU."""
    from deepspeed.utils import safe_get_full_fp32_param

    whole = {n: safe_get_full_fp32_param(p) for n, p in model.named_parameters() if p.requires_grad}
    return {n: w.detach().float().cpu().clone() for n, w in whole.items() if w is not None}


def on_all_ranks(value) -> list:
    """What every rank has, in rank order."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def mean_gradients(model: nn.Module, data, loss_of: Callable) -> Iterator[None]:
    """Each time it is advanced, the parameters have the gradients of one step: the mean of all ranks and micro-batches.

    data: [step][micro-batch][rank] -> tensors. loss_of: takes the model and the tensors of all ranks, joined.
    """
    for step in data:
        model.zero_grad()
        for ranks in step:
            joined = tuple(torch.cat(parts) for parts in zip(*ranks))
            (loss_of(model, joined) / len(step)).backward()
        yield


def distance(a: dict, b: dict) -> float:
    """The largest difference of an element. Raises ValueError where the names differ."""
    if a.keys() != b.keys():
        raise ValueError(f"{sorted(a.keys() ^ b.keys())} on one side only")
    return max((a[n].double() - b[n].double()).abs().max().item() for n in b)


def weight_bar(expected: dict) -> float:
    """How far weights may be off."""
    return BAR * max(1.0, max(w.abs().max().item() for w in expected.values()))
