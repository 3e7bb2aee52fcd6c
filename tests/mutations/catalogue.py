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
        "        if sub_group.role == \"muon\":\n            self._muon_step(group, sub_group, state)\n",
        "        if sub_group.role == \"muon\":\n"
        "            micro_batches = self._binding.zero3.gradient_accumulation_steps\n"
        "            for _ in range(micro_batches):\n"
        "                self._muon_step({**group, 'lr': group['lr'] / micro_batches}, sub_group, state)\n",
        "multirank",
    ),
    Mutation(
        "clipping after the orthogonalisation",
        "python/zeromuon/optimizer.py",
        "        flat, opts = sub_group.flat, self._options\n        self._binding.executor.muon_step(\n",
        "        flat, opts = sub_group.flat, self._options\n"
        "        zero3 = self._binding.zero3\n"
        "        norm = float(zero3._global_grad_norm)\n"
        "        clip = min(1.0, zero3.clip_grad / (norm + 1e-6)) if zero3.clip_grad > 0 else 1.0\n"
        "        flat.grad.div_(clip)\n"
        "        group = {**group, 'lr': group['lr'] * clip}\n"
        "        self._binding.executor.muon_step(\n",
        "multirank",
    ),
    Mutation(
        "padding read",
        "zero3/shard_layout.cpp",
        "const int64_t real = std::clamp<int64_t>(p.numel - rank * p.chunk, 0, p.chunk);",
        "const int64_t real = p.chunk + 0 * rank;",
        "plan",
    ),
    Mutation(
        "a matrix owned twice",
        "zero3/step_plan.cpp",
        "    for (MatrixBlock b : blocks) {\n",
        "    if (param == 0) blocks.push_back(blocks.front());\n    for (MatrixBlock b : blocks) {\n",
        "plan",
    ),
    Mutation(
        "a matrix owned by no one",
        "zero3/step_plan.cpp",
        "    for (MatrixBlock b : blocks) {\n",
        "    if (param == 2) blocks.pop_back();\n    for (MatrixBlock b : blocks) {\n",
        "plan",
    ),
    Mutation(
        "momentum not advanced on one rank",
        "python/zeromuon/optimizer.py",
        "sub_group.index, flat.data, flat.grad, state[\"exp_avg\"],\n            lr=float(group[\"lr\"]), weight",
        "sub_group.index, flat.data, flat.grad,\n"
        "            state[\"exp_avg\"].clone() if torch.distributed.get_rank() == 1 else state[\"exp_avg\"],\n"
        "            lr=float(group[\"lr\"]), weight",
        "multirank",
    ),
    Mutation(
        "a loss scale that grows before the gradients are unscaled",
        "python/zeromuon/watch.py",
        "    if zero3.dtype != torch.float16:\n        return\n",
        "    return\n",
        "multirank",
    ),
)
