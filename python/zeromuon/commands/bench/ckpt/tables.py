"""What the conversions took, as cases of the report, and the figures to reach. No torch."""

from __future__ import annotations

from ..core.results import FAILED, OURS, PEER, ROOF, Bench, Case, Figure, Results, Row, faster, of_rows, rows_of
from ..core.timing import Contender, Samples, ratio
from .contenders import EXPORT, LARGE, OURS_OF, PEER_OF, UNIVERSAL, WITHOUT_IMPORTS, WRITE, Source, written_bytes
from .measure import Measured

PEAK, ALL, TEMPORARY = "peak of a process, MB", "all processes, MB", "temporary disk, MB"
SYNC, WRITTEN = "sync, s", "written, MB"
_LARGE_MOST_MB = 600
_TEMPORARY_MOST_MB = 1.0  # names of folders
_MB = 1e6
_TITLES = {
    EXPORT: "weights as fp32 safetensors",
    UNIVERSAL: "a universal checkpoint, with both moments of AdamW",
    LARGE: "weights as fp32 safetensors, of a large checkpoint",
}


def case_of(
    part: str, source: Source, taken: dict[str, list[Measured]], failed: dict[str, str], remarks: list[str]
) -> Case:
    """A row per conversion that was measured or failed; its first row is ours. taken: name -> one value per round. failed:
    name -> why."""
    key, work = size_words(source.weights_bytes), float(written_bytes(part, source))
    case = Case(part, key, f"{key} of weights: {_TITLES[part]}", "B/s", remarks=[source.words, *remarks])
    samples = Samples({name: [m.seconds for m in runs] for name, runs in taken.items()}, failed=failed)
    kinds = {OURS_OF[part]: OURS, PEER_OF.get(part): PEER, WRITE: ROOF}
    known = [(name, kind) for name, kind in kinds.items() if name in taken or name in failed]
    contenders = [Contender(name, print, kind=kind, work=work) for name, kind in known]
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


# ---- the figures to reach --------------------------------------------------------------------------------------


def figures(results: Results) -> list[Figure]:
    """One per figure to reach of the cases that were asked for."""
    found = []
    for case in results.of_part(EXPORT):
        found += [
            _faster(case, 5.0, PEER_OF[EXPORT]),
            _faster(case, 2.0, PEER_OF[EXPORT] + WITHOUT_IMPORTS),
            _share_of_peak(case),
        ]
    for case in results.of_part(UNIVERSAL):
        temporary = "temporary disk of universal, MB", _TEMPORARY_MOST_MB, TEMPORARY, "beyond the output"
        found += [_faster(case, 5.0, PEER_OF[UNIVERSAL]), _at_most(case, *temporary)]
    for case in results.of_part(LARGE):
        found.append(_at_most(case, f"peak memory of export, {case.key}, MB", _LARGE_MOST_MB, PEAK))
    return found


def _faster(case: Case, least: float, peer: str) -> Figure:
    ours = OURS_OF[case.part]
    return faster(case, f"{ours}, times {peer}", least, peer, PEER_OF[case.part], ours)


def _share_of_peak(case: Case) -> Figure:
    def found(ours: Row, peer: Row) -> tuple[float, str]:
        return ours.values[PEAK] / peer.values[PEAK], f"{ours.values[PEAK]:,.0f} of {peer.values[PEAK]:,.0f} MB"

    return of_rows(case, "peak memory of export, of zero_to_fp32's", 0.2, (OURS_OF[EXPORT], PEER_OF[EXPORT]), found)


def _at_most(case: Case, what: str, bound: float, value: str, why: str = "") -> Figure:
    return of_rows(case, what, bound, (OURS_OF[case.part],), lambda ours: (ours.values[value], why))


CKPT = Bench(
    "ckpt",
    legend=(
        "ms: median of the rounds, from the start of the command until its files are on disk. ratio: the median over the rounds",
        "of a contender's time divided by that of the first line in the same round; above 1 ours is faster. least..most: of",
        "those. of roof: the rate of the first line, of one process that only writes as many bytes and syncs them. sync: of",
        "the files of the others, after their end; ours has synced its own. peak of a process: VmHWM, mapped pages counted.",
        "all processes, temporary disk: as sampled every 100 ms.",
    ),
    stated_for="weights of 1 GB or more",
    figures=figures,
    titles={EXPORT: "zeromuon ckpt export", UNIVERSAL: "zeromuon ckpt universal"},
)
