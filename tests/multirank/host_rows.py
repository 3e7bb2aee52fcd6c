"""Rows about the host: refused configurations, warnings, "type": "Muon" taken over. Each returns a dict."""

from __future__ import annotations

import contextlib
import io
import warnings

import deepspeed
import torch
import torch.distributed as dist
from zeromuon.commands.compare import kit
from zeromuon.reference import Muon

from tests.multirank import models, world
from tests.multirank.cases import LR, STEPS, Case, deepspeed_config, selection
from tests.multirank.rows import OFFLOAD, PLAIN, on_ranks


def merged(config: dict, changes: dict) -> dict:
    """`config` with `changes`, section by section."""
    out = dict(config)
    for key, value in changes.items():
        out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def refused_config(changes: dict, route: str) -> dict:
    case = Case("refused", offload=True, route=route)
    config = merged(deepspeed_config(case), changes)
    return on_ranks(lambda: world.build_engine(case, config=config))


def refused_attributes(attributes: dict) -> dict:
    """What cannot be configured on this machine is set on the engine's ZeRO-3 object instead."""
    import zeromuon

    groups = {"WORLD": dist.group.WORLD, "ANOTHER": dist.new_group()}
    _, engine = world.build_engine(OFFLOAD)
    for name, value in attributes.items():
        value = [groups[v] for v in value] if isinstance(value, list) else groups.get(value, value)
        setattr(engine.optimizer, name, value)
    return on_ranks(lambda: zeromuon.attach(engine))


def refused_options(options: dict) -> dict:
    import zeromuon

    _, engine = world.build_engine(Case("refused", sub_group=150, offload=True, options=options))
    return on_ranks(lambda: zeromuon.attach(engine))


def offload_states() -> dict:
    import zeromuon

    _, engine = world.build_engine(PLAIN)
    zeromuon.attach(engine)
    return on_ranks(engine.offload_states)


# ---- what the documents say of DeepSpeed -------------------------------------------------------------


def gradient_after_a_step(fused_step: str) -> dict:
    """How long a gradient is that safe_get_full_grad shows after a clipped step with offload, and before it."""
    from deepspeed.utils import safe_get_full_grad

    case = Case("clipped", sub_group=150, offload=True, clip=1e-3, options={"fused_step": fused_step})
    model, engine = world.build_engine(case)
    batch = models.batches(case, dist.get_world_size())[0][0][dist.get_rank()]
    engine.backward(world.loss_of(engine, batch))
    norms = []
    for _ in range(2):
        norms.append(float(torch.stack([safe_get_full_grad(p).norm() for p in model.parameters()]).norm()))
        engine.step()
    return {"before": norms[0], "after": norms[1]}


def batch_size_that_is_set() -> dict:
    """Micro-batches of each step around a change from 2 to 3 of them."""
    case = Case("set", sub_group=150, accumulation=2)
    _, engine = world.build_engine(case)
    batch = models.batches(case, dist.get_world_size())[0][0][dist.get_rank()]
    lengths, count = [], 0
    for micro_step in range(4 + 2 + 3):
        if micro_step == 4:
            engine.set_train_batch_size(3 * 4 * dist.get_world_size())
        before, count = engine.global_steps, count + 1
        engine.backward(world.loss_of(engine, batch))
        engine.step()
        if engine.global_steps > before:
            lengths.append(count)
            count = 0
    return {"lengths": lengths}


# ---- warnings ------------------------------------------------------------------------------------


def _warnings_of(action) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    return [str(w.message) for w in caught if "DeepSpeed" in str(w.message)]


def coarse_accumulation(dtype: str, told: bool) -> dict:
    extra = {"fp16": {"initial_scale_power": 4}, **({"data_types": {"grad_accum_dtype": "fp32"}} if told else {})}
    case = Case("coarse", dtype=dtype, extra=extra)
    _, engine = world.build_engine(case)
    data = models.batches(case, dist.get_world_size())
    return {"warnings": world.on_all_ranks(_warnings_of(lambda: world.train(engine, data, range(2))))}


class _Skipping(torch.nn.Module):
    """Uses its middle layer only while told to; `never` is in no forward pass at all."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.last = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16), torch.nn.Linear(16, 5)
        self.never = torch.nn.Linear(4, 4)
        self.use_middle, self.with_zeros = True, False

    def forward(self, x):
        x = torch.tanh(self.first(x))
        y = self.last(self.middle(x) if self.use_middle else x)
        return y + 0 * self.middle(x).sum() if self.with_zeros else y


def unused_parameter(offload: bool) -> dict:
    """The middle layer takes part in two steps, then not; what is warned of in each phase, and how it moved."""
    case = Case("unused", offload=offload)
    torch.manual_seed(0)
    model, engine = world.build_engine(case, model=_Skipping())
    data = models.batches(case, dist.get_world_size())
    used = _warnings_of(lambda: world.train(engine, data, range(2)))
    before = world.whole_weights(model)["middle.weight"]
    model.use_middle = False
    unused = _warnings_of(lambda: world.train(engine, data, range(2, 4)))
    moved = (world.whole_weights(model)["middle.weight"] - before).abs().max().item()
    return {"used": world.on_all_ranks(used), "unused": world.on_all_ranks(unused), "moved": moved}


def unused_parameter_where_warnings_are_errors() -> dict:
    """What every rank's steps raise when rank 0 alone has something to warn of."""
    case = Case("unused")
    model, engine = world.build_engine(case, model=_Skipping())
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(2))
    model.use_middle = False
    errors = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        try:
            world.train(engine, data, range(2, 4))
        except UserWarning as error:
            errors.append(str(error))
    return {"errors": world.on_all_ranks(errors)}


def unused_parameter_remedied(remedy: str, offload: bool) -> dict:
    """The same with a remedy that the warning names: what is warned of then, and how the middle layer moved unused."""
    import zeromuon

    case = Case("unused", offload=offload, route="groups")
    torch.manual_seed(0)
    model = _Skipping()
    middle = list(model.middle.parameters())
    for param in model.parameters():
        param.use_muon = param.ndim == 2
    if remedy == "frozen before":
        model.middle.requires_grad_(False)
    others = [p for p in model.parameters() if p.requires_grad and all(p is not m for m in middle)]
    groups = [{"params": others}, *([{"params": middle}] if remedy != "frozen before" else [])]
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = zeromuon.ZeroMuon(groups, lr=LR)
    engine = world.initialize(model, deepspeed_config(case), None, optimizer)
    data = models.batches(case, dist.get_world_size())
    world.train(engine, data, range(2))
    before = _middle_of(model)
    if remedy == "takes part":
        model.with_zeros = True
    if remedy == "a group of lr 0":
        for group in optimizer.param_groups[2:]:
            group["lr"] = 0.0
    model.use_middle = False
    said = _warnings_of(lambda: world.train(engine, data, range(2, 4)))
    return {"unused": world.on_all_ranks(said), "moved": (_middle_of(model) - before).abs().max().item()}


def _middle_of(model) -> torch.Tensor:
    from deepspeed.utils import safe_get_full_fp32_param

    with deepspeed.zero.GatheredParameters([model.middle.weight]):
        whole = safe_get_full_fp32_param(model.middle.weight)
        return (model.middle.weight if whole is None else whole).detach().clone()


# ---- "type": "Muon" ------------------------------------------------------------------------------


def replaced_muon(params: dict, groups: bool, tagged: bool) -> dict:
    """Trains with "type": "Muon" taken over, against the reference with DeepSpeed's meaning of `params`.

    groups: two groups, the first with an lr of its own. tagged: the user gives 2.weight to AdamW.
    """
    import zeromuon

    zeromuon.register(replace_muon=True)
    try:
        return _trained_with_replaced_muon(params, groups, tagged)
    finally:  # rows that come after it in this launch
        zeromuon.unregister()
        zeromuon.register()


def _trained_with_replaced_muon(params: dict, groups: bool, tagged: bool) -> dict:
    case = Case("replaced")
    config = {**deepspeed_config(case), "optimizer": {"type": "Muon", "params": {**params, **selection(case)}}}
    model = world.build_model(case)
    if tagged:
        dict(model.named_parameters())["2.weight"].use_muon = False
    trained = list(model.parameters())
    given = [{"params": trained[:5], "lr": 0.01}, {"params": trained[5:]}] if groups else trained
    engine = world.initialize(model, config, given)
    world.train(engine, models.batches(case, dist.get_world_size()), range(STEPS))
    expected, moved = _deepspeed_meaning(case, params, groups, tagged)
    found = world.whole_weights(model)
    return {
        "type": type(engine.optimizer.optimizer).__name__,
        "error": kit.distance(found, expected),
        "moved": moved,
        "roles": sorted(_roles(engine).items()),
    }


def _roles(engine) -> dict:
    return {s.name: s.role for g in engine.optimizer.optimizer._binding.sub_groups for s in g.specs}


def _deepspeed_meaning(case: Case, params: dict, groups: bool, tagged: bool):
    """(weights after the run, how far they moved), by the reference, one per group of the user."""
    model = models.build(case)
    named = dict(model.named_parameters())
    start = {n: p.detach().clone() for n, p in named.items()}
    names = list(named)
    parts = [(names[:5], 0.01), (names[5:], None)] if groups else [(names, None)]
    references = [_reference_of(part, named, params, own_lr, tagged) for part, own_lr in parts]
    data = models.batches(case, dist.get_world_size())
    for _ in kit.mean_gradients(model, data, lambda model, batch: models.loss(model(batch[0]), batch[1])):
        for part, muon in references:
            gradients = {n: named[n].grad for n in part}
            if not params.get("adam_w_mode", True):  # Adam with L2: the decay is part of the gradient
                decay = params.get("weight_decay", 0.0)
                gradients = {
                    n: g + decay * named[n].data if muon.roles[n] == "adamw" else g for n, g in gradients.items()
                }
            muon.step(gradients)
    weights = {n: p.detach() for n, p in named.items()}
    return weights, kit.distance(weights, start)


def _reference_of(part, named, params: dict, own_lr, tagged: bool):
    roles = {n: "muon" if named[n].ndim >= 2 and not (tagged and n == "2.weight") else "adamw" for n in part}
    decay = params.get("weight_decay", 0.0)
    coupled = not params.get("adam_w_mode", True)
    shared = params.get("lr")
    return part, Muon(
        {n: named[n].data for n in part},
        roles,
        kit.JORDAN,
        own_lr or params.get("muon_lr", LR if shared is None else shared),
        own_lr or params.get("adam_lr", 3e-4 if shared is None else shared),
        momentum=params.get("momentum", 0.95),
        betas=params.get("betas", (0.9, 0.95)),
        eps=params.get("eps", 1e-10),
        decays={n: 0.0 if coupled and roles[n] == "adamw" else decay for n in part},  # vectors, too, as told
    )
