"""Checkpoints without loading them: inspect, verify, diff, export, reshard, universal, convert_optimizer.

Importing it imports neither torch nor DeepSpeed nor numpy. What is in a pickle is read, never imported or called.
"""

import importlib

_EXPORTS = {
    **dict.fromkeys(("inspect", "verify", "diff"), "reading"),
    **dict.fromkeys(("export", "reshard", "universal", "convert_optimizer"), "writing"),
    **dict.fromkeys(("read_roles", "roles_of_model"), "roles"),
    "FormatError": "._ckpt",
    **dict.fromkeys(("Inspection", "TensorInfo", "Verification", "Problem", "TensorHealth"), "results"),
    **dict.fromkeys(("Comparison", "Difference", "Written"), "results"),
}

__all__ = list(_EXPORTS)


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'zeromuon.ckpt' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
