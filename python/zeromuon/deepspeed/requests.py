"""What DeepSpeed asks the optimizer to step."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .layout import SubGroup


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
