"""Times engine.step() of ZeroMuon and of DeepSpeed's own Muon on the same model: `./run bench --help`.

A step is what stands between the backward pass and the next forward pass: clipping, the optimizer and
the copy into the parameters. Ratios within one run mean something; times depend on the machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

ZEROMUON, DEEPSPEED_MUON = "ZeroMuon", "Muon"
COMMON = {"lr": 1e-3, "momentum": 0.95, "weight_decay": 0.01, "betas": [0.9, 0.95]}
# torch_adam: without it DeepSpeed compiles a kernel first; it is not what is measured here.
OPTIMIZERS = {ZEROMUON: COMMON, DEEPSPEED_MUON: {**COMMON, "torch_adam": True}}


def options(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run bench", description="Time of one ZeRO-3 optimizer step.")
    add = parser.add_argument
    add("--ranks", type=int, default=2, help="processes (default: 2)")
    add("--width", type=int, default=512, help="hidden size (default: 512)")
    add("--layers", type=int, default=8, help="layers of 12 width^2 parameters (default: 8)")
    add("--steps", type=int, default=7, help="measured steps, after 2 that are not (default: 7)")
    add("--offload", choices=("cpu", "none"), default="cpu", help="of the optimizer (default: cpu)")
    return parser.parse_args(argv)


def build_model(width: int, layers: int):
    """Matrices of a transformer's shapes, [W, W] x 4, [4W, W], [W, 4W] per layer."""
    import torch

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
    return torch.nn.Sequential(*(Layer() for _ in range(layers)))


def build_engine(optimizer: str, chosen: argparse.Namespace):
    import deepspeed

    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 1.0,
        "optimizer": {"type": optimizer, "params": OPTIMIZERS[optimizer]},
        # DeepSpeed refuses its Muon with reduce_scatter.
        "zero_optimization": {
            "stage": 3, "reduce_scatter": False, "offload_optimizer": {"device": chosen.offload},
        },
    }
    model = build_model(chosen.width, chosen.layers)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    return engine


def step_seconds(engine, chosen: argparse.Namespace, ranks) -> list[float]:
    """Wall time of each step on this rank, from a common start to the end of the slowest rank."""
    import torch

    taken = []
    for i in range(2 + chosen.steps):
        torch.manual_seed(100 * i + ranks.rank)
        x = torch.randn(32, chosen.width, device=ranks.device)
        engine.backward(engine(x).square().mean())
        ranks.barrier()
        start = time.perf_counter()
        engine.step()
        ranks.barrier()
        taken.append(time.perf_counter() - start)
    return taken[2:]


def measure(optimizer: str, chosen: argparse.Namespace, ranks) -> None:
    engine = build_engine(optimizer, chosen)
    seconds = step_seconds(engine, chosen, ranks)
    if ranks.rank == 0:
        median, low, high = statistics.median(seconds), min(seconds), max(seconds)
        print(f"{optimizer:<10} {1e3 * median:8.0f} ms  ({1e3 * low:.0f} to {1e3 * high:.0f})", flush=True)
        if optimizer == ZEROMUON:
            print_phases(engine.optimizer.optimizer.counters())
    engine.destroy()


def print_phases(counters: dict) -> None:
    """Rank 0's mean per step, over all steps."""
    steps = counters["steps"]
    for phase, seconds in counters["seconds"].items():
        print(f"  {phase:<18} {1e3 * seconds / steps:8.1f} ms")
    print(f"  {'sent to others':<18} {counters['bytes_sent'] / steps / 2**20:8.1f} MiB", flush=True)


def run_rank(chosen: argparse.Namespace) -> None:
    import logging

    from zeromuon.finetune.ranks import connect

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    ranks = connect()
    import zeromuon

    zeromuon.register()
    if ranks.rank == 0:
        millions = (12 * chosen.width**2 + 2 * chosen.width) * chosen.layers / 1e6
        where = ranks.device.partition(":")[0]
        print(f"{millions:.1f} M parameters, {ranks.world_size} ranks on {where}, offload {chosen.offload}; "
              f"median of {chosen.steps} steps (fastest to slowest)", flush=True)
    for optimizer in OPTIMIZERS:
        measure(optimizer, chosen, ranks)


def launch(chosen: argparse.Namespace, argv: list[str]) -> int:
    """Starts the ranks; the cores are shared out among them. Returns the exit status."""
    threads = max(1, len(os.sched_getaffinity(0)) // chosen.ranks)
    environment = {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": str(threads), **os.environ}
    import torch

    if not torch.cuda.is_available():
        environment["DS_ACCELERATOR"] = "cpu"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks = [f"--nproc-per-node={chosen.ranks}", "-m", "tests.bench_step", *argv]
    return subprocess.call([*torchrun, *ranks], env=environment)


def main(argv: list[str]) -> int:
    chosen = options(argv)
    if "LOCAL_RANK" not in os.environ:
        return launch(chosen, argv)
    run_rank(chosen)
    import torch.distributed

    torch.distributed.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
