"""Warnings of a rank."""

from __future__ import annotations

import sys
import warnings


def warn(text: str, stacklevel: int = 1) -> None:
    """As warnings.warn; where warnings are errors (python -W error) it is printed: a rank that raises alone leaves the others
    waiting for it."""
    try:
        warnings.warn(text, stacklevel=stacklevel + 1)
    except Warning:
        print(f"warning: {text}", file=sys.stderr, flush=True)
