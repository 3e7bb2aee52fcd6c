"""Rows about what stands in parameter groups, and about engines that come and go. Each returns a dict."""

from __future__ import annotations

import contextlib
import gc
import io
import os
import warnings

import torch
import torch.distributed as dist

from tests.multirank import models, parity, world
from tests.multirank.cases import Case, deepspeed_config
from tests.multirank.checkpoint_rows import _folder
from tests.multirank.rows import PLAIN, error_of


def one_rank_changes(key: str, value) -> dict:
    """Rank 1 has another value in the groups of one role before the second step."""
    _, engine = world.build_engine(PLAIN)
    data = models.batches(PLAIN, dist.get_world_size())
    world.train(engine, data, range(1))
    optimizer = engine.optimizer.optimizer
    if dist.get_rank() == 1:
        for group in optimizer.param_groups:
            group.update({key: value} if key in group else {})
    error = error_of(lambda: world.train(engine, data, range(1, 2)))
    return {"errors": world.on_all_ranks(error), "poisoned": world.on_all_ranks(optimizer._binding.executor.poisoned)}


def rates_at_the_start(schedule: str, **options) -> dict:
    """What is printed and warned of when an engine is built, what its groups say after three steps."""
    import deepspeed

    case = Case("rates", schedule=schedule, options=options)
    model = world.build_model(case)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parameters = list(model.parameters())
        engine = deepspeed.initialize(model=model, config=deepspeed_config(case), model_parameters=parameters)[0]
    world.train(engine, models.batches(case, dist.get_world_size()), range(3))
    return {
        "printed": [line for line in said.getvalue().splitlines() if "learning rates" in line],
        "warnings": [str(w.message) for w in caught if "takes the place of" in str(w.message)],
        "rates": [group["lr"] for group in engine.optimizer.optimizer.param_groups],
    }


def rates_of_another_kind() -> dict:
    config = deepspeed_config(PLAIN)
    config["scheduler"] = {"type": "WarmupLR", "params": {"warmup_max_lr": "1e-2"}}
    error = error_of(lambda: world.build_engine(PLAIN, config=config))
    return {"errors": world.on_all_ranks(error)}


def state_dict_between_steps() -> dict:
    _, engine = world.build_engine(PLAIN)
    world.train(engine, models.batches(PLAIN, dist.get_world_size()), range(1))
    return {"errors": world.on_all_ranks(error_of(engine.optimizer.optimizer.state_dict))}


def saved_by_hand() -> dict:
    """Values that were changed by hand, after a load into an engine that has the first ones."""
    case = Case("by hand", schedule="by hand")
    data = models.batches(case, dist.get_world_size())
    _, engine = world.build_engine(case)
    world.train(engine, data, range(3), case)
    folder = _folder("by-hand")
    engine.save_checkpoint(str(folder))
    _, resumed = world.build_engine(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        resumed.load_checkpoint(str(folder))
    values = [_values(e) for e in (engine, resumed)]
    for e in (engine, resumed):
        world.train(e, data, range(3, 5), case)
    weights = [world.whole_weights(e.module).values() for e in (engine, resumed)]
    return {"saved": values[0], "loaded": values[1], "same": all(map(torch.equal, *weights))}


def _values(engine) -> list[dict]:
    return [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.optimizer.param_groups]


def another_cut() -> dict:
    """A checkpoint of small sub-groups in a run of large ones: the error, and whether anything changed."""
    data = models.batches(PLAIN, dist.get_world_size())
    _, engine = world.build_engine(PLAIN)
    world.train(engine, data, range(1))
    folder = _folder("cut")
    engine.save_checkpoint(str(folder))
    _, other = world.build_engine(Case("large"))
    world.train(other, data, range(1))
    before = parity.momenta(other.module)
    error = error_of(lambda: other.load_checkpoint(str(folder)))
    after = parity.momenta(other.module)
    return {"errors": world.on_all_ranks(error), "same": all(torch.equal(before[n], after[n]) for n in before)}


def weights_of_a_tag() -> dict:
    """The weights alone, of a tag that `latest` does not name."""
    data = models.batches(PLAIN, dist.get_world_size())
    _, engine = world.build_engine(PLAIN)
    folder = _folder("tags")
    weights = {}
    for step, tag in enumerate(("early", "late")):
        world.train(engine, data, range(step, step + 1))
        engine.save_checkpoint(str(folder), tag=tag)
        weights[tag] = world.whole_weights(engine.module)
    _, fresh = world.build_engine(PLAIN)
    fresh.load_checkpoint(str(folder), tag="early", load_optimizer_states=False)
    found = world.whole_weights(fresh.module)
    return {tag: all(torch.equal(found[n], w) for n, w in of_tag.items()) for tag, of_tag in weights.items()}


def engines_destroyed(engines: int) -> dict:
    """Threads and file descriptors of rank 0 after each of so many engines, with offload, that were stepped and destroyed."""
    case = Case("destroyed", offload=True)
    data, counts = models.batches(case, dist.get_world_size()), []
    for _ in range(engines):
        _, engine = world.build_engine(case)
        world.train(engine, data, range(1))
        engine.destroy()
        gc.collect()
        counts.append([len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))])
    return {"counts": counts}


def unread_key() -> dict:
    config = deepspeed_config(PLAIN)
    config["optimizer"]["parms"] = {"lr": 1.0}
    model = world.build_model(PLAIN)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        world.initialize(model, config, list(model.parameters()))
    return {"warnings": world.on_all_ranks([str(w.message) for w in caught if "nobody reads" in str(w.message)])}
