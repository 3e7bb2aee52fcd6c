"""What rank 0 shows: the progress bar, or plain lines where there is no terminal; the curve; the last words."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

MOST_LINES = 60  # plain lines of a run without a terminal
SHORT = {
    "forward": "fwd",
    "backward": "bwd",
    "momentum": "mom",
    "gather_to_owner": "gather",
    "newton_schulz": "ns",
    "scatter_to_shards": "scatter",
    "apply": "apply",
    "adamw": "adamw",
    "zero3": "zero3",
}
MB = 1e6


def phases_text(seconds: dict[str, float]) -> str:
    """Milliseconds by phase, in the order of a step."""
    return " ".join(f"{SHORT[name]} {1000 * seconds[name]:.0f}" for name in SHORT if name in seconds)


class Progress:
    """Progress of one run on rank 0; silent on other ranks. Thread: one.

    On a terminal a bar with a line of phases below it, else a line per step.
    """

    def __init__(self, rank: int, steps: int):
        self._loud = rank == 0
        self._steps = steps
        self._every = max(1, steps // MOST_LINES)
        self._terminal = self._loud and sys.stdout.isatty() and terminal_columns() > 0
        self._bar = self._below = None

    def show(self, entry: dict) -> None:
        """One step's metrics."""
        speed = f"loss {entry['loss']:.3f} | {entry['tokens_per_second']:.0f} tokens/s"
        phases = f"ms: {phases_text(entry['seconds'])} | {entry['bytes_sent'] / MB:.1f} MB sent"
        if self._terminal:
            self._open_bar(entry["step"] - 1)
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(1)
            self._below.set_description_str(phases)
        elif self._loud and (entry["step"] % self._every == 0 or entry["step"] in (1, self._steps)):
            print(f"step {entry['step']}/{self._steps} | {speed} | {phases}", flush=True)

    def _open_bar(self, first: int) -> None:
        if self._bar is not None:
            return
        from tqdm import tqdm

        shared = {"file": sys.stdout, "dynamic_ncols": True}
        self._bar = tqdm(total=self._steps, initial=first, unit="step", **shared)
        self._below = tqdm(total=0, bar_format="{desc}", position=1, **shared)

    def note(self, text: str) -> None:
        """A line above the bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        elif self._loud:
            print(text, flush=True)

    def close(self) -> None:
        """Leaves the last state of the bar on the screen."""
        if self._bar is not None:
            self._bar.refresh()
            self._below.close()
            self._bar.close()
            self._bar = self._below = None


def terminal_columns() -> int:
    """Width of the terminal on stdout; 0 where it does not say."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        return 0


def draw_curve(path: Path, metrics: list[dict], result: dict) -> None:
    """Writes the training loss, the held-out loss before and after, and the word-count baseline as a PNG.

    metrics: entries with "step" and "loss"; result: "held_out_before", "held_out_after", "baseline" in nats, "steps".
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(
        [m["step"] for m in metrics],
        [m["loss"] for m in metrics],
        color="tab:blue",
        linewidth=1.2,
        label="training loss (one batch)",
    )
    ends = [(0, result["held_out_before"]), (result["steps"], result["held_out_after"])]
    axes.plot(*zip(*ends), "o", color="tab:red", label="held-out loss, before and after")
    for step, loss in ends:
        side = -1 if step else 1
        axes.annotate(
            f"{loss:.2f}",
            (step, loss),
            xytext=(8 * side, 6),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
        )
    axes.axhline(
        result["baseline"],
        color="black",
        linestyle="--",
        linewidth=1,
        label=f"word counts only: {result['baseline']:.2f}",
    )
    axes.set(xlabel="optimizer step", ylabel="cross-entropy (nats per token)", title=result["title"])
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


@dataclass(frozen=True)
class StateBytes:
    """Optimizer-state bytes over all ranks, counted from the tensors."""

    resident: int
    adamw: int


def summary(result: dict, folder: Path) -> str:
    """The last lines of a run that reached its last step."""
    state = StateBytes(result["state_bytes"], result["adamw_state_bytes"])
    gap = result["baseline"] - result["held_out_after"]
    lines = [
        "",
        (
            f"held-out loss       {result['held_out_before']:.3f} before, {result['held_out_after']:.3f}"
            f" after {result['steps']} steps (nats per token)"
        ),
        (
            f"word counts only    {result['baseline']:.2f}: the trained model is {abs(gap):.2f}"
            f" {'below' if gap > 0 else 'ABOVE'} it"
        ),
    ]
    if state.adamw:
        share = 100 * state.resident / state.adamw
        lines.append(
            f"optimizer state     {state.resident / MB:.1f} MB on {result['ranks']} ranks; AdamW would"
            f" hold {state.adamw / MB:.1f} MB ({share:.0f} %)"
        )
    if result.get("verified"):
        lines.append("saved model         loaded again: no missing keys, the same logits bit for bit")
    lines.append(
        f"results             {folder}: model/, loss.png, metrics.jsonl, result.json, checkpoints/"
    )
    return "\n".join(lines)
