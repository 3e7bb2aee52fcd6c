"""What came of the played steps, as the results of a bench. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from ..core.results import OURS, Bench, Case, Figure, Results, Row
from .outcome import BALANCE, COEFFICIENTS, RATIO_LIMIT, WIRE_DTYPE, WIRE_LIMIT, Played
from .rates import Machine, Rates

PART = "played"
RATIO, MET = "ratio", f"<= {RATIO_LIMIT:.2f}"
WIRE, WIRE_MET = "mean", f"<= {WIRE_LIMIT:.2f}"
_LEGEND = (
    "Times in ms. makespan: of the step. bound: work of the busiest lane of any rank, without the latency of its tasks; no",
    "schedule is shorter. owner: Newton-Schulz of the most loaded owner. ratio: makespan over bound. serial: makespan of one",
    "sub-group after the other, one bucket at a time; only AdamW's copies to the device still run beside AdamW. hidden: the",
    "part of the serial time that is saved. wire: bytes that a rank sends to others per Muon parameter, mean over the ranks;",
    "then that, and the most of a rank, over 4 f/W with f = (W-1)/W. device, pinned: MiB of buffers, on the rank with most.",
    "Momentum: shard is computed on the CPU, device lies and is computed on the GPU, streamed lies on the CPU and is computed",
    "on the GPU. Lanes do not slow each other down: DRAM that copies take is taken off the CPU's rate in the file of rates.",
    "Newton-Schulz takes its operations and the bytes of its passes, or its launches where they take longer.",
)


def results_of(given: Rates, rows: list[Played], drawn: str) -> Results:
    """drawn: the key of the row that is drawn. In the JSON file times are in seconds, sizes in bytes."""
    case = Case(PART, "all", "model/machine/momentum", "", list(map(_row, rows)), _balance(rows))
    details = {
        "rates": str(given.path),
        "world_size": given.world_size,
        "coefficients": COEFFICIENTS,
        "wire_dtype": WIRE_DTYPE,
        "machines": {s.machine.name: asdict(s.machine) for s in given.scenarios},
        "rows": list(map(_details, rows)),
        "limits": {"ratio": RATIO_LIMIT, "wire": WIRE_LIMIT, "apart": BALANCE},
        "drawn": drawn,
    }
    return Results(_header(given), [case], bench=PIPELINE, details=details)


def worst(rows: Iterable[Played]) -> Played:
    return max(rows, key=lambda row: row.ratio)


def _details(row: Played) -> dict:
    derived = ("bound_s", "ratio", "hidden", "met", "wire_met", "apart")
    own = {name: getattr(row, name) for name in derived}
    return {**asdict(row), **own, "two_largest": dict(row.two_largest)}


def _header(given: Rates) -> list[tuple[str, str]]:
    models = {s.model.key: s.model for s in given.scenarios}.values()
    machines = {s.machine.name: s.machine for s in given.scenarios}.values()
    played = (
        f"{given.world_size} ranks, Newton-Schulz {COEFFICIENTS}, wire {WIRE_DTYPE}, CPU offload, low-precision weights;"
        f" rates of {given.path}"
    )
    sizes = [(m.title, f"{m.numel / 1e9:.3f} G parameters, {m.muon_numel / 1e9:.3f} G of them Muon's") for m in models]
    return [("played", played), *sizes, *((m.name, _rates_text(m)) for m in machines)]


def _rates_text(machine: Machine) -> str:
    rates = machine.rates
    return (
        f"{machine.title}: per rank DRAM {rates['dram_bytes_per_s'] / 1e9:.0f} GB/s,"
        f" link {rates['to_device_bytes_per_s'] / 1e9:.0f} and {rates['to_host_bytes_per_s'] / 1e9:.0f} GB/s,"
        f" {rates['flops_per_s'] / 1e12:.0f} TFLOP/s, device {rates['device_bytes_per_s'] / 1e9:.0f} GB/s,"
        f" wire {rates['wire_bytes_per_s'] / 1e9:.0f} GB/s; {1e6 * rates['wire_latency_s']:.0f} us a collective,"
        f" {1e6 * rates['task_latency_s']:.0f} us a task, {1e6 * rates['launch_s']:.0f} us a launch"
    )


def _row(row: Played) -> Row:
    values = {
        "makespan": f"{1e3 * row.makespan_s:.1f}",
        "bound": f"{1e3 * row.bound_s:.1f}",
        "busiest": row.busiest,
        "owner": f"{1e3 * row.owner_s:.1f}",
        RATIO: f"{row.ratio:.3f}",
        MET: _word(row.met),
        "serial": f"{1e3 * row.serial_s:.1f}",
        "hidden": f"{100 * row.hidden:.0f} %",
        "wire": f"{row.wire_mean:.4f}",
        WIRE: f"{row.wire_ratio:.4f}",
        "most": f"{row.wire_most / row.wire_floor:.4f}",
        WIRE_MET: _word(row.wire_met),
        "device": f"{row.device_bytes / 2**20:.0f}",
        "pinned": f"{row.pinned_bytes / 2**20:.0f}",
    }
    return Row(row.key, OURS, values=values)


def _word(met: bool) -> str:
    return "met" if met else "NOT met"


def _balance(rows: list[Played]) -> list[str]:
    lines = ["cases whose two largest resource times are to be near each other:"]
    for row in rows:
        if row.balanced:
            words = " and ".join(f"{lane} {1000 * seconds:.1f} ms" for lane, seconds in row.two_largest)
            within = f"within {100 * BALANCE:.0f} %" if row.apart <= BALANCE else f"NOT within {100 * BALANCE:.0f} %"
            lines.append(f"  {row.key}: {words}, {100 * row.apart:.1f} % apart: {within}; ratio {row.ratio:.3f}")
    return lines if len(lines) > 1 else []


def figures(results: Results) -> list[Figure]:
    """The worst case of each."""
    found = []
    for what, most, column in (
        ("makespan over the lower bound, the worst case", RATIO_LIMIT, RATIO),
        ("bytes on the wire over 4 f/W, the worst mean", WIRE_LIMIT, WIRE),
    ):
        last = max(results.cases[0].rows, key=lambda row: float(row.values[column]))
        found.append(Figure(what, most, float(last.values[column]), last.name, "<="))
    return found


PIPELINE = Bench("pipeline", _LEGEND, "the shipped file of rates", figures)
