"""zeromuon: Muon for DeepSpeed ZeRO-3. Importing it imports neither torch nor DeepSpeed."""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "ZeroMuon": "optimizer.optimizer",
    "param_groups": "selection.rules",
    "attach": "optimizer.registration",
    "register": "optimizer.registration",
    "unregister": "optimizer.registration",
    "StepError": "_core",
    "write_trace": "optimizer.trace",
}

_MODULES = ("ckpt", "qk_clip")
_WITH_TORCH = ("_core",)  # links torch's libraries; what else does is imported after it

__all__ = [*_EXPORTS, *_MODULES, "__version__"]


def __getattr__(name):
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name in _WITH_TORCH:
        importlib.import_module("torch")
        importlib.import_module(".base.built", __name__).check_torch()
        return importlib.import_module(f".{name}", __name__)
    if name not in _EXPORTS:
        raise AttributeError(f"module 'zeromuon' has no attribute {name!r}; it has {', '.join(__all__)}")
    __getattr__("_core")  # before what imports it
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
