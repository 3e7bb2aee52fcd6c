"""Measures one row on one system, on every rank: ... -m zeromuon.commands.compare.child ROW SYSTEM

Rank 0 tells what was measured, any rank what was raised.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path

import torch.distributed as dist

from ...ranks.channel import tell
from ...ranks.leave import leave
from . import checkpoints, fp32, launch, sixteen_bits, training, work


def main() -> None:
    name, system = sys.argv[1:3]
    training.start()
    result = result_of(name, system)
    if dist.get_rank() == 0 or result["kind"] != launch.MEASURED:
        tell(**result)
    if result["kind"] == launch.MEASURED:
        with contextlib.suppress(RuntimeError):  # another rank raised, and has said so
            dist.barrier()
    leave(0)


def result_of(name: str, system: str) -> dict:
    """What launch.measure returns, but for the seconds; on every rank."""
    function = next(getattr(m, name) for m in (fp32, work, sixteen_bits, checkpoints) if hasattr(m, name))
    try:
        measured = function(system)
    except training.Raised as error:
        return {"kind": launch.RAISED, "error": str(error)}
    except training.NotMeasurable as error:
        return {"kind": launch.FAILED, "error": f"not measured: {error}"}
    except Exception as error:
        traceback.print_exc()
        kind = launch.RAISED if _is_of_a_system(error) else launch.FAILED
        return {"kind": kind, "error": f"{type(error).__name__}: {error}"[:1000]}
    figures = measured if isinstance(measured, list) else [measured]
    return {"kind": launch.MEASURED, "figures": [f if isinstance(f, dict) else {"value": float(f)} for f in figures]}


def _is_of_a_system(error: Exception) -> bool:
    """Whether DeepSpeed or our optimizer was at work when it was raised, and not the comparison alone."""
    ours = Path(__file__).resolve().parents[2] / "optimizer"
    files = [Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)]
    return any("deepspeed" in f.parts or f.is_relative_to(ours) for f in files)


if __name__ == "__main__":
    main()
