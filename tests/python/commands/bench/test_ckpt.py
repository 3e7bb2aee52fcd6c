"""`zeromuon bench ckpt`: rows and verdicts from what conversions took, one conversion in a process, bad input, a tiny run."""

import json
import sys
from argparse import Namespace
from collections import namedtuple

import pytest

from zeromuon import _ckpt
from zeromuon.commands.bench import command
from zeromuon.commands.bench.core import report
from zeromuon.commands.bench.ckpt import command as ckpt
from zeromuon.commands.bench.ckpt import contenders, source, tables
from zeromuon.commands.bench.ckpt.contenders import EXPORT, LARGE, OURS_OF, PEER_OF, UNIVERSAL, WITHOUT_IMPORTS, Source
from zeromuon.commands.bench.ckpt.measure import Failed, Measured, Runner
from zeromuon.commands.bench.core.results import FAILED, Results

MB = 10**6


def took(seconds: float, peak_mb: float = 100, temporary_mb: float = 0, imports: float = 0.0) -> Measured:
    return Measured(seconds, 0.1, int(peak_mb * MB), int(peak_mb * MB), 5 * MB, int(temporary_mb * MB), imports)


def case_of(part: str, taken: dict, failed=None):
    given = Source(None, "a checkpoint", 2 * 10**9)
    return tables.case_of(part, given, taken, failed or {}, ["a remark"])


def figures(*cases) -> list:
    return tables.figures(Results([], list(cases), bench=tables.CKPT))


EXPORTED = {
    OURS_OF[EXPORT]: [took(1.0, 100), took(2.0, 90)],
    PEER_OF[EXPORT]: [took(8.0, 600, imports=5.0), took(8.0, 500, imports=3.0)],
    contenders.WRITE: [took(0.5), took(1.0)],
}


# ---- tables and verdicts -------------------------------------------------------------------------


def test_ratios_are_medians_of_pairs_with_and_without_the_imports_of_the_peer():
    case = case_of(EXPORT, EXPORTED)
    peer = PEER_OF[EXPORT]
    assert [row.name for row in case.rows] == [OURS_OF[EXPORT], peer, peer + WITHOUT_IMPORTS, contenders.WRITE]
    assert case.row(PEER_OF[EXPORT]).ratio.median == 6.0
    assert case.row(PEER_OF[EXPORT] + WITHOUT_IMPORTS).ratio.median == 2.75
    assert case.row(contenders.WRITE).of_roof.median == 0.5
    assert case.key == "2.00 GB" and case.row(PEER_OF[EXPORT]).values[tables.PEAK] == 600


def test_the_figures_of_export_are_met_or_not():
    times, without, share = figures(case_of(EXPORT, EXPORTED))
    assert (times.bound, times.measured, times.met) == (5.0, 6.0, True)
    assert (without.bound, without.measured, without.met) == (2.0, 2.75, True)
    assert (share.bound, round(share.measured, 3), share.met) == (0.2, 0.167, True)
    slow = {**EXPORTED, OURS_OF[EXPORT]: [took(2.5, 130), took(2.5, 130)]}
    assert [figure.met for figure in figures(case_of(EXPORT, slow))] == [False, False, False]


def test_the_figures_of_universal_count_temporary_disk():
    taken = {OURS_OF[UNIVERSAL]: [took(1.0)], PEER_OF[UNIVERSAL]: [took(6.0, temporary_mb=50)]}
    times, temporary = figures(case_of(UNIVERSAL, taken))
    assert times.met and temporary.met and temporary.measured == 0
    taken[OURS_OF[UNIVERSAL]] = [took(1.0, temporary_mb=3)]
    assert figures(case_of(UNIVERSAL, taken))[1].met is False


def test_a_large_checkpoint_has_a_bound_of_memory():
    (figure,) = figures(case_of(LARGE, {OURS_OF[LARGE]: [took(9.0, 601)]}))
    assert (figure.bound, figure.measured, figure.met) == (600, 601, False)


def test_a_peer_that_failed_is_a_row_and_figures_that_were_not_measured():
    case = case_of(EXPORT, {OURS_OF[EXPORT]: [took(1.0)]}, {PEER_OF[EXPORT]: "it broke"})
    assert (case.row(PEER_OF[EXPORT]).status, case.row(PEER_OF[EXPORT]).why) == (FAILED, "it broke")
    assert [figure.met for figure in figures(case)] == [None] * 3 and all("it broke" in f.why for f in figures(case))


def test_outputs_that_differ_are_said():
    words = tables.same_words(
        EXPORT, {"same": False, "differences": [1, 2], "only_in_a": [], "only_in_b": ["x"], "equal": 3}
    )
    assert "DIFFER: 2 tensors, 0 only in ours, 1 only in the peer's" in words
    assert "not compared" in tables.same_words(EXPORT, None)


def test_the_report_holds_the_table_and_the_verdicts():
    text = report.text(Results([("files", "on tmpfs")], [case_of(EXPORT, EXPORTED)], bench=tables.CKPT))
    assert "zero_to_fp32, without its imports" in text and "peak of a process, MB" in text
    assert "zeromuon ckpt export, times zero_to_fp32 " in text and " 6.00  met (4.00 to 8.00)" in text


# ---- one conversion ------------------------------------------------------------------------------


def run(tmp_path, program: str, syncs: bool = False, *arguments: str) -> Measured:
    """The program tells what it took at its end, as every conversion does."""
    runner = Runner(tmp_path / "run")
    told = "from zeromuon.commands.bench.ckpt import convert\nconvert.tell(peak_bytes=convert.peak_bytes(), import_seconds=0)\n"
    return runner.run([sys.executable, "-c", program + "\n" + told, str(runner.output), *arguments], syncs)


def test_memory_and_temporary_disk_of_a_process_are_counted(tmp_path):
    program = (
        "import os, sys, time\n"
        "held = bytearray(50 * 10**6)\n"
        "out, kept = sys.argv[1] + '/passing', sys.argv[1] + '/kept'\n"
        "open(kept, 'wb').write(b'x' * 10**6)\n"
        "open(out, 'wb').write(b'x' * 5 * 10**6)\n"
        "deadline = time.monotonic() + 2\n"
        "while time.monotonic() < deadline: time.sleep(0.1)\n"
        "os.unlink(out)\n"
    )
    found = run(tmp_path, program)
    assert 5e6 <= found.temporary_bytes < 6e6 and 1e6 <= found.written_bytes < 2e6
    assert 50e6 < found.peak_bytes < 100e6 <= found.peak_bytes + found.tree_bytes
    assert found.seconds >= 2 and found.import_seconds == 0


def test_a_command_that_fails_is_told_with_its_last_words(tmp_path):
    with pytest.raises(Failed, match="no such thing"):
        run(tmp_path, "raise ValueError('no such thing')")


def test_mapped_pages_count_as_memory(tmp_path):
    (tmp_path / "mapped").write_bytes(b"x" * 40 * MB)
    program = "import mmap, sys\nf = open(sys.argv[2], 'rb')\n"
    program += "m = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)\nsum(m[::4096])\n"
    assert run(tmp_path, program, False, str(tmp_path / "mapped")).peak_bytes > 40 * MB


# ---- checkpoints ---------------------------------------------------------------------------------


def test_a_sparse_checkpoint_is_read_and_takes_no_space(tmp_path):
    made = source.sparse(tmp_path / "large", 64 * MB, width=1024)
    found = _ckpt.inspect(str(made.folder))
    assert (found["kind"], found["world_size"], found["optimizer"]) == ("ZeRO-3", source.RANKS, "AdamW")
    assert sum(tensor["bytes"] for tensor in found["tensors"]) == made.weights_bytes == 16 * 4 * 2**20
    assert set(found["tensors"][0]["states"]) == {"exp_avg", "exp_avg_sq"}
    on_disk = sum(path.stat().st_blocks * 512 for path in made.tag_folder.iterdir())
    assert on_disk < MB and "sparse" in made.words


def test_a_model_has_the_weights_that_were_asked_for():
    for mib in (1, 63, 64, 1024):
        width, layers = source.width_and_layers(mib)
        assert 4 * 12 * width**2 * layers >= mib * 2**20 > 4 * 12 * width**2 * (layers - 1)


def test_another_checkpoint_may_be_given(tmp_path):
    made = source.sparse(tmp_path / "large", 64 * MB, width=1024)
    given = source.given(made.folder)
    assert given.weights_bytes == made.weights_bytes and "2 ranks, AdamW" in given.words
    with pytest.raises(ValueError, match="expected a folder of ZeRO-3"):
        source.given(made.tag_folder)


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--weights-mib", "0"], "--weights-mib: expected a whole number from 1"),
        (["--rounds", "x"], "--rounds: expected a whole number"),
        (["--only", "reshard"], "invalid choice"),
        (["--checkpoint", "/nowhere"], "nothing there"),
        (["--works", "x"], 'did you mean "--work"'),
    ],
)
def test_bad_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        command.run(["ckpt", *arguments])


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(ckpt.shutil, "disk_usage", lambda path: usage(10**12, 0, 10**9))
    with pytest.raises(ValueError, match=r"needs about 13\.5 GB free, found 1\.0 GB; name another folder with --work"):
        command.run(["ckpt", "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_memory_that_does_not_do_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(ckpt, "available_memory_bytes", lambda: 10**9)
    with pytest.raises(ValueError, match="DeepSpeed needs about"):
        command.run(["ckpt", "--out", str(tmp_path / "out")])


def test_the_large_one_needs_the_disk_of_its_output():
    options = Namespace(given=None, weights_mib=1024, large_mb=10_000, parts=(LARGE,))
    assert ckpt.needed_disk_bytes(options) == 38 * 4 * 8192**2


# ---- a tiny run ----------------------------------------------------------------------------------


def test_a_tiny_run_of_all_parts(tmp_path, capsys):
    out, work = tmp_path / "out", tmp_path / "work"
    arguments = ["--weights-mib", "1", "--large-mb", "200", "--full", "--rounds", "1"]
    assert command.run(["ckpt", *arguments, "--out", str(out), "--work", str(work)]) == 0
    results = json.loads((out / "ckpt.json").read_text())
    cases = {case["part"]: case for case in results["cases"]}
    assert set(cases) == {EXPORT, UNIVERSAL, LARGE} and (out / "ckpt.png").exists()
    for part in (EXPORT, UNIVERSAL):
        rows = {row["name"]: row for row in cases[part]["rows"]}
        assert {row["status"] for row in rows.values()} == {"measured"}, rows
        assert rows[PEER_OF[part]]["ratio"]["median"] > 0 and rows[OURS_OF[part]]["values"][tables.PEAK] < 100
        assert any("bit for bit" in remark for remark in cases[part]["remarks"])
        assert any("written by DeepSpeed" in remark for remark in cases[part]["remarks"])
    assert cases[LARGE]["rows"][0]["values"][tables.WRITTEN] == pytest.approx(268, abs=1)
    assert not any(work.iterdir()) and "figures to reach" in capsys.readouterr().out
