"""A small model with everything that a checkpoint can hold, and gradients that are the same for any world size."""

from __future__ import annotations

import zlib

import torch
from torch import nn

FROZEN = ("fixed.weight", "fixed.bias")
ALIASES = {"lm_head.weight": "embed.weight"}
MUON = ("first.weight", "narrow.weight", "widen.weight", "last.weight")  # hidden matrices
BUFFERS = ("running", "steps", "mask")


class Zoo(nn.Module):
    """Tied and frozen weights, buffers of several types, sizes that no world size divides, and some below three."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 12)
        self.first = nn.Linear(12, 7)
        self.norm = nn.LayerNorm(7)
        self.narrow = nn.Linear(7, 2, bias=False)
        self.widen = nn.Linear(2, 13)
        self.fixed = nn.Linear(13, 9)
        self.last = nn.Linear(9, 12)
        self.lm_head = nn.Linear(12, 11, bias=False)
        self.lm_head.weight = self.embed.weight
        self.gain = nn.Parameter(torch.ones(1))
        self.register_buffer("running", torch.arange(5, dtype=torch.float32) / 3)
        self.register_buffer("steps", torch.tensor(42))
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.register_buffer("scratch", torch.zeros(4), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: (batch, length) -> (batch, 11)"""
        x = torch.tanh(self.norm(self.first(self.embed(tokens).mean(1))))
        x = torch.tanh(self.fixed(torch.tanh(self.widen(self.narrow(x)))))
        return self.lm_head(self.last(x) * self.gain)


def build() -> Zoo:
    """The same on every rank."""
    torch.manual_seed(0)
    model = Zoo()
    for name, param in model.named_parameters():
        param.requires_grad_(name not in FROZEN)
    return model


def gradient(name: str, shape: tuple[int, ...], step: int) -> torch.Tensor:
    """(shape) fp32 multiples of 3/256 of at most eight bits: a mean over 1, 2 or 3 ranks is exact in any type."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {step}".encode()))
    return torch.randint(-40, 41, shape, generator=generator) * (3 / 256)


def tokens() -> torch.Tensor:
    return torch.arange(6).reshape(1, 6)
