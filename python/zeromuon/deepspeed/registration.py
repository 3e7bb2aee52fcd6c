"""Makes DeepSpeed know ZeroMuon by name, in this process only and only when asked."""

from __future__ import annotations

import functools

import torch

from . import layout
from .muon_params import SELECTION_KEYS, read_muon_params
from .guard import watch_engines
from ..optimizer.optimizer import ZeroMuon
from ..optimizer.options import TYPE_MUON_OPTIONS
from ..selection.rules import param_groups

_TYPE = "ZeroMuon"
_replaced = {"muon": False}  # whether "type": "Muon" is ours, in this process


def register(replace_muon: bool = False) -> None:
    """Makes ``{"optimizer": {"type": "ZeroMuon", "params": {...}}}`` work in a DeepSpeed config.

    The params are the keywords of :class:`zeromuon.ZeroMuon`, and ``include`` and ``exclude`` of
    :func:`zeromuon.param_groups`. Calling it again changes nothing.

    Args:
        replace_muon: also make ``"type": "Muon"`` ours, with the params and defaults of DeepSpeed's own
            (:mod:`zeromuon.deepspeed.muon_params`). A boolean ``use_muon`` that is on a parameter before
            ``deepspeed.initialize`` says who gets Muon; DeepSpeed itself overwrites it.

    Raises:
        ValueError: this DeepSpeed builds its optimizers differently.
    """
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero import utils

    watch_engines()
    _wrap_configuration(DeepSpeedEngine)
    # DeepSpeed takes an unknown type for valid when torch.optim has an attribute of that name.
    torch.optim.ZeroMuon = ZeroMuon
    if ZeroMuon not in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.append(ZeroMuon)
    if replace_muon:
        _keep_tags_of_the_user()
        _replaced["muon"] = True


def _wrap_configuration(engine_class) -> None:
    original = engine_class._configure_basic_optimizer
    if getattr(original, "_zeromuon", False):
        return
    layout.check_signature(original, ["self", "model_parameters"])

    @functools.wraps(original)
    def configure_basic_optimizer(self, model_parameters):
        if self.optimizer_name() == _TYPE:
            return _build(self, model_parameters)
        if self.optimizer_name() == "muon" and _replaced["muon"]:
            return _build_as_muon(self, model_parameters)
        return original(self, model_parameters)

    configure_basic_optimizer._zeromuon = True
    engine_class._configure_basic_optimizer = configure_basic_optimizer


def _keep_tags_of_the_user() -> None:
    """DeepSpeed tags every parameter with ``use_muon`` by its name: put back what was there before."""
    import deepspeed

    original = deepspeed.set_optimizer_flags
    if getattr(original, "_zeromuon", False):
        return
    layout.check_signature(original, ["config_class", "model"])

    @functools.wraps(original)
    def set_optimizer_flags(config_class, model):
        before = [(p, vars(p).get("use_muon")) for p in model.parameters()]
        original(config_class, model)
        for param, tag in before:
            if tag is not None:
                param.use_muon = tag
            elif _replaced["muon"] and hasattr(param, "use_muon"):
                del param.use_muon

    set_optimizer_flags._zeromuon = True
    deepspeed.set_optimizer_flags = set_optimizer_flags


def _build(engine, model_parameters) -> ZeroMuon:
    """The optimizer of ``"type": "ZeroMuon"``."""
    layout.check_config(engine)
    options = dict(engine.optimizer_params() or {})
    groups = param_groups(engine.module, **_taken_out(options))
    return ZeroMuon(_restrict(groups, list(model_parameters)), **options)


def _build_as_muon(engine, model_parameters) -> ZeroMuon:
    """The optimizer of ``"type": "Muon"``: DeepSpeed's meaning, so every group decays as told, vectors too, and a
    group's own lr goes for both of its roles."""
    layout.check_config(engine)
    params = dict(engine.optimizer_params() or {})
    settings = read_muon_params(params, TYPE_MUON_OPTIONS)
    groups = _restrict(param_groups(engine.module, **_taken_out(params)), list(model_parameters))
    own_lr = [i for i, group in enumerate(groups) if "lr" in group]
    told = [{"weight_decay": settings.options["weight_decay"], **group} for group in groups]
    optimizer = ZeroMuon(told, **settings.options)
    optimizer.follow_deepspeed(own_lr, settings.decoupled_decay)
    return optimizer


def _taken_out(options: dict) -> dict:
    return {key: options.pop(key) for key in SELECTION_KEYS if key in options}


def _restrict(groups, given: list) -> list[dict]:
    """`groups` cut down to the parameters that DeepSpeed was given, in its groups when it has some."""
    specs = {id(p): s for g in groups for p, s in zip(g["params"], g["specs"])}
    as_groups = given if given and isinstance(given[0], dict) else [{"params": given}]
    out = []
    for group in as_groups:
        rest = {k: v for k, v in group.items() if k != "params"}
        params = [p for p in group["params"] if p.requires_grad]
        unknown = sum(id(p) not in specs for p in params)
        if unknown:
            raise ValueError(
                f"{unknown} of the parameters given to deepspeed.initialize are not parameters of the "
                f"model; pass parameters of the model itself, or none"
            )
        out.append({**rest, "params": params, "specs": [specs[id(p)] for p in params]})
    return out


def attach(engine):
    """Binds the engine's ZeroMuon now and returns its step plan; ``print(plan)`` is a table.

    All ranks must call it. Optional: an unattached optimizer binds itself at its first step.

    Raises:
        ValueError: the engine does not run ZeroMuon under ZeRO-3, or the ranks disagree.
    """
    zero3 = getattr(engine, "optimizer", None)
    optimizer = getattr(zero3, "optimizer", None)
    if not isinstance(optimizer, ZeroMuon):
        found = type(optimizer or zero3).__name__
        raise ValueError(
            f"attach: the engine's optimizer is {found}, expected ZeroMuon under ZeRO stage 3; give "
            f'ZeroMuon to deepspeed.initialize or name "type": "ZeroMuon" in the config'
        )
    optimizer.bind()
    return optimizer.plan
