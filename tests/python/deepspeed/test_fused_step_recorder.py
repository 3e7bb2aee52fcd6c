"""The recorder of the fused step on a loop of its own: order, memory, and the scale that DeepSpeed would multiply with."""

from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from zeromuon.deepspeed import hooks, loop as host_loop
from zeromuon.deepspeed.fused_step import FusedStep


class Loop:
    """ZeRO-3's loop over sub-groups, its methods noting what they were called for."""

    offload_optimizer, loss_scale, clip_grad = False, 4.0, 0.0
    unscale_and_clip_grads = DeepSpeedZeroOptimizer_Stage3.unscale_and_clip_grads

    def __init__(self, numels, dtype=torch.bfloat16):
        self.log = []
        self.fp32_partitioned_groups_flat = [torch.zeros(n, requires_grad=True) for n in numels]
        self.fp16_partitioned_groups_flat = [torch.zeros(n, dtype=torch.bfloat16) for n in numels]
        sums = torch.ones(sum(numels), dtype=dtype).split(numels)
        self.averaged_gradients = {i: list(part.split([1, len(part) - 1])) for i, part in enumerate(sums)}

    def _prepare_sub_group(self, sub_group_id, timer_names):
        self.log.append(("prepare", sub_group_id))
        self.fp32_partitioned_groups_flat[sub_group_id].grad = torch.cat(self.averaged_gradients[sub_group_id]).float()
        self.averaged_gradients[sub_group_id] = None

    def _optimizer_step(self, sub_group_id):
        self.log.append(("step", sub_group_id))

    def _reassign_or_swap_out_partitioned_parameters(self, sub_group_id):
        self.log.append(("copy", sub_group_id))

    def _unflatten_partitioned_parameters(self, sub_group_id):
        self.log.append(("unflatten", sub_group_id))

    def _release_sub_group(self, sub_group_id, timer_names):
        self.log.append(("release", sub_group_id))
        self.fp32_partitioned_groups_flat[sub_group_id].grad = None

    def step(self):
        for i in range(len(self.fp32_partitioned_groups_flat)):
            self._prepare_sub_group(i, set())
            self.unscale_and_clip_grads(i, torch.tensor(1.0))
            self._optimizer_step(i)
            self._reassign_or_swap_out_partitioned_parameters(i)
            self._release_sub_group(i, set())


class Optimizer:
    def __init__(self):
        self.calls, self.held_bytes = [], []

    def step_requests(self, requests):
        self.calls.append([r.sub_group.index for r in requests])
        self.requests = requests[:]
        held = [f.grad for f in self.loop.fp32_partitioned_groups_flat if f.grad is not None]
        self.held_bytes.append(sum(4 * g.numel() for g in held))


def recorded(numels, dtype=torch.bfloat16):
    loop, optimizer = Loop(numels, dtype), Optimizer()
    sub_groups = [SimpleNamespace(index=i, flat=flat) for i, flat in enumerate(loop.fp32_partitioned_groups_flat)]
    optimizer.loop, optimizer.fused = loop, FusedStep(optimizer, loop, sub_groups)
    optimizer.fused.install()
    return loop, optimizer


def test_fp32_sums_are_read_where_they_are_in_one_call():
    loop, optimizer = recorded([8, 3, 3], torch.float32)
    addresses = [parts[0].data_ptr() for parts in loop.averaged_gradients.values()]
    seen = []
    step = optimizer.step_requests

    def noting(requests):
        seen.extend(f.grad.data_ptr() for f in loop.fp32_partitioned_groups_flat)
        step(requests)

    optimizer.step_requests = noting
    loop.step()
    assert optimizer.calls == [[0, 1, 2]] and seen == addresses
    assert ("prepare", 0) not in loop.log and loop.averaged_gradients == {0: None, 1: None, 2: None}
    assert all(f.grad is None for f in loop.fp32_partitioned_groups_flat)


@pytest.mark.parametrize(
    "numels, calls",
    [([8, 8], [[0, 1]]), ([8, 8, 8], [[0, 1], [2]]), ([2, 8, 2, 2, 9, 9, 9], [[0, 1, 2, 3], [4, 5], [6]])],
)
def test_copied_gradients_are_held_up_to_twice_the_largest_sub_group(numels, calls):
    loop, optimizer = recorded(numels)
    loop.step()
    assert optimizer.calls == calls
    assert max(optimizer.held_bytes) <= 2 * 4 * max(numels)
    assert all(f.grad is None for f in loop.fp32_partitioned_groups_flat)


def test_requests_carry_the_scale_and_the_low_precision_weights_which_are_not_copied_again():
    loop, optimizer = recorded([4, 4])
    loop.fp16_partitioned_groups_flat[1] = torch.zeros(4)  # fp32: DeepSpeed's own copy
    loop.step()
    assert [r.gradient_scale for r in optimizer.requests] == [0.25, 0.25]
    assert optimizer.requests[0].low_precision is loop.fp16_partitioned_groups_flat[0]
    assert optimizer.requests[1].low_precision is None
    assert [entry for entry in loop.log if entry[0] in ("copy", "unflatten")] == [("unflatten", 0), ("copy", 1)]
    assert ("step", 0) not in loop.log


def test_gradients_that_are_not_in_one_piece_are_copied():
    loop, _ = recorded([8], torch.float32)
    sub_group = SimpleNamespace(index=0, flat=loop.fp32_partitioned_groups_flat[0])
    assert host_loop.gradient_in_place(loop, sub_group).numel() == 8
    whole = torch.ones(20)
    for parts in (
        [torch.ones(1), torch.ones(7)],
        [whole[:4], whole[5:9]],
        [whole[:4], whole[4:7]],
        [whole[:4], whole[4:8].double()],
        [whole[:16:2]],
    ):
        loop.averaged_gradients[0] = parts
        assert host_loop.gradient_in_place(loop, sub_group) is None


def test_a_loop_in_another_order_is_refused_and_the_next_step_begins_anew():
    loop, optimizer = recorded([4, 4])
    loop._prepare_sub_group(0, set())
    with pytest.raises(ValueError, match="calls _optimizer_step for sub-group 0, expected unscale_and_clip_grads"):
        loop._optimizer_step(0)
    with pytest.raises(ValueError, match="expected unscale_and_clip_grads for sub-group 0"):
        loop._prepare_sub_group(1, set())
    loop.averaged_gradients[0] = list(torch.ones(4, dtype=torch.bfloat16).split(2))
    loop.step()
    assert optimizer.calls == [[0, 1]]


def test_a_step_that_began_before_the_recorder_was_there_stays_deepspeeds():
    loop, optimizer = recorded([4, 4])
    loop._optimizer_step(0)
    loop._reassign_or_swap_out_partitioned_parameters(0)
    loop._release_sub_group(0, set())
    loop._prepare_sub_group(1, set())
    loop.unscale_and_clip_grads(1, torch.tensor(1.0))
    assert loop.log == [("step", 0), ("copy", 0), ("release", 0), ("prepare", 1)]
    assert optimizer.calls == [] and optimizer.fused._recorded == []


def test_an_error_of_the_step_leaves_nothing_recorded_and_no_gradient():
    loop, optimizer = recorded([4, 4], torch.float32)
    optimizer.step_requests = lambda requests: (_ for _ in ()).throw(RuntimeError("broken"))
    with pytest.raises(RuntimeError, match="broken"):
        loop.step()
    assert optimizer.fused._recorded == [] and all(f.grad is None for f in loop.fp32_partitioned_groups_flat)


def test_once_undone_the_loop_is_deepspeeds_also_where_somebody_else_has_wrapped_a_part_of_it():
    loop, optimizer = recorded([4, 4], torch.float32)
    ours = loop._prepare_sub_group
    loop._prepare_sub_group = lambda *arguments: ours(*arguments)
    with pytest.warns(UserWarning, match="Loop._prepare_sub_group"):
        hooks.undo_all()
    loop.step()
    assert optimizer.calls == []
    assert loop.log == [(name, i) for i in (0, 1) for name in ("prepare", "step", "copy", "release")]


def test_other_shards_than_those_bound_are_refused():
    loop, _ = recorded([4, 4])
    loop.fp32_partitioned_groups_flat[1] = torch.zeros(5)
    with pytest.raises(ValueError, match=r"given 2 flat shards of \[4, 5\] elements, expected sub-group 1 of 4"):
        loop.step()


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("norm", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "loss_scale", [1.0, 128.0, 3.0, 65537.0, torch.tensor(3.0), torch.tensor(7.0, dtype=torch.float64)]
)
def test_the_scale_gives_the_bits_of_deepspeeds_own_multiplication(clip, norm, loss_scale):
    loop = Loop([1000])
    loop.loss_scale, loop.clip_grad = loss_scale, clip
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    for total_norm in torch.tensor([0.01, 1.7, 33.3, 1e-3 / 3], dtype=norm):
        scale = host_loop.gradient_scale(loop, 0, total_norm, torch.zeros(1))
        loop.fp32_partitioned_groups_flat[0].grad = gradient.clone()
        loop.unscale_and_clip_grads(0, total_norm)
        assert torch.equal(gradient * torch.tensor(scale), loop.fp32_partitioned_groups_flat[0].grad)
