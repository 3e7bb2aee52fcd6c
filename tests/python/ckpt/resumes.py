"""Folders that the tool writes and real DeepSpeed then resumes from: who makes them, and the run that loads them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Callable

from tests.python.ckpt import tool, zoo
from tests.python.ckpt.fixtures.make_own import OWN
from tests.python.ckpt.kinds import KINDS, MORE_KINDS, Kind

OTHER_SUB_GROUP = 30  # of reshards to three ranks
ROLES = {
    name: "muon" if name in zoo.MUON else "adamw"
    for name in (
        "embed.weight",
        "first.weight",
        "first.bias",
        "norm.weight",
        "norm.bias",
        "narrow.weight",
        "widen.weight",
        "widen.bias",
        "last.weight",
        "last.bias",
        "gain",
    )
}


@dataclass(frozen=True)
class Resume:
    """make: (the folder of what was saved on two ranks, of earlier outputs, output) -> the tool's report."""

    name: str
    source: str  # a key of KINDS, MORE_KINDS or OWN
    world_size: int
    loader: Kind
    make: Callable[[Path, Path, Path], dict]
    tag: str = "saved"


def run_of(saved: Path, name: str) -> str:
    return str(saved / name / "run")


def _reshards(name: str, kind: Kind) -> list[Resume]:
    """2 -> 3 -> 1 -> 2, each from the one before; three ranks have other sub-groups."""

    def to_three(saved: Path, out: Path, folder: Path) -> dict:
        return tool.reshard(run_of(saved, name), str(folder), 3, sub_group_size=OTHER_SUB_GROUP)

    def to_one(saved: Path, out: Path, folder: Path) -> dict:
        return tool.reshard(str(out / f"{name} on 3"), str(folder), 1)

    def to_two(saved: Path, out: Path, folder: Path) -> dict:
        return tool.reshard(str(out / f"{name} on 1"), str(folder), 2)

    return [
        Resume(f"{name} on 3", name, 3, replace(kind, sub_group=OTHER_SUB_GROUP), to_three),
        Resume(f"{name} on 1", name, 1, kind, to_one),
        Resume(f"{name} on 2", name, 2, kind, to_two),
    ]


def _universals(name: str, kind: Kind) -> list[Resume]:
    """A universal folder, and ZeRO-3 files made of it. DeepSpeed's loader gives all sub-groups one tensor as their step,
    which torch's AdamW then counts once for each: one sub-group there."""
    one = 10**9 if kind.optimizer == "AdamW" else kind.sub_group

    def universal(saved: Path, out: Path, folder: Path) -> dict:
        return tool.universal(run_of(saved, name), str(folder / "universal"))

    def back(saved: Path, out: Path, folder: Path) -> dict:
        return tool.reshard(
            str(out / f"{name} universal/universal"), str(folder), 3, new_tag="back", sub_group_size=kind.sub_group
        )

    return [
        Resume(f"{name} universal", name, 3, replace(kind, universal=True, sub_group=one), universal, "universal"),
        Resume(f"{name} universal back", name, 3, kind, back, "back"),
    ]


def _conversion(name: str, to: Kind, **options) -> Resume:
    def convert(saved: Path, out: Path, folder: Path) -> dict:
        return tool.convert_optimizer(run_of(saved, name), str(folder), to.optimizer, **options)

    kind = to.options.get("momentum_kind", to.optimizer)
    return Resume(f"{name} to {kind}", name, 2, to, convert)


def _universal_conversion(name: str, to: Kind, **options) -> Resume:
    def convert(saved: Path, out: Path, folder: Path) -> dict:
        source = out / f"{name} universal/universal"
        return tool.convert_optimizer(str(source), str(folder / "converted"), to.optimizer, **options)

    return Resume(
        f"{name} universal to {to.optimizer}",
        name,
        3,
        replace(to, universal=True, sub_group=10**9),
        convert,
        "converted",
    )


OWN_FOLDER = Path(__file__).parent / "fixtures/zeromuon-0.1.0"  # see fixtures/make_own.py


def _own(name: str) -> Resume:
    """A checkpoint of an earlier zeromuon as it is, on as many ranks as wrote it."""

    def copy(saved: Path, out: Path, folder: Path) -> dict:
        shutil.copytree(OWN_FOLDER / name, folder)
        return {}

    world_size, kind = OWN[name]
    return Resume(f"0.1.0 {name}", name, world_size, replace(Kind(**kind), universal=name == "universal"), copy)


def _own_resharded(name: str) -> Resume:
    def reshard(saved: Path, out: Path, folder: Path) -> dict:
        return tool.reshard(str(OWN_FOLDER / name), str(folder), 3)

    return Resume(f"0.1.0 {name} at three", name, 3, Kind(**OWN[name][1]), reshard)


NUMBERS = {"lr": 0.02, "adam_lr": 0.004, "momentum": 0.9}
HEAVY_BALL = MORE_KINDS["ZeroMuon-heavy-ball"]
RESUMES = {
    r.name: r
    for r in [
        *(r for name, kind in KINDS.items() for r in _reshards(name, kind)),
        _reshards("ZeroMuon-offload", MORE_KINDS["ZeroMuon-offload"])[0],
        _reshards("AdamW-fp16", MORE_KINDS["AdamW-fp16"])[0],
        *(r for name in ("AdamW-fp32", "AdamW-bf16", "ZeroMuon-fp32") for r in _universals(name, KINDS[name])),
        _conversion("AdamW-fp32", KINDS["ZeroMuon-fp32"], roles=ROLES, numbers=NUMBERS),
        _conversion("AdamW-bf16", KINDS["ZeroMuon-bf16"], roles=ROLES, numbers=NUMBERS),
        _conversion("ZeroMuon-fp32", KINDS["AdamW-fp32"]),
        _conversion("ZeroMuon-fp32", HEAVY_BALL, momentum_kind="heavy_ball"),
        _conversion("ZeroMuon-heavy-ball", KINDS["ZeroMuon-fp32"], momentum_kind="ema"),
        _conversion("Muon-fp32", KINDS["ZeroMuon-fp32"]),
        _conversion("Muon-bf16", KINDS["ZeroMuon-bf16"]),
        _conversion("Muon-fp32", KINDS["AdamW-fp32"]),
        _universal_conversion("AdamW-fp32", KINDS["ZeroMuon-fp32"], roles=ROLES, numbers=NUMBERS),
        _universal_conversion("ZeroMuon-fp32", KINDS["AdamW-fp32"]),
        *map(_own, OWN),
        *map(_own_resharded, OWN),
    ]
}
