"""Rows about `zeromuon ckpt reshard`: save, reshard to other numbers of ranks and back, load and go on."""

from __future__ import annotations

import torch.distributed as dist

from tests.multirank import checkpoint_rows, models, world
from tests.multirank.cases import STEPS, Case, deepspeed_config

SUB_GROUP = 150  # elements per rank: several sub-groups
OTHER_SUB_GROUP = 40


def reshard_and_go_on(
    optimizer: str, dtype: str = "fp32", offload: bool = True, model: str = "small", options: dict | None = None
) -> dict:
    """Trains, saves and goes on; reshards W -> W + 1 -> 1 -> W, loads that into a new engine and goes on."""
    case = Case(
        "reshard",
        model=model,
        sub_group=SUB_GROUP,
        offload=offload,
        dtype=dtype,
        reduce_scatter=optimizer != "Muon",
        options=options or {},
    )
    data = models.batches(case, dist.get_world_size())
    engine = _engine(case, optimizer)
    world.train(engine, data, range(checkpoint_rows.SAVED_AFTER))
    folder = checkpoint_rows._folder(f"reshard-{optimizer}-{dtype}-{offload}-{model}")
    engine.save_checkpoint(str(folder / "saved"))
    dist.barrier()
    if dist.get_rank() == 0:
        _there_and_back(folder)
    dist.barrier()
    resumed = _engine(case, optimizer)
    resumed.load_checkpoint(str(folder / "back"))
    loaded = world.same_bits(_weights(engine), _weights(resumed))
    for one in (engine, resumed):
        world.train(one, data, range(checkpoint_rows.SAVED_AFTER, STEPS))
    same = world.same_bits(_weights(engine), _weights(resumed))
    moved = not world.same_bits(_weights(resumed), _weights(_engine(case, optimizer)))
    return {
        "loaded": world.on_all_ranks(loaded),
        "same": world.on_all_ranks(same),
        "moved": moved,
        "steps": resumed.global_steps,
    }


def _engine(case: Case, optimizer: str):
    """An engine with ours, with torch's AdamW, or with DeepSpeed's own Muon."""
    if optimizer == "ZeroMuon":
        return world.build_engine(case)[1]
    params = {"lr": 1e-3, **({"torch_adam": True} if optimizer == "AdamW" else {})}
    config = {**deepspeed_config(case), "optimizer": {"type": optimizer, "params": params}}
    return world.build_engine(case, config=config)[1]


def _there_and_back(folder) -> None:
    from zeromuon import ckpt

    ranks = dist.get_world_size()
    ckpt.reshard(folder / "saved", folder / "more", ranks + 1, sub_group_size=OTHER_SUB_GROUP)
    ckpt.reshard(folder / "more", folder / "one", 1)
    ckpt.reshard(folder / "one", folder / "back", ranks, sub_group_size=SUB_GROUP)


def _weights(engine) -> list:
    return [weight for _, weight in sorted(world.whole_weights(engine.module).items())]
