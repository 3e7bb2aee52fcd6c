"""What a checkpoint carries beside DeepSpeed's own: step, data position and random state, per rank."""

from __future__ import annotations

import random

import numpy
import torch
import torch.distributed as dist

KEY = "zeromuon_finetune"


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


def save(engine, folder, step: int, position: int) -> None:
    """Writes checkpoint `step<N>` under `folder`; every rank must call it. `latest` names it only once it is whole."""
    client = {KEY: {"step": step, "position": position, "random": random_state(), "rank": dist.get_rank()}}
    engine.save_checkpoint(str(folder), tag=f"step{step}", client_state=client)


def load(engine, folder, seed: int) -> dict | None:
    """Loads the newest checkpoint under `folder` into `engine`; every rank must call it.

    A resharded checkpoint gives some ranks the random state of another: those are seeded anew, from (seed, step, rank).
    Returns {"step", "position"}, or None if no checkpoint was completed. Raises ValueError if the checkpoint is not one of ours.
    """
    if not (folder / "latest").exists():
        return None
    path, client = engine.load_checkpoint(str(folder))
    if path is None or KEY not in client:
        raise ValueError(f"{folder}: expected a checkpoint of zeromuon finetune, found another's; start a new run")
    saved = client[KEY]
    if saved.get("rank", dist.get_rank()) == dist.get_rank():
        restore_random_state(saved["random"])
    else:
        seed_random(seed * 1_000_003 + saved["step"], dist.get_rank())
    return {"step": saved["step"], "position": saved["position"]}
