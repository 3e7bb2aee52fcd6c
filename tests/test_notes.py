"""A note is written once and cited where it holds: no citation without its note, no note that nobody cites.

A note begins with a line that holds its name and nothing else, `Note [Name]`, in a comment or a docstring. A citation
stands in the midst of a line, or ends with a stop: `Note [Name].`
"""

import re
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("cmake", "configs", "csrc", "docs", "offload", "python", "tests", "zero3")
TEXTS = {".h", ".cpp", ".cu", ".inc", ".py", ".cmake", ".txt", ".md"}
NOTE = re.compile(r"Note\s+(?:(?://|#)\s*)?\[([^\]\n]+)\]")  # a citation may be broken before its name
WRITTEN = re.compile(r"^\s*(?://|#)?\s*Note \[([^\]\n]+)\]\s*$", re.MULTILINE)


def written_and_cited(text: str) -> tuple[Counter, Counter]:
    written = Counter(WRITTEN.findall(text))
    return written, Counter(NOTE.findall(text)) - written


def of_the_repository() -> tuple[Counter, Counter]:
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in TEXTS]
    texts = [path.read_text(encoding="utf-8") for path in files if path != Path(__file__).resolve()]
    found = [written_and_cited(text) for text in texts]
    return sum((written for written, _ in found), Counter()), sum((cited for _, cited in found), Counter())


def test_what_is_written_and_what_is_cited_is_told_apart():
    text = "// Note [A]\n// Text.\nint a;  // see Note [B].\n\n  Note [C]\n# as in Note\n# [D] says\n// Note [E]: so\n"
    assert written_and_cited(text) == (Counter("AC"), Counter("BDE"))


def test_every_note_is_written_once():
    written, _ = of_the_repository()
    assert len(written) > 5
    assert {name: times for name, times in written.items() if times > 1} == {}


def test_every_cited_note_is_written():
    written, cited = of_the_repository()
    assert sorted(cited.keys() - written.keys()) == []


def test_every_written_note_is_cited():
    written, cited = of_the_repository()
    assert sorted(written.keys() - cited.keys()) == []
