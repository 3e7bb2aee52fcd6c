"""What a checkpoint carries beside DeepSpeed's own: step, data position and random state, per rank."""

from __future__ import annotations

import errno
import pickle
import random
import shlex
import shutil
from pathlib import Path

import numpy
import torch
import torch.distributed as dist

from ...base import durable
from ...ranks.connect import Ranks
from . import saved

KEY = "zeromuon_finetune"
# In errors of torch.save, whose streams tell a full disk in several ways.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter", "inline_container", "file write failed", "iostream error")
TORCH_CANNOT_READ = ("PytorchStreamReader", "zip archive", "unexpected EOF")  # ... of torch.load
LEAST_FREE_BYTES = 1 << 20  # with less than this a disk counts as full


def random_state() -> dict:
    """The state of every generator that training may draw from."""
    state = {"python": random.getstate(), "numpy": numpy.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: dict) -> None:
    random.setstate(state["python"])
    numpy.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def seed_random(seed: int, rank: int) -> None:
    """Seeds every generator from (seed, rank): dropout differs between ranks and repeats between runs."""
    value = (seed * 1_000_003 + rank) % (1 << 31)
    random.seed(value)
    numpy.random.seed(value)
    torch.manual_seed(value)


def save(
    engine, ranks: Ranks, folder: Path, step: int, position: int, before: Path | None = None, run: str = ""
) -> None:
    """Writes checkpoint `step<N>` under `folder`; every rank must call it. It is whole, and `latest` names it, once all that
    every rank wrote is on disk. before: a file of rank 0 that is on disk when it is. run: which run it is of. Raises
    SaveFailed when a file cannot be written."""
    tag = folder / f"step{step}"
    state = {"step": step, "position": position, "random": random_state(), "rank": ranks.rank, "run": run}
    client = {KEY: state}
    try:
        if ranks.rank == 0:
            if before is not None:
                durable.sync(before)
            durable.make_folder(folder)
            saved.unmark(tag)
        ranks.barrier()
        engine.save_checkpoint(str(folder), tag=tag.name, client_state=client, save_latest=False)
        saved.sync_files_of_rank(tag, ranks.rank)
        ranks.barrier()
        if ranks.rank == 0:
            saved.finish(tag, step)
    except (OSError, RuntimeError) as error:
        if not (_is_of_files(error, TORCH_CANNOT_WRITE) or is_full(folder)):
            raise
        raise SaveFailed(_why_not_saved(error, folder, step, ranks.world_size)) from error


def _is_of_files(error: Exception, words: tuple[str, ...]) -> bool:
    """False for a RuntimeError about something else: torch tells by words alone what it is about."""
    return not isinstance(error, RuntimeError) or any(word in str(error) for word in words)


def is_full(folder: Path) -> bool:
    """Whether there is no room on the disk of `folder`, which need not be there yet."""
    there = next(path for path in (folder, *folder.parents) if path.exists())  # the first save makes it
    return shutil.disk_usage(there).free < LEAST_FREE_BYTES


class SaveFailed(RuntimeError):
    """A checkpoint could not be written. The one before it is whole."""


def _why_not_saved(error: Exception, folder: Path, step: int, ranks: int) -> str:
    """torch.save tells a full disk by a RuntimeError of its own, without the system's reason."""
    before, _ = saved.choose(folder, ranks)
    last = f"{before.name} is whole" if before else "none was saved before"
    full = getattr(error, "errno", None) == errno.ENOSPC or is_full(folder)
    reason = "no space left" if full else getattr(error, "strerror", None) or str(error)
    return f"{reason} on {folder} while saving step {step}; {last}; make room, and go on with --resume"


def with_room_considered(error: Exception, folder: Path) -> Exception:
    """What ended a rank: a SaveFailed where the disk of the run's folder is full, which libraries tell in words of their own."""
    if isinstance(error, (ValueError, SaveFailed)) or not is_full(folder):
        return error
    what = f"{type(error).__name__}: {error}".splitlines()[0]
    return SaveFailed(f"no space left on {folder} ({what}); make room, and go on with --resume")


def _why_not_loaded(why: str, tag: Path) -> str:
    look = shlex.join(["zeromuon", "ckpt", "verify", str(tag.parent), "--tag", tag.name])
    return f"{tag}: cannot be loaded ({why}); {look} tells more; {saved.way_back(tag)}"


def load(engine, ranks: Ranks, folder: Path, seed: int, run: str, note) -> dict | None:
    """Loads the checkpoint under `folder` that saved.choose() gives into `engine`; every rank must call it.

    A resharded checkpoint gives some ranks the random state of another: those are seeded anew, from (seed, step, rank).
    run: which run this is; "" where that was not noted. Returns {"step", "position", "run"}, or None if no checkpoint was
    completed. Raises ValueError if the checkpoint is not one of this run.
    """
    chosen = [saved.choose(folder, ranks.world_size) if ranks.rank == 0 else None]
    dist.broadcast_object_list(chosen)
    tag, why = chosen[0]
    if tag is None:
        return None
    if why:
        note(why)
    damaged: list = [None] * ranks.world_size
    dist.all_gather_object(damaged, saved.damage(tag, ranks.rank))
    if any(damaged):
        raise ValueError(_why_not_loaded(next(filter(None, damaged)), tag))
    try:
        path, client = engine.load_checkpoint(str(folder), tag=tag.name)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        if not _is_of_files(error, TORCH_CANNOT_READ):
            raise
        raise ValueError(_why_not_loaded((str(error) or type(error).__name__).splitlines()[0], tag)) from error
    if path is None or KEY not in client:
        raise ValueError(f"{folder}: expected a checkpoint of zeromuon finetune, found another's; start a new run")
    state = client[KEY]
    steps: list = [None] * ranks.world_size
    dist.all_gather_object(steps, state["step"])
    if len(set(steps)) > 1:
        other = next(rank for rank, step in enumerate(steps) if step != steps[0])
        why = f"rank 0's file is of step {steps[0]}, rank {other}'s of step {steps[other]}"
        raise ValueError(_why_not_loaded(why, tag))
    if run and state.get("run", run) != run:
        raise ValueError(
            f"{tag}: expected a checkpoint of this run, found one of another, of whose text or settings it is; take it away; "
            f"{saved.way_back(tag)}"
        )
    if state.get("rank", ranks.rank) == ranks.rank:
        restore_random_state(state["random"])
    else:
        seed_random(seed * 1_000_003 + state["step"], ranks.rank)
    return {"step": state["step"], "position": state["position"], "run": state.get("run", "")}
