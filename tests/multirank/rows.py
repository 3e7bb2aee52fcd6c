"""Rows beside parity: errors, skipped and failed steps, warnings, allocations. Each returns a dict."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import io
import os
import threading
import time
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from tests.multirank import models, parity, world
from tests.multirank.cases import STEPS, Case, deepspeed_config

PLAIN = Case("plain", sub_group=150)
OFFLOAD = Case("offload", sub_group=150, offload=True)


def error_of(action) -> str:
    """The message of what `action` raises on this rank; "" when it raises nothing."""
    try:
        action()
    except Exception as error:  # the row reports whatever it was
        return f"{type(error).__name__}: {error}"
    return ""


def on_ranks(action) -> dict:
    return {"errors": world.on_all_ranks(error_of(action))}


# ---- refused before anything is changed ----------------------------------------------------------


def stage_in_json(stage: int) -> dict:
    config = {**deepspeed_config(PLAIN), "zero_optimization": {"stage": stage}}
    return on_ranks(lambda: world.build_engine(PLAIN, config=config))


def stage_with_object(stage: int) -> dict:
    case = Case("object", route="groups")
    config = {**deepspeed_config(case), "zero_optimization": {"stage": stage}}
    model = models.build(case)
    before = [p.detach().clone() for p in model.parameters()]

    def build_and_step():
        _, engine = world.build_engine(case, model=model, config=config)
        world.train(engine, models.batches(case, dist.get_world_size()), range(1))

    row = on_ranks(build_and_step)
    same = all(torch.equal(a, b.detach().cpu().view_as(a)) for a, b in zip(before, model.parameters()))
    return {**row, "unchanged": world.on_all_ranks(same)}


def unknown_option_in_json() -> dict:
    case = Case("typo", options={"nestrov": True})
    return on_ranks(lambda: world.build_engine(case))


def options_read() -> dict:
    """Names of the options that a run looks at while it is built, bound and stepped."""
    from zeromuon.optimizer import optimizer

    read = set()

    class Noting(dict):
        def __getitem__(self, key):
            read.add(key)
            return super().__getitem__(key)

    validate, agreed = optimizer.validate_options, optimizer.ZeroMuon._agreed_options
    optimizer.validate_options = lambda given: Noting(validate(given))
    optimizer.ZeroMuon._agreed_options = lambda self: Noting(agreed(self))
    try:
        case = Case("options", model="latent", sub_group=150, options={"qk_clip": True})
        _, engine = world.build_engine(case)
        world.train(engine, models.batches(case, dist.get_world_size()), range(1))
    finally:
        optimizer.validate_options, optimizer.ZeroMuon._agreed_options = validate, agreed
    return {"read": sorted(read)}


def not_ours() -> dict:
    import zeromuon

    config = {**deepspeed_config(PLAIN), "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}}}
    _, engine = world.build_engine(PLAIN, config=config)
    return on_ranks(lambda: zeromuon.attach(engine))


def plans_differ() -> dict:
    """The last rank has another mask of what decays."""
    import zeromuon

    _, engine = world.build_engine(PLAIN)
    specs = engine.optimizer.optimizer._specs
    if dist.get_rank() == dist.get_world_size() - 1:
        specs.update({key: dataclasses.replace(spec, decay=not spec.decay) for key, spec in specs.items()})
    before = world.shards_of(engine)
    row = on_ranks(lambda: zeromuon.attach(engine))
    return {**row, "unchanged": world.on_all_ranks(world.same_bits(before, world.shards_of(engine)))}


def one_rank_cannot_bind() -> dict:
    import zeromuon

    _, engine = world.build_engine(PLAIN)
    if dist.get_rank() == dist.get_world_size() - 1:
        engine.optimizer.partial_offload, engine.optimizer.offload_optimizer = 0.5, True
    return on_ranks(lambda: zeromuon.attach(engine))


def too_little_memory() -> dict:
    import zeromuon
    from zeromuon.optimizer import bind

    _, engine = world.build_engine(PLAIN)
    free = bind._free_bytes
    bind._free_bytes = lambda kind, ranks_here: 100
    try:
        return on_ranks(lambda: zeromuon.attach(engine))
    finally:
        bind._free_bytes = free


def memory_for_one_matrix() -> dict:
    """Bound with as much memory as the least that works, then with the option that the error names."""
    import zeromuon
    from zeromuon.optimizer import bind

    def attached(case: Case) -> dict:
        _, engine = world.build_engine(case)
        return on_ranks(lambda: zeromuon.attach(engine))

    free, smaller, needed = bind._free_bytes, bind._smaller, []
    try:
        bind._free_bytes = lambda device, ranks_here: max(needed, default=0)
        bind._smaller = lambda least, rank, kind, states, _: needed.append(states[kind] + least[rank][kind]) or ""
        attached(PLAIN)  # tells how much that is
        bind._smaller = smaller
        first = attached(PLAIN)
        most = int(first["errors"][0].rpartition(": ")[2])
        case = Case("least", sub_group=150, options={"max_bytes_in_flight": most})
        return {"first": first, "then": attached(case)["errors"]}
    finally:
        bind._free_bytes, bind._smaller = free, smaller


def missing_attribute() -> dict:
    import zeromuon

    _, engine = world.build_engine(PLAIN)
    del engine.optimizer.grad_position
    return on_ranks(lambda: zeromuon.attach(engine))


def changed_method() -> dict:
    """A ZeRO-3 object whose _post_step takes one argument more."""
    import zeromuon

    _, engine = world.build_engine(PLAIN)
    zero3 = engine.optimizer
    zero3.__class__ = type("Other", (type(zero3),), {"_post_step": lambda self, timer_names, extra: None})
    before = world.shards_of(engine)
    row = on_ranks(lambda: zeromuon.attach(engine))
    return {**row, "unchanged": world.on_all_ranks(world.same_bits(before, world.shards_of(engine)))}


def moved_layout() -> dict:
    import zeromuon

    _, engine = world.build_engine(OFFLOAD)
    with torch.no_grad():
        engine.optimizer.fp32_partitioned_groups_flat[0][0] += 1
    return on_ranks(lambda: zeromuon.attach(engine))


def parameters_changed_after_bind() -> dict:
    _, engine = world.build_engine(OFFLOAD)
    data = models.batches(OFFLOAD, dist.get_world_size())
    world.train(engine, data, range(1))
    flats = engine.optimizer.fp32_partitioned_groups_flat
    replaced = flats[0].detach().clone().requires_grad_()
    replaced.grad = flats[0].grad
    flats[0] = replaced
    before = [f.detach().clone() for f in flats]
    row = on_ranks(lambda: world.train(engine, data, range(1, 2)))
    after = [f.detach().clone() for f in engine.optimizer.fp32_partitioned_groups_flat]
    return {**row, "unchanged": world.on_all_ranks(world.same_bits(before, after))}


# ---- ranks and threads that are not where they should be --------------------------------------------


def missing_rank(late_s: float, limit_s: float) -> dict:
    """The last rank comes to engine.step() of its second step `late_s` after the others; what they said meanwhile."""
    case = Case("missing", offload=True, options={"stage_timeout_s": limit_s})
    gc.collect()  # engines of other rows
    before = _watching()
    _, engine = world.build_engine(case)
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(1))
    late = dist.get_rank() == dist.get_world_size() - 1
    with contextlib.redirect_stderr(io.StringIO()) as said:
        engine.backward(world.loss_of(engine, data[1][0][dist.get_rank()]))
        if late:
            time.sleep(late_s)
        engine.step()
    with_engine = _watching()
    engine.destroy()
    return {
        "said": world.on_all_ranks(said.getvalue()),
        "threads": world.on_all_ranks([len(with_engine - before), len(_watching() - before)]),
    }


def _watching() -> set[int]:
    return {thread.ident for thread in threading.enumerate() if "_watch" in thread.name}


def two_threads_in_a_step() -> dict:
    """A second thread calls engine.step() while the first is in it."""
    case = Case("threads", sub_group=150, offload=True)
    data = models.batches(case, dist.get_world_size())
    _, engine = world.build_engine(case)
    world.train(engine, data, range(2))
    expected = world.whole_weights(engine.module)
    engine.destroy()
    _, engine = world.build_engine(case)
    world.train(engine, data, range(1))
    zero3, errors = engine.optimizer, []
    partition = zero3._partition_all_parameters

    def with_another_thread():
        partition()
        other = threading.Thread(target=lambda: errors.append(error_of(engine.step)))
        other.start()
        other.join()

    zero3._partition_all_parameters = with_another_thread
    world.train(engine, data, range(1, 2))
    found = world.whole_weights(engine.module)
    return {
        "errors": world.on_all_ranks(errors),
        "same": world.on_all_ranks(all(torch.equal(found[name], weight) for name, weight in expected.items())),
    }


# ---- values that are not finite ------------------------------------------------------------------


def skipped_step(offload: bool) -> dict:
    case = OFFLOAD if offload else PLAIN
    _, engine = world.build_engine(case)
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(2))
    before = world.shards_of(engine)
    optimizer = engine.optimizer.optimizer
    last = dist.get_rank() == dist.get_world_size() - 1

    def spoil(module, inputs, output):
        return output * float("nan") if last else output

    messages = []
    hook = engine.module[-1].register_forward_hook(spoil)
    for step in (2, 3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            world.train(engine, data, range(step, step + 1))
        messages += [str(w.message) for w in caught if "skipped a step" in str(w.message)]
    hook.remove()
    unchanged = world.same_bits(before, world.shards_of(engine))
    skipped = optimizer.counters()["skipped_steps"]
    world.train(engine, data, range(4, 5))
    return {
        "unchanged": world.on_all_ranks(unchanged),
        "skipped": world.on_all_ranks(skipped),
        "warnings": world.on_all_ranks(messages),
        "steps": world.on_all_ranks(optimizer.counters()["steps"]),
    }


def spoilt_adamw(what: str, fused_step: str) -> dict:
    """An AdamW state that is not finite on the last rank, or a gradient whose square is not."""
    case = Case("spoilt adamw", sub_group=150, offload=True, options={"fused_step": fused_step})
    _, engine = world.build_engine(case)
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(2))
    zero3, optimizer = engine.optimizer, engine.optimizer.optimizer
    flat = next(g.flat for g in optimizer._binding.sub_groups if g.role == "adamw")
    norm_groups = zero3._get_norm_groups

    def spoilt_after_the_norm():
        norms = norm_groups()
        flat.grad[0] = 1e25  # before it DeepSpeed would skip the step: the norm's square is infinite
        return norms

    if dist.get_rank() == dist.get_world_size() - 1:
        if what == "gradient":
            zero3._get_norm_groups = spoilt_after_the_norm
        else:
            optimizer.state[flat][what][0] = float("nan")
    row = on_ranks(lambda: world.train(engine, data, range(2, 3)))
    again = on_ranks(lambda: world.train(engine, data, range(3, 4)))
    return {**row, "again": again["errors"]}


def poisoned(fused_step: str) -> dict:
    """A momentum that is not finite on the last rank; errors, and of which sub-groups the weights changed."""
    case = Case("poisoned", sub_group=150, offload=True, options={"fused_step": fused_step})
    _, engine = world.build_engine(case)
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(2))
    zero3 = engine.optimizer
    flats = zero3.fp32_partitioned_groups_flat
    if dist.get_rank() == dist.get_world_size() - 1:
        zero3.optimizer.state[flats[0]]["exp_avg"][0] = float("inf")
    before = [flat.detach().clone() for flat in flats]
    row = on_ranks(lambda: world.train(engine, data, range(2, 3)))
    again = on_ranks(lambda: world.train(engine, data, range(3, 4)))
    folder = Path("poisoned", fused_step)
    saved = on_ranks(lambda: engine.save_checkpoint(str(folder)))
    changed = [i for i, flat in enumerate(flats) if not world.same_bits([before[i]], [flat.detach()])]
    told = {"again": again["errors"], "saved": saved["errors"], "left": folder.exists()}
    return {**row, **told, "changed": world.on_all_ranks(changed), "sub_groups": len(flats)}


def interrupted(fused_step: str) -> dict:
    """An interrupt that is raised when the C++ call of a step returns, on every rank."""
    case = Case("interrupted", sub_group=150, offload=True, options={"fused_step": fused_step})
    _, engine = world.build_engine(case)
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(1))
    optimizer = engine.optimizer.optimizer
    real = optimizer._binding.executor

    class Interrupted:
        def step(self, tasks):
            real.step(tasks)
            raise KeyboardInterrupt

        def __getattr__(self, name):
            return getattr(real, name)

    def train():
        try:
            world.train(engine, data, range(1, 2))
        except KeyboardInterrupt:
            raise RuntimeError("interrupted") from None

    optimizer._binding.executor = Interrupted()
    row = on_ranks(train)
    optimizer._binding.executor = real
    again = on_ranks(lambda: world.train(engine, data, range(2, 3)))
    saved = on_ranks(optimizer.state_dict)
    return {**row, "again": again["errors"], "saved": saved["errors"]}


def told_differently(options: dict) -> dict:
    """The last rank is told other options, which no plan shows."""
    import zeromuon

    last = dist.get_rank() == dist.get_world_size() - 1
    _, engine = world.build_engine(Case("differ", options=options if last else {}))
    return on_ranks(lambda: zeromuon.attach(engine))


def failed_between_sub_groups() -> dict:
    """A learning rate that is no number in the last group, whose sub-group comes after others were stepped."""
    _, engine = world.build_engine(Case("one by one", sub_group=150, offload=True, options={"fused_step": "off"}))
    data = models.batches(OFFLOAD, dist.get_world_size())
    world.train(engine, data, range(1))
    optimizer = engine.optimizer.optimizer
    lr = optimizer.param_groups[-1]["lr"]
    optimizer.param_groups[-1]["lr"] = "auto"
    row = on_ranks(lambda: world.train(engine, data, range(1, 2)))
    optimizer.param_groups[-1]["lr"] = lr
    again = on_ranks(lambda: world.train(engine, data, range(2, 3)))
    return {**row, "again": again["errors"], "left": [len(g["params"]) for g in optimizer.param_groups]}


# ---- offload -------------------------------------------------------------------------------------


def offload_and_not() -> dict:
    """Trains with and without offload; clipping off, because DeepSpeed's own norm differs between the two."""

    def trained(offload: bool):
        case = Case("twice", offload=offload, sub_group=150, options={"weight_decay": 0.1})
        model, engine = world.build_engine(case)
        world.train(engine, models.batches(case, dist.get_world_size()), range(STEPS))
        found = [*world.whole_weights(model).items(), *parity.momenta(model).items()]
        return [tensor for _, tensor in sorted(found, key=lambda item: item[0])]

    without, with_offload = trained(False), trained(True)
    return {"tensors": len(without), "same": world.on_all_ranks(world.same_bits(without, with_offload))}


# ---- allocations ---------------------------------------------------------------------------------


def allocations(offload: bool, fused_step: str) -> dict:
    """Counts around each call of step() after the first optimizer step; a wide model, 40 KiB a matrix."""
    from zeromuon import _core

    case = Case("allocations", offload=offload, options={"fused_step": fused_step})
    model = torch.nn.Sequential(torch.nn.Linear(16, 96), torch.nn.Linear(96, 128), torch.nn.Linear(128, 5))
    _, engine = world.build_engine(case, model=model)
    data = models.batches(case, dist.get_world_size())
    _core.count_allocations()
    # The counters do count: a tensor, and a plan whose list of parameters is longer than 4 KiB.
    torch.zeros(2000)
    specs = [
        _core.ParamSpec(name=str(i), numel=4, chunk=4, shard_offset=4 * i, rows=2, cols=2, decay=True, transposed=False)
        for i in range(100)
    ]
    _core.SubGroupSpec("adamw", specs)
    warm = _core.allocation_count()
    world.train(engine, data, range(2))
    optimizer = engine.optimizer.optimizer
    step, counted = optimizer.step, []

    def counting_step(*args):
        before = _core.allocation_count()
        step(*args)
        after = _core.allocation_count()
        counted.append({k: after[k] - before[k] for k in after})

    optimizer.step = counting_step
    world.train(engine, data, range(2, STEPS))
    return {"warm": warm, "calls": len(counted), "counted": counted}


# ---- what is around a step -----------------------------------------------------------------------


def asked_by_one_rank() -> dict:
    """Rank 0 alone asks an optimizer that has not stepped for its state; then all save, load, and step."""
    _, engine = world.build_engine(PLAIN)
    optimizer = engine.optimizer.optimizer
    asked = [error_of(ask) for ask in (optimizer.state_dict, optimizer.record_trace)] if dist.get_rank() == 0 else []
    engine.save_checkpoint("asked")
    states = {key for state in optimizer.state.values() for key in state}
    engine.load_checkpoint("asked")
    world.train(engine, models.batches(PLAIN, dist.get_world_size()), range(1))
    steps = optimizer.counters()["steps"]
    return {"asked": asked, "states": sorted(states), "steps": world.on_all_ranks(steps)}


def engine_after_engine() -> dict:
    """A first engine that never stepped, and whose optimizer is still alive."""
    model, first = world.build_engine(PLAIN)
    kept = first.optimizer.optimizer
    first.destroy()
    _, second = world.build_engine(PLAIN, model=model)
    world.train(second, models.batches(PLAIN, dist.get_world_size()), range(1))
    return {"steps": second.optimizer.optimizer.counters()["steps"], "first": kept.is_bound}


@contextlib.contextmanager
def _ambient(setting: str):
    before = torch.get_default_dtype()
    try:
        if setting.startswith("default "):
            torch.set_default_dtype(getattr(torch, setting.split()[1]))
        if setting == "deterministic":
            torch.use_deterministic_algorithms(True)
        modes = {"inference": torch.inference_mode, "no grad": torch.no_grad}
        autocast = torch.autocast("cpu", dtype=torch.bfloat16) if setting == "autocast" else contextlib.nullcontext()
        with modes.get(setting, contextlib.nullcontext)(), autocast:
            yield
    finally:
        torch.set_default_dtype(before)
        torch.use_deterministic_algorithms(False)


def ambient(setting: str, fused_step: str) -> dict:
    """Whether two clipped steps in a setting of torch that the script left on have the bits of two without it."""
    case = Case("ambient", clip=0.05, offload=True, options={"fused_step": fused_step, "weight_decay": 0.1})
    data = models.batches(case, dist.get_world_size())
    weights = []
    for around in (None, lambda: _ambient(setting)):
        _, engine = world.build_engine(case)
        for step in range(2):
            engine.backward(world.loss_of(engine, data[step][0][dist.get_rank()]))
            with around() if around else contextlib.nullcontext():
                engine.step()
        weights.append(world.whole_weights(engine.module).values())
    return {"same": world.on_all_ranks(all(map(torch.equal, *weights)))}


def deepspeeds_muon() -> dict:
    """What is warned of when "type": "Muon" is DeepSpeed's own."""
    muon = {"type": "Muon", "params": {"lr": 1e-3, "torch_adam": True}}
    zero = {"stage": 3, "reduce_scatter": False}
    config = {**deepspeed_config(PLAIN), "optimizer": muon, "zero_optimization": zero}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        world.build_engine(PLAIN, config=config)
    return {"warnings": world.on_all_ranks([str(w.message) for w in caught if "zeromuon" in str(w.message)])}


def soak(steps: int) -> dict:
    """A long run with a scheduler, evaluation and checkpoints; what the process takes, every 100 steps from step 200 on."""
    case = Case("soak", sub_group=150, offload=True)
    config = deepspeed_config(case)
    config["scheduler"] = {"type": "WarmupDecayLR", "params": {"total_num_steps": steps, "warmup_num_steps": 100}}
    _, engine = world.build_engine(case, config=config)
    data = models.batches(case, dist.get_world_size())
    points = []
    for step in range(1, steps + 1):
        world.train(engine, data, [step % len(data)])
        if step % 50 == 0:
            engine.eval()
            with torch.no_grad():
                world.loss_of(engine, data[0][0][dist.get_rank()])
            engine.train()
        if step % 100 == 0:
            engine.save_checkpoint("soak", tag="soak")
        if step >= 200 and step % 100 == 0:
            gc.collect()
            points.append({"step": step, **_taken()})
    return {"ranks": world.on_all_ranks(points)}


def _taken() -> dict:
    resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "resident_bytes": resident_pages * os.sysconf("SC_PAGE_SIZE"),
        "threads": len(os.listdir("/proc/self/task")),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "shared_memory": len(os.listdir("/dev/shm")),
    }
