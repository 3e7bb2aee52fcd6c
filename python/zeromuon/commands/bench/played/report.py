"""The table, and the JSON file of a run. No torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ....base.whole_file import whole_file
from .outcome import BALANCE, COEFFICIENTS, RATIO_LIMIT, WIRE_DTYPE, WIRE_LIMIT, Played, Scenario
from .rates import Rates

BENCH = "pipeline"
JSON_FILE, TEXT_FILE, PLOT_FILE, TRACE_FILE = "pipeline.json", "pipeline.txt", "pipeline.png", "pipeline.trace.json"
SCHEMA = 1
_COLUMNS = (
    "model/machine/momentum",
    "makespan",
    "bound",
    "busiest",
    "owner",
    "ratio",
    f"<= {RATIO_LIMIT:.2f}",
    "serial",
    "hidden",
    "wire",
    "mean",
    "most",
    f"<= {WIRE_LIMIT:.2f}",
    "device",
    "pinned",
)
_LEFT = {"model/machine/momentum", "busiest", f"<= {RATIO_LIMIT:.2f}", f"<= {WIRE_LIMIT:.2f}"}
_LEGEND = (
    "Times in ms. makespan: of the step. bound: work of the busiest lane of any rank, without the latency of its tasks; no",
    "schedule is shorter. owner: Newton-Schulz of the most loaded owner. ratio: makespan over bound. serial: makespan of one",
    "sub-group after the other, one bucket at a time; only AdamW's copies to the device still run beside AdamW. hidden: the",
    "part of the serial time that is saved. wire: bytes that a rank sends to others per Muon parameter, mean over the ranks;",
    "then that, and the most of a rank, over 4 f/W with f = (W-1)/W. device, pinned: MiB of buffers, on the rank with most.",
    "Momentum: shard is computed on the CPU, device lies and is computed on the GPU, streamed lies on the CPU and is computed",
    "on the GPU. Lanes do not slow each other down: DRAM that copies take is taken off the CPU's rate in the file of rates;",
    "element-wise passes on the GPU take the latency of a task only.",
)


@dataclass(frozen=True)
class Report:
    """All of a run, and what was drawn."""

    rates: Rates
    scenarios: list[Scenario]
    rows: list[Played]
    drawn: str
    seconds: float


def text(report: Report) -> str:
    """The rates, the table, the balanced cases and the figures to reach."""
    lines = [*_machines(report), "", *_LEGEND, "", *_table(report.rows), "", *_balance(report.rows)]
    return "\n".join([*lines, "", *_verdicts(report.rows)])


def as_json(report: Report) -> dict:
    """times in seconds, sizes in bytes."""
    machines = {s.machine.name: asdict(s.machine) for s in report.scenarios}
    return {
        "schema": SCHEMA,
        "bench": BENCH,
        "rates": str(report.rates.path),
        "world_size": report.rates.world_size,
        "coefficients": COEFFICIENTS,
        "wire_dtype": WIRE_DTYPE,
        "machines": machines,
        "rows": [*map(_row, report.rows)],
        "limits": {"ratio": RATIO_LIMIT, "wire": WIRE_LIMIT, "apart": BALANCE},
        "drawn": report.drawn,
        "seconds": report.seconds,
    }


def write(folder: Path, report: Report) -> None:
    """Writes table and JSON into the folder, which is made if need be; each is there in whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in ((JSON_FILE, json.dumps(as_json(report), indent=1)), (TEXT_FILE, text(report))):
        with whole_file(folder / name) as part:
            part.write_text(content + "\n")


def worst(rows: list[Played]) -> Played:
    return max(rows, key=lambda row: row.ratio)


def _row(row: Played) -> dict:
    return {
        **asdict(row),
        "bound_s": row.bound_s,
        "ratio": row.ratio,
        "hidden": row.hidden,
        "met": row.met,
        "wire_met": row.wire_met,
        "two_largest": dict(row.two_largest),
        "apart": row.apart,
    }


def _machines(report: Report) -> list[str]:
    machines = {s.machine.name: s.machine for s in report.scenarios}.values()
    width = max(len(m.name) for m in machines)
    models = {s.model.key: s.model for s in report.scenarios}.values()
    lines = [
        f"{report.rates.world_size} ranks, Newton-Schulz {COEFFICIENTS}, wire {WIRE_DTYPE}, CPU offload, low-precision"
        f" weights; rates of {report.rates.path}"
    ]
    lines += [f"{m.title}: {m.numel / 1e9:.3f} G parameters, {m.muon_numel / 1e9:.3f} G of them Muon's" for m in models]
    for machine in machines:
        rates = machine.rates
        lines.append(
            f"{machine.name:<{width}}  {machine.title}: per rank DRAM {rates['dram_bytes_per_s'] / 1e9:.0f} GB/s,"
            f" link {rates['to_device_bytes_per_s'] / 1e9:.0f} and {rates['to_host_bytes_per_s'] / 1e9:.0f} GB/s,"
            f" {rates['flops_per_s'] / 1e12:.0f} TFLOP/s, wire {rates['wire_bytes_per_s'] / 1e9:.0f} GB/s;"
            f" {1e6 * rates['wire_latency_s']:.0f} us a collective, {1e6 * rates['task_latency_s']:.0f} us a task"
        )
    return lines


def _table(rows: list[Played]) -> list[str]:
    lines = [_COLUMNS, *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    aligned = [
        [c.ljust(w) if name in _LEFT else c.rjust(w) for c, w, name in zip(line, widths, _COLUMNS)] for line in lines
    ]
    return ["  ".join(line).rstrip() for line in aligned]


def _cells(row: Played) -> tuple[str, ...]:
    def ms(seconds: float) -> str:
        return f"{1000 * seconds:.1f}"

    def mib(size: int) -> str:
        return f"{size / 2**20:.0f}"

    return (
        row.key,
        ms(row.makespan_s),
        ms(row.bound_s),
        row.busiest,
        ms(row.owner_s),
        f"{row.ratio:.3f}",
        _word(row.met),
        ms(row.serial_s),
        f"{100 * row.hidden:.0f} %",
        f"{row.wire_mean:.4f}",
        f"{row.wire_ratio:.4f}",
        f"{row.wire_most / row.wire_floor:.4f}",
        _word(row.wire_met),
        mib(row.device_bytes),
        mib(row.pinned_bytes),
    )


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


def _verdicts(rows: list[Played]) -> list[str]:
    wire, last = max(rows, key=lambda row: row.wire_ratio), worst(rows)
    return [
        "figures to reach (the exit status does not depend on them)",
        _line("makespan over the lower bound, the worst case", RATIO_LIMIT, last.ratio, last.met, last.key),
        _line("bytes on the wire over 4 f/W, the worst mean", WIRE_LIMIT, wire.wire_ratio, wire.wire_met, wire.key),
        *(f"  not met: {row.key}" for row in rows if not row.met),
    ]


def _line(what: str, most: float, measured: float, met: bool, key: str) -> str:
    return f"  {what:<46} <= {most:.2f}  {measured:.3f}  {_word(met)} ({key})"
