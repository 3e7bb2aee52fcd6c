"""The parser of all verbs: what is wrong is a ValueError, and an unknown option is answered with the nearest."""

from __future__ import annotations

import argparse
import difflib


class Parser(argparse.ArgumentParser):
    """An option that is not known is answered with the nearest one that is."""

    def error(self, message: str):
        raise ValueError(f"{self.prog}: {message}")

    def parse(self, arguments: list[str]) -> argparse.Namespace:
        known, rest = self.parse_known_args(arguments)
        if not rest:
            return known
        options = [option for option in self._option_string_actions if option.startswith("--")]
        nearest = difflib.get_close_matches(rest[0].partition("=")[0], options, 1, cutoff=0.4)
        hint = f'; did you mean "{nearest[0]}"?' if nearest else "; see --help"
        raise ValueError(f'{self.prog}: unknown argument "{rest[0]}"{hint}')
