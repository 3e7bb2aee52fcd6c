"""Watches what DeepSpeed does in silence to every optimizer: skipped steps, stale gradients, coarse sums.

Each finding is a warning on rank 0, said once, with the remedy. One fault is mended: a loss scale that grows before
the gradients are unscaled. What is replaced is replaced on the one ZeRO-3 object that is stepped.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable

import torch
import torch.distributed as dist

from ..base.warn import warn
from ..ranks.roll_call import RollCall
from . import layout, support

_watches: weakref.WeakKeyDictionary = (
    weakref.WeakKeyDictionary()
)  # ZeRO-3 object -> weakref of its _Watch, which its hooks hold


def watch_engine(optimizer, zero3) -> None:
    """Replaces what must be replaced before the first step, which fp16 may skip. Does nothing on an object that has it.

    Raises ValueError when this DeepSpeed has other methods; nothing is changed then.
    """
    support.check_methods(zero3)
    support.refuse_offload_states(zero3)
    if (watch := _watch_of(zero3)) is None:
        watch = _Watch(optimizer, zero3)
        _watches[zero3] = weakref.ref(watch)
    support.replace_method(zero3, "step", watch.step)
    support.replace_method(zero3, "_pre_step", watch.pre_step)
    support.replace_method(zero3, "partition_grads", watch.partition_grads)
    support.replace_method(zero3, "_overflow_clean_up", watch.overflow_clean_up)
    _grow_loss_scale_after_the_step(zero3)


def waits_in(zero3, call: str):
    """A context in which this rank waits for the others in `call`: longer than stage_timeout_s, and those that are missing
    are named. It gives a function that tells them: "" for a call that did not take so long."""
    watch = _watch_of(zero3)
    return contextlib.nullcontext(lambda: "") if watch is None else watch.roll_call.inside(call)


def end_watch(zero3) -> None:
    """The engine was destroyed: no thread and no connection of the watch is left."""
    if (watch := _watch_of(zero3)) is not None:
        watch.roll_call.close()


def _watch_of(zero3):
    held = _watches.get(zero3)
    return None if held is None else held()


class _Watch:
    """Over the steps of one ZeRO-3 object. Thread: the one that calls the engine's backward() and step()."""

    def __init__(self, optimizer, zero3):
        self._optimizer, self._zero3 = optimizer, zero3
        self.roll_call = RollCall(group := layout.process_group(zero3), optimizer.stage_timeout_s(group))
        self._stepping = threading.Lock()
        self._unused: _UnusedParameters | None = None  # on the first rank, from the first step on

    def step(self, step, closure=None):
        """Raises RuntimeError in a second thread, whose collectives would meet those of the first on other ranks."""
        if not self._stepping.acquire(blocking=False):
            raise RuntimeError(
                f"engine.step() was called in thread {threading.current_thread().name} while another thread of this rank "
                "is in it; an engine is stepped by one thread at a time"
            )
        try:
            with self.roll_call.inside("DeepSpeed's part of engine.step()"):
                return step(closure)
        finally:
            self._stepping.release()

    def pre_step(self, pre_step):
        """All ranks begin a step together, before its loop over sub-groups, so here they bind: the first step is fused
        like the others, and what keeps a rank from binding is said before anything changes."""
        binding = self._optimizer.bind()
        if self._unused is not None:
            self._unused.check()
        elif is_first_rank(self._zero3):
            self._unused = _UnusedParameters(binding)
        return pre_step()

    def partition_grads(self, partition_grads, params_to_release, grad_partitions):
        if self._unused is not None and self._zero3.micro_step_id == 0:
            self._unused.fresh.update(map(id, params_to_release))
        return partition_grads(params_to_release, grad_partitions)

    def overflow_clean_up(self, clean_up, prev_scale):
        """DeepSpeed skips a step with a non-finite gradient: count it, name the parameter once per streak."""
        # All ranks skip together, so this is a place where they can bind.
        if self._optimizer.count_skipped_step():
            with self.roll_call.inside("the report of a gradient that is not finite"):
                _report_non_finite(self._optimizer.bind())
        return clean_up(prev_scale)


def is_first_rank(zero3) -> bool:
    return dist.get_rank(layout.process_group(zero3)) == 0


# ---- gradients summed in few bits ----------------------------------------------------------------


def warn_of_coarse_accumulation(zero3) -> None:
    """DeepSpeed sums micro-batches and ranks in the model's 16-bit type unless told otherwise."""
    dtype = getattr(zero3, "gradient_accumulation_dtype", torch.float32)
    if dtype == torch.float32 or not is_first_rank(zero3):
        return
    name = str(dtype).removeprefix("torch.")
    warn(
        f"DeepSpeed sums the gradients of micro-batches in {name}, its default for this model; set "
        f'"data_types": {{"grad_accum_dtype": "fp32"}} in the DeepSpeed config to sum them in float32',
        stacklevel=2,
    )


# ---- steps that DeepSpeed skips ------------------------------------------------------------------


def _report_non_finite(binding) -> None:
    """Warns on rank 0 with the first parameter, in stepping order, whose gradient is not finite."""
    named = [(g, i) for g in binding.sub_groups for i in range(len(g.params))]
    found = [k for k, (g, i) in enumerate(named) if not _is_finite(layout.local_gradient(binding.zero3, g, i))]
    first = torch.tensor([found[0] if found else len(named)], dtype=torch.int64, device=layout.compute_device())
    dist.all_reduce(first, op=dist.ReduceOp.MIN, group=layout.process_group(binding.zero3))
    if not is_first_rank(binding.zero3):
        return
    k = int(first.item())
    where = f'"{named[k][0].specs[named[k][1]].name}"' if k < len(named) else "no single parameter"
    warn(
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
    scaling = _ScaleAfterStep()
    support.replace_method(zero3, "_update_scale", scaling.update_scale)
    support.replace_method(zero3, "_post_step", scaling.post_step)


class _ScaleAfterStep:
    """_update_later: DeepSpeed's own update of the scale, while a step is under way that is not skipped."""

    def __init__(self):
        self._update_later: Callable | None = None

    def update_scale(self, update_scale, has_overflow=False):
        self._update_later = None if has_overflow else update_scale
        if has_overflow:
            update_scale(has_overflow)

    def post_step(self, post_step, timer_names):
        post_step(timer_names)
        update_scale, self._update_later = self._update_later, None
        if update_scale is not None:
            update_scale(False)


# ---- parameters that a step did not use ----------------------------------------------------------


class _UnusedParameters:
    """ZeRO-3 overwrites a gradient buffer in the first micro-batch of a step only where there is a gradient: a parameter
    without one is stepped with what the buffer held. Rank 0 has a part of every parameter, so it sees all.

    fresh: ids of the parameters whose buffer was overwritten since the last step.
    """

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
            warn(_unused_message(stale), stacklevel=2)


def _is_nonzero(zero3, sub_group, position: int) -> bool:
    gradient = layout.local_gradient(zero3, sub_group, position)
    return gradient is not None and bool((gradient != 0).any())


def _unused_message(stale: list[str]) -> str:
    named = ", ".join(f'"{name}"' for name in stale[:3]) + (", ..." if len(stale) > 3 else "")
    return (
        f"{len(stale)} parameters got no gradient in the first micro-batch of a step ({named}); DeepSpeed steps them "
        f"with their gradient of an earlier step, whatever the optimizer: freeze what is not trained before "
        f"deepspeed.initialize (requires_grad_(False); later it changes nothing), put it into a parameter group whose lr "
        f"you set to 0, or let it take part in every micro-batch (loss + 0 * branch(x).sum())"
    )
