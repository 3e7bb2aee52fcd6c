"""Row: train a case on ZeRO-3 and compare with the reference on whole tensors."""

from __future__ import annotations

import torch
import torch.distributed as dist

from tests.multirank import world
from tests.multirank.cases import ADAM_LR, LR, STEPS, Case
from tests.reference.muon import Muon

JORDAN = [(3.4445, -4.775, 2.0315)] * 5


def run(case: Case) -> dict:
    data = world.batches(case, dist.get_world_size())
    model, engine = world.build_engine(case)
    world.train(engine, data, range(STEPS))
    weights, momenta = world.whole_weights(model), _momenta(model)
    optimizer = engine.optimizer.optimizer
    counters = world.on_all_ranks(optimizer.counters())
    row = {
        "steps": counters[0]["steps"],
        "newton_schulz": sum(c["newton_schulz_matrices"] for c in counters),
        "bytes_sent": [c["bytes_sent"] for c in counters],
        "norm": float(engine.get_global_grad_norm()),
        "muon_numel": sum(w.numel() for n, w in weights.items() if w.dim() == 2),
    }
    expected, start, reference_momenta, norm = _reference(case, data)
    row["matrices"] = sum(w.dim() == 2 for w in weights.values())
    row["error"] = _distance(weights, expected)
    row["bar"] = 2e-6 * max(1.0, max(w.abs().max().item() for w in expected.values()))
    if case.options.get("ns_form", "standard") != "standard":
        # The Gram form amplifies rounding: what plain fp32 evaluation of it is off from double sets the bar.
        exact, *_ = _reference(case, data, torch.float64)
        row["noise"] = _distance({n: w.double() for n, w in expected.items()}, exact)
        row["bar"] = max(row["bar"], 4 * row["noise"])
        row["error"] = _distance({n: w.double() for n, w in weights.items()}, exact)
    row["moved"] = max((expected[n] - start[n]).abs().max().item() for n in expected)
    row["momentum_error"] = _distance(momenta, {n: reference_momenta[n] for n in momenta})
    row["reference_norm"] = norm
    return row


def _distance(a: dict, b: dict) -> float:
    assert a.keys() == b.keys(), f"{sorted(a.keys() ^ b.keys())} on one side only"
    return max((a[n] - b[n]).abs().max().item() for n in a)


def _momenta(model) -> dict:
    from deepspeed.utils import safe_get_full_optimizer_state

    return {n: safe_get_full_optimizer_state(p, "exp_avg").float().cpu().clone()
            for n, p in model.named_parameters() if p.requires_grad}


def _reference(case: Case, data, dtype=torch.float32):
    model = world.small_model().to(dtype)
    params = {n: p for n, p in model.named_parameters() if n not in case.frozen}
    start = {n: p.detach().clone() for n, p in params.items()}
    options = {"scale": "original", **case.options}
    muon = Muon(
        {n: p.data for n, p in params.items()},
        {n: "muon" if p.dim() == 2 else "adamw" for n, p in params.items()},
        options.pop("ns", JORDAN), options.pop("lr", LR), ADAM_LR,
        form=options.pop("ns_form", "standard"), kind=options.pop("momentum_kind", "ema"), **options,
    )
    for micro_batches in data:
        model.zero_grad()
        for ranks in micro_batches:
            inputs, classes = (torch.cat(parts) for parts in zip(*ranks))
            loss = torch.nn.functional.cross_entropy(model(inputs.to(dtype)), classes)
            (loss / len(micro_batches)).backward()
        norm = muon.step({n: p.grad for n, p in params.items()}, case.clip)
    return {n: p.detach() for n, p in params.items()}, start, muon.m, norm
