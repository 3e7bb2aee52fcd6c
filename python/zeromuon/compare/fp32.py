"""Rows in fp32: weights against the reference, roles, work and traffic. Each takes the system and returns the figure."""

from __future__ import annotations

import contextlib

import torch.distributed as dist

from . import training
from .rows import OURS
from .training import STEPS, batches, build_engine, config_for


def _error(system: str, accumulation: int = 1, clip: float = 0.0, zero: dict | None = None) -> float:
    data = batches(STEPS, accumulation)
    engine = build_engine(config_for(system, zero, gradient_clipping=clip, gradient_accumulation_steps=accumulation))
    training.train(engine, data)
    expected, _ = training.reference_run(data, clip)
    return training.distance(training.weights_of(engine), expected)


def accumulation(system: str) -> float:
    return _error(system, accumulation=4)


def reduce_bucket(system: str) -> float:
    return _error(system, zero={"reduce_bucket_size": 100})


def mixed_shapes(system: str) -> float:
    return _error(system)


def clip(system: str) -> float:
    return _error(system, clip=0.05)


def reduce_scatter(system: str) -> float:
    return _error(system, zero={"reduce_scatter": True})


def clip_norm(system: str) -> float:
    """One step, so that both see the same gradients."""
    data = batches(1)
    engine = build_engine(config_for(system, gradient_clipping=0.05))
    training.train(engine, data)
    _, norm = training.reference_run(data, 0.05)
    return abs(float(engine.get_global_grad_norm()) / norm - 1)


# ---- roles ---------------------------------------------------------------------------------------


def _muon_names(engine, system: str) -> set[str]:
    """Names of the parameters that the engine steps with Muon."""
    zero3 = engine.optimizer
    if system == OURS:
        sub_groups = zero3.optimizer.bind().sub_groups
        return {s.name for g in sub_groups for s in g.specs if g.role == "muon"}
    names = {id(p): n for n, p in engine.module.named_parameters()}
    using = getattr(zero3, "sub_groups_using_muon", [])
    return {names[id(p)] for params, muon in zip(zero3.fp16_groups, using) if muon for p in params}


def zero_init(system: str) -> float:
    config = config_for(system)
    engine = build_engine(config, training.model_under_zero_init(config))
    expected = {n for n, p in training.build_model().named_parameters() if p.ndim >= 2}
    return len(expected - _muon_names(engine, system))


def roles(system: str) -> float:
    """wte, wpe and the head of a small GPT-2, untied so that the head has a weight of its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=97, n_positions=16,
                                       tie_word_embeddings=False))
    engine = build_engine(config_for(system), model)
    return sum(n.split(".")[-2] in ("wte", "wpe", "lm_head") for n in _muon_names(engine, system))


def unknown_option(system: str) -> float:
    config = config_for(system)
    config["optimizer"]["params"]["nestrov"] = False
    try:
        build_engine(config)
    except (ValueError, TypeError) as error:
        if "nestrov" in str(error):
            return 0.0
        raise
    return 1.0


# ---- work and traffic ----------------------------------------------------------------------------


def _total(value: float) -> float:
    found = [None] * dist.get_world_size()
    dist.all_gather_object(found, value)
    return sum(found)


@contextlib.contextmanager
def _counted_updates():
    """Counts calls of DeepSpeed's muon_update, one per Newton-Schulz of a matrix, on this rank."""
    from deepspeed.runtime.zero.muon import original_muon

    update, calls = original_muon.muon_update, []

    def counted(grad, momentum, *args, **keywords):
        calls.append(grad.numel())
        return update(grad, momentum, *args, **keywords)

    original_muon.muon_update = counted
    try:
        yield calls
    finally:
        original_muon.muon_update = update


def offload_repeats(system: str) -> float:
    data = batches(STEPS)
    engine = build_engine(config_for(system, {"offload_optimizer": {"device": "cpu"}}))
    with _counted_updates() as calls:
        training.train(engine, data)
    matrices = len(_muon_names(engine, system))
    ours = system == OURS
    runs = engine.optimizer.optimizer.counters()["newton_schulz_matrices"] if ours else len(calls)
    return _total(runs) / (matrices * STEPS)


def offload_gathered(system: str) -> float:
    """Elements that are gathered into whole matrices on a rank in one step, per element of the Muon parameters; of the
    rank with the most. Not offloaded states: gradients, momenta and updates as the Newton-Schulz needs them.

    DeepSpeed: the outputs of its gathers of gradients and momenta, which are held together. Ours: the matrices that the
    rank owns, which is what its second all-to-all sends, itself included; the first sends its shard.
    """
    data, steps = batches(STEPS), STEPS
    engine = build_engine(config_for(system, {"offload_optimizer": {"device": "cpu"}}))
    matrices = _matrices(engine)
    muon = sum(p.ds_numel for p in matrices)
    if system == OURS:
        training.train(engine, data)
        counted = engine.optimizer.optimizer.counters()
        shard = sum(min(max(p.ds_numel - dist.get_rank() * p.partition_numel(), 0), p.partition_numel()) for p in matrices)
        return training.largest(((counted["bytes_sent"] + counted["bytes_self"]) / (4 * steps) - shard) / muon)
    with _gathered_whole(engine.optimizer) as outputs:
        training.train(engine, data)
    return training.largest(sum(outputs) / (muon * steps))


def _matrices(engine) -> list:
    return [p for p in engine.module.parameters() if len(p.ds_shape) >= 2]


@contextlib.contextmanager
def _gathered_whole(zero3):
    """Elements of the whole tensors that DeepSpeed gathers from partitioned buffers on this rank."""
    gather, outputs = zero3._partitioned_buffers_all_gather, []

    def counted(*args, **keywords):
        found = gather(*args, **keywords)
        lists = found if isinstance(found[0], (list, tuple)) else [found]
        outputs.extend(t.numel() for tensors in lists for t in tensors)
        return found

    zero3._partitioned_buffers_all_gather = counted
    yield outputs


def bytes_moved(system: str) -> float:
    """Elements that the optimizer's own collectives write on a rank in a step, what a rank sends itself included, per
    element of the Muon parameters.

    DeepSpeed: the outputs of every collective inside its Muon update. Ours: the all-to-alls' counters (fp32: 4 bytes).
    """
    steps, data = STEPS, batches(STEPS)
    engine = build_engine(config_for(system))
    muon = sum(p.ds_numel for p in _matrices(engine))
    if system == OURS:
        training.train(engine, data)
        counted = engine.optimizer.optimizer.counters()
        return _total((counted["bytes_sent"] + counted["bytes_self"]) / 4) / dist.get_world_size() / (muon * steps)
    with _counted_outputs(engine.optimizer) as outputs:
        training.train(engine, data)
    return _total(sum(outputs)) / dist.get_world_size() / (muon * steps)


@contextlib.contextmanager
def _counted_outputs(zero3):
    """Elements of the outputs of deepspeed.comm's gathers and reductions inside the Muon update."""
    from deepspeed.runtime.zero import stage3

    inside, outputs = [], []
    apply = zero3._apply_muon_to_accumulated_grads
    names = [n for n in ("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_reduce", "reduce_scatter_fn",
                         "all_gather_fn", "broadcast") if hasattr(stage3.dist, n)]
    originals = {n: getattr(stage3.dist, n) for n in names}

    def counting(original):
        def counted(output, *args, **keywords):
            if inside:
                tensors = output if isinstance(output, (list, tuple)) else [output]
                outputs.append(sum(t.numel() for t in tensors))
            return original(output, *args, **keywords)

        return counted

    def applied():
        inside.append(True)
        try:
            return apply()
        finally:
            inside.pop()

    zero3._apply_muon_to_accumulated_grads = applied
    for name, original in originals.items():
        setattr(stage3.dist, name, counting(original))
    try:
        yield outputs
    finally:
        for name, original in originals.items():
            setattr(stage3.dist, name, original)
