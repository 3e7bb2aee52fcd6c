"""What a bench measured, as plain data. No torch."""

from __future__ import annotations

import operator
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from .timing import Contender, Ratio, Samples, ratio

MEASURED, MISSING, FAILED, SKIPPED = "measured", "missing", "failed", "skipped"
_SENSES = {">=": operator.ge, "<=": operator.le, "<": operator.lt}
OURS, PEER, ROOF = "ours", "peer", "roof"
NOT_RUN = "was not part of this run"


@dataclass(frozen=True)
class Accuracy:
    """Of the singular values s of a result: mean|s - 1|, least, greatest."""

    mean_error: float
    least: float
    greatest: float


@dataclass
class Row:
    """One contender of a case.

    seconds: of each round. ratio: its time divided by that of the case's first row. of_roof: only of a roof, the rate of the
    case's first row divided by that of the roof. rate: work per second. values: a bench's own columns, name with unit ->
    number or words.
    """

    name: str
    kind: str = PEER
    status: str = MEASURED
    why: str = ""
    note: str = ""
    seconds: list[float] = field(default_factory=list)
    ratio: Ratio | None = None
    of_roof: Ratio | None = None
    rate: float | None = None
    accuracy: Accuracy | None = None
    values: dict[str, float | str] = field(default_factory=dict)


@dataclass
class Case:
    """Contenders that were measured together; the first row is ours. part: e.g. "adamw". key: names the case within its part.
    unit: of rates, "B/s" or "FLOP/s". remarks: lines below the table."""

    part: str
    key: str
    title: str
    unit: str
    rows: list[Row] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row | None:
        return next((r for r in self.rows if r.name == name), None)

    def measured(self, name: str) -> Row | None:
        """The row, if it was measured."""
        row = self.row(name)
        return row if row is not None and row.status == MEASURED else None

    def why_not(self, *names: str) -> str:
        """Of the first that was not measured."""
        rows = [self.row(name) for name in names]
        return next((row.why for row in rows if row is not None and row.why), "") or NOT_RUN


@dataclass(frozen=True)
class Figure:
    """what: in words. bound, sense: to reach, e.g. 1.35 and ">="; bound is None where it is another's value that was not
    measured. measured: what was found, None when it was not. why: it was not, or on what it was found."""

    what: str
    bound: float | None
    measured: float | None
    why: str = ""
    sense: str = ">="

    @property
    def met(self) -> bool | None:
        return None if self.measured is None else _SENSES[self.sense](self.measured, self.bound)


@dataclass(frozen=True)
class Bench:
    """What a report says of a bench. name: on the command line. legend: lines above the tables. stated_for: of the figures to
    reach, which `figures` finds in the results. titles: part -> of its picture."""

    name: str
    legend: tuple[str, ...]
    stated_for: str
    figures: Callable[[Results], list[Figure]]
    titles: dict[str, str] = field(default_factory=dict)


@dataclass
class Results:
    """All of a run. header: (what, value) lines. left_out: what was not measured, and why. details: of this bench alone, for
    the JSON file."""

    header: list[tuple[str, str]]
    cases: list[Case] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0
    bench: Bench | None = None
    details: dict = field(default_factory=dict)

    def case(self, part: str, key: str) -> Case | None:
        return next((c for c in self.cases if (c.part, c.key) == (part, key)), None)

    def of_part(self, part: str) -> list[Case]:
        return [c for c in self.cases if c.part == part]

    def as_json(self) -> dict:
        plain = asdict(self)
        del plain["details"]
        return {**plain, "header": dict(self.header), "bench": self.bench.name, **self.details}


def faster(case: Case | None, what: str, least: float, peer: str, *others: str) -> Figure:
    """How many times as long a peer takes as the first row. others: rows whose failure says why there is no ratio."""
    row = case.measured(peer) if case else None
    if row is None or row.ratio is None:
        return Figure(what, least, None, case.why_not(peer, *others) if case else NOT_RUN)
    return Figure(what, least, row.ratio.median, f"{row.ratio.least:.2f} to {row.ratio.greatest:.2f}")


def of_rows(
    case: Case, what: str, bound: float | None, names: tuple[str, ...], found: Callable, sense: str = "<="
) -> Figure:
    """found: gets the rows of these names, all of which were measured, and returns (measured or None, why)."""
    rows = [case.measured(name) for name in names]
    return Figure(what, bound, *((None, case.why_not(*names)) if None in rows else found(*rows)), sense)


def rows_of(contenders: list[Contender], samples: Samples) -> list[Row]:
    """A row per contender, in their order; ratios are to the first."""
    return [_row(contender, contenders[0], samples) for contender in contenders]


def _row(contender: Contender, first: Contender, samples: Samples) -> Row:
    row = Row(contender.name, contender.kind, note=contender.note)
    if contender.name in samples.failed:
        row.status, row.why = FAILED, samples.failed[contender.name]
        return row
    row.seconds = samples.seconds[contender.name]
    row.rate = contender.work / statistics.median(row.seconds) if contender.work else None
    ours = samples.seconds.get(first.name)
    if ours and contender is not first:
        row.ratio = ratio(row.seconds, ours)
        if contender.kind == ROOF:
            works = first.work / contender.work
            row.of_roof = Ratio(*(works * r for r in (row.ratio.median, row.ratio.least, row.ratio.greatest)))
    return row
