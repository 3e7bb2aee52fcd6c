"""Whom `zeromuon bench step` measures: their names, DeepSpeed configurations, the model, its gradients, the time.

torch only where a model is made; nothing else of this package, so that ranks of another tree can load this file, too. Legend:
W width, L layers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

OURS_OFFLOADED, OURS_HOME = "ZeroMuon, CPU offload", "ZeroMuon, no offload"
PEER_OFFLOADED, PEER_HOME = "DeepSpeed's Muon, CPU offload", "DeepSpeed's Muon, no offload"
WIRE_BF16 = "ZeroMuon, CPU offload, bf16 wire"
OURS, PEERS = (OURS_OFFLOADED, OURS_HOME), (PEER_OFFLOADED, PEER_HOME)
ALL = (*OURS, *PEERS)
COUNTED = (*OURS, WIRE_BF16)
ROWS_OF_INPUT = 32
_COMMON = {"lr": 1e-3, "momentum": 0.95, "weight_decay": 0.01, "betas": [0.9, 0.95]}
# torch_adam: AdamW has the norms only, under 0.1 % of the parameters; without it DeepSpeed compiles an operator for minutes
# first. ns_method is left at DeepSpeed's default, which is gram.
_PARAMS = {"ZeroMuon": {}, "Muon": {"torch_adam": True}}


@dataclass(frozen=True)
class Size:
    """A model: L layers with matrices of a transformer's shapes, [W, W] x 4, [4W, W], [W, 4W] each."""

    width: int
    layers: int

    @property
    def key(self) -> str:
        return f"{self.width}x{self.layers}"

    @property
    def muon_numel(self) -> int:
        """Parameters that get Muon."""
        return 12 * self.width**2 * self.layers

    @property
    def numel(self) -> int:
        return self.muon_numel + 2 * self.width * self.layers

    @property
    def work(self) -> float:
        """Newton-Schulz operations, up to a factor."""
        return float(self.width**3 * self.layers)


def is_ours(name: str) -> bool:
    return name.startswith("ZeroMuon")


def config(name: str) -> dict:
    """The DeepSpeed configuration of a contender: fp32, ZeRO-3. DeepSpeed refuses its Muon with reduce_scatter."""
    kind = "ZeroMuon" if is_ours(name) else "Muon"
    wire = {"wire_dtype": "bfloat16"} if name == WIRE_BF16 else {}
    device = "cpu" if "CPU offload" in name else "none"
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "optimizer": {"type": kind, "params": {**_COMMON, **_PARAMS[kind], **wire}},
        "zero_optimization": {"stage": 3, "reduce_scatter": False, "offload_optimizer": {"device": device}},
    }


def build_model(size: Size):
    import torch

    width = size.width

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.LayerNorm(width)
            self.square = torch.nn.ModuleList(torch.nn.Linear(width, width, bias=False) for _ in range(4))
            self.up = torch.nn.Linear(width, 4 * width, bias=False)
            self.down = torch.nn.Linear(4 * width, width, bias=False)

        def forward(self, x):  # [N, W]
            y = self.norm(x)
            for linear in self.square:
                y = torch.tanh(linear(y))
            return x + self.down(torch.relu(self.up(y)))

    torch.manual_seed(0)
    return torch.nn.Sequential(*(Layer() for _ in range(size.layers)))


def build_engine(name: str, size: Size):
    """A DeepSpeed engine of this rank; every rank calls it."""
    import deepspeed

    model = build_model(size)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config(name))
    return engine


def backward(engine, size: Size, batch: int) -> None:
    """Gradients of random input, other on every rank and for every batch."""
    import torch

    torch.manual_seed(100 * batch + torch.distributed.get_rank())
    x = torch.randn(ROWS_OF_INPUT, size.width)
    engine.backward(engine(x).square().mean())


def common_clock() -> float:
    """Seconds; the time when the last rank came here, the same value on all. They share a machine, and so its clock."""
    import torch

    now = torch.tensor([time.perf_counter()], dtype=torch.float64)
    torch.distributed.all_reduce(now, torch.distributed.ReduceOp.MAX)
    return now.item()


# Per parameter of the model 512x8 on 2 ranks, measured: what an engine holds between steps (weights twice, gradients, momentum,
# shared out; and on each rank DeepSpeed's buffers of whole gradients and weights), and what one takes more while it steps.
_SHARED_BYTES, _HELD_BYTES, _MOVING_BYTES = 4 * 4, 3 * 4, 6 * 4
_PROCESS_BYTES = 770e6  # of a rank before it has an engine


def needed_bytes(engines: int, ranks: int, size: Size) -> float:
    """Memory of all ranks together with that many engines in each, one of which steps."""
    return (
        size.numel * (engines * (_SHARED_BYTES + ranks * _HELD_BYTES) + ranks * _MOVING_BYTES) + ranks * _PROCESS_BYTES
    )
