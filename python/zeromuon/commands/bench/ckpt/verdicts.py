"""The figures that `zeromuon bench ckpt` is to reach. No torch."""

from __future__ import annotations

from ..core.results import Bench, Case, Figure, Results, Row, faster, of_rows
from .contenders import EXPORT, LARGE, OURS_OF, PEER_OF, UNIVERSAL, WITHOUT_IMPORTS

PEAK, ALL, TEMPORARY = "peak of a process, MB", "all processes, MB", "temporary disk, MB"
SYNC, WRITTEN = "sync, s", "written, MB"
_LARGE_MOST_MB = 600
_TEMPORARY_MOST_MB = 1.0  # names of folders


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
