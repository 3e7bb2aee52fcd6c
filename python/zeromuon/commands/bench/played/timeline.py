"""A played step as a picture, and as a trace for Perfetto and chrome://tracing. No torch."""

from __future__ import annotations

from pathlib import Path

from ....optimizer import trace
from .outcome import NEWTON_SCHULZ, Played

_COLORS = {
    "momentum": "tab:blue",
    "to_device": "tab:cyan",
    "gather_to_owner": "tab:olive",
    "newton_schulz": "tab:red",
    "scatter_to_shards": "tab:green",
    "to_host": "tab:purple",
    "apply": "tab:orange",
    "adamw": "lightgray",
    "weights_to_device": "tab:brown",
    "closing": "black",
}


def ranks_to_draw(step: dict) -> list[int]:
    """The first one, and the owners with least and with most Newton-Schulz."""
    loads = [
        sum(e["end_ns"] - e["begin_ns"] for e in events if e["stage"] == NEWTON_SCHULZ) for events in step["events"]
    ]
    return sorted({0, loads.index(min(loads)), loads.index(max(loads))})


def draw(path: Path, step: dict, played: Played) -> None:
    """Writes a PNG with a row per lane of some ranks, coloured by stage."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    ranks, lanes = ranks_to_draw(step), trace.lanes()
    figure = Figure(figsize=(18, 1.6 + 0.42 * len(lanes) * len(ranks)), layout="constrained")
    axes = figure.subplots()
    rows = [(rank, lane) for rank in ranks for lane in lanes]
    for place, (rank, lane) in enumerate(rows):
        _draw_lane(axes, place, [e for e in step["events"][rank] if e["lane"] == lane])
    axes.set_yticks(range(len(rows)), [f"rank {rank} {lane}" for rank, lane in rows], fontsize=8)
    for place in range(len(lanes), len(rows), len(lanes)):
        axes.axhline(place - 0.5, color="black", linewidth=0.8)
    axes.axvline(1e3 * played.bound_s, color="black", linestyle="--", linewidth=1)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1e3 * played.makespan_s), xlabel="ms")
    words = (
        f"{played.key}: {1e3 * played.makespan_s:.1f} ms; dashes: lower bound {1e3 * played.bound_s:.1f} ms"
        f" ({played.busiest}), ratio {played.ratio:.3f}; serial {1e3 * played.serial_s:.1f} ms"
    )
    axes.set_title(words, fontsize=10)
    handles = [Rectangle((0, 0), 1, 1, color=color, label=stage) for stage, color in _COLORS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    figure.savefig(path, dpi=110)


def _draw_lane(axes, place: int, events: list[dict]) -> None:
    spans = [(e["begin_ns"] / 1e6, (e["end_ns"] - e["begin_ns"]) / 1e6) for e in events]
    colors = [_COLORS[e["stage"]] for e in events]
    axes.broken_barh(spans, (place - 0.42, 0.84), facecolors=colors, edgecolor="white", linewidth=0.15)


def write_trace(path: Path, step: dict) -> None:
    """Times are of the virtual clock, which is the same on all ranks."""
    trace.write_trace(path, [trace.RankTrace(rank, "virtual", 0, events) for rank, events in enumerate(step["events"])])
