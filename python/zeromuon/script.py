"""`python -m zeromuon SCRIPT`: runs an unmodified script or module with both optimizer types registered."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


class Usage(ValueError):
    """The command line names nothing to run. Not the script's own ValueError, which keeps its traceback."""


def is_script(arguments: list[str]) -> bool:
    """Whether the arguments name a script (a .py file) or a module (-m NAME); else they are a verb."""
    return bool(arguments) and (arguments[0] == "-m" or arguments[0].endswith(".py"))


def run(arguments: list[str]) -> None:
    """Runs ``SCRIPT.py ARGS...`` or ``-m MODULE ARGS...`` as python does, as ``__main__``.

    `"type": "ZeroMuon"` and `"type": "Muon"` of a DeepSpeed config are zeromuon's in that process.

    Raises Usage when there is nothing of that name, and whatever the script raises.
    """
    if arguments[0] == "-m" and len(arguments) < 2:
        raise Usage("python -m zeromuon -m: expected the name of a module to run, found nothing")
    if arguments[0] != "-m" and not Path(arguments[0]).is_file():
        raise Usage(f"python -m zeromuon {arguments[0]}: expected a script, there is no such file")
    from . import register

    register(replace_muon=True)
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))
    runpy.run_path(arguments[0], run_name="__main__")
