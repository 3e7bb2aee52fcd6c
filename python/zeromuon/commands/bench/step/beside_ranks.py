"""A rank of `zeromuon bench step --beside`: one tree's ZeroMuon, a step whenever it is its turn.

Run by path: the `zeromuon` of this process may be that of another tree, of which only `register` and the configuration are used.
Tools of this tree are loaded from their files. usage: WIDTH LAYERS TURNS CONTENDER...; TURNS: a pipe with a line for each step,
the contender's number; its end is the end of the run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[3]


def tool(path: str):
    """A module of the tree that this file belongs to, which imports nothing else of it."""
    name = "beside_" + Path(path).stem
    spec = importlib.util.spec_from_file_location(name, PACKAGE / path)
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


channel, connecting, leaving = (tool(f"ranks/{name}.py") for name in ("channel", "connect", "leave"))
contenders = tool("commands/bench/step/contenders.py")


def turns_of(pipe: str, ranks) -> iter:
    """Contenders' numbers. Rank 0 reads them; the others wait for it without work."""
    lines = open(pipe) if ranks.rank == 0 else None
    while True:
        (number,) = ranks.sum([float(lines.readline() or -1) if lines else 0.0])
        if number < 0:
            return
        yield int(number)


def seconds_of_step(engine, size, batch: int) -> float:
    contenders.backward(engine, size, batch)
    start = contenders.common_clock()
    engine.step()
    return contenders.common_clock() - start


def weights_of(engine) -> str:
    """sha256 of the whole fp32 weights."""
    from deepspeed.utils import safe_get_full_fp32_param

    digest = hashlib.sha256()
    for parameter in engine.module.parameters():
        digest.update(safe_get_full_fp32_param(parameter).contiguous().numpy().tobytes())
    return digest.hexdigest()


def main(width: str, layers: str, pipe: str, *names: str) -> int:
    ranks = connecting.connect()
    import zeromuon

    tell = channel.tell if ranks.rank == 0 else lambda **message: None
    zeromuon.register()
    size = contenders.Size(int(width), int(layers))
    engines = [contenders.build_engine(name, size) for name in names]
    for engine in engines:
        seconds_of_step(engine, size, 0)  # binds
    batches = [1] * len(engines)
    tell(package=str(Path(zeromuon.__file__).resolve().parent))
    for number in turns_of(pipe, ranks):
        tell(seconds=seconds_of_step(engines[number], size, batches[number]))
        batches[number] += 1
    tell(weights=[weights_of(engine) for engine in engines])
    ranks.barrier()
    return 0


if __name__ == "__main__":
    leaving.leave(main(*sys.argv[1:]))
