"""Words of a user, and the valid ones that they resemble."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest_name(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that `name` most resembles, or None when none is close (difflib ratio below 0.5, case ignored)."""
    found = difflib.get_close_matches(str(name).lower(), list(valid), 1, cutoff=0.5)
    return found[0] if found else None
