"""Looks at each DeepSpeed engine once it has chosen its optimizer.

Refuses a configuration that is not supported, starts the watch over a ZeroMuon that will be stepped, and catches one
that was built for the model and left out: two libraries do that without a word, see `_message`.
"""

from __future__ import annotations

import weakref

from . import support
from .hooks import replace_once
from .watch import watch_engine

_built: weakref.WeakSet = weakref.WeakSet()  # every ZeroMuon that is alive


def watch_for(optimizer) -> None:
    """Remembers `optimizer`, a ZeroMuon that was just built, and watches the engines that are built from now on."""
    _built.add(optimizer)
    watch_engines()


def watch_engines() -> None:
    """Raises ValueError when this DeepSpeed chooses the optimizer of an engine differently."""
    from deepspeed.runtime.engine import DeepSpeedEngine

    signature = ["self", "client_optimizer", "model_parameters"]
    replace_once(DeepSpeedEngine, "_configure_optimizer", signature, _configure_optimizer)


def _configure_optimizer(original, engine, client_optimizer, model_parameters):
    if client_optimizer in _built:
        support.check_config(engine)
    original(engine, client_optimizer, model_parameters)
    _look_at(engine)


def _look_at(engine) -> None:
    stepped = getattr(engine, "basic_optimizer", None)
    own = {id(p) for p in engine.module.parameters()}
    if any(o is not stepped and not o.is_bound and o.holds_any_of(own) for o in _built):
        raise ValueError(_message("another ZeroMuon" if stepped in _built else type(stepped).__name__))
    if stepped in _built and support.is_zero3(engine.optimizer):
        watch_engine(stepped, engine.optimizer)


def _message(stepped: str) -> str:
    return (
        f"a ZeroMuon was built for this model, and DeepSpeed would step {stepped} instead. Known causes: "
        f"Hugging Face's Trainer discards Trainer(optimizers=(optimizer, None)) under DeepSpeed; and with "
        f"offload_optimizer Accelerate replaces any optimizer object or optimizer_cls_and_kwargs by DeepSpeedCPUAdam "
        f'unless the DeepSpeed config says "zero_force_ds_cpu_optimizer": false. Remedy for both: call '
        f'zeromuon.register() and name "type": "ZeroMuon" in the optimizer section of the DeepSpeed config, with its '
        f"options there. If the object is not wanted, delete it before deepspeed.initialize"
    )
