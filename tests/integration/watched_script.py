"""What a forked rank runs in place of `python SCRIPT ARGUMENTS`, see probe/sitecustomize.py."""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    """argv: this module's name, the script, its arguments."""
    import watching

    watching.start(os.environ["ZEROMUON_PROBE"])
    del sys.argv[0]
    sys.path.insert(0, os.getcwd())
    runpy.run_path(sys.argv[0], run_name="__main__")
