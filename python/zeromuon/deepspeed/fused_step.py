"""Steps all sub-groups at once, in place of DeepSpeed's loop over them.

ZeRO-3's ``step()`` goes through five methods for one sub-group after the other: prepare, unscale and clip, step, copy
to the low-precision weights, release. Here these, on the one ZeRO-3 object that was bound, only record; when the last
sub-group is released, one call of ``optimizer.step()`` does the work of all. So Muon and AdamW sub-groups overlap,
and the kernels multiply the gradient and write the low-precision weights in the pass in which they touch them anyway.
``step()`` itself, with its overflow check and norm, stays DeepSpeed's. The optimizer's own ``step`` is called, not gone
around: torch's schedulers and hooks see a call, as ever.

The numbers are those of the loop, bit for bit. Two things that DeepSpeed leaves behind differ: with offload the
gradient buffers are not scaled in place (so a parameter that a step did not use is stepped with its earlier gradient
as it was reduced, not scaled a second time), and gradients live until the end of the step.

Memory without offload: where gradients are summed in fp32, they are read where they are, and the fp32 copy of one
sub-group that DeepSpeed's loop makes is saved. Where they are summed in 16 bits, the fp32 copies of sub-groups in one
call live together: bounded to twice the largest, by stepping in more than one call. With offload nothing is copied.
"""

from __future__ import annotations

import itertools

import torch

from . import layout, loop
from .hooks import replace_once
from .layout import Request, unexpected_shards
from .release import deepspeed_version

_LOOP = tuple(loop.LOOP_METHODS)
_COPIES_IN_UNITS_OF_LARGEST = 2  # enough for one sub-group of each role


class FusedStep:
    """The recorder. Thread: the one that calls the engine's step().

    optimizer: its step_requests() steps what was recorded, its poison() is told of an error after that.
    """

    def __init__(self, optimizer, zero3, sub_groups: list[layout.SubGroup]):
        self._optimizer, self._zero3, self._sub_groups = optimizer, zero3, sub_groups
        self._reassign_now = zero3._reassign_or_swap_out_partitioned_parameters
        self._release_now = zero3._release_sub_group
        self._recorded: list[Request] = []
        self._in_place: set[int] = set()  # sub-groups whose gradient was not copied
        self._calls: int | None = None  # of the five methods in this step; None outside a recorded step
        self._scale: float = 1.0
        self._one = torch.ones(1, dtype=torch.float32, device=sub_groups[0].flat.device)
        self._most_copied_bytes = _COPIES_IN_UNITS_OF_LARGEST * max(map(_gradient_bytes, sub_groups))

    def install(self) -> None:
        """Puts the recorder in the place of DeepSpeed's loop."""
        replacements = (self._prepare, self._unscale, self._step, self._reassign, self._release)
        for (name, signature), replacement in zip(loop.LOOP_METHODS.items(), replacements):
            replace_once(self._zero3, name, signature, replacement)

    # ---- the five methods of the loop ----------------------------------------------------------

    def _prepare(self, prepare, sub_group_id, timer_names):
        if sub_group_id == 0:
            self._begin()
        sub_group, gradient = self._sub_groups[sub_group_id], None
        if self._is_recording("_prepare_sub_group", sub_group_id) and not self._zero3.offload_optimizer:
            gradient = loop.gradient_in_place(self._zero3, sub_group)
        if gradient is None:
            return prepare(sub_group_id, timer_names)
        sub_group.flat.grad = gradient
        self._in_place.add(sub_group_id)

    def _unscale(self, unscale, sub_group_id, total_norm):
        if not self._is_recording("unscale_and_clip_grads", sub_group_id):
            return unscale(sub_group_id, total_norm)
        self._scale = loop.gradient_scale(self._zero3, sub_group_id, total_norm, self._one)

    def _step(self, step, sub_group_id):
        if not self._is_recording("_optimizer_step", sub_group_id):
            return step(sub_group_id)
        low_precision = loop.low_precision_shard(self._zero3, sub_group_id)
        self._recorded.append(Request(self._sub_groups[sub_group_id], self._scale, low_precision))

    def _reassign(self, reassign, sub_group_id):
        if not self._is_recording("_reassign_or_swap_out_partitioned_parameters", sub_group_id):
            return reassign(sub_group_id)

    def _release(self, release, sub_group_id, timer_names):
        if not self._is_recording("_release_sub_group", sub_group_id):
            return release(sub_group_id, timer_names)
        following = self._sub_groups[sub_group_id + 1 :]
        if not following or self._copied_bytes() + _gradient_bytes(following[0]) > self._most_copied_bytes:
            self._step_recorded(timer_names)
        if not following:
            self._calls = None

    # ---- bookkeeping -----------------------------------------------------------------------------

    def _begin(self) -> None:
        """A step begins; one that ended in an exception may have left something. Raises ValueError when DeepSpeed steps
        other shards than were bound."""
        self._forget()
        flats = self._zero3.fp32_partitioned_groups_flat
        for sub_group, flat in itertools.zip_longest(self._sub_groups, flats):
            if sub_group is None or flat is not sub_group.flat:
                raise unexpected_shards(flats, sub_group or self._sub_groups[-1])
        self._calls = 0

    def _is_recording(self, name: str, sub_group_id: int) -> bool:
        """False within a step that began before the recorder was there. Raises ValueError when it is another method's
        turn."""
        if self._calls is None:
            return False
        sub_group, method = divmod(self._calls, len(_LOOP))
        if (sub_group, _LOOP[method]) != (sub_group_id, name):
            raise ValueError(
                f"DeepSpeed {deepspeed_version()} calls {name} for sub-group {sub_group_id}, expected "
                f"{_LOOP[method]} for sub-group {sub_group}: its step is not the one that the fused step records; set "
                f'fused_step to "off"'
            )
        self._calls += 1
        return True

    def _copied_bytes(self) -> int:
        """Of the gradients that were made for the recorded sub-groups and are held until they are stepped."""
        if self._zero3.offload_optimizer:
            return 0
        return sum(_gradient_bytes(r.sub_group) for r in self._recorded if r.sub_group.index not in self._in_place)

    def _step_recorded(self, timer_names) -> None:
        try:
            self._optimizer.step_requests(self._recorded)
        except BaseException:
            self._forget()
            raise
        try:
            for request in self._recorded:
                self._finish(request, timer_names)
        except BaseException as error:  # some low-precision weights are not the new ones
            self._optimizer.poison(error)
            self._forget()
            raise
        self._recorded = []

    def _finish(self, request: Request, timer_names) -> None:
        index = request.sub_group.index
        if request.low_precision is None:
            self._reassign_now(index)
        else:
            self._zero3._unflatten_partitioned_parameters(index)
        self._release_now(index, timer_names)
        if index in self._in_place:
            self._in_place.discard(index)
            self._zero3.averaged_gradients[index] = None  # as DeepSpeed's own preparation leaves it

    def _forget(self) -> None:
        """Nothing is recorded, and no gradient of a recorded sub-group is held."""
        if not self._zero3.offload_optimizer:
            for index in self._in_place | {r.sub_group.index for r in self._recorded}:
                self._sub_groups[index].flat.grad = None
        self._recorded, self._in_place, self._calls = [], set(), None


def _gradient_bytes(sub_group: layout.SubGroup) -> int:
    return sub_group.flat.numel() * sub_group.flat.element_size()
