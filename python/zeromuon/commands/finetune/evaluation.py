"""Held-out loss, the same number for any number of ranks up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from unittest import mock

import torch

from ...ranks.connect import Ranks
from .data import IGNORED_LABEL

MOST_SEQUENCES = 512  # of the held-out text; more are left out, to bound the time


@dataclass(frozen=True)
class HeldOut:
    """input_ids, labels: [C, T] int64, the same on every rank."""

    input_ids: object
    labels: object
    causal: bool

    def targets(self) -> list[int]:
        """The tokens that the loss is taken over."""
        labels = self.labels[:, 1:] if self.causal else self.labels
        return labels[labels != IGNORED_LABEL].tolist()


def stock_linear():
    """Within it, torch's own linear layer, where ZeRO-3 has put its memory-saving one.

    The two round differently (up to 7e-6 in the logits of the demo's model); with this one a plain process that loads the
    saved model gets the same bits. Only for passes without gradients: with gradients it would keep the gathered weights alive.
    """
    return mock.patch.object(torch.nn.functional, "linear", torch._C._nn.linear)


def logits_of(engine, input_ids):
    """Logits [B, T, vocabulary] without dropout and gradients; every rank must call it."""
    engine.eval()
    with torch.no_grad(), stock_linear():
        logits = engine(input_ids=input_ids).logits
    engine.train()
    return logits


def held_out_loss(engine, held_out: HeldOut, batch: int, ranks: Ranks) -> float:
    """Mean cross-entropy in nats over all targets; every rank must call it.

    Each rank takes every world_size-th batch. ZeRO-3 needs the same number of forward passes everywhere, so a rank that has
    run out repeats the first batch with weight 0.
    """
    total = count = 0.0
    starts = list(range(0, len(held_out.input_ids), batch))
    for first in range(0, len(starts), ranks.world_size):
        mine = first + ranks.rank
        start = starts[mine] if mine < len(starts) else 0
        loss, targets = _batch_loss(engine, held_out, slice(start, start + batch), ranks.device)
        if mine < len(starts):
            total, count = total + loss, count + targets
    total, count = ranks.sum([total, count])
    return total / count


def _batch_loss(engine, held_out: HeldOut, rows: slice, device: str) -> tuple[float, int]:
    labels = held_out.labels[rows].to(device)
    logits = logits_of(engine, held_out.input_ids[rows].to(device))
    if held_out.causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    wanted = labels != IGNORED_LABEL
    loss = torch.nn.functional.cross_entropy(logits[wanted].float(), labels[wanted], reduction="sum")
    return loss.item(), int(wanted.sum())
