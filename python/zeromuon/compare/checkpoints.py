"""Rows about checkpoints. Each takes the system and returns the figure."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from . import training
from .training import batches, build_engine, config_for

SAVED_AFTER, WENT_ON = 3, 2  # steps


def _folder() -> Path:
    """One folder for all ranks: the launch gives each run its own working directory."""
    return Path.cwd()


def _not_sorted() -> nn.Sequential:
    """Matrices in another order than that of their shapes, largest first."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 5))


def init_roundtrip(system: str) -> float:
    config = config_for(system)
    engine = build_engine(config, training.model_under_zero_init(config, _not_sorted))
    training.train(engine, batches(SAVED_AFTER))
    saved = training.weights_of(engine)
    engine.save_checkpoint(str(_folder() / "saved"))
    loaded = build_engine(config, _not_sorted())
    loaded.load_checkpoint(str(_folder() / "saved"))
    return training.distance(training.weights_of(loaded), saved)


def _equal_batches(steps: int):
    """Every rank gets the same batch, so that the mean gradient does not depend on their number."""
    return [[[ranks[0]] * dist.get_world_size() for ranks in step] for step in batches(steps)]


def universal(system: str) -> float:
    """Saves on two ranks, converts, and goes on alone; against going on with both."""
    data = _equal_batches(SAVED_AFTER + WENT_ON)
    engine = build_engine(config_for(system))
    training.train(engine, data[:SAVED_AFTER])
    engine.save_checkpoint(str(_folder()), tag="saved")
    training.train(engine, data[SAVED_AFTER:])
    expected = training.weights_of(engine)
    dist.barrier()
    error = ""
    if dist.get_rank() == 0:
        torch.save(data[SAVED_AFTER:], _folder() / "data.pt")
        error = _converted() or _went_on_alone(system)
    errors = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    if errors[0]:
        raise RuntimeError(errors[0])
    return training.distance(torch.load(_folder() / "alone.pt"), expected)


def _converted() -> str:
    """Runs DeepSpeed's converter; "" or the last line of what it raised."""
    return _error_of("deepspeed.checkpoint.ds_to_universal", "--num_extract_workers", "1", "--num_merge_workers", "1",
                     "--input_folder", str(_folder() / "saved"), "--output_folder", str(_folder() / "universal"))


def _went_on_alone(system: str) -> str:
    """One rank of its own loads what was converted, trains and leaves its weights; "" or what it raised."""
    return _error_of("torch.distributed.run", "--standalone", "--nproc-per-node", "1", "-m",
                     "zeromuon.compare.checkpoints", system, str(_folder()))


def _error_of(module: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if "Error" in line]
    return "" if done.returncode == 0 else (lines or ["no reason given"])[0].strip()


def _go_on_alone(system: str, folder: Path) -> None:
    training.start()
    engine = build_engine(config_for(system, checkpoint={"load_universal": True}))
    engine.load_checkpoint(str(folder), tag="universal")
    data = [[[ranks[0]] for ranks in step] for step in torch.load(folder / "data.pt")]
    training.train(engine, data)
    torch.save(training.weights_of(engine), folder / "alone.pt")


if __name__ == "__main__":
    _go_on_alone(sys.argv[1], Path(sys.argv[2]))
