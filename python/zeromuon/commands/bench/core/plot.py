"""The picture: a bar per contender, how many times as fast ours is; a line at 1; a mark where the roof would be. No torch."""

from __future__ import annotations

from pathlib import Path

from .results import MEASURED, PEER, ROOF, Case, Results, Row

_CUT = 5.0  # ratios beyond are cut, and written out
_INCHES_PER_LINE = 0.21
_LINES_PER_COLUMN = 60
_COLORS = {  # the first that a name begins with
    "DeepSpeed gram": "tab:cyan",
    "DeepSpeedCPUAdam": "tab:cyan",
    "DeepSpeed": "tab:blue",
    "zero_to_fp32, without": "tab:cyan",
    "zero_to_fp32": "tab:blue",
    "ds_to_universal, without": "tab:cyan",
    "ds_to_universal": "tab:blue",
    "torch": "tab:orange",
    "gram-newton-schulz": "tab:purple",
    "zeromuon": "tab:gray",
    "ZeroMuon": "tab:gray",
}


def has_bars(results: Results) -> bool:
    return any(map(_bars, results.cases))


def draw(path: Path, results: Results) -> None:
    """Writes a PNG with a panel per part, or more where it is long. results: with one ratio at least."""
    from matplotlib.figure import Figure

    columns = _columns(results)
    longest = max(sum(map(_height, cases)) for _, cases in columns)
    size = (8 * len(columns), max(4.0, 1.6 + _INCHES_PER_LINE * longest))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False)
    for axes, (title, cases) in zip(panels[0], columns):
        _panel(axes, cases, title, longest)
    header = dict(results.header)
    figure.suptitle(f"{header.get('processor', '')}, threads: {header.get('threads', '')}", fontsize=9)
    figure.savefig(path, dpi=110)


def _columns(results: Results) -> list[tuple[str, list[Case]]]:
    """(title, cases) of each panel: a part begins a new one, and so does what would be too long."""
    columns: list[tuple[str, list[Case]]] = []
    for case in filter(_bars, results.cases):
        title = results.bench.titles.get(case.part, case.part)
        room = bool(columns) and sum(map(_height, columns[-1][1])) + _height(case) <= _LINES_PER_COLUMN
        if room and columns[-1][0] == title:
            columns[-1][1].append(case)
        else:
            columns.append((title, [case]))
    return columns


def _bars(case: Case) -> list[Row]:
    """What gets a bar: all with a ratio but the roofs."""
    return [row for row in case.rows if row.status == MEASURED and row.ratio and row.kind != ROOF]


def _height(case: Case) -> int:
    return len(_bars(case)) + 2  # its title above, the share of the roof below


def _panel(axes, cases: list[Case], title: str, lines: int) -> None:
    place, ticks, labels = 0, [], []
    for case in cases:
        axes.text(0.01, place, case.title, fontsize=8, fontweight="bold", va="center")
        for offset, row in enumerate(_bars(case), 1):
            _bar(axes, place + offset, row)
            ticks.append(place + offset)
            labels.append(row.name)
        _roof(axes, place, _height(case) - 1, case)
        place += _height(case)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set(xlim=(0, _CUT * 1.12), ylim=(lines - 0.5, -1), title=title)
    axes.set_xlabel(_xlabel(cases), fontsize=8)
    axes.grid(axis="x", alpha=0.3)


def _xlabel(cases: list[Case]) -> str:
    roofs = any(row.of_roof for case in cases for row in case.rows)
    dashes = "; red dashes: what ours reaches of the best roof" if roofs else ""
    return f"bars: how many times as fast {cases[0].rows[0].name} is{dashes}"


def _bar(axes, place: float, row: Row) -> None:
    shown = min(row.ratio.median, _CUT)
    color = next((c for name, c in _COLORS.items() if row.name.startswith(name)), "tab:green")
    shipped = row.kind == PEER and row.name.endswith("as it ships")
    axes.barh(place, shown, height=0.8, color=color, alpha=0.45 if shipped else 0.9)
    if row.ratio.median <= _CUT:
        spread = [[shown - row.ratio.least], [min(row.ratio.greatest, _CUT) - shown]]
        axes.errorbar(shown, place, xerr=spread, color="black", linewidth=0.7, capsize=2)
    words = f"{row.ratio.median:.2f}" if row.ratio.median <= _CUT else f"{row.ratio.median:.3g} →"
    axes.text(min(max(shown, row.ratio.greatest), _CUT) + 0.04, place, words, fontsize=7, va="center")


def _roof(axes, place: float, height: float, case: Case) -> None:
    """Ours as a share of the best roof, through the bars of the case."""
    shares = [row.of_roof.median for row in case.rows if row.of_roof]
    if shares:
        share, red = min(shares), {"color": "tab:red"}
        axes.plot([share, share], [place + 0.5, place + height - 0.45], linestyle="--", linewidth=1.4, **red)
        words, centred = f"{share:.2f} of the roof", {"va": "center", "ha": "center"}
        axes.text(max(share, 0.35), place + height - 0.1, words, fontsize=7, **centred, **red)
