"""Rows about checkpoints. Each takes the system and returns its figures. Each launch has a working directory of its own, in
which all ranks write."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ...ranks.child import Child
from ...ranks.launch import Launch
from ...ranks.leave import leave
from . import kit, training
from .training import batches, build_engine, config_for

SAVED_AFTER, WENT_ON = 3, 2  # steps


def init_roundtrip(system: str) -> list[float]:
    """Saved by a model that was built under zero.Init, loaded into one that was not: weights and momenta by name, and
    the weights after one more step of both."""
    config, data = config_for(system), batches(SAVED_AFTER + 1)
    shapes = [p.shape for p in training.build_model().parameters() if p.ndim >= 2]
    if shapes == sorted(shapes, reverse=True):
        raise training.NotMeasurable("sorting by size would change nothing")
    engine = build_engine(config, kit.under_zero_init(training.build_model, config))
    training.train(engine, data[:SAVED_AFTER])
    saved = _weights_and_momenta(engine, system)
    engine.save_checkpoint("saved")
    loaded = build_engine(config)
    loaded.load_checkpoint("saved")
    after_load = kit.distance(_weights_and_momenta(loaded, system), saved)
    for each in (engine, loaded):
        training.train(each, data[SAVED_AFTER:])
    return [after_load, kit.distance(kit.whole_weights(loaded.module), kit.whole_weights(engine.module))]


def _weights_and_momenta(engine, system: str) -> dict[str, torch.Tensor]:
    momenta = {f"momentum of {n}": m for n, m in training.momenta_of(engine, system).items()}
    return {**kit.whole_weights(engine.module), **momenta}


def universal(system: str) -> float:
    """Saves on two ranks, converts with DeepSpeed's ds_to_universal, goes on alone; against going on with both. Every
    rank gets the same batch, so that the mean gradient does not depend on their number."""
    data = [[[ranks[0]] * dist.get_world_size() for ranks in step] for step in batches(SAVED_AFTER + WENT_ON)]
    engine = build_engine(config_for(system))
    training.train(engine, data[:SAVED_AFTER])
    engine.save_checkpoint(".", tag="saved")
    training.train(engine, data[SAVED_AFTER:])
    expected = kit.whole_weights(engine.module)
    error = ""
    if dist.get_rank() == 0:
        torch.save(data[SAVED_AFTER:], "data.pt")
        error = _converted() or _went_on_alone(system)
    error = kit.on_all_ranks(error)[0]
    if error:
        raise training.Raised(error)
    return kit.distance(torch.load("alone.pt"), expected)


def _converted() -> str:
    """Runs DeepSpeed's converter; "" or what it raised."""
    folders = ("--input_folder", "saved", "--output_folder", "universal")
    workers = ("--num_extract_workers", "1", "--num_merge_workers", "1")
    module = "deepspeed.checkpoint.ds_to_universal"
    return _error_of(Child([sys.executable, "-m", module, *workers, *folders], log=Path("converter.log")))


def _went_on_alone(system: str) -> str:
    """One rank of its own loads what was converted, trains and leaves its weights; "" or what it raised."""
    return _error_of(Launch(__name__, system, ranks=1, log=Path("alone.log")))


def _error_of(child: Child) -> str:
    with child:
        status = child.wait()
    if status == 0:
        return ""
    log = child.log.read_text(errors="replace")
    print(log, file=sys.stderr)
    named = [line.split("]:", 1)[-1].strip() for line in log.splitlines() if "Error:" in line]
    return named[0] if named else f"exit status {status}: of {child.log.stem}"


def _go_on_alone(system: str) -> None:
    training.start()
    engine = build_engine(config_for(system, checkpoint={"load_universal": True}))
    engine.load_checkpoint(".", tag="universal")
    data = [[[ranks[0]] for ranks in step] for step in torch.load("data.pt")]
    training.train(engine, data)
    torch.save(kit.whole_weights(engine.module), "alone.pt")
    leave(0)


if __name__ == "__main__":
    _go_on_alone(sys.argv[1])
