"""Which tests may be skipped, and why: allowed_skips.json. In CI a skip for another reason is a failure."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

LIST = Path(__file__).resolve().parent / "allowed_skips.json"


def refusal(where: str, reason: str) -> str:
    """What is wrong with this skip; "" if it stands on the list, or this is no CI. where: a test's or a file's node id."""
    allowed = json.loads(LIST.read_text())
    known = any(where.startswith(entry["where"]) and re.search(entry["reason"], reason) for entry in allowed)
    if known or os.environ.get("CI") != "true":
        return ""
    return f"{where}: skipped in CI for a reason that is not in tests/{LIST.name}: {reason}"


def refuse(report) -> None:
    """Makes a failure of a report of pytest, if it is one of such a skip."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        why = refusal(report.nodeid, reason.removeprefix("Skipped: "))
        if why:
            report.outcome, report.longrepr = "failed", why
