"""The mutations: each a defect that Muon under ZeRO-3 can have, as an edit of one source file."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """An edit that must make the suite fail.

    before: text that stands exactly once in `path`; after: what replaces it. tier: "plan" (C++ plan
    tests) or "multirank" (real DeepSpeed on 2 ranks).
    """

    name: str
    path: str
    before: str
    after: str
    tier: str


MUTATIONS = (
    Mutation(
        "Newton-Schulz once per micro-batch",
        "python/zeromuon/optimizer.py",
        "        self._binding.executor.step(tasks)\n",
        "        micro_batches = self._binding.zero3.gradient_accumulation_steps\n"
        "        part = [dataclasses.replace(v, lr=v.lr / micro_batches) for v in values]\n"
        "        muon = [r.sub_group.role == 'muon' for r in requests]\n"
        "        for again in range(micro_batches):\n"
        "            self._binding.executor.step(\n"
        "                [make_task(r, s, w if m else v, self._options)\n"
        "                 for r, s, v, w, m in zip(requests, states, values, part, muon) if m or not again])\n",
        "multirank",
    ),
    Mutation(
        "clipping after the orthogonalisation",
        "python/zeromuon/optimizer.py",
        "        tasks = [make_task(r, s, v, self._options) for r, s, v in zip(requests, states, values)]\n",
        "        zero3 = self._binding.zero3\n"
        "        norm = float(zero3._global_grad_norm)\n"
        "        clip = min(1.0, zero3.clip_grad / (norm + 1e-6)) if zero3.clip_grad > 0 else 1.0\n"
        "        clips = [clip if r.sub_group.role == 'muon' else 1.0 for r in requests]\n"
        "        requests = [dataclasses.replace(r, gradient_scale=r.gradient_scale / c) for r, c in zip(requests, clips)]\n"
        "        values = [dataclasses.replace(v, lr=v.lr * c) for v, c in zip(values, clips)]\n"
        "        tasks = [make_task(r, s, v, self._options) for r, s, v in zip(requests, states, values)]\n",
        "multirank",
    ),
    Mutation(
        "padding read",
        "zero3/plan/zero3_partition.cpp",
        "return {offset, std::min(chunk, numel - begin), begin};",
        "return {offset, chunk, begin};",
        "plan",
    ),
    Mutation(
        "a matrix owned twice",
        "zero3/plan/step_plan.cpp",
        "    for (MatrixBlock b : blocks) {\n",
        "    if (param == 0) blocks.push_back(blocks.front());\n    for (MatrixBlock b : blocks) {\n",
        "plan",
    ),
    Mutation(
        "a matrix owned by no one",
        "zero3/plan/step_plan.cpp",
        "    for (MatrixBlock b : blocks) {\n",
        "    if (param == 2) blocks.pop_back();\n    for (MatrixBlock b : blocks) {\n",
        "plan",
    ),
    Mutation(
        "momentum not advanced on one rank",
        "python/zeromuon/tasks.py",
        'flat.data, flat.grad, state["exp_avg"], request.low_precision, **shared,\n            beta',
        "flat.data, flat.grad,\n"
        '            state["exp_avg"].clone() if torch.distributed.get_rank() == 1 else state["exp_avg"],\n'
        "            request.low_precision, **shared,\n            beta",
        "multirank",
    ),
    Mutation(
        "a loss scale that grows before the gradients are unscaled",
        "python/zeromuon/watch.py",
        "    if zero3.dtype != torch.float16:\n        return\n",
        "    return\n",
        "multirank",
    ),
    Mutation(
        "the fused step forgets to unscale and clip",
        "python/zeromuon/fused_step.py",
        "Request(self._sub_groups[sub_group_id], self._scale, low_precision)",
        "Request(self._sub_groups[sub_group_id], 1.0, low_precision)",
        "multirank",
    ),
)
