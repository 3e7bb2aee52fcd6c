"""zeromuon: Muon for DeepSpeed ZeRO-3. Importing it imports neither torch nor DeepSpeed."""

import importlib

__version__ = "0.1.0"

_EXPORTS = {
    "ZeroMuon": "optimizer",
    "param_groups": "selection",
    "attach": "registration",
    "register": "registration",
    "StepError": "_core",
}

__all__ = [*_EXPORTS, "__version__"]


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'zeromuon' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
