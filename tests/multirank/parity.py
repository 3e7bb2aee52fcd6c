"""Row: train a case on ZeRO-3 and compare with the reference on whole tensors.

Note [Gram rounding]
The Gram form multiplies rounding errors by up to 1/(smallest singular value). The small model has matrices of rank
one and directions without a gradient: a change of one unit in the last place of the gradients moves the reference
itself by 1e-5 to 3e-5 there (1e-6 to 2e-6 in the standard form). So for ns_form "auto" on that model the error is
taken from the reference in double, and the bar is four times what the reference in fp32 is off from it. The form
"gram" is held to the common bar, on a model whose matrices are well conditioned. Adapters of LoRA get the same bar: B
starts at zero, so the gradients of A are tiny and ill-conditioned in the first steps (up to 2.8e-6 between two BLAS).

Note [Momentum bar]
Momenta are compared with the reference in double, relative to the largest element of the same tensor. Where gradients
cancel (biases), the reference in fp32 is off by up to 1.4e-5 itself: the bar is four times that, and at least 1e-5.
"""

from __future__ import annotations

import functools
import sys

import torch
import torch.distributed as dist
from zeromuon.commands.compare import kit
from zeromuon.reference import Muon, qk_clip

from tests.multirank import models, schedules, world
from tests.multirank.cases import ADAM_LR, LR, STEPS, Case


def run(case: Case) -> dict:
    data = models.batches(case, dist.get_world_size())
    model, engine = world.build_engine(case)
    norms = []
    for step in range(STEPS):
        world.train(engine, data, range(step, step + 1), case)
        norms.append(float(engine.get_global_grad_norm()))
    weights, momentum = world.whole_weights(model), momenta(model)
    optimizer = engine.optimizer.optimizer
    counters = world.on_all_ranks(optimizer.counters())
    row = {
        "steps": counters[0]["steps"],
        "newton_schulz": sum(c["newton_schulz_matrices"] for c in counters),
        "bytes_sent": [c["bytes_sent"] for c in counters],
        "norms": norms,
        "clip": case.clip,
        "empty_sub_groups": world.on_all_ranks(_empty_sub_groups(engine)),
    }
    muon = {n: w for n, w in weights.items() if _role(case, n, w) == "muon"}
    if case.options.get("qk_clip"):
        row["clipped_heads"] = world.on_all_ranks(optimizer.attention_logits()["clipped_heads"])
    row["matrices"] = sum(len(_blocks(case, n, w)) or 1 for n, w in muon.items())
    row["muon_numel"] = sum(w.numel() for w in muon.values())
    if dist.get_rank():  # only rank 0's row is read, and the weights are whole
        return row
    expected, start, reference_momentum, reference_norms = _reference(case, data)
    exact, _, exact_momentum, _ = _reference(case, data, torch.float64)
    row["error"] = kit.distance(weights, expected)
    row["bar"] = kit.weight_bar(expected)
    if case.options.get("ns_form") == "auto" or case.model == "lora":  # Note [Gram rounding]
        row["error"] = kit.distance(weights, exact)
        row["bar"] = max(row["bar"], 4 * kit.distance(expected, exact))
    row["momentum_error"] = _relative(momentum, exact_momentum)
    row["momentum_bar"] = max(1e-5, 4 * _relative(reference_momentum, exact_momentum))  # Note [Momentum bar]
    row["moved"] = kit.distance(expected, start)
    row["reference_norms"] = reference_norms
    return row


def _empty_sub_groups(engine) -> int:
    """How many sub-groups hold nothing but padding on this rank."""
    rank, zero3 = dist.get_rank(), engine.optimizer
    return sum(all(p.partition_numel() * rank >= p.ds_numel for p in params) for params in zero3.fp16_groups)


def _relative(a: dict, b: dict) -> float:
    """The largest difference of a tensor, in units of its largest element; of all tensors the worst."""
    return max(kit.distance({n: a[n]}, {n: b[n]}) / b[n].abs().max().item() for n in a)


def _role(case: Case, name: str, param) -> str:
    return models.MODELS[case.model].role(name, tuple(param.shape))


def _blocks(case: Case, name: str, param) -> list:
    return models.MODELS[case.model].blocks(name, param) if case.options.get("split_fused", True) else []


def momenta(model) -> dict:
    """name -> whole fp32 exp_avg, on the CPU."""
    from deepspeed.utils import safe_get_full_optimizer_state

    return {
        n: safe_get_full_optimizer_state(p, "exp_avg").float().cpu().clone()
        for n, p in model.named_parameters()
        if p.requires_grad
    }


def _reference(case: Case, data, dtype=torch.float32):
    """(weights, weights before, momenta, raw norm of each step), by name and as the model stores them."""
    model = models.build(case).to(dtype)
    params = {n: p for n, p in model.named_parameters() if p.requires_grad and n not in case.frozen}
    start = {n: p.detach().clone() for n, p in params.items()}

    def outputs_first(named):
        """Views with outputs as rows; what is done to them happens to the tensors."""
        transposed = models.MODELS[case.model].transposed
        return {n: t.T if n in transposed else t for n, t in named.items()}

    muon = _muon(case, outputs_first({n: p.data for n, p in params.items()}))
    norms, clip = [], case.options.get("qk_clip") and _Heads(case, model, params)

    def loss_of(model, batch):
        inputs, targets = batch
        return models.loss(model(inputs.to(dtype) if inputs.is_floating_point() else inputs), targets)

    for _, values in zip(kit.mean_gradients(model, data, loss_of), schedules.expected_values(case, muon, len(data))):
        vars(muon).update(values)
        norms.append(muon.step(outputs_first({n: p.grad for n, p in params.items()}), case.clip))
        if clip:
            clip.after_a_step()
    return {n: p.detach() for n, p in params.items()}, start, outputs_first(muon.m), norms


class _Heads:
    """QK-Clip by the reference: what the model's own eager function multiplies, and the heads as written down by hand."""

    def __init__(self, case: Case, model, params: dict):
        self._threshold, self._params, self._largest = case.options["qk_clip_threshold"], params, {}
        self._rows = [(n, *row) for n, p in params.items() for row in models.MODELS[case.model].heads(n, p)]
        inner = next(m for m in model.modules() if hasattr(m, "set_attn_implementation"))
        inner.set_attn_implementation("eager")
        module = sys.modules[type(inner).__module__]
        eager = getattr(module.eager_attention_forward, "replaced", module.eager_attention_forward)
        spy = functools.partial(self._see, eager)
        spy.replaced, module.eager_attention_forward = eager, spy

    def _see(self, eager, attention, query, key, value, mask, scaling, **more):
        keys = key.repeat_interleave(query.shape[1] // key.shape[1], 1)
        logits = (query @ keys.mT * scaling).masked_fill(mask < -1, -torch.inf).detach().amax((0, 2, 3))
        for head, largest in enumerate(logits.tolist()):
            place = attention.layer_idx * len(logits) + head
            self._largest[place] = max(largest, self._largest.get(place, -torch.inf))
        return eager(attention, query, key, value, mask, scaling=scaling, **more)

    def after_a_step(self) -> None:
        qk_clip({n: p.data for n, p in self._params.items()}, self._rows, self._largest, self._threshold)
        self._largest = {}


def _muon(case: Case, params: dict) -> Muon:
    options = {"scale": "original", **case.options}
    # The reference has one of each, and is told the blocks and heads.
    for key in ("ns_dtype", "cpu_kernels", "split_fused", "per_head", "qk_clip", "qk_clip_threshold"):
        options.pop(key, None)
    first_group = list(params)[: world.FIRST_GROUP] if case.group_decay is not None else []
    return Muon(
        params,
        {n: _role(case, n, p) for n, p in params.items()},
        options.pop("ns", kit.JORDAN),
        options.pop("lr", LR),
        ADAM_LR,
        decays={n: case.group_decay for n in first_group},
        blocks={n: _blocks(case, n, p) for n, p in params.items()},
        form=options.pop("ns_form", "standard").partition("_")[0],
        kind=options.pop("momentum_kind", "ema"),
        **options,
    )
