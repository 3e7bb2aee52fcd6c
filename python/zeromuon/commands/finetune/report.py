"""What rank 0 shows: the progress bar, or plain lines where there is no terminal; the curve; the last words."""

from __future__ import annotations

import os
import sys
from pathlib import Path

MOST_LINES = 60  # plain lines of a run without a terminal
SHORT = {
    "forward": "fwd",
    "backward": "bwd",
    "momentum": "mom",
    "to_device": "to_device",
    "gather_to_owner": "gather",
    "newton_schulz": "ns",
    "scatter_to_shards": "scatter",
    "to_host": "to_host",
    "apply": "apply",
    "adamw": "adamw",
    "weights_to_device": "casts",
    "closing": "close",
    "zero3": "zero3",
}
MB = 1e6
WARM_UP = 2  # steps of a run that the averages leave out


def phases_text(seconds: dict[str, float]) -> str:
    """Milliseconds by phase, in the order of a step; those that took none are left out."""
    return " ".join(f"{SHORT[name]} {1000 * seconds[name]:.0f}" for name in SHORT if seconds.get(name))


def busy_and_hidden(entry: dict) -> tuple[float, float]:
    """Seconds of one step: what the optimizer's lanes were busy for in all, and how much of that must have run while
    another worked, because it exceeds the wall time."""
    not_ours = ("forward", "backward", "zero3")
    busy = sum(value for name, value in entry["seconds"].items() if name not in not_ours)
    return busy, max(busy - entry["optimizer_wall_seconds"], 0.0)


def split_text(steps: list[dict]) -> list[str]:
    """Lines with the mean split of a step on rank 0, and how much of the optimizer's work was hidden.

    steps: the metrics of each; the first two are left out where there are more.
    """
    steps = steps[WARM_UP:] or steps
    if not steps:
        return []
    seconds = {name: sum(s["seconds"].get(name, 0.0) for s in steps) / len(steps) for name in SHORT}
    busy, hidden = (1000 * sum(values) / len(steps) for values in zip(*map(busy_and_hidden, steps)))
    wall = 1000 * sum(s["optimizer_wall_seconds"] for s in steps) / len(steps)
    lines = [f"split of a step     ms: {phases_text(seconds)} (rank 0, mean of {len(steps)} steps)"]
    if busy:
        beside = f"at least {hidden:.0f} ms ({100 * hidden / busy:.0f} %) beside other work"
        lines.append(
            f"hidden              the optimizer's lanes were busy for {busy:.0f} ms in {wall:.0f} ms: {beside}"
        )
    return lines


def lanes_text(lanes: dict) -> str:
    """A line with how busy each lane was in the recorded step. lanes: as trace.busy_by_lane."""
    wall = lanes["wall_seconds"]
    shares = ", ".join(f"{lane} {100 * busy / wall:.0f} %" for lane, busy in lanes["busy_seconds"].items())
    return f"lanes               {shares} busy in a step of {1000 * wall:.0f} ms (rank 0)"


def logits_text(entry: dict) -> str:
    """What a step's metrics say of the attention logits, with a separator; empty where they were not watched."""
    if "largest_logit" not in entry:
        return ""
    return f" | largest logit {entry['largest_logit']:.1f}, {entry['clipped_heads']} heads clipped"


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
        speed = f"loss {entry['loss']:.3f} | {entry['tokens_per_second']:.0f} tokens/s{logits_text(entry)}"
        hidden = 1000 * busy_and_hidden(entry)[1]
        phases = f"ms: {phases_text(entry['seconds'])}, {hidden:.0f} hidden | {entry['bytes_sent'] / MB:.1f} MB sent"
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
    losses = [(entry["step"], entry["loss"]) for entry in metrics]
    axes.plot(*zip(*losses), color="tab:blue", linewidth=1.2, label="training loss (one batch)")
    ends = [(0, result["held_out_before"]), (result["steps"], result["held_out_after"])]
    ends = [(step, loss) for step, loss in ends if loss is not None]
    axes.plot(*zip(*ends), "o", color="tab:red", label="held-out loss, before and after")
    for step, loss in ends:
        place = {"xytext": (-8, 6), "ha": "right"} if step else {"xytext": (8, 6), "ha": "left"}
        axes.annotate(f"{loss:.2f}", (step, loss), textcoords="offset points", **place)
    level = result["baseline"]
    axes.axhline(level, color="black", linestyle="--", linewidth=1, label=f"word counts only: {level:.2f}")
    axes.set(xlabel="optimizer step", ylabel="cross-entropy (nats per token)", title=result["title"])
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def summary(result: dict, folder: Path, steps: list[dict]) -> str:
    """The last lines of a run that reached its last step. steps: the metrics of each."""
    before, after, baseline = result["held_out_before"], result["held_out_after"], result["baseline"]
    side = "below" if after < baseline else "ABOVE"
    at_first = "unknown" if before is None else f"{before:.3f}"
    lines = [
        "",
        f"held-out loss       {at_first} before, {after:.3f} after {result['steps']} steps (nats per token)",
        f"word counts only    {baseline:.2f}: the trained model is {abs(baseline - after):.2f} {side} it",
    ]
    resident, adamw = result["state_bytes"] / MB, result["adamw_state_bytes"] / MB
    if adamw:
        held = f"{resident:.1f} MB on {result['ranks']} ranks; AdamW would hold {adamw:.1f} MB"
        lines.append(f"optimizer state     {held} ({100 * resident / adamw:.0f} %)")
    lines += split_text(steps)
    if result.get("lanes"):
        lines.append(lanes_text(result["lanes"]))
    if result.get("trace"):
        lines.append(f"trace               {result['trace']}: open it in ui.perfetto.dev")
    if result.get("verified"):
        lines.append("saved model         loaded again: no missing keys, the same logits bit for bit")
    lines.append(f"results             {folder}: model/, loss.png, metrics.jsonl, result.json, checkpoints/")
    return "\n".join(lines)
