"""The progress of `zeromuon ckpt`: a bar on a terminal, slow lines elsewhere, nothing with --quiet."""

from __future__ import annotations

import io

import pytest

from zeromuon.ckpt.options import byte_count
from zeromuon.ckpt.progress import ProgressBar
from zeromuon.ckpt.text import duration_text, size_text


class Screen(io.StringIO):
    def __init__(self, terminal: bool):
        super().__init__()
        self.isatty = lambda: terminal


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def shown(terminal: bool, steps) -> str:
    """What is written when (seconds, bytes done) follow each other, of 1000 MB."""
    screen, clock = Screen(terminal), Clock()
    bar = ProgressBar("export", screen, clock)
    for clock.now, done in steps:
        bar(done, 10**9)
    bar.close()
    return screen.getvalue()


def test_a_terminal_gets_a_bar_with_share_rate_and_time_to_go_and_is_left_empty():
    written = shown(True, [(0.5, 10**8), (2.0, 5 * 10**8)])
    lines = written.split("\r")
    assert lines[2].rstrip() == "export [############            ]  50%  500 MB of 1.00 GB  250 MB/s  2.0 s to go"
    assert written.endswith("\r") and lines[-2].strip() == ""


def test_without_a_terminal_there_is_a_line_every_ten_seconds():
    written = shown(False, [(t, t * 10**7) for t in range(1, 26)])
    assert written.splitlines() == [
        "export  10%  100 MB of 1.00 GB  10.0 MB/s  1:30 to go",
        "export  20%  200 MB of 1.00 GB  10.0 MB/s  1:20 to go",
    ]


def test_nothing_to_read_shows_nothing():
    screen = Screen(True)
    ProgressBar("verify", screen, Clock())(0, 0)
    assert screen.getvalue() == ""


def test_a_second_reading_has_a_rate_of_its_own():
    lines = shown(True, [(1.0, 5 * 10**8), (2.0, 10**9), (100.0, 10**6), (101.0, 10**8)]).split("\r")
    assert "500 MB/s" in lines[1] and "10%" in lines[4] and "100 MB/s" in lines[4]


@pytest.mark.parametrize(
    "count, text", [(0, "0 B"), (999, "999 B"), (1000, "1.00 KB"), (999_600, "1.00 MB"), (12.34e9, "12.3 GB")]
)
def test_sizes_have_three_digits(count, text):
    assert size_text(count) == text


@pytest.mark.parametrize("seconds, text", [(0.04, "0.0 s"), (59.4, "59 s"), (59.6, "1:00"), (3723, "1:02:03")])
def test_durations_are_short(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    "text, count",
    [
        ("5GB", 5 * 10**9),
        ("256MiB", 256 << 20),
        ("1.5kb", 1500),
        ("7", 7),
        ("7B", 7),
        ("2 GiB", 2 << 30),
        ("3M", 3 * 10**6),
    ],
)
def test_sizes_of_options_are_decimal_or_binary(text, count):
    assert byte_count(text) == count
