"""Makes DeepSpeed know ZeroMuon by name, in this process only and only when asked."""

from __future__ import annotations

import functools
import inspect

import torch

from . import host
from .optimizer import ZeroMuon
from .selection import param_groups

_TYPE = "ZeroMuon"


def register(replace_muon: bool = False) -> None:
    """Makes ``{"optimizer": {"type": "ZeroMuon", "params": {...}}}`` work in a DeepSpeed config.

    The params are the keywords of :class:`zeromuon.ZeroMuon`, and ``include`` and ``exclude`` of
    :func:`zeromuon.param_groups`. Calling it again changes nothing.

    Raises:
        ValueError: this DeepSpeed builds its optimizers differently, or replace_muon is asked for.
    """
    if replace_muon:
        raise ValueError(
            'replace_muon=True ("type": "Muon" becomes ours) is not available in this version; name '
            '"type": "ZeroMuon" in the config'
        )
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero import utils

    original = DeepSpeedEngine._configure_basic_optimizer
    if getattr(original, "_zeromuon", False):
        return
    names = list(inspect.signature(original).parameters)
    if names != ["self", "model_parameters"]:
        raise ValueError(
            f"DeepSpeed {host.deepspeed_version()}: DeepSpeedEngine._configure_basic_optimizer takes "
            f"{names}, expected self and model_parameters; use a supported release (0.19)"
        )

    @functools.wraps(original)
    def configure_basic_optimizer(self, model_parameters):
        if self.optimizer_name() == _TYPE:
            return _build(self, model_parameters)
        return original(self, model_parameters)

    configure_basic_optimizer._zeromuon = True
    DeepSpeedEngine._configure_basic_optimizer = configure_basic_optimizer
    # DeepSpeed takes an unknown type for valid when torch.optim has an attribute of that name.
    torch.optim.ZeroMuon = ZeroMuon
    if ZeroMuon not in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.append(ZeroMuon)


def _build(engine, model_parameters) -> ZeroMuon:
    stage = engine.zero_optimization_stage()
    if int(stage) != 3:
        raise ValueError(
            f'"type": "ZeroMuon" needs zero_optimization.stage 3, the config says {int(stage)}; for '
            f"stages 0 to 2 use a Muon made for whole parameters"
        )
    options = dict(engine.optimizer_params() or {})
    patterns = {key: options.pop(key) for key in ("include", "exclude") if key in options}
    groups = param_groups(engine.module, **patterns)
    return ZeroMuon(_restrict(groups, list(model_parameters)), **options)


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
