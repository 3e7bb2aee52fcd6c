"""Who converts in `zeromuon bench ckpt`, and by which commands. No torch."""

from __future__ import annotations

import sys
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
    """command: gets the runner whose output it writes."""

    name: str
    kind: str
    command: object


def of_part(part: str, source: Source) -> list[Conversion]:
    """Ours first, then the peer, then the roof."""
    if part == LARGE:
        return [_ours(part, source)]
    return [_ours(part, source), _peer(part, source), _roof(part, source)]


def output_of(part: str, runner: Runner) -> Path:
    """Where the weights or the universal checkpoint lie."""
    return runner.output / "universal" if part == UNIVERSAL else runner.output


def _ours(part: str, source: Source) -> Conversion:
    def command(runner: Runner) -> list[str]:
        verb, output = "universal" if part == UNIVERSAL else "export", output_of(part, runner)
        return _command("zeromuon", verb, source.folder, "--output", output, "--quiet")

    return Conversion(OURS_OF[part], OURS, command)


def _peer(part: str, source: Source) -> Conversion:
    folder = source.tag_folder if part == UNIVERSAL else source.folder
    return Conversion(PEER_OF[part], PEER, lambda runner: _command(PEER_OF[part], folder, output_of(part, runner)))


def _roof(part: str, source: Source) -> Conversion:
    size = written_bytes(part, source)
    return Conversion(WRITE, ROOF, lambda runner: _command("write", size, runner.output / "zeros"))


def written_bytes(part: str, source: Source) -> int:
    """Weights; with both moments for universal."""
    return source.weights_bytes * (3 if part == UNIVERSAL else 1)


def _command(name: str, *arguments) -> list[str]:
    return [sys.executable, "-m", f"{__package__}.convert", name, *map(str, arguments)]
