"""Who converts in `zeromuon bench ckpt`, and by which commands. No torch."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.results import OURS, PEER, ROOF
from .measure import Runner

EXPORT, UNIVERSAL, LARGE = "export", "universal", "large"
OURS_OF = {EXPORT: "zeromuon ckpt export", UNIVERSAL: "zeromuon ckpt universal", LARGE: "zeromuon ckpt export"}
PEER_OF = {EXPORT: "zero_to_fp32", UNIVERSAL: "ds_to_universal"}
WITHOUT_IMPORTS = ", without its imports"
WRITE = "writing as much"


@dataclass(frozen=True)
class Source:
    """A ZeRO-3 checkpoint. words: how it was made. weights_bytes: as fp32. folder holds `latest`."""

    folder: Path
    words: str
    weights_bytes: int

    @property
    def tag_folder(self) -> Path:
        return self.folder / (self.folder / "latest").read_text().strip()


@dataclass(frozen=True)
class Conversion:
    """command: writes to output, which lies where the runner has its own."""

    name: str
    kind: str
    runner: Runner
    output: Path
    command: list[str]


def of_part(part: str, source: Source, work: Path) -> list[Conversion]:
    """Ours first, then the peer, then the roof; ours alone of a large one. work: the folder of all outputs."""
    verb, folder = (UNIVERSAL, source.tag_folder) if part == UNIVERSAL else (EXPORT, source.folder)

    def conversion(name: str, kind: str, below: str, arguments: Callable[[Path], tuple]) -> Conversion:
        """arguments: of convert.py, for an output."""
        runner = Runner(work / f"run-{kind}")
        output = runner.output / below
        command = [sys.executable, "-m", f"{__package__}.convert", *map(str, arguments(output))]
        return Conversion(name, kind, runner, output, command)

    below = UNIVERSAL if part == UNIVERSAL else ""
    found = [
        conversion(
            OURS_OF[part], OURS, below, lambda out: ("zeromuon", verb, source.folder, "--output", out, "--quiet")
        )
    ]
    if part != LARGE:
        found.append(conversion(PEER_OF[part], PEER, below, lambda out: (PEER_OF[part], folder, out)))
        found.append(conversion(WRITE, ROOF, "zeros", lambda out: ("write", written_bytes(part, source), out)))
    return found


def written_bytes(part: str, source: Source) -> int:
    """Weights; with both moments for universal."""
    return source.weights_bytes * (3 if part == UNIVERSAL else 1)
