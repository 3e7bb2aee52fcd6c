"""Rows in fp32: weights against the reference, and who gets Muon. Each takes the system and returns its figures."""

from __future__ import annotations

import functools

from . import kit, training
from .rows import OURS
from .training import STEPS, batches, build_engine, config_for, equal_squares


def _weights_off(system: str, build=equal_squares, accumulation: int = 1, zero: dict | None = None) -> dict:
    """max|W - Wref| after five steps, and its bar."""
    data = batches(STEPS, accumulation)
    engine = build_engine(config_for(system, zero, gradient_accumulation_steps=accumulation), build())
    training.train(engine, data)
    expected, _ = training.reference_run(data, build=build)
    return _off(engine, expected)


def _off(engine, expected: dict) -> dict:
    return {"value": kit.distance(kit.whole_weights(engine.module), expected), "bar": kit.weight_bar(expected)}


accumulation = functools.partial(_weights_off, accumulation=4)
reduce_bucket = functools.partial(_weights_off, zero={"reduce_bucket_size": 100})  # every matrix has 256 elements
mixed_shapes = functools.partial(_weights_off, build=training.build_model)  # 12x16, 24x12, 24x24 and 5x24
reduce_scatter = functools.partial(_weights_off, zero={"reduce_scatter": None})  # not mentioned: DeepSpeed's default


def clip(system: str) -> list[dict]:
    """Weights after five clipped steps, and the norm that the engine reports after the first, when both systems have
    seen the same gradients."""
    data = batches(STEPS)
    engine = build_engine(config_for(system, gradient_clipping=0.05), equal_squares())
    training.train(engine, data[:1])
    reported = float(engine.get_global_grad_norm())
    training.train(engine, data[1:])
    expected, norms = training.reference_run(data, clip=0.05, build=equal_squares)
    relative = abs(reported / norms[0] - 1)
    return [_off(engine, expected), {"value": relative, "shown": f"{relative:.1e} ({reported:.4g} for {norms[0]:.4g})"}]


def muon_names(engine, system: str) -> set[str]:
    """Names of the parameters that the engine steps with Muon."""
    zero3 = engine.optimizer
    if system == OURS:
        sub_groups = zero3.optimizer.bind().sub_groups
        return {s.name for g in sub_groups for s in g.specs if g.role == "muon"}
    names = {id(p): n for n, p in engine.module.named_parameters()}
    using = getattr(zero3, "sub_groups_using_muon", [])
    return {names[id(p)] for params, muon in zip(zero3.fp16_groups, using) if muon for p in params}


def zero_init(system: str) -> dict:
    """Matrices without Muon, of a model built under deepspeed.zero.Init."""
    config = config_for(system)
    engine = build_engine(config, kit.under_zero_init(training.build_model, config))
    expected = {n for n, p in training.build_model().named_parameters() if p.ndim >= 2}
    missing = expected - muon_names(engine, system)
    return {"value": len(missing), "shown": f"{len(missing)} of {len(expected)}"}


def roles(system: str) -> dict:
    """Tables and heads of a small GPT-2 that get Muon: wte, wpe, and a head that is not tied, so that it has a weight of
    its own."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(
        GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=97, n_positions=16, tie_word_embeddings=False)
    )
    engine = build_engine(config_for(system), model)
    names = muon_names(engine, system)
    wrong = sorted(n.split(".")[-2] for n in names if n.split(".")[-2] in ("wte", "wpe", "lm_head"))
    if not names:
        raise training.NotMeasurable("no parameter of the GPT-2 gets Muon")
    return {"value": len(wrong), "shown": f"{len(wrong)} ({', '.join(wrong)})" if wrong else "0"}


def unknown_option(system: str) -> dict:
    """ "nestrov": false in the optimizer's params: 0 when an error names it, 1 when the engine is built all the same."""
    config = config_for(system)
    config["optimizer"]["params"]["nestrov"] = False
    try:
        build_engine(config)
    except Exception as error:
        if "nestrov" not in str(error):
            raise
        return {"value": 0, "shown": type(error).__name__}
    return {"value": 1, "shown": "dropped"}
