"""The parser of all verbs: what is wrong is a ValueError, and an unknown option is answered with the nearest."""

from __future__ import annotations

import argparse

from .words import did_you_mean


class Parser(argparse.ArgumentParser):
    """Long texts stand as they are written; options are not to be abbreviated."""

    def __init__(self, **given):
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **given)

    def error(self, message: str):
        raise ValueError(f"{self.prog}: {message}")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        known, rest = self.parse_known_args(arguments)
        if not rest:
            return known
        options = [option for option in self._option_string_actions if option.startswith("--")]
        hint = did_you_mean(rest[0].partition("=")[0], options, otherwise="; see --help")
        raise ValueError(f'{self.prog}: unknown argument "{rest[0]}"{hint}')
