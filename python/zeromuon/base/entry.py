"""The entry of ZeroMuon in an optimizer's state dict: what entry_schema.json says of it. No torch.

`zero3/convert` reads and writes the same entry, by tables that are made of the same file. `fields` are those that a writer
gives, `later` those of them that the first entries lack; `options` those that are always there, of the table in
optimizer/options.py, and `group` those of each parameter group.
"""

from __future__ import annotations

import json
from pathlib import Path

SCHEMA: dict = json.loads(Path(__file__).with_name("entry_schema.json").read_text(encoding="utf-8"))
ENTRY: str = SCHEMA["key"]
FORMAT: int = SCHEMA["format"]
MARKER: str = SCHEMA["marker"]  # of a checkpoint of finetune that is whole
RATES_IN_GROUPS: str = SCHEMA["needs"][0]  # each group's lr is its own, adam_lr/lr included
GROUP_VALUES: tuple[str, ...] = (*SCHEMA["group"], *SCHEMA["group_optional"])


def check_entry(entry: dict) -> None:
    """Raises ValueError when this version cannot read the entry, or it lacks a field."""
    remedy = "load it with the zeromuon that wrote it, or a later one"
    if entry.get("format") != FORMAT:
        raise ValueError(f"the ZeroMuon state has format {entry.get('format')}, this version reads {FORMAT}; {remedy}")
    unknown = ", ".join(map(repr, sorted(set(entry.get("needs", ())) - set(SCHEMA["needs"]))))
    if unknown:
        raise ValueError(f"the ZeroMuon state needs {unknown}, which this version does not know; {remedy}")
    missing = [name for name in SCHEMA["fields"] if name not in entry and name not in SCHEMA["later"]]
    if missing:
        raise ValueError(f"the ZeroMuon state has no {', '.join(missing)}: it is damaged; load an older checkpoint")
