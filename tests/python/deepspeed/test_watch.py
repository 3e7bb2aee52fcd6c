"""What is replaced on a ZeRO-3 object before its first step; the object stands for DeepSpeed's."""

import threading
from types import SimpleNamespace

import deepspeed
import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3

from zeromuon.deepspeed import guard, hooks, loop, optimizer_types, support, watch


class Zero3:
    """Notes what is called, with the methods that a step of DeepSpeed's has."""

    dtype, micro_step_id, dp_process_group = torch.float16, 0, None

    def __init__(self):
        self.log = []

    def _pre_step(self):
        self.log.append("pre_step")

    def _overflow_clean_up(self, prev_scale):
        self.log.append("clean_up")

    def _update_scale(self, has_overflow=False):
        self.log.append(f"scale {has_overflow}")

    def _post_step(self, timer_names):
        self.log.append("post_step")

    def partition_grads(self, params_to_release, grad_partitions):
        self.log.append("partition")

    def wait_in_sub_groups(self):
        pass

    def offload_states(self, include=None, device="cpu", pin_memory=True, non_blocking=False):
        self.log.append("offload")

    def step(self, closure=None):
        self._pre_step()
        self._update_scale(self.dtype is None)
        if self.dtype is None:  # an overflow
            return self._overflow_clean_up(1.0)
        self.wait_in_sub_groups()
        self.log.append("sub-groups")
        self._post_step(set())


class Optimizer:
    def stage_timeout_s(self, group):
        return 0

    def __init__(self, zero3):
        self.zero3, self.skipped = zero3, 0

    def bind(self):
        self.zero3.log.append("bind")
        return SimpleNamespace(zero3=self.zero3, sub_groups=[])

    def count_skipped_step(self):
        self.skipped += 1
        return False


@pytest.fixture
def watched(monkeypatch):
    monkeypatch.setattr(watch, "is_first_rank", lambda zero3: True)
    zero3 = Zero3()
    optimizer = Optimizer(zero3)
    watch.watch_engine(optimizer, zero3)
    watch.watch_engine(optimizer, zero3)
    yield zero3, optimizer
    hooks.undo_all()


def test_a_step_binds_once_before_it_begins_and_the_loss_scale_grows_after_it(watched):
    zero3, _ = watched
    zero3.step()
    assert zero3.log == ["bind", "pre_step", "sub-groups", "post_step", "scale False"]


def test_a_skipped_step_is_counted_once_and_its_loss_scale_falls_at_once(watched):
    zero3, optimizer = watched
    zero3.dtype = None
    zero3.step()
    del zero3.dtype
    zero3.step()
    skipped, taken = ["bind", "pre_step", "scale True", "clean_up"], ["bind", "pre_step", "sub-groups", "post_step"]
    assert zero3.log == [*skipped, *taken, "scale False"] and optimizer.skipped == 1


def test_a_second_thread_in_a_step_gets_an_error_and_the_first_goes_on(watched):
    zero3, _ = watched
    inside, go_on = threading.Event(), threading.Event()
    zero3.wait_in_sub_groups = lambda: (inside.set(), go_on.wait(60))
    first = threading.Thread(target=zero3.step)
    first.start()
    assert inside.wait(60)
    with pytest.raises(RuntimeError, match="another thread of this rank is in it; an engine is stepped by one thread"):
        zero3.step()
    go_on.set()
    first.join()
    zero3.wait_in_sub_groups = lambda: None
    zero3.step()
    assert zero3.log.count("post_step") == 2


def test_offload_states_is_refused_and_undone_with_the_rest(watched):
    zero3, _ = watched
    with pytest.raises(ValueError, match="offload_optimizer.device cpu"):
        zero3.offload_states()
    hooks.undo_all()
    zero3.offload_states()
    zero3.step()
    assert zero3.log == ["offload", "pre_step", "scale False", "sub-groups", "post_step"]
    assert set(vars(zero3)) == {"log"}


@pytest.mark.parametrize("name", sorted(support.REPLACED_METHODS))
def test_an_object_whose_method_has_changed_is_refused_before_anything_is_replaced(name):
    changed = type("Changed", (Zero3,), {name: lambda self, *, other: None})
    zero3 = changed()
    found = rf"DeepSpeed {deepspeed.__version__}: Changed\.{name} takes \['self', 'other'\], expected \['self'"
    with pytest.raises(ValueError, match=found):
        watch.watch_engine(Optimizer(zero3), zero3)
    assert set(vars(zero3)) == {"log"}


@pytest.mark.parametrize("name, signature", [*support.REPLACED_METHODS.items(), *loop.LOOP_METHODS.items()])
def test_the_installed_deepspeed_has_the_methods_that_are_replaced(name, signature):
    hooks.check_signature(DeepSpeedZeroOptimizer_Stage3, name, signature)


@pytest.mark.parametrize(
    "place, changed",
    [
        (guard.watch_engines, "_configure_optimizer"),
        (lambda: optimizer_types.add_type(Optimizer, None), "_configure_basic_optimizer"),
    ],
)
def test_an_engine_class_that_has_changed_is_named_when_zeromuon_is_registered(monkeypatch, place, changed):
    hooks.undo_all()
    monkeypatch.setattr(DeepSpeedEngine, changed, lambda self, everything: None)
    with pytest.raises(ValueError, match=rf"DeepSpeedEngine\.{changed} takes \['self', 'everything'\], expected"):
        place()
    assert not list(hooks._hooks) and optimizer_types._builders == {}
