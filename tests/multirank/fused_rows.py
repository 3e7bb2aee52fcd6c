"""Rows about the fused step: the bits of the plain path, where it gives way, what an error leaves. Each returns a dict."""

from __future__ import annotations

import contextlib
import functools
import warnings

import torch
import torch.distributed as dist

from tests.multirank import models, world
from tests.multirank.cases import Case
from tests.multirank.rows import OFFLOAD, error_of, on_ranks

STEPS_TAKEN = 7  # batches are used again
SKIPPED = 3  # the step that is spoilt where no loss scale overflows by itself


class _Counting:
    """An executor that notes how many tasks each call had, and stands for it in all else."""

    def __init__(self, executor):
        self._executor, self.tasks = executor, []

    def step(self, tasks):
        self.tasks.append(len(tasks))
        return self._executor.step(tasks)

    def __getattr__(self, name):
        return getattr(self._executor, name)


# ---- the same bits -----------------------------------------------------------------------------------


def fused_and_plain(case: dict) -> dict:
    """Trains with the fused step and without; a step is skipped on the way."""
    case = Case(**case)
    fused, plain = (_trained(case, {"fused_step": option}) for option in ("on", "off"))
    return _compared(fused, plain)


def fake_device_homes(case: dict) -> dict:
    """The fused step with the shard on the CPU and a fake compute device, for each home of the momentum, against
    the plain path without one."""
    case = Case(**case)
    plain, rows = _trained(case, {"fused_step": "off"}), {}
    for name, home in (("shard", "cpu"), ("streamed", "cpu_streamed")):
        with _fake_device():
            rows[name] = _compared(_trained(case, {"fused_step": "on", "momentum_device": home}), plain)
    return rows


@contextlib.contextmanager
def _fake_device():
    """Within it, a binding plans for a device of its own memory, and gets a fake one."""
    from zeromuon import _lab
    from zeromuon.optimizer import bind

    executor = functools.partial(_lab.fake_device_executor, seed=7)
    real, bind.backend = bind.backend, bind.Backend(lambda shard, compute: True, executor)
    try:
        yield
    finally:
        bind.backend = real


def _trained(case: Case, options: dict, before_step: dict | None = None) -> dict:
    """Tensors by name, and what was counted. before_step: step -> what is called before it."""
    import zeromuon

    case = Case(**{**case.as_dict(), "options": {**case.options, **options}})
    _, engine = world.build_engine(case)
    zeromuon.attach(engine)
    optimizer = engine.optimizer.optimizer
    executor = optimizer._binding.executor = _Counting(optimizer._binding.executor)
    data = models.batches(case, dist.get_world_size())
    for step in range(STEPS_TAKEN):
        spoilt = step == SKIPPED and case.dtype != "fp16"
        (before_step or {}).get(step, lambda: None)()
        hook = engine.module.register_forward_hook(lambda _m, _i, output: output * float("nan")) if spoilt else None
        world.train(engine, [data[step % len(data)]], range(1))
        if hook is not None:
            hook.remove()
    counters = optimizer.counters()
    return {
        "tensors": _real_elements(engine),
        "tasks": executor.tasks,
        "sub_groups": len(optimizer._binding.sub_groups),
        "taken": counters["steps"],
        "skipped": counters["skipped_steps"],
    }


def _real_elements(engine) -> dict[str, torch.Tensor]:
    """This rank's part of every weight and state, padding left out."""
    zero3, found = engine.optimizer, {}
    for sub_group in zero3.optimizer._binding.sub_groups:
        state = zero3.optimizer.state[sub_group.flat]
        flats = {"master": sub_group.flat.detach(), **{k: v for k, v in state.items() if torch.is_tensor(v)}}
        for param, spec in zip(sub_group.params, sub_group.specs):
            _, offset, chunk = zero3.grad_position[param.ds_id]
            real = min(max(param.ds_numel - dist.get_rank() * chunk, 0), chunk)
            for key, flat in flats.items():
                found[f"{spec.name} {key}"] = flat[offset : offset + real].clone()
            found[f"{spec.name} low precision"] = param.ds_tensor.detach().reshape(-1)[:real].clone()
        found[f"step of {sub_group.index}"] = torch.tensor(state["step"])
    return found


def _compared(a: dict, b: dict) -> dict:
    assert a["tensors"].keys() == b["tensors"].keys()
    differing = [
        n for n, t in a["tensors"].items() if t.dtype != b["tensors"][n].dtype or not torch.equal(t, b["tensors"][n])
    ]
    kinds = sorted({n.rpartition(" ")[2] for n in a["tensors"]})
    return {
        "differing": world.on_all_ranks(differing),
        "kinds": kinds,
        "sub_groups": a["sub_groups"],
        "fused_tasks": a["tasks"],
        "plain_tasks": b["tasks"],
        "taken": [a["taken"], b["taken"]],
        "skipped": [a["skipped"], b["skipped"]],
    }


# ---- where it gives way --------------------------------------------------------------------------------


def _spoil(zero3, obstacle: str) -> None:
    """Makes this ZeRO-3 object look like one that the fused step does not know."""
    if obstacle == "autocast":
        zero3.torch_autocast_gradscaler = object()
    elif obstacle == "replaced":
        zero3._release_sub_group = zero3._release_sub_group
    elif obstacle == "signature":
        zero3.__class__ = type("Other", (type(zero3),), {"_optimizer_step": lambda self, sub_group_id, extra: None})
    elif obstacle == "missing":
        zero3.__class__ = type("Other", (type(zero3),), {"clip_grad": property(_absent)})


def _absent(self):
    raise AttributeError("clip_grad")


def fused_obstacle(obstacle: str) -> dict:
    """Binds with fused_step "auto" and "on": what is warned of, what is raised, and who steps."""
    import zeromuon

    found = {}
    for option in ("auto", "on"):
        _, engine = world.build_engine(Case("obstacle", sub_group=150, options={"fused_step": option}))
        _spoil(engine.optimizer, obstacle)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            error = error_of(lambda: (zeromuon.attach(engine), zeromuon.attach(engine)))
        said = [str(w.message) for w in caught if "fused_step" in str(w.message)]
        found[option] = {"errors": world.on_all_ranks(error), "warnings": world.on_all_ranks(said)}
    return found


# ---- errors, schedulers and hooks ------------------------------------------------------------------------


def fused_bad_value() -> dict:
    """A learning rate that is no number in the last group: found before anything is stepped."""
    _, engine = world.build_engine(OFFLOAD)
    data = models.batches(OFFLOAD, dist.get_world_size())
    world.train(engine, data, range(1))
    optimizer = engine.optimizer.optimizer
    lr, before = optimizer.param_groups[-1]["lr"], world.shards_of(engine)
    optimizer.param_groups[-1]["lr"] = "auto"
    row = on_ranks(lambda: world.train(engine, data, range(1, 2)))
    unchanged = world.same_bits(before, world.shards_of(engine))
    optimizer.param_groups[-1]["lr"] = lr
    again = on_ranks(lambda: world.train(engine, data, range(2, 3)))
    return {
        **row,
        "again": again["errors"],
        "unchanged": world.on_all_ranks(unchanged),
        "steps": optimizer.counters()["steps"],
        "left": [len(g["params"]) for g in optimizer.param_groups],
    }


def fused_failure(offload: bool) -> dict:
    """A step that raises a StepError; what it leaves behind."""
    from zeromuon import StepError

    case = Case("failure", sub_group=150, offload=offload)
    _, engine = world.build_engine(case)
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(1))
    optimizer = engine.optimizer.optimizer

    class Failing(_Counting):
        def step(self, tasks):
            raise StepError("a stage failed")

    real = optimizer._binding.executor
    optimizer._binding.executor = Failing(real)
    row = on_ranks(lambda: world.train(engine, data, range(1, 2)))
    optimizer._binding.executor = real
    again = on_ranks(lambda: world.train(engine, data, range(2, 3)))
    held = [g.index for g in optimizer._binding.sub_groups if g.flat.grad is not None]
    return {
        **row,
        "again": again["errors"],
        "held": held,
        "recorded": len(_recorder_of(engine.optimizer)._recorded),
        "left": [len(g["params"]) for g in optimizer.param_groups],
    }


def _recorder_of(zero3):
    """What stands in the place of DeepSpeed's loop."""
    from zeromuon.deepspeed import hooks

    return next(hook for hook in hooks._hooks if hook.is_of(zero3, "_optimizer_step")).replacement.__self__


def unregistered(case: dict) -> dict:
    """Trains with the fused step; zeromuon.unregister() on the way, which ends it. Against the plain path."""
    import zeromuon

    case = Case(**case)
    plain = _trained(case, {"fused_step": "off"})
    try:
        found = _compared(_trained(case, {"fused_step": "on"}, {SKIPPED + 1: zeromuon.unregister}), plain)
    finally:
        zeromuon.register()
    return found


def fused_hooks() -> dict:
    """torch's scheduler and step hooks see the fused step as a call of step()."""
    case = Case("hooks", sub_group=150, schedule="torch LambdaLR", options={"fused_step": "on"})
    _, engine = world.build_engine(case)
    optimizer, seen = engine.optimizer.optimizer, []
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        world.train(engine, models.batches(case, dist.get_world_size()), range(2))
    said = [str(w.message) for w in caught if "lr_scheduler" in str(w.message)]
    return {"seen": seen, "warnings": said, "opt_called": getattr(optimizer, "_opt_called", False)}
