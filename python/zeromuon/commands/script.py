"""`python -m zeromuon SCRIPT`: runs an unmodified script or module with both optimizer types registered."""

from __future__ import annotations

import importlib.util
import io
import runpy
import sys
import types
from pathlib import Path

import zeromuon


class Usage(ValueError):
    """The command line names nothing to run. Not the script's own ValueError, which keeps its traceback."""


def is_script(arguments: list[str]) -> bool:
    """Whether the arguments name a script (a .py file) or a module (-m NAME); else they are a verb."""
    first = next(iter(_named(arguments)), "")
    return first == "-m" or first.endswith(".py")


def _named(arguments: list[str]) -> list[str]:
    """Without the --local_rank that DeepSpeed's launcher puts first."""
    return arguments[1:] if arguments and arguments[0].startswith(("--local_rank=", "--local-rank=")) else arguments


def run(arguments: list[str]) -> None:
    """Runs ``SCRIPT.py ARGS...`` or ``-m MODULE ARGS...`` as python does, as ``__main__``.

    `"type": "ZeroMuon"` and `"type": "Muon"` of a DeepSpeed config are zeromuon's in that process. A --local_rank in
    front is passed on to the script.

    Raises Usage when there is nothing of that name, and whatever the script raises.
    """
    named = _named(arguments)
    passed_on = arguments[: len(arguments) - len(named)]
    if named[0] == "-m":
        _check_module(named)
        zeromuon.register(replace_muon=True)
        sys.argv = [*named[1:2], *passed_on, *named[2:]]
        runpy.run_module(named[1], run_name="__main__", alter_sys=True)
    else:
        _run_script(named, passed_on)


def _run_script(named: list[str], passed_on: list[str]) -> None:
    path = Path(named[0]).absolute()
    if not path.is_file():
        raise Usage(f"python -m zeromuon {named[0]}: expected a script, there is no such file")
    zeromuon.register(replace_muon=True)
    sys.argv = [named[0], *passed_on, *named[1:]]
    sys.path.insert(0, str(path.resolve().parent))
    _run_file(path)


def _check_module(named: list[str]) -> None:
    if len(named) < 2:
        raise Usage("python -m zeromuon -m: expected the name of a module to run, found nothing")
    try:
        found = importlib.util.find_spec(named[1])
    except ModuleNotFoundError:
        found = None
    if found is None:
        raise Usage(f"python -m zeromuon -m {named[1]}: no module named {named[1]}")


def _run_file(path: Path) -> None:
    """As python runs a file: ``__file__`` is absolute, ``sys.argv[0]`` as it was given."""
    main = types.ModuleType("__main__")
    main.__file__, main.__builtins__ = str(path), __builtins__
    sys.modules["__main__"] = main
    with io.open_code(str(path)) as source:
        code = compile(source.read(), str(path), "exec")
    exec(code, vars(main))
