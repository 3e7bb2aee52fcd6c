"""Catches a ZeroMuon that was built for a model and then left out: the engine steps another optimizer.

Two libraries do that without a word, see `_message`. Building a ZeroMuon starts the watch.
"""

from __future__ import annotations

import functools
import inspect
import weakref

from . import host

_built: weakref.WeakSet = weakref.WeakSet()  # every ZeroMuon that is alive


def watch_engines_for(optimizer) -> None:
    """Remembers `optimizer`, and has DeepSpeed's engines checked once they have chosen theirs.

    Raises ValueError when this DeepSpeed chooses its optimizer elsewhere.
    """
    _built.add(optimizer)
    from deepspeed.runtime.engine import DeepSpeedEngine

    original = DeepSpeedEngine._configure_optimizer
    if getattr(original, "_zeromuon", False):
        return
    names = list(inspect.signature(original).parameters)
    if names != ["self", "client_optimizer", "model_parameters"]:
        raise ValueError(
            f"DeepSpeed {host.deepspeed_version()}: DeepSpeedEngine._configure_optimizer takes {names}, expected self, "
            f"client_optimizer and model_parameters; use a supported release ({host.SUPPORTED})"
        )

    @functools.wraps(original)
    def configure_optimizer(self, client_optimizer, model_parameters):
        if client_optimizer in _built:
            host.check_config(self)
        original(self, client_optimizer, model_parameters)
        _check(self)

    configure_optimizer._zeromuon = True
    DeepSpeedEngine._configure_optimizer = configure_optimizer


def _check(engine) -> None:
    stepped = getattr(engine, "basic_optimizer", None)
    own = {id(p) for p in engine.module.parameters()}
    left_out = [o for o in _built if o is not stepped and not o.is_bound and o.holds_any_of(own)]
    if left_out and type(stepped).__name__ != "ZeroMuon":
        raise ValueError(_message(type(stepped).__name__))


def _message(stepped: str) -> str:
    return (
        f"a ZeroMuon was built for this model, and DeepSpeed would step {stepped} instead. Known causes: "
        f"Hugging Face's Trainer discards Trainer(optimizers=(optimizer, None)) under DeepSpeed; and with "
        f"offload_optimizer Accelerate replaces any optimizer object or optimizer_cls_and_kwargs by DeepSpeedCPUAdam "
        f'unless the DeepSpeed config says "zero_force_ds_cpu_optimizer": false. Remedy for both: call '
        f'zeromuon.register() and name "type": "ZeroMuon" in the optimizer section of the DeepSpeed config. If the '
        f"ZeroMuon is not wanted, delete it before deepspeed.initialize"
    )
