"""Newton-Schulz of DeepSpeed, torch and the package gram-newton-schulz: as they ship, and with float32 in place of their cast.

All with the coefficients of Keller Jordan's Muon, five steps.
"""

from __future__ import annotations

import importlib
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

JORDAN = (3.4445, -4.7750, 2.0315)
STEPS = 5
DEEPSPEED_STANDARD, DEEPSPEED_GRAM = "DeepSpeed standard", "DeepSpeed gram"
TORCH, GRAM_PACKAGE = "torch.optim.Muon", "gram-newton-schulz"
FLOAT32, SHIPPED = "float32", "as it ships"


@dataclass(frozen=True)
class Peer:
    """name: as in the table. dtype: that of its products, e.g. "bfloat16". function: (rows, cols) -> orthogonalised, a new
    tensor."""

    name: str
    dtype: str
    function: Callable


def name_of(library: str, variant: str) -> str:
    return f"{library}, {variant}"


def libraries() -> dict[str, Callable[[bool], Peer]]:
    """library -> function that loads it; in float32 or not. It raises when there is no such library, or another release."""
    return {
        DEEPSPEED_STANDARD: lambda in_float32: _deepspeed("standard", in_float32),
        DEEPSPEED_GRAM: lambda in_float32: _deepspeed("gram", in_float32),
        TORCH: _torch,
        GRAM_PACKAGE: _gram_package,
    }


def float32_copy(module: types.ModuleType) -> types.ModuleType:
    """A second copy of a module whose casts to a 16-bit type go to float32; nothing on disk changes.

    Raises ValueError when its source names no 16-bit type.
    """
    source = Path(module.__file__).read_text()
    changed = source.replace("torch.bfloat16", "torch.float32").replace("torch.float16", "torch.float32")
    if changed == source:
        raise ValueError(f"{module.__file__}: expected a cast to torch.bfloat16 or torch.float16, found none")
    copy = types.ModuleType(f"{module.__name__}_float32")
    copy.__package__, copy.__file__ = module.__package__, module.__file__
    exec(compile(changed, f"{module.__file__} (float32)", "exec"), copy.__dict__)
    return copy


def _variant(module_name: str, in_float32: bool) -> types.ModuleType:
    module = importlib.import_module(module_name)
    return float32_copy(module) if in_float32 else module


def _named(library: str, in_float32: bool, shipped_dtype: str, function: Callable) -> Peer:
    variant, dtype = (FLOAT32, FLOAT32) if in_float32 else (SHIPPED, shipped_dtype)
    return Peer(name_of(library, variant), dtype, function)


def _deepspeed(method: str, in_float32: bool) -> Peer:
    """Both are compiled by torch.compile, as DeepSpeed does. On a processor without float16 its gram is in float32 as it
    ships."""
    module = _variant("deepspeed.runtime.zero.muon.original_muon", in_float32)
    gram = method == "gram"
    function = module.zeropower_via_gram_newtonschulz if gram else module.zeropower_via_newtonschulz5
    dtype = str(module.ns_compute_dtype(method)).removeprefix("torch.")
    library = DEEPSPEED_GRAM if gram else DEEPSPEED_STANDARD
    return _named(library, in_float32, dtype, lambda matrix: function(matrix, STEPS))


def _torch(in_float32: bool) -> Peer:
    function = _variant("torch.optim._muon", in_float32)._zeropower_via_newtonschulz
    return _named(TORCH, in_float32, "bfloat16", lambda matrix: function(matrix, JORDAN, STEPS, 1e-7))


def _gram_package(in_float32: bool) -> Peer:
    """Its kernels are for GPUs; its own fallback in torch's operations, which it compiles, runs here."""
    try:
        module = _variant("gram_newton_schulz.gram_newton_schulz", in_float32)
    except ImportError as error:
        if "gram_newton_schulz" in str(error):
            raise ImportError(
                "not installed: pip install --no-deps gram-newton-schulz (its dependencies are for GPUs)"
            ) from None
        raise
    function = module.GramNewtonSchulz(ns_use_kernels=False, ns_coefficients=[JORDAN] * STEPS)
    return _named(GRAM_PACKAGE, in_float32, "float16", function)


def prepare_torch() -> None:
    """Lets the compiled peers meet more shapes than torch.compile takes before it gives up on a function in silence, and keeps
    its remarks out of the progress."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 256
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
