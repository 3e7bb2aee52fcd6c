"""Row: train a 16-bit case on ZeRO-3 and compare with the reference that is fed the gradients ZeRO-3 reduced.

Gradients of 16-bit training depend on the order of summation in the last place, so the reference does not compute
its own: it gets the reduced gradients as they are before DeepSpeed unscales and clips them, and does that itself.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from zeromuon.commands.compare import kit

from tests.multirank import models, parity, world
from tests.multirank.cases import ADAM_LR, LR, STEPS, Case

EXTRA_STEPS = 3  # fp16 skips some while the loss scale settles


def run(case: Case) -> dict:
    import zeromuon

    _, engine = world.build_engine(case)
    zeromuon.attach(engine)  # before the recorder: the fused step gives way to methods that others replaced
    start, shapes = world.whole_weights(engine.module), _shapes(engine)
    recorder = _Recorder(engine.optimizer, shapes)
    steps = _train(case, engine, recorder)
    weights, momentum = world.whole_weights(engine.module), parity.momenta(engine.module)
    cast_is_exact = world.on_all_ranks(_cast_is_exact(engine.optimizer))
    if dist.get_rank():  # only rank 0's row is read, and what it compares is whole
        return {}
    muon = _reference(case, start, steps)
    counters = engine.optimizer.optimizer.counters()
    roles = {n: parity._role(case, n, w) for n, w in weights.items()}
    return {
        "error": kit.distance(weights, muon.params),
        "bar": kit.weight_bar(muon.params),
        "momentum_error": max(_relative(momentum[n], muon.m[n]) for n in weights),
        "moved": kit.distance(muon.params, start),
        "update_error": max(
            _frobenius(weights[n] - start[n], muon.params[n] - start[n]) for n in roles if roles[n] == "muon"
        ),
        "norm_error": max(abs(s["norm"] / s["reference_norm"] - 1) for s in steps),
        "cast_is_exact": cast_is_exact,
        "taken": len(steps),
        "skipped": counters["skipped_steps"],
        "scales": sorted({s["scale"] for s in steps}),
    }


def _shapes(engine) -> dict:
    """name -> whole shape of every trained parameter."""
    return {n: tuple(p.ds_shape) for n, p in engine.module.named_parameters() if p.requires_grad}


class _Recorder:
    """Copies this rank's real elements of every reduced gradient, just before it is unscaled and clipped."""

    def __init__(self, zero3, shapes: dict):
        self.zero3, self.shapes, self.pieces = zero3, shapes, {}
        self._names = {id(p): zero3.param_names[p].removeprefix("module.") for g in zero3.fp16_groups for p in g}
        self._unscale = zero3.unscale_and_clip_grads
        zero3.unscale_and_clip_grads = self._record

    def _record(self, sub_group_id, total_norm):
        flat = self.zero3.fp32_partitioned_groups_flat[sub_group_id]
        for p in self.zero3.fp16_groups[sub_group_id]:
            _, offset, chunk = self.zero3.grad_position[p.ds_id]
            real = min(max(p.ds_numel - dist.get_rank() * chunk, 0), chunk)
            self.pieces[self._names[id(p)]] = flat.grad[offset : offset + real].detach().float().cpu().clone()
        return self._unscale(sub_group_id, total_norm)

    def take(self) -> dict:
        """name -> whole gradient, of all ranks, since the last call."""
        pieces, self.pieces = world.on_all_ranks(self.pieces), {}
        return {n: torch.cat([p[n] for p in pieces]).view(self.shapes[n]) for n in pieces[0]}


def _train(case: Case, engine, recorder: _Recorder) -> list[dict]:
    """The steps that were taken: gradients (scaled), loss scale and reported norm."""
    data, steps = models.batches(case, dist.get_world_size()), []
    for index in range(STEPS + EXTRA_STEPS if case.dtype == "fp16" else STEPS):
        scale = float(engine.optimizer.loss_scale)
        for micro_batch in data[index % STEPS]:
            engine.backward(world.loss_of(engine, micro_batch[dist.get_rank()]))
            engine.step()
        gradients = recorder.take()
        if gradients:
            steps.append({"gradients": gradients, "scale": scale, "norm": float(engine.get_global_grad_norm())})
    return steps


def _reference(case: Case, start: dict, steps: list[dict]):
    options = {k: v for k, v in case.options.items() if k != "wire_dtype"}
    muon = parity._muon(
        Case(case.name, model=case.model, options={"lr": LR, "ns_form": "standard", **options}),
        {n: w.clone() for n, w in start.items()},
    )
    assert muon.adam_lr == ADAM_LR
    for step in steps:
        unscaled = {n: g / step["scale"] for n, g in step["gradients"].items()}
        step["reference_norm"] = muon.step(unscaled, case.clip)
    return muon


def _cast_is_exact(zero3) -> bool:
    """Whether each low-precision shard is the cast of its master weights, bit for bit, padding left out."""
    same = True
    for flat, params in zip(zero3.fp32_partitioned_groups_flat, zero3.fp16_groups):
        for p in params:
            _, offset, chunk = zero3.grad_position[p.ds_id]
            real = min(max(p.ds_numel - dist.get_rank() * chunk, 0), chunk)
            cast = flat.detach()[offset : offset + real].to(p.ds_tensor.dtype)
            same &= torch.equal(cast.view(torch.int16), p.ds_tensor.detach().reshape(-1)[:real].view(torch.int16))
    return same


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()


def _frobenius(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()
