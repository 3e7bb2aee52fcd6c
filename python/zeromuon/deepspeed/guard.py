"""Looks at each DeepSpeed engine once it has chosen its optimizer.

Refuses a configuration that is not supported, starts the watch over a ZeroMuon that will be stepped, and catches one
that was built for the model and left out: two libraries do that without a word, see `_message`.
"""

from __future__ import annotations

import weakref

from ..base.warn import warn
from . import optimizer_types, rates, support
from .hooks import check_signature, replace_once
from .watch import end_watch, watch_engine

_DEEPSPEEDS_MUON = (
    'DeepSpeed\'s own Muon steps this engine ("type": "Muon" in its config), not zeromuon\'s; name "type": "ZeroMuon", or call '
    "zeromuon.register(replace_muon=True) before deepspeed.initialize"
)
_built: weakref.WeakSet = weakref.WeakSet()  # every ZeroMuon that is alive
_chosen: weakref.WeakSet = weakref.WeakSet()  # those of them that an engine got
_loading: list[str | None] = []  # the tag of the load that is under way


def watch_for(optimizer) -> None:
    """Remembers `optimizer`, a ZeroMuon that was just built, and watches the engines that are built from now on."""
    _built.add(optimizer)
    watch_engines()


def watch_engines() -> None:
    """Raises ValueError when this DeepSpeed chooses the optimizer of an engine differently."""
    from deepspeed.runtime import engine as engine_module
    from deepspeed.runtime.engine import DeepSpeedEngine

    parameters = ["checkpoint_dir", "tag", "exclude_frozen_parameters", "lazy_mode"]
    places = [(DeepSpeedEngine, name, *what) for name, what in _REPLACED.items()]
    places.append((engine_module, "get_fp32_state_dict_from_zero_checkpoint", parameters, _weights_of_checkpoint))
    for owner, name, signature, _ in places:
        check_signature(owner, name, signature)
    for place in places:
        replace_once(*place)


def _configure_optimizer(original, engine, client_optimizer, model_parameters):
    if client_optimizer in _built:
        support.check_config(engine)
    elif client_optimizer is None and optimizer_types.is_deepspeeds_muon(engine.optimizer_name()):
        if engine.global_rank == 0:
            warn(_DEEPSPEEDS_MUON)
    original(engine, client_optimizer, model_parameters)
    _look_at(engine)


def _save_checkpoint(original, engine, *arguments, **keywords):
    """All ranks save together, so here an optimizer can bind, and one that cannot be saved says so before a file is made."""
    if (optimizer := _stepped(engine)) is not None:
        optimizer.bind()
        optimizer.raise_if_poisoned("not saved")
    return original(engine, *arguments, **keywords)


def _load_checkpoint(original, engine, *arguments, **keywords):
    """All ranks load together."""
    optimizer = _stepped(engine)
    if optimizer is None:
        return original(engine, *arguments, **keywords)
    optimizer.bind(with_states=False)
    _loading.append(arguments[1] if len(arguments) > 1 else keywords.get("tag"))
    try:
        loaded = original(engine, *arguments, **keywords)
    finally:
        _loading.pop()
    optimizer.settle_scheduler(engine.lr_scheduler)
    return loaded


def _weights_of_checkpoint(original, checkpoint_dir, tag=None, *arguments, **keywords):
    """DeepSpeed asks for those of `latest` where it loads weights alone, also where a tag was given."""
    return original(checkpoint_dir, tag or (_loading[-1] if _loading else None), *arguments, **keywords)


def _destroy(original, engine):
    """DeepSpeed keeps an engine that was destroyed, and so the optimizer."""
    optimizer, zero3 = _stepped(engine), engine.optimizer
    original(engine)
    if optimizer is not None:
        optimizer.release()
        end_watch(zero3)


def _scheduler_from_config(original, engine, optimizer):
    stepped = getattr(engine, "basic_optimizer", None)
    if stepped not in _built:
        return original(engine, optimizer)
    return rates.build_scheduler(engine, stepped, lambda: original(engine, optimizer))


_REPLACED = {
    "_scheduler_from_config": (["self", "optimizer"], _scheduler_from_config),
    "destroy": (["self"], _destroy),
    "_configure_optimizer": (["self", "client_optimizer", "model_parameters"], _configure_optimizer),
    "save_checkpoint": (
        ["self", "save_dir", "tag", "client_state", "save_latest", "exclude_frozen_parameters"],
        _save_checkpoint,
    ),
    "load_checkpoint": (
        [
            "self",
            "load_dir",
            "tag",
            "load_module_strict",
            "load_optimizer_states",
            "load_lr_scheduler_states",
            "load_module_only",
            "custom_load_fn",
        ],
        _load_checkpoint,
    ),
}


def _stepped(engine):
    """The ZeroMuon that the engine steps under ZeRO-3, or None."""
    optimizer = getattr(engine, "basic_optimizer", None)
    return optimizer if optimizer in _built and support.is_zero3(engine.optimizer) else None


def _look_at(engine) -> None:
    stepped = getattr(engine, "basic_optimizer", None)
    own = {id(p) for p in engine.module.parameters()}
    # One that an engine of before stepped, or would have, was not left out.
    if any(o is not stepped and o not in _chosen and o.holds_any_of(own) for o in _built):
        raise ValueError(_message("another ZeroMuon" if stepped in _built else type(stepped).__name__))
    if stepped in _built:
        _chosen.add(stepped)
    if stepped in _built and support.is_zero3(engine.optimizer):
        watch_engine(stepped, engine.optimizer)
        stepped.watch_attention(engine.module)


def _message(stepped: str) -> str:
    return (
        f"a ZeroMuon was built for this model, and DeepSpeed would step {stepped} instead. Known causes: "
        f"Hugging Face's Trainer discards Trainer(optimizers=(optimizer, None)) under DeepSpeed; and with "
        f"offload_optimizer Accelerate replaces any optimizer object or optimizer_cls_and_kwargs by DeepSpeedCPUAdam "
        f'unless the DeepSpeed config says "zero_force_ds_cpu_optimizer": false. Remedy for both: call '
        f'zeromuon.register() and name "type": "ZeroMuon" in the optimizer section of the DeepSpeed config, with its '
        f"options there. If the object is not wanted, delete it before deepspeed.initialize"
    )
