"""Watches what DeepSpeed does in silence to every optimizer: skipped steps, stale gradients, coarse sums.

Each finding is a warning on rank 0, said once, with the remedy. One fault is mended: a loss scale that grows before
the gradients are unscaled. The hooks sit on the one ZeRO-3 object that was bound.
"""

from __future__ import annotations

import warnings

import torch
import torch.distributed as dist

from . import layout


def watch_engine(optimizer, zero3) -> None:
    """Installs what must be there before the first step, which fp16 may skip: the count of skipped steps, the growth of
    the loss scale, and the binding of the optimizer. Does nothing on an object that has them."""
    if getattr(zero3, "_watched_by_zeromuon", False):
        return
    zero3._watched_by_zeromuon = True
    _watch_skipped_steps(optimizer, zero3)
    _grow_loss_scale_after_the_step(zero3)
    _bind_before_the_first_step(optimizer, zero3)


def _bind_before_the_first_step(optimizer, zero3) -> None:
    """All ranks begin a step together, before its loop over sub-groups: so the first step is fused like the others, and
    what keeps a rank from binding is said before anything changes."""
    pre_step = zero3._pre_step

    def bind_and_pre_step():
        optimizer.bind()
        return pre_step()

    zero3._pre_step = bind_and_pre_step


def watch_steps(binding) -> None:
    """Installs what needs the binding."""
    _warn_of_coarse_accumulation(binding)
    _watch_unused_parameters(binding)


def _is_first_rank(binding) -> bool:
    return dist.get_rank(layout.process_group(binding.zero3)) == 0


# ---- gradients summed in few bits ----------------------------------------------------------------


def _warn_of_coarse_accumulation(binding) -> None:
    """DeepSpeed sums micro-batches and ranks in the model's 16-bit type unless told otherwise."""
    dtype = getattr(binding.zero3, "gradient_accumulation_dtype", torch.float32)
    if dtype == torch.float32 or not _is_first_rank(binding):
        return
    name = str(dtype).removeprefix("torch.")
    warnings.warn(
        f"DeepSpeed sums the gradients of micro-batches in {name}, its default for this model; set "
        f'"data_types": {{"grad_accum_dtype": "fp32"}} in the DeepSpeed config to sum them in float32',
        stacklevel=2,
    )


# ---- steps that DeepSpeed skips ------------------------------------------------------------------


def _watch_skipped_steps(optimizer, zero3) -> None:
    """DeepSpeed skips a step with a non-finite gradient: count it, name the parameter once per streak."""
    clean_up = zero3._overflow_clean_up

    def counted_clean_up(prev_scale):
        # All ranks skip together, so this is a place where they can bind.
        if optimizer.count_skipped_step():
            _report_non_finite(optimizer.bind())
        return clean_up(prev_scale)

    zero3._overflow_clean_up = counted_clean_up


def _report_non_finite(binding) -> None:
    """Warns on rank 0 with the first parameter, in stepping order, whose gradient is not finite."""
    named = [(g, i) for g in binding.sub_groups for i in range(len(g.params))]
    found = [k for k, (g, i) in enumerate(named) if not _is_finite(layout.local_gradient(binding.zero3, g, i))]
    first = torch.tensor([found[0] if found else len(named)], device=layout.compute_device())
    dist.all_reduce(first, op=dist.ReduceOp.MIN, group=layout.process_group(binding.zero3))
    if not _is_first_rank(binding):
        return
    k = int(first.item())
    where = f'"{named[k][0].specs[named[k][1]].name}"' if k < len(named) else "no single parameter"
    warnings.warn(
        f"DeepSpeed skipped a step: the gradient of {where} has a NaN or infinite value; with fp16 "
        f"this is normal while the loss scale settles; otherwise look at the loss and the data",
        stacklevel=2,
    )


def _is_finite(gradient) -> bool:
    return gradient is None or bool(torch.isfinite(gradient).all())


# ---- the loss scale ------------------------------------------------------------------------------


def _grow_loss_scale_after_the_step(zero3) -> None:
    """DeepSpeed raises a dynamic loss scale and then divides the gradients, which still carry the old one, by the new:
    in that step norm and gradients are half of what they should be, before clipping. Here the scale grows after it."""
    if zero3.dtype != torch.float16:
        return
    update_scale, post_step = zero3._update_scale, zero3._post_step
    taken = {"step": False}

    def update_scale_if_skipped(has_overflow=False):
        taken["step"] = not has_overflow
        if has_overflow:
            update_scale(has_overflow)

    def post_step_and_grow(timer_names):
        post_step(timer_names)
        if taken["step"]:
            taken["step"] = False
            update_scale(False)

    zero3._update_scale, zero3._post_step = update_scale_if_skipped, post_step_and_grow


# ---- parameters that a step did not use ----------------------------------------------------------


def _watch_unused_parameters(binding) -> None:
    """ZeRO-3 overwrites a gradient buffer in the first micro-batch of a step only where there is a gradient: a
    parameter without one is stepped with what the buffer held. Rank 0 has a part of every parameter, so it sees all.
    """
    zero3 = binding.zero3
    if not _is_first_rank(binding):
        return
    watcher = _UnusedParameters(binding)
    partition_grads, pre_step = zero3.partition_grads, zero3._pre_step

    def noting_partition_grads(params_to_release, grad_partitions):
        if zero3.micro_step_id == 0:
            watcher.fresh.update(map(id, params_to_release))
        return partition_grads(params_to_release, grad_partitions)

    def checking_pre_step():
        watcher.check()
        return pre_step()

    zero3.partition_grads, zero3._pre_step = noting_partition_grads, checking_pre_step


class _UnusedParameters:
    """fresh: ids of the parameters whose buffer was overwritten since the last step."""

    def __init__(self, binding):
        self.fresh: set[int] = set()
        self._names = {id(p): s.name for g in binding.sub_groups for p, s in zip(g.params, g.specs)}
        self._holding = {
            id(p) for g in binding.sub_groups for i, p in enumerate(g.params) if _is_nonzero(binding.zero3, g, i)
        }
        self._warned = False

    def check(self) -> None:
        stale = [name for key, name in self._names.items() if key in self._holding - self.fresh]
        self._holding |= self.fresh
        self.fresh = set()
        if stale and not self._warned:
            self._warned = True
            warnings.warn(_unused_message(stale), stacklevel=2)


def _is_nonzero(zero3, sub_group, position: int) -> bool:
    gradient = layout.local_gradient(zero3, sub_group, position)
    return gradient is not None and bool((gradient != 0).any())


def _unused_message(stale: list[str]) -> str:
    named = ", ".join(f'"{name}"' for name in stale[:3]) + (", ..." if len(stale) > 3 else "")
    return (
        f"{len(stale)} parameters got no gradient in the first micro-batch of a step ({named}); DeepSpeed steps them "
        f"with their gradient of an earlier step, whatever the optimizer: freeze what is not trained "
        f"(requires_grad_(False)), or let every parameter take part in every micro-batch (for instance by adding "
        f"0 * parameter.sum() to the loss)"
    )
