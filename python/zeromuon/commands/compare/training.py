"""What every row needs: the process group, a small model, its data, an engine of either system, the reference."""

from __future__ import annotations

import contextlib
import logging

import torch
import torch.distributed as dist
from torch import nn

from ... import _core, reference
from ...ranks.connect import connect
from . import kit
from .launch import SECONDS_PER_RUN
from .rows import OURS

STEPS = 5
INPUTS = 16
LR, ADAM_LR, EPS, BETA = 0.02, 0.002, 1e-8, 0.95
LEAST_MOVE = 0.05  # a reference that moves less proves nothing
_spoilt = {"factor": 1.0}


class Raised(Exception):
    """What a system raised in a process of its own; the message is "Type: message"."""


class NotMeasurable(Exception):
    """The comparison did not find what it measures with; nothing is said of the system."""


def start() -> None:
    """Joins the process group over gloo and makes both optimizer types known."""
    from ... import register

    connect(logging.ERROR, seconds=SECONDS_PER_RUN)  # a rank may wait for what another does alone
    kit.allow_fp16_on_cpus()
    register()
    # DeepSpeed's products in fp32, so that a row shows its defect and not the rounding of 16-bit products. Releases without
    # this function decide by what the accelerator supports.
    with contextlib.suppress(ImportError):
        from deepspeed.runtime.zero.muon import original_muon

        original_muon.ns_compute_dtype = lambda ns_method="gram": torch.float32


def spoil(on: bool) -> None:
    """Ours gets a learning rate that is 1 % too large, for the test that sees it."""
    _spoilt["factor"] = 1.01 if on else 1.0


def build_model(width: int = 1) -> nn.Sequential:
    """Wide, tall and square matrices of different shapes, not in the order of their sizes, and vectors; the same weights
    on every rank. All Linear weights get Muon in both systems, so that roles play no part. width: of hidden layers."""
    torch.manual_seed(0)
    a, b = 12 * width, 24 * width
    return nn.Sequential(
        nn.Linear(INPUTS, a), nn.LayerNorm(a), nn.Linear(a, b), nn.Tanh(), nn.Linear(b, b), nn.Tanh(), nn.Linear(b, 5)
    )


def equal_squares() -> nn.Sequential:
    """Four 16x16 matrices and vectors, for rows that are not about shapes: releases that cannot mix shapes train it."""
    torch.manual_seed(0)
    n = INPUTS
    return nn.Sequential(
        nn.Linear(n, n), nn.LayerNorm(n), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, n)
    )


def batches(steps: int, accumulation: int = 1):
    """[step][micro-batch][rank] -> (inputs (8, INPUTS), classes (8,))"""
    generator = torch.Generator().manual_seed(7)

    def batch():
        return torch.randn(8, INPUTS, generator=generator), torch.randint(0, 5, (8,), generator=generator)

    ranks = range(dist.get_world_size())
    return [[[batch() for _ in ranks] for _ in range(accumulation)] for _ in range(steps)]


def loss_of(module, batch, factor: float = 1.0) -> torch.Tensor:
    inputs, classes = batch
    outputs = module(inputs.to(next(module.parameters()).dtype))
    return nn.functional.cross_entropy(outputs, classes) * factor


def optimizer_section(system: str) -> dict:
    """The same optimizer in the words of either system."""
    if system == OURS:
        rates = {"lr": LR * _spoilt["factor"], "adam_lr": ADAM_LR * _spoilt["factor"], "eps": EPS, "scale": "original"}
        in_fp32 = {"ns_form": "standard", "ns_dtype": "float32", "wire_dtype": "float32"}
        return {"type": "ZeroMuon", "params": {**rates, **in_fp32}}
    rates = {"muon_lr": LR, "adam_lr": ADAM_LR, "eps": EPS, "betas": [0.9, 0.95], "momentum": BETA, "weight_decay": 0.0}
    return {"type": "Muon", "params": {**rates, "ns_method": "standard", "torch_adam": True}}


def config_for(system: str, zero: dict | None = None, **sections) -> dict:
    """zero: changes to the section zero_optimization, None for a key that is not mentioned. reduce_scatter is off
    otherwise, which DeepSpeed's Muon asks for; gradient_clipping too."""
    changed = {"stage": 3, "reduce_scatter": False, "stage3_param_persistence_threshold": 0, **(zero or {})}
    return {
        "train_micro_batch_size_per_gpu": 8,
        "gradient_clipping": 0.0,
        "optimizer": optimizer_section(system),
        "zero_optimization": {key: value for key, value in changed.items() if value is not None},
        **sections,
    }


def build_engine(config: dict, model: nn.Module | None = None):
    return kit.initialize(build_model() if model is None else model, config)


def train(engine, data, factor: float = 1.0) -> None:
    """factor: of the loss."""
    for step in data:
        for micro_batch in step:
            engine.backward(loss_of(engine, micro_batch[dist.get_rank()], factor))
            engine.step()


def matrices_of(engine) -> dict[str, nn.Parameter]:
    """name -> parameter, of those with two dimensions."""
    return {n: p for n, p in engine.module.named_parameters() if len(p.ds_shape) >= 2}


def shard_numel(param) -> int:
    """Elements of `param` on this rank, padding left out."""
    return _core.zero3_range(param.ds_numel, dist.get_world_size(), dist.get_rank())[1]


def sub_group_of(zero3, param) -> int:
    return next(i for i, group in enumerate(zero3.fp16_groups) if any(p is param for p in group))


def stored_momentum(engine, system: str, param) -> torch.Tensor:
    """This rank's elements of the momentum of a matrix, as they are in the optimizer's state."""
    zero3 = engine.optimizer
    state = zero3.optimizer.state[zero3.fp32_partitioned_groups_flat[sub_group_of(zero3, param)]]
    key = "exp_avg" if system == OURS else "momentum_buffer"
    if key not in state:
        raise NotMeasurable(f"the optimizer's state has {sorted(state)}, expected {key}")
    _, start, _ = zero3.grad_position[zero3.get_param_id(param)]
    return state[key].detach()[start : start + shard_numel(param)]


def momenta_of(engine, system: str) -> dict[str, torch.Tensor]:
    """name -> whole fp32 momentum of every matrix, flat."""
    mine = {n: stored_momentum(engine, system, p).float().clone() for n, p in matrices_of(engine).items()}
    ranks = kit.on_all_ranks(mine)
    return {n: torch.cat([rank[n] for rank in ranks]) for n in mine}


def reference_run(data, clip: float = 0.0, build=build_model):
    """(weights, raw gradient norm of each step) of one process on whole tensors and all ranks' batches."""
    model = build()
    params = dict(model.named_parameters())
    before = {n: p.detach().clone() for n, p in params.items()}
    roles = {n: "muon" if p.ndim >= 2 else "adamw" for n, p in params.items()}
    muon = reference.Muon({n: p.data for n, p in params.items()}, roles, kit.JORDAN, LR, ADAM_LR, eps=EPS)
    steps = kit.mean_gradients(model, data, loss_of)
    norms = [muon.step({n: p.grad for n, p in params.items()}, clip) for _ in steps]
    weights = {n: p.detach() for n, p in params.items()}
    if kit.distance(weights, before) < LEAST_MOVE:
        raise NotMeasurable(f"the reference moved by less than {LEAST_MOVE}")
    return weights, norms
