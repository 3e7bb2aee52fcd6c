"""How much main memory a run takes at its highest, estimated before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ...ranks.machine import in_gib
from .model_folder import ModelFolder
from .settings import Settings

PROCESS_BYTES = 700 << 20  # interpreter, torch, transformers and DeepSpeed of one rank, measured
ACTIVATIONS_PER_HIDDEN = 40  # floats kept per token, layer and hidden unit for backward, attention included
LOGIT_COPIES = 4  # logits, their log-softmax and gradients


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes over all ranks at the highest point, part by part."""

    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())

    def require(self, available_bytes: int, model: str) -> None:
        """Raises ValueError if the plan does not fit into `available_bytes`."""
        if self.total_bytes <= available_bytes:
            return
        table = ", ".join(f"{name} {in_gib(size)}" for name, size in self.parts.items())
        raise ValueError(
            f"--model {model}: this run needs about {in_gib(self.total_bytes)} of main memory ({table}),"
            f" {in_gib(available_bytes)} are available; use fewer ranks, a smaller --batch or --seq-len,"
            " or a smaller model"
        )


def plan_memory(model: ModelFolder, settings: Settings, on_gpu: bool) -> MemoryPlan:
    """The estimate for fp32 master weights and gradients and two fp32 states at most, with optimizer offload.

    Each rank loads the whole model in fp32 before ZeRO-3 takes its shard. Activations count on a CPU only.
    """
    numel, ranks = model.parameters, settings.ranks
    hidden, layers, vocabulary = model.sizes()
    tokens = settings.batch * settings.seq_len * ranks
    parts = {
        "processes": PROCESS_BYTES * ranks,
        "loading": 4 * numel * ranks,
        "weights and master weights": 8 * numel,
        "gradients": 4 * numel,
        "optimizer state": 8 * numel,
    }
    if not on_gpu:
        parts["activations"] = 4 * tokens * (ACTIVATIONS_PER_HIDDEN * hidden * layers + LOGIT_COPIES * vocabulary)
    return MemoryPlan(parts)
