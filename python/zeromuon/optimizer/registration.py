"""How ZeroMuon comes into a DeepSpeed program: by the name of its type, and bound to an engine."""

from __future__ import annotations

from ..deepspeed import hooks, layout, optimizer_types, support
from ..deepspeed.guard import watch_engines
from ..deepspeed.muon_params import SELECTION_KEYS, read_muon_params, read_selection
from ..selection.rules import param_groups
from .optimizer import ZeroMuon
from .options import TYPE_MUON_OPTIONS


def register(replace_muon: bool = False) -> None:
    """Makes ``{"optimizer": {"type": "ZeroMuon", "params": {...}}}`` work in a DeepSpeed config, in this process.

    The params are the keywords of :class:`zeromuon.ZeroMuon`, and ``include``, ``exclude``, ``splits``,
    ``split_fused`` and ``per_head`` of :func:`zeromuon.param_groups`. Calling it again changes nothing; :func:`unregister` undoes it.

    Args:
        replace_muon: also make ``"type": "Muon"`` ours, with the params and defaults of DeepSpeed's own
            (:mod:`zeromuon.deepspeed.muon_params`). A boolean ``use_muon`` that is on a parameter before
            ``deepspeed.initialize`` says who gets Muon; DeepSpeed itself overwrites it.

    Raises:
        ValueError: this DeepSpeed builds its optimizers differently.
    """
    watch_engines()
    optimizer_types.add_type(ZeroMuon, _build)
    if replace_muon:
        optimizer_types.take_over_muon(_build_as_muon)


def unregister() -> None:
    """Puts back all that zeromuon replaced in DeepSpeed, in this process: by register(), by the construction of a
    ZeroMuon, and on engines that it is bound to. Call it between steps; :func:`register` makes the types known again.

    A bound engine goes on: with one step per sub-group, the same numbers, and DeepSpeed's own loss scale and silence.
    A function that somebody else has replaced since is left as it is; a warning names it, and zeromuon's part of it
    does nothing any more.
    """
    optimizer_types.forget_type(ZeroMuon)
    hooks.undo_all()


def _build(engine, model_parameters) -> ZeroMuon:
    """The optimizer of ``"type": "ZeroMuon"``."""
    support.check_config(engine)
    options = dict(engine.optimizer_params() or {})
    groups = param_groups(engine.module, **_taken_out(options))
    return ZeroMuon(_restrict(groups, list(model_parameters)), **options)


def _build_as_muon(engine, model_parameters) -> ZeroMuon:
    """The optimizer of ``"type": "Muon"``: DeepSpeed's meaning, so every group decays as told, vectors too, and a
    group's own lr goes for both of its roles."""
    support.check_config(engine)
    params = dict(engine.optimizer_params() or {})
    settings = read_muon_params(params, TYPE_MUON_OPTIONS)
    groups = _restrict(param_groups(engine.module, **read_selection(params)), list(model_parameters))
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
    optimizer = layout.stepped_optimizer(engine)
    if not isinstance(optimizer, ZeroMuon):
        found = type(optimizer).__name__
        raise ValueError(
            f"attach: the engine's optimizer is {found}, expected ZeroMuon under ZeRO stage 3; give "
            f'ZeroMuon to deepspeed.initialize or name "type": "ZeroMuon" in the config'
        )
    optimizer.bind()
    return optimizer.plan
