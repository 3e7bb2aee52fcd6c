"""What this build can work with: the torch that it was compiled for, and GPUs."""

from __future__ import annotations

import functools
import sys


def _facts():
    from .. import _built

    return _built


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


@functools.cache
def check_torch() -> None:
    """Raises ImportError when the imported torch is of another minor version than that which the modules in C++ were compiled
    for: its C++ interface changes with each, and an import would end in an undefined symbol, or later in a crash."""
    compiled, found = _facts().TORCH, sys.modules["torch"].__version__
    if _minor(compiled) != _minor(found):
        raise ImportError(
            f"zeromuon was compiled for torch {_minor(compiled)}, and torch {found} is imported: install torch "
            f"{_minor(compiled)}, or build zeromuon again where torch {_minor(found)} is installed"
        )


def obstacle_on_gpu(capability: tuple[int, int]) -> str:
    """Why this build cannot work on a GPU of this compute capability, with the remedy; "" where it can."""
    facts = _facts()
    if facts.WITHOUT_CUDA:
        return (
            f"this build of zeromuon has no code for GPUs, because {facts.WITHOUT_CUDA}; then build it again, or train on "
            f"the CPU (DS_ACCELERATOR=cpu)"
        )
    oldest = min(int(architecture.split("-")[0]) for architecture in facts.CUDA_ARCHITECTURES.split(";"))
    if capability[0] * 10 + capability[1] < oldest:
        return (
            f"this GPU has compute capability {capability[0]}.{capability[1]}, and zeromuon was compiled for "
            f"{oldest // 10}.{oldest % 10} and newer (ZEROMUON_CUDA_ARCHITECTURES={facts.CUDA_ARCHITECTURES}); build it again "
            f'with "{capability[0]}{capability[1]}" in that list'
        )
    return ""
