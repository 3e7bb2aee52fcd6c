"""What the fused step reads of DeepSpeed's ZeRO-3 optimizer: the loop of its step() over sub-groups."""

from __future__ import annotations

import types

import torch

from .hooks import check_signature, without_wrapper
from .layout import SubGroup, compute_device
from .release import deepspeed_version

# What is taken over: methods of the loop over sub-groups -> their parameters.
LOOP_METHODS = {
    "_prepare_sub_group": ["self", "sub_group_id", "timer_names"],
    "unscale_and_clip_grads": ["self", "sub_group_id", "total_norm"],
    "_optimizer_step": ["self", "sub_group_id"],
    "_reassign_or_swap_out_partitioned_parameters": ["self", "sub_group_id"],
    "_release_sub_group": ["self", "sub_group_id", "timer_names"],
}
# What is needed beside what support.py names.
REQUIRED_BY_FUSED_STEP = (
    *LOOP_METHODS,
    "_unflatten_partitioned_parameters",
    "averaged_gradients",
    "clip_grad",
    "fp16_partitioned_groups_flat",
    "loss_scale",
)


def obstacle_to_fused_step(zero3) -> str | None:
    """Why the loop over sub-groups cannot be taken over, as a clause; None when it can."""
    missing = [name for name in REQUIRED_BY_FUSED_STEP if not hasattr(zero3, name)]
    if missing:
        return f"DeepSpeed {deepspeed_version()} has no {', '.join(missing)}"
    replaced = [name for name in LOOP_METHODS if name in vars(zero3)]
    if replaced:
        return f"{', '.join(replaced)} of this engine was replaced by another package"
    if getattr(zero3, "torch_autocast_gradscaler", None) is not None:
        return "torch.autocast in float16 steps through a GradScaler (torch_autocast.dtype float16)"
    return _obstacle_in_methods(zero3)


def _obstacle_in_methods(zero3) -> str | None:
    called = without_wrapper(type(zero3).step).__code__.co_names
    uncalled = [name for name in LOOP_METHODS if name not in called]
    if uncalled:
        return f"the step of DeepSpeed {deepspeed_version()} does not call {', '.join(uncalled)}"
    try:
        for name, parameters in LOOP_METHODS.items():
            check_signature(zero3, name, parameters)
    except ValueError as error:
        return str(error)
    return None


def low_precision_shard(zero3, index: int) -> torch.Tensor | None:
    """[L] the bf16 or fp16 weights of a sub-group, on the compute device or with the shard; None where DeepSpeed keeps
    them in fp32 or elsewhere."""
    low, flat = zero3.fp16_partitioned_groups_flat[index], zero3.fp32_partitioned_groups_flat[index]
    if low is None or low.dtype not in (torch.bfloat16, torch.float16):
        return None
    return low if low.device in (compute_device(), flat.device) else None


def gradient_scale(zero3, index: int, total_norm, one: torch.Tensor) -> float:
    """The float32 by which DeepSpeed multiplies the gradients of a sub-group, found by letting it multiply a one: the
    data types of loss scale and norm differ between configurations, and with them the last bit.

    one: [1] fp32 on the shard's device, for this to use.
    """
    one.fill_(1.0)
    type(zero3).unscale_and_clip_grads(_WithGradients(zero3, {index: one}), index, total_norm)
    return one.item()


class _WithGradients:
    """A ZeRO-3 object whose flat shards have these gradients instead."""

    def __init__(self, zero3, gradients: dict):
        self._zero3 = zero3
        self.fp32_partitioned_groups_flat = {i: types.SimpleNamespace(grad=g) for i, g in gradients.items()}

    def __getattr__(self, name):
        return getattr(self._zero3, name)


def gradient_in_place(zero3, sub_group: SubGroup) -> torch.Tensor | None:
    """[L] a sub-group's reduced gradient where DeepSpeed summed it, without offload; None unless that is fp32 in one
    piece on the shard's device. DeepSpeed's own loop copies it."""
    parts = zero3.averaged_gradients[sub_group.index]
    first, at, flat = parts[0], parts[0].data_ptr(), sub_group.flat
    for part in parts:
        if part.dtype != flat.dtype or part.device != flat.device or not part.is_contiguous() or part.data_ptr() != at:
            return None
        at += part.numel() * part.element_size()
    if at - first.data_ptr() != flat.numel() * flat.element_size():
        return None
    end = (first.storage_offset() + flat.numel()) * flat.element_size()
    return first.as_strided((flat.numel(),), (1,)) if end <= first.untyped_storage().nbytes() else None
