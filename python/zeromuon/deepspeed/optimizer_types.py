"""The optimizer types of a DeepSpeed config that are built here and not by DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from .hooks import replace_once

_MUON = "muon"  # as DeepSpeed names the type of its own
_builders: dict[str, Callable] = {}  # type -> builds its optimizer, from an engine and the parameters for it


def add_type(optimizer_class: type, build: Callable) -> None:
    """Makes the name of `optimizer_class` a type that `build` builds. Raises ValueError when this DeepSpeed builds its
    optimizers differently."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero import utils

    replace_once(
        DeepSpeedEngine, "_configure_basic_optimizer", ["self", "model_parameters"], _configure_basic_optimizer
    )
    # DeepSpeed takes an unknown type for valid when torch.optim has an attribute of that name.
    setattr(torch.optim, optimizer_class.__name__, optimizer_class)
    if optimizer_class not in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.append(optimizer_class)
    _builders[optimizer_class.__name__] = build


def take_over_muon(build: Callable) -> None:
    """Makes `build` build ``"type": "Muon"``, from the ``use_muon`` that the user put on parameters: DeepSpeed tags every
    parameter by its name. Raises ValueError as :func:`add_type`."""
    import deepspeed

    replace_once(deepspeed, "set_optimizer_flags", ["config_class", "model"], _set_optimizer_flags)
    _builders[_MUON] = build


def is_deepspeeds_muon(name: str | None) -> bool:
    """Whether an engine whose config says this type, as DeepSpeed writes it, gets DeepSpeed's Muon."""
    return name == _MUON and _MUON not in _builders


def forget_type(optimizer_class: type) -> None:
    """Undoes both, but for what is replaced (hooks.py)."""
    from deepspeed.runtime.zero import utils

    _builders.clear()
    if getattr(torch.optim, optimizer_class.__name__, None) is optimizer_class:
        delattr(torch.optim, optimizer_class.__name__)
    if optimizer_class in utils.ZERO_SUPPORTED_OPTIMIZERS:
        utils.ZERO_SUPPORTED_OPTIMIZERS.remove(optimizer_class)


def _configure_basic_optimizer(original, engine, model_parameters):
    build = _builders.get(engine.optimizer_name())
    return original(engine, model_parameters) if build is None else build(engine, model_parameters)


def _set_optimizer_flags(original, config_class, model):
    before = [(p, vars(p).get("use_muon")) for p in model.parameters()]
    original(config_class, model)
    for param, tag in before:
        if tag is not None:
            param.use_muon = tag
        elif hasattr(param, "use_muon"):
            del param.use_muon
