"""What the command and its ranks tell each other: a job as JSON, and events. No torch."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from dataclasses import asdict, dataclass, field

from ....ranks import channel
from .contenders import Size
from ..core.timing import reason


@dataclass(frozen=True)
class Job:
    """kind: "time", "memory" or "counts". seconds: about how long "time" steps in turns. modes: contender -> "compiled" or
    "eager", where that was decided before."""

    kind: str
    size: Size
    contenders: tuple[str, ...]
    seconds: float = 0.0
    modes: dict[str, str] = field(default_factory=dict)

    def as_text(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_text(cls, text: str) -> Job:
        values = json.loads(text)
        return cls(**{**values, "size": Size(**values["size"]), "contenders": tuple(values["contenders"])})


class Reporter:
    """A rank's side. Rank 0 tells how it goes; every rank tells when it fails. Thread: one."""

    def __init__(self, rank: int):
        self._rank = rank

    def say(self, words: str) -> None:
        self._from_first("say", words=words)

    def round(self, number: int, seconds: dict[str, list[float]]) -> None:
        self._from_first("round", number=number, seconds=seconds)

    def mode(self, name: str, mode: str, words: str) -> None:
        """How DeepSpeed's Muon runs, and why."""
        self._from_first("mode", name=name, mode=mode, words=words)

    def found(self, name: str, **values) -> None:
        self._from_first("found", name=name, values=values)

    def done(self) -> None:
        self._from_first("done")

    @contextlib.contextmanager
    def during(self, name: str, doing: str, tell: bool = True):
        """An exception inside is told as that contender's failure and ends this rank: the others wait for it in a collective,
        and torchrun ends them. tell: that this begins, too; not where it is timed."""
        if tell:
            self._from_first("doing", name=name, doing=doing)
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            channel.tell(kind="failed", name=name, why=f"rank {self._rank}, {doing}: {reason(error)}")
            sys.exit(1)

    def _from_first(self, kind: str, **values) -> None:
        if self._rank == 0:
            channel.tell(kind=kind, **values)


@dataclass
class Heard:
    """The command's side: what the ranks of one launch have told. mode_words: contender -> how it runs and
    why, where this launch decided it. failed: (contender, why) of the first failure. doing: (contender, what) of rank 0."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    modes: dict[str, str] = field(default_factory=dict)
    mode_words: dict[str, str] = field(default_factory=dict)
    found: dict[str, dict] = field(default_factory=dict)
    failed: tuple[str, str] | None = None
    doing: tuple[str, str] = ("", "")
    done: bool = False

    def take_all(self, events: list[dict], progress) -> None:
        for event in events:
            values = {name: value for name, value in event.items() if name not in ("kind", "rank")}
            getattr(self, f"_on_{event['kind']}")(progress, **values)

    def _on_say(self, progress, words):
        progress.say(words)

    def _on_round(self, progress, number, seconds):
        self.seconds = seconds
        progress.round(number)

    def _on_mode(self, progress, name, mode, words):
        self.modes[name], self.mode_words[name] = mode, words

    def _on_found(self, progress, name, values):
        self.found[name] = values

    def _on_doing(self, progress, name, doing):
        self.doing = (name, doing)

    def _on_failed(self, progress, name, why):
        self.failed = self.failed or (name, why)

    def _on_done(self, progress):
        self.done = True
