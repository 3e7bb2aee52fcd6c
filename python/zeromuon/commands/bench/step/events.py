"""What the command and its ranks tell each other: a job as JSON, and events. No torch."""

from __future__ import annotations

import contextlib
import json
import sys
import traceback
from dataclasses import asdict, dataclass, field

from ....ranks import channel
from ..core.session import Progress
from ..core.timing import reason
from .contenders import Size


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

    def tell(self, kind: str, **values) -> None:
        """Heard has the kinds. Only rank 0 tells."""
        if self._rank == 0:
            channel.tell(kind=kind, **values)

    def say(self, words: str) -> None:
        self.tell("say", words=words)

    @contextlib.contextmanager
    def during(self, name: str, doing: str, tell: bool = True):
        """An exception inside is told as that contender's failure and ends this rank: the others wait for it in a collective,
        and torchrun ends them. tell: that this begins, too; not where it is timed."""
        if tell:
            self.tell("doing", name=name, doing=doing)
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            channel.tell(kind="failed", name=name, why=f"rank {self._rank}, {doing}: {reason(error)}")
            sys.exit(1)


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

    def take_all(self, events: list[dict], progress: Progress) -> None:
        for event in events:
            match event:
                case {"kind": "say", "words": words}:
                    progress.say(words)
                case {"kind": "round", "number": number, "seconds": seconds}:
                    self.seconds = seconds
                    progress.round(number)
                case {"kind": "mode", "name": name, "mode": mode, "words": words}:
                    self.modes[name], self.mode_words[name] = mode, words
                case {"kind": "found", "name": name, "values": values}:
                    self.found[name] = values
                case {"kind": "doing", "name": name, "doing": doing}:
                    self.doing = (name, doing)
                case {"kind": "failed", "name": name, "why": why}:
                    self.failed = self.failed or (name, why)
                case {"kind": "done"}:
                    self.done = True
                case _:
                    raise AssertionError(f"an event that this side does not know: {event}")
