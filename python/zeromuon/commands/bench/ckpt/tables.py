"""What the conversions took, as cases of the report. No torch."""

from __future__ import annotations

from ..core.results import FAILED, PEER, Case, Row, rows_of
from ..core.timing import Contender, Samples, ratio
from .contenders import EXPORT, LARGE, OURS_OF, PEER_OF, UNIVERSAL, WITHOUT_IMPORTS, Conversion, Source, written_bytes
from .measure import Measured
from .verdicts import ALL, PEAK, SYNC, TEMPORARY, WRITTEN

_MB = 1e6
_TITLES = {
    EXPORT: "weights as fp32 safetensors",
    UNIVERSAL: "a universal checkpoint, with both moments of AdamW",
    LARGE: "weights as fp32 safetensors, of a large checkpoint",
}


def case_of(
    part: str,
    source: Source,
    conversions: list[Conversion],
    taken: dict[str, list[Measured]],
    failed: dict[str, str],
    remarks: list[str],
) -> Case:
    """A row per conversion that was measured or failed; its first row is ours. taken: name -> one value per round. failed:
    name -> why."""
    key = size_words(source.weights_bytes)
    case = Case(part, key, f"{key} of weights: {_TITLES[part]}", "B/s", remarks=[source.words, *remarks])
    samples = Samples({name: [m.seconds for m in runs] for name, runs in taken.items()}, failed=failed)
    known = [c for c in conversions if c.name in taken or c.name in failed]
    contenders = [Contender(c.name, print, kind=c.kind, work=float(written_bytes(part, source))) for c in known]
    for row in rows_of(contenders, samples):
        case.rows.append(row)
        if row.status != FAILED:
            row.values = _values(taken[row.name])
            if row.kind == PEER:
                case.rows.append(_without_imports(row, taken[row.name], taken.get(OURS_OF[part])))
    return case


def size_words(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"


def _values(runs: list[Measured]) -> dict[str, float]:
    """Of all rounds the most."""
    return {
        PEAK: max(m.peak_bytes for m in runs) / _MB,
        ALL: max(m.tree_bytes for m in runs) / _MB,
        WRITTEN: runs[-1].written_bytes / _MB,
        TEMPORARY: max(m.temporary_bytes for m in runs) / _MB,
        SYNC: max(m.sync_seconds for m in runs),
    }


def _without_imports(peer: Row, runs: list[Measured], ours: list[Measured] | None) -> Row:
    imports, seconds = [m.import_seconds for m in runs], [m.seconds - m.import_seconds for m in runs]
    note = f"imports: {min(imports):.2f} to {max(imports):.2f} s"
    of_ours = ratio(seconds, [m.seconds for m in ours]) if ours else None
    return Row(peer.name + WITHOUT_IMPORTS, PEER, note=note, seconds=seconds, ratio=of_ours)


def same_words(part: str, difference: dict | None) -> str:
    """difference: of the outputs of ours and of the peer, None where there is no pair."""
    if difference is None:
        return "the outputs were not compared"
    if difference["same"]:
        return f"the output of {OURS_OF[part]} is that of {PEER_OF[part]}, bit for bit: {difference['equal']} tensors"
    return (
        f"the outputs DIFFER: {len(difference['differences'])} tensors, {len(difference['only_in_a'])} only in ours,"
        f" {len(difference['only_in_b'])} only in the peer's"
    )
