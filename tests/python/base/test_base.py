"""Words, the parser, the line of progress, the shipped files: what all rooms use, without torch."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest

from zeromuon.base import shipped
from zeromuon.base.parser import Parser
from zeromuon.base.progress import ProgressLine
from zeromuon.base.shipped import config_file
from zeromuon.base.words import all_near, did_you_mean, nearest


class Screen(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.isatty = lambda: terminal


def test_the_nearest_word_is_named_and_none_where_none_is_near():
    assert nearest("momentun", ["lr", "momentum"]) == "momentum" and nearest("qqq", ["lr", "momentum"]) is None
    assert did_you_mean("momentun", {"momentum": 1}) == '; did you mean "momentum"?'
    assert did_you_mean("qqq", ["lr"]) == "" and did_you_mean("qqq", ["lr"], "; see --help") == "; see --help"
    assert all_near("up", ["up.a", "up.b", "down"], 3) == ["up.b", "up.a"]


def parser() -> Parser:
    made = Parser(prog="zeromuon test", description="One line.\n\n  another    as it is written")
    made.add_argument("--threads", type=int, help="how many")
    return made


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--thread", "1"], 'unknown argument "--thread"; did you mean "--threads"'),
        (["--xyzzy"], 'unknown argument "--xyzzy"; see --help'),
        (["--threads", "many"], "zeromuon test: argument --threads: invalid int value"),
    ],
)
def test_what_a_parser_does_not_know_is_a_value_error(arguments, words):
    with pytest.raises(ValueError, match=words):
        parser().parse(arguments)


def test_a_description_stands_as_it_is_written():
    assert "\n  another    as it is written" in parser().format_help()


def test_on_a_terminal_a_line_takes_the_place_of_the_one_before():
    screen = Screen(terminal=True)
    line = ProgressLine(screen)
    line.show("longer")
    line.show("short")
    assert screen.getvalue() == "\rlonger\rshort "
    line.leave()
    line.leave()
    assert screen.getvalue().endswith("short \n")


def test_a_line_can_be_taken_away():
    screen = Screen(terminal=True)
    line = ProgressLine(screen)
    line.erase()
    assert screen.getvalue() == ""
    line.show("abc")
    line.erase()
    assert screen.getvalue() == "\rabc\r   \r"
    line.leave()
    assert not screen.getvalue().endswith("\n")


def test_without_a_terminal_each_line_stays():
    screen = Screen(terminal=False)
    line = ProgressLine(screen)
    line.show("a")
    line.show("b")
    line.erase()
    assert screen.getvalue() == "a\nb\n"


def test_a_shipped_file_is_that_of_the_package_else_of_the_source_tree(tmp_path, monkeypatch):
    package = tmp_path / "python/zeromuon"
    monkeypatch.setattr(shipped, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path / "configs", package / "configs"):
        folder.mkdir(parents=True)
        (folder / "a.json").touch()
        assert config_file("a.json", "--config") == folder / "a.json"
    with pytest.raises(ValueError, match=r"--config: expected b\.json in one of .*found none; name a file"):
        config_file("b.json", "--config")


def test_nothing_here_imports_torch():
    names = "parser, progress, durable, shipped, warn, words"
    code = f"import sys; from zeromuon.base import {names}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
