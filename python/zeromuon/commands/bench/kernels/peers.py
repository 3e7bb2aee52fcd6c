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
TORCH, FLOAT32 = "torch.optim.Muon", "float32"


@dataclass(frozen=True)
class Peer:
    """name: as in the table. dtype: that of its products, e.g. "bfloat16". function: (rows, cols) -> orthogonalised, a new
    tensor."""

    name: str
    dtype: str
    function: Callable


def name_of(library: str, in_float32: bool) -> str:
    return f"{library}, {FLOAT32 if in_float32 else 'as it ships'}"


def load(library: str, in_float32: bool) -> Peer:
    """library: of LIBRARIES. Raises where there is none, or another release."""
    module_name, made = LIBRARIES[library]
    module = importlib.import_module(module_name)
    dtype, function = made(float32_copy(module) if in_float32 else module)
    return Peer(name_of(library, in_float32), FLOAT32 if in_float32 else dtype, function)


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


def _deepspeed_standard(module: types.ModuleType) -> tuple[str, Callable]:
    dtype = str(module.ns_compute_dtype("standard")).removeprefix("torch.")
    return dtype, lambda matrix: module.zeropower_via_newtonschulz5(matrix, STEPS)


def _deepspeed_gram(module: types.ModuleType) -> tuple[str, Callable]:
    """On a processor without float16 it is in float32 as it ships."""
    dtype = str(module.ns_compute_dtype("gram")).removeprefix("torch.")
    return dtype, lambda matrix: module.zeropower_via_gram_newtonschulz(matrix, STEPS)


def _torch(module: types.ModuleType) -> tuple[str, Callable]:
    return "bfloat16", lambda matrix: module._zeropower_via_newtonschulz(matrix, JORDAN, STEPS, 1e-7)


def _gram_package(module: types.ModuleType) -> tuple[str, Callable]:
    """Its kernels are for GPUs; its own fallback in torch's operations, which it compiles, runs here."""
    return "float16", module.GramNewtonSchulz(ns_use_kernels=False, ns_coefficients=[JORDAN] * STEPS)


# library -> (module, function that gives the type of its products as it ships, and what orthogonalises). torch.compile compiles
# both of DeepSpeed's, as it does there.
LIBRARIES = {
    "DeepSpeed standard": ("deepspeed.runtime.zero.muon.original_muon", _deepspeed_standard),
    "DeepSpeed gram": ("deepspeed.runtime.zero.muon.original_muon", _deepspeed_gram),
    TORCH: ("torch.optim._muon", _torch),
    "gram-newton-schulz": ("gram_newton_schulz.gram_newton_schulz", _gram_package),
}


def prepare_torch() -> None:
    """Lets the compiled peers meet more shapes than torch.compile takes before it gives up on a function in silence, and keeps
    its remarks out of the progress."""
    import torch._dynamo

    torch._dynamo.config.recompile_limit = 256
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
