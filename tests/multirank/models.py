"""The models that are trained, their data and, without asking the code under test, who gets Muon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import nn

from tests.multirank.cases import STEPS, Case


def _small() -> nn.Sequential:
    """Odd sizes, square, tall and wide matrices, two with fewer elements than three ranks."""
    return nn.Sequential(
        nn.Linear(16, 32),
        nn.LayerNorm(32),
        nn.Linear(32, 24),
        nn.Tanh(),
        nn.Linear(24, 2, bias=False),
        nn.Tanh(),
        nn.Linear(2, 1, bias=False),
        nn.Tanh(),
        nn.Linear(1, 13),
        nn.Tanh(),
        nn.Linear(13, 13),
        nn.Tanh(),
        nn.Linear(13, 5),
    )


def _well_conditioned() -> nn.Sequential:
    """A tall and a wide matrix whose gradients have singular values within a factor of about 20, for the Gram form."""
    return nn.Sequential(nn.Linear(5, 17), nn.LayerNorm(17), nn.Linear(17, 4))


def _wide() -> nn.Sequential:
    """A tall and a wide matrix, so large that processors with the hardware could multiply them in bf16."""
    return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))


def _convolutions() -> nn.Sequential:
    """A stem and a hidden convolution, and transformers' Conv1D, which is stored (in, out): a tall and a wide one."""
    from transformers.pytorch_utils import Conv1D

    return nn.Sequential(
        nn.Conv2d(2, 5, 3),
        nn.Tanh(),
        nn.Conv2d(5, 4, 3),
        nn.Flatten(),
        nn.LayerNorm(16),
        Conv1D(4, 16),
        nn.Tanh(),
        Conv1D(11, 4),
        nn.Tanh(),
        nn.Linear(11, 3),
    )


class _Mean(nn.Module):
    """The mean over the tokens of a sequence."""

    def forward(self, x):
        return x.mean(1)


def _tied() -> nn.Sequential:
    """Tokens in, classes out, with one matrix for the embedding and the head, and one shared by two hidden layers."""
    model = nn.Sequential(
        nn.Embedding(11, 12),
        _Mean(),
        nn.Linear(12, 12),
        nn.Tanh(),
        nn.Linear(12, 12),
        nn.Tanh(),
        nn.Linear(12, 12),
        nn.LayerNorm(12),
        nn.Linear(12, 11, bias=False),
    )
    model[8].weight, model[6].weight = model[0].weight, model[2].weight
    return model


def _lora() -> nn.Module:
    """The small model with LoRA adapters of rank 3 on three of its Linears; all else is frozen."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(_small(), LoraConfig(r=3, lora_alpha=6, target_modules=["2", "10", "12"]))


@dataclass(frozen=True)
class Model:
    """inputs: shape of one micro-batch. outputs: classes, or width of a regression target.

    tokens: inputs are integers below it.

    adamw: names with two or more dimensions that are no hidden matrices. transposed: names stored (in, out).
    """

    build: Callable[[], nn.Sequential]
    inputs: tuple[int, ...]
    outputs: int
    classify: bool = True
    tokens: int = 0
    adamw: tuple[str, ...] = ()
    transposed: tuple[str, ...] = ()

    def role(self, name: str, dimensions: int) -> str:
        return "muon" if dimensions >= 2 and name not in self.adamw else "adamw"


MODELS = {
    "small": Model(_small, (4, 16), 5),
    "well conditioned": Model(_well_conditioned, (64, 5), 4, classify=False),
    "wide": Model(_wide, (256, 64), 64, classify=False),
    "convolutions": Model(
        _convolutions, (4, 2, 6, 6), 3, classify=False, adamw=("0.weight",), transposed=("5.weight", "7.weight")
    ),
    "tied": Model(_tied, (4, 6), 11, tokens=11, adamw=("0.weight", "2.weight")),
    "lora": Model(_lora, (4, 16), 5),
}


def build(case: Case) -> nn.Sequential:
    """The same weights on every rank and for the reference."""
    torch.manual_seed(0)
    return MODELS[case.model].build()


def batches(case: Case, world: int):
    """[step][micro-batch][rank] -> (inputs, targets: classes (4,) or values (rows, outputs))"""
    generator, model = torch.Generator().manual_seed(7), MODELS[case.model]

    def batch():
        inputs = (
            torch.randint(0, model.tokens, model.inputs, generator=generator)
            if model.tokens
            else torch.randn(model.inputs, generator=generator)
        )
        if model.classify:
            return inputs, torch.randint(0, model.outputs, model.inputs[:1], generator=generator)
        return inputs, torch.randn((model.inputs[0], model.outputs), generator=generator)

    return [[[batch() for _ in range(world)] for _ in range(case.accumulation)] for _ in range(STEPS)]


def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A mean over the batch, so that equal shares of it average to the whole. targets: classes, or values."""
    if targets.is_floating_point():
        return nn.functional.mse_loss(outputs, targets.to(outputs.dtype))
    return nn.functional.cross_entropy(outputs, targets)
