"""Rows about work and traffic of the optimizer step. Each takes the system and returns its figures.

Newton-Schulz runs: calls of DeepSpeed's muon_update, or our counter newton_schulz_matrices. Summed over the ranks, divided by
matrices and steps.

Gathered whole: elements of gradients, momenta or their mixture in matrices that are whole on a rank because they were
gathered, not in the buffers they pass through; of the rank with the most, in sizes of all Muon parameters. DeepSpeed: the
tensors that its gathers return, as long as they live, at their peak. Ours: matrices that the rank owns, all buckets added, no
less than what is whole at once: the second all-to-all sends what it owns (own part included), the first its shards.

Bytes moved: what collectives of the Muon update write on a rank, its own part included, mean of the ranks, divided by steps and
by the bytes of the Muon parameters in fp32. DeepSpeed: output tensors of every collective of deepspeed.comm inside its update.
Ours: bytes_sent and bytes_self of both all-to-alls, which run in C++ (what is sent is what is received). Both leave out the norm
and overflow flags.

Bars, the same for either system: the elements that must move at least, and what our plan sends beside them
(StepPlan.framing_bytes: flag words, alignment of segments, records at the end of the step).
"""

from __future__ import annotations

import itertools
import weakref

import torch.distributed as dist

from . import kit, training
from .fp32 import muon_names
from .rows import OURS
from .training import STEPS, NotMeasurable, batches, build_engine, build_model, config_for

_BYTES = 4  # of an fp32 element
_WIDTH = 4  # of the model: wide enough that bars are near what must move at least
_COLLECTIVES = (
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "allgather_fn", "all_reduce", "broadcast"),
    *("reduce_scatter_fn", "reduce_scatter_tensor", "all_to_all_single", "all_to_all"),
)


def offload_repeats(system: str) -> list[dict]:
    engine = build_engine(config_for(system, {"offload_optimizer": {"device": "cpu"}}), build_model(_WIDTH))
    measure = _work_of_ours if system == OURS else _work_of_deepspeed
    runs, whole_numel = measure(engine)
    matrices = training.matrices_of(engine)
    if set(matrices) != muon_names(engine, system):
        raise NotMeasurable("not every matrix gets Muon")
    numels = [p.ds_numel for p in matrices.values()]
    per_matrix = _some(sum(kit.on_all_ranks(runs))) / (len(matrices) * STEPS)
    whole = _some(max(kit.on_all_ranks(whole_numel)))
    bar = _even_share(numels) + max(_framing(engine, system)) / _BYTES
    return [{"value": per_matrix}, {"value": whole / sum(numels), "bar": bar / sum(numels)}]


def _even_share(numels: list[int]) -> int:
    """Elements of the rank with the most, when every matrix has one owner and they are dealt as evenly as can be."""
    ranks = range(dist.get_world_size())
    deals = itertools.product(ranks, repeat=len(numels))
    return min(max(sum(n for n, owner in zip(numels, deal) if owner == r) for r in ranks) for deal in deals)


def _framing(engine, system: str) -> list[int]:
    """StepPlan.framing_bytes of each rank. engine: of `system`; DeepSpeed's has no plan, so one of ours is made."""
    ours = engine if system == OURS else build_engine(config_for(OURS), build_model(_WIDTH))
    plan = ours.optimizer.optimizer.bind().plan
    return [plan.framing_bytes(rank) for rank in range(dist.get_world_size())]


def _some(count: float) -> float:
    """Nothing counted means that the count is wrong, not that nothing was done."""
    if count <= 0:
        raise NotMeasurable("nothing was counted")
    return count


def _work_of_ours(engine) -> tuple[int, float]:
    """(Newton-Schulz runs, elements of the matrices that this rank owns)"""
    training.train(engine, batches(STEPS))
    counted = engine.optimizer.optimizer.counters()
    sent = (counted["bytes_sent"] + counted["bytes_self"]) / (_BYTES * STEPS)
    shards = sum(training.shard_numel(p) for p in training.matrices_of(engine).values())
    return counted["newton_schulz_matrices"], sent - shards


def _work_of_deepspeed(engine) -> tuple[int, float]:
    """(Newton-Schulz runs, peak of gathered elements) on this rank."""
    calls, gathered = _count_updates(), _count_gathered(engine.optimizer)
    training.train(engine, batches(STEPS))
    return len(calls), gathered["peak"]


def _count_updates() -> list[None]:
    """Gets an entry per call of DeepSpeed's muon_update, which runs one Newton-Schulz."""
    from deepspeed.runtime.zero import stage3
    from deepspeed.runtime.zero.muon import original_muon

    calls = []
    for module in (original_muon, stage3):
        if hasattr(module, "muon_update"):
            before(module, "muon_update", lambda *_, **__: calls.append(None))
    return calls


def _count_gathered(zero3) -> dict[str, int]:
    """Elements of the whole tensors that DeepSpeed gathered on this rank and has not let go of: now, and at their peak."""
    gather, gathered = method_of(zero3, "_partitioned_buffers_all_gather"), {"now": 0, "peak": 0}

    def let_go(numel):
        gathered["now"] -= numel

    def counted(*args, **keywords):
        found = gather(*args, **keywords)
        lists = found if isinstance(found[0], (list, tuple)) else [found]
        for tensor in (t for tensors in lists for t in tensors):
            gathered["now"] += tensor.numel()
            weakref.finalize(tensor, let_go, tensor.numel())
        gathered["peak"] = max(gathered["peak"], gathered["now"])
        return found

    zero3._partitioned_buffers_all_gather = counted
    return gathered


def bytes_moved(system: str) -> dict:
    engine = build_engine(config_for(system), build_model(_WIDTH))
    if system == OURS:
        training.train(engine, batches(STEPS))
        counted = engine.optimizer.optimizer.counters()
        moved = counted["bytes_sent"] + counted["bytes_self"]
    else:
        outputs = _count_outputs(engine.optimizer)
        training.train(engine, batches(STEPS))
        moved = sum(outputs)
    muon_bytes = _BYTES * sum(p.ds_numel for p in training.matrices_of(engine).values())
    ranks = dist.get_world_size()
    total = _some(sum(kit.on_all_ranks(moved)))
    at_least = 2 * muon_bytes + sum(_framing(engine, system))  # of all ranks
    return {"value": total / (ranks * STEPS * muon_bytes), "bar": at_least / (ranks * muon_bytes)}


def _count_outputs(zero3) -> list[int]:
    """Gets the bytes of the output of each collective of deepspeed.comm inside DeepSpeed's Muon update."""
    from deepspeed.runtime.zero import stage3

    apply, counting, outputs = method_of(zero3, "_apply_muon_to_accumulated_grads"), False, []

    def counted(collective):
        def both(output, *args, **keywords):
            nonlocal counting
            outermost, counting = counting, False  # one collective of deepspeed.comm may call another
            if outermost:
                tensors = output if isinstance(output, (list, tuple)) else [output]
                outputs.append(sum(t.numel() * t.element_size() for t in tensors))
            result = collective(output, *args, **keywords)
            counting = outermost
            return result

        return both  # DeepSpeed asks some of them for their names, which a partial has not

    def applied():
        nonlocal counting
        counting = True
        apply()
        counting = False

    zero3._apply_muon_to_accumulated_grads = applied
    for name in _COLLECTIVES:
        if hasattr(stage3.dist, name):
            setattr(stage3.dist, name, counted(getattr(stage3.dist, name)))
    return outputs


def method_of(zero3, name: str):
    """Raises NotMeasurable when this DeepSpeed does not have it."""
    method = getattr(zero3, name, None)
    if method is None:
        raise NotMeasurable(f"this DeepSpeed has no {name}, in which it is measured")
    return method


def before(owner, name: str, action) -> None:
    """From now on calls of owner.name call action first, with the same arguments. Raises NotMeasurable as method_of."""
    method = method_of(owner, name)

    def both(*args, **keywords):
        action(*args, **keywords)
        return method(*args, **keywords)

    setattr(owner, name, both)
