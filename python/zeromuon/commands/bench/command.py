"""`zeromuon bench`: the list of benches and the way to each. No torch."""

from __future__ import annotations

import importlib

from ...base.words import did_you_mean

# name -> (module of this package with `run(arguments) -> exit status`, what it measures)
BENCHES = {
    "ckpt": ("ckpt.command", "zeromuon ckpt beside DeepSpeed's zero_to_fp32 and ds_to_universal: time, memory, disk"),
    "kernels": ("kernels.command", "AdamW and Newton-Schulz on the CPU beside DeepSpeed's, torch's and the roofs"),
    "pipeline": (
        "played.command",
        "the pipeline of a step of large models, on a virtual clock with the rates of a file",
    ),
    "step": (
        "step.command",
        "engine.step() of ZeRO-3 with ZeroMuon and with DeepSpeed's Muon: time, memory, bytes sent",
    ),
    "tune": (
        "kernels.tune",
        "how the products of Newton-Schulz are best cut here; prints rows of the tuned table, for developers",
    ),
}


def run(argv: list[str]) -> int:
    """`zeromuon bench`; returns the exit status: 0, or 130 when interrupted.

    Raises ValueError for bad arguments, before anything is measured or written.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return 0
    if argv[0] not in BENCHES:
        hint = did_you_mean(argv[0], BENCHES)
        raise ValueError(f'zeromuon bench {argv[0]}: expected a bench ({", ".join(BENCHES)}), found "{argv[0]}"{hint}')
    return importlib.import_module(f".{BENCHES[argv[0]][0]}", __package__).run(argv[1:])


def usage() -> str:
    benches = "\n".join(f"  {name:<10} {purpose}" for name, (_, purpose) in BENCHES.items())
    return (
        f"usage: zeromuon bench BENCH [options]\n\nbenches:\n{benches}\n\n"
        "`zeromuon bench BENCH --help` tells a bench's options."
    )
