"""`zeromuon bench kernels`: the order of the samples, ratios, the report, rows of missing peers, bad input, a tiny run."""

import json
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.multirank.launch import environment
from zeromuon.commands.bench import command
from zeromuon.commands.bench.kernels import command as kernels
from zeromuon.commands.bench.kernels import verdicts
from zeromuon.commands.bench.core import plot, report, results, timing
from zeromuon.commands.bench.core.results import MISSING, ROOF, Accuracy, Case, Results, Row, rows_of
from zeromuon.commands.bench.core.timing import Budget, Contender, measure

TINY = ["--only", "newton_schulz", "--shape", "64x128", "--budget-seconds", "5"]


class Clock:
    """Goes on only when a contender works."""

    def __init__(self):
        self.now, self.log = 0.0, []

    def __call__(self):
        return self.now

    def contender(self, name, seconds, **given):
        def run(_):
            self.log.append(name)
            self.now += seconds() if callable(seconds) else seconds
            return name

        return Contender(name, run, **given)


# ---- the timing core -----------------------------------------------------------------------------


def test_the_order_turns_around_from_round_to_round():
    clock = Clock()
    measure([clock.contender(name, 1.0) for name in "ABC"], 8.0, clock=clock)
    assert "".join(clock.log) == "ABC" + "ABC" + "CBA" + "ABC"


def test_the_warm_up_is_not_counted_and_its_result_is_kept():
    clock, durations = Clock(), iter([100.0, 1.0, 1.0, 1.0])
    samples = measure([clock.contender("A", lambda: next(durations))], 1.0, clock=clock)
    assert samples.seconds["A"] == [1.0, 1.0, 1.0] and samples.outputs["A"] == "A"


def test_there_are_three_rounds_also_without_time_and_no_more_than_the_most():
    clock = Clock()
    assert len(measure([clock.contender("A", 5.0)], 0.0, clock=clock).seconds["A"]) == timing.LEAST_ROUNDS
    assert len(measure([clock.contender("A", 1e-6)], 1e9, clock=clock).seconds["A"]) == timing.MOST_ROUNDS


def test_one_round_is_enough_for_a_long_sample():
    clock = Clock()
    samples = measure([clock.contender("A", 1.0), clock.contender("B", 30.0)], 0.0, clock=clock)
    assert samples.seconds == {"A": [1.0], "B": [30.0]}


def test_preparing_is_not_timed():
    clock = Clock()

    def prepare():
        clock.now += 50.0
        return "copy"

    seen = []
    samples = measure([Contender("A", seen.append, prepare)], 0.0, clock=clock)
    assert set(samples.seconds["A"]) == {0.0} and seen == ["copy"] * 4


def test_rounds_are_told():
    clock, told = Clock(), []
    measure([clock.contender("A", 1.0)], 0.0, told.append, clock)
    assert told == [1, 2, 3]


def test_a_contender_that_raises_is_left_out_and_the_others_go_on():
    clock, calls = Clock(), []

    def fails_later():
        calls.append(None)
        if len(calls) > 2:
            raise RuntimeError("out of\nmemory")
        return 1.0

    samples = measure([clock.contender("A", 1.0), clock.contender("B", fails_later)], 0.0, clock=clock)
    assert samples.failed == {"B": "RuntimeError: out of memory"}
    assert list(samples.seconds) == ["A"] and len(samples.seconds["A"]) == timing.LEAST_ROUNDS


def test_a_ratio_is_the_median_of_pairs_and_not_the_pair_of_medians():
    found = timing.ratio([1.0, 10.0, 4.0], [1.0, 5.0, 1.0])
    assert (found.median, found.least, found.greatest) == (2.0, 1.0, 4.0)


def test_a_budget_runs_out():
    clock = Clock()
    budget = Budget(100.0, clock)
    clock.now = 40.0
    assert budget.left() == 60.0
    clock.now = 200.0
    assert budget.left() == 0.0


def test_the_share_of_a_roof_is_of_rates():
    clock = Clock()
    racing = [
        clock.contender("zeromuon", 1.0, kind="ours", work=80.0),
        clock.contender("copy", 2.0, kind=ROOF, work=200.0),
        clock.contender("peer", 3.0),
    ]
    rows = rows_of(racing, measure(racing, 0.0, clock=clock))
    assert rows[0].rate == 80.0 and rows[0].ratio is None
    assert rows[1].of_roof.median == pytest.approx(0.8) and rows[2].ratio.median == 3.0 and rows[2].of_roof is None


# ---- the report ----------------------------------------------------------------------------------


def synthetic(ratio=2.0) -> Results:
    """Two cases of each part, with rows of every kind."""

    def pairs(of):
        return timing.Ratio(of, of * 0.9, of * 1.1)

    adamw = Case(
        "adamw",
        "fp32",
        "fp32 gradient",
        "B/s",
        [
            Row("zeromuon", "ours", seconds=[0.05] * 3, rate=40e9),
            Row("DeepSpeed's chain", seconds=[0.05 * ratio] * 3, ratio=pairs(ratio)),
            Row("zeromuon, onednn", "ours", MISSING, "not in this build"),
            Row("copy roof", ROOF, seconds=[0.045] * 3, ratio=pairs(0.9), of_roof=pairs(0.95), rate=42e9),
        ],
    )
    square = Case(
        "newton_schulz",
        "1024x1024",
        "1024x1024 (square)",
        "FLOP/s",
        [
            Row(
                "zeromuon",
                "ours",
                seconds=[0.2],
                rate=1e11,
                note="standard, float32",
                accuracy=Accuracy(0.1315, 0.682, 1.134),
            ),
            Row("DeepSpeed standard, float32", seconds=[0.2 * ratio], ratio=pairs(ratio)),
            Row("DeepSpeed gram, as it ships", seconds=[60.0], ratio=pairs(300.0)),
            Row("gram-newton-schulz, float32", status=MISSING, why="not installed: pip install it"),
            Row("torch.mm 1024", ROOF, seconds=[0.01], ratio=pairs(0.05), of_roof=pairs(0.8), rate=2e11),
        ],
    )
    return Results(
        [("processor", "a test"), ("threads", "1 of 1")],
        [adamw, square],
        ["14336x4096: too long"],
        bench=verdicts.KERNELS,
    )


def test_the_table_has_every_row_and_the_reason_of_what_is_missing():
    text = report.text(synthetic())
    assert re.search(r"DeepSpeed's chain +100\.00 +2\.00 +1\.80\.\.2\.20 +3", text)
    assert re.search(r"copy roof .* 42\.0 GB/s +0\.95", text)
    assert re.search(r"0\.1315 +\[0\.682, 1\.134\]", text) and "100.0 GFLOP/s" in text
    assert "zeromuon, onednn: missing: not in this build" in text
    assert "gram-newton-schulz, float32: missing: not installed: pip install it" in text
    assert "left out:\n  14336x4096: too long" in text and "INTERRUPTED" not in text
    assert "processor  a test" in text


def test_verdicts_say_met_not_met_and_not_measured():
    found = {f.what: f for f in verdicts.figures(synthetic(ratio=1.4))}
    by_words = {
        words: next(f for what, f in found.items() if words in what)
        for words in (
            "fp32 gradients, of",
            "chain, fp32",
            "chain, bf16",
            "squares",
            "product peak",
            "best float32",
            "gram",
        )
    }
    met = {words: figure.met for words, figure in by_words.items()}
    assert met == {
        "fp32 gradients, of": True,
        "chain, fp32": True,
        "chain, bf16": None,
        "squares": True,
        "product peak": False,
        "best float32": True,
        "gram": None,
    }
    text = report.text(synthetic(ratio=1.4))
    assert "NOT met" in text and "not measured" in text and "2 AVX2 cores" in text
    assert found["fused AdamW over DeepSpeed's chain, fp32 gradients"].measured == 1.4


def test_a_part_that_was_not_asked_for_has_no_verdicts():
    only = synthetic()
    only.cases = only.of_part("adamw")
    assert {f.what.split()[0] for f in verdicts.figures(only)} == {"fused"}


def test_the_json_has_what_the_table_has(tmp_path):
    report.write(tmp_path / "new", synthetic())
    found = json.loads((tmp_path / "new" / "kernels.json").read_text())
    assert set(found) == {"schema", "header", "cases", "left_out", "interrupted", "seconds", "bench", "figures"}
    row = found["cases"][0]["rows"][1]
    assert row["name"] == "DeepSpeed's chain" and row["ratio"] == {"median": 2.0, "least": 1.8, "greatest": 2.2}
    assert set(found["figures"][0]) == {"what", "sense", "bound", "measured", "met", "why"}
    assert (tmp_path / "new" / "kernels.txt").read_text().startswith("processor")


def test_the_picture_is_drawn(tmp_path):
    from matplotlib.image import imread

    plot.draw(tmp_path / "ratios.png", synthetic())
    picture = imread(tmp_path / "ratios.png")
    assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05


def test_a_run_that_was_interrupted_says_so():
    stopped = synthetic()
    stopped.interrupted = True
    assert "INTERRUPTED" in report.text(stopped)


# ---- peers ---------------------------------------------------------------------------------------


def test_a_peer_that_cannot_be_loaded_is_a_row_with_its_reason(monkeypatch):
    from zeromuon.commands.bench.kernels import newton_schulz, peers

    def raises(module):
        raise AttributeError("no such function")

    monkeypatch.setattr(
        peers, "LIBRARIES", {"some library": ("torch.optim._muon", raises), peers.TORCH: peers.LIBRARIES[peers.TORCH]}
    )
    loaded, absent = newton_schulz._load_peers()
    assert [peer.dtype for peer in loaded] == ["float32", "bfloat16"]
    assert [(row.name, row.status, row.why) for row in absent] == [
        (f"some library, {variant}", MISSING, "AttributeError: no such function")
        for variant in ("float32", "as it ships")
    ]


def test_the_float32_copy_computes_in_float32_and_leaves_the_original():
    import torch
    from torch.optim import _muon

    from zeromuon.commands.bench.kernels import peers

    matrix = torch.randn(8, 16)
    assert peers.load(peers.TORCH, True).function(matrix).dtype == torch.float32
    assert peers.load(peers.TORCH, False).function(matrix).dtype == torch.bfloat16
    assert _muon._zeropower_via_newtonschulz.__globals__ is vars(_muon)


def test_a_module_without_a_cast_is_refused():
    from zeromuon.commands.bench.kernels import peers

    with pytest.raises(ValueError, match="expected a cast"):
        peers.float32_copy(command)


def test_an_operator_that_does_not_build_says_why(monkeypatch):
    from zeromuon.commands.bench.kernels import deepspeed_adam

    monkeypatch.setattr(deepspeed_adam, "_BUILD", "raise RuntimeError('no compiler')")
    said = []
    assert deepspeed_adam.build(said.append) == "cpu_adam was not built: RuntimeError: no compiler"
    assert said


def test_slow_peers_are_measured_with_fewer_rows():
    from zeromuon.commands.bench.kernels import newton_schulz, peers

    slow = peers.Peer("slow, as it ships", "float16", lambda matrix: matrix)
    rates = newton_schulz.Rates({"float32": 1e12, "float16": 1e8})
    race = newton_schulz.Race([slow], [], rates, type("Silent", (), {"say": print, "round": lambda *_: None})(), 1.0)
    whole, scaled = race.cases(newton_schulz.Job(256, 256, "test"), 3.0)
    assert whole.row(slow.name).status == results.SKIPPED and scaled.title == "256x256, rows scaled to 64 (test)"
    assert scaled.rows[0].name == "zeromuon" and scaled.row(slow.name).ratio is not None


def test_a_result_that_is_not_finite_is_said_beside_its_row():
    from zeromuon.commands.bench.kernels import newton_schulz, peers

    broken = peers.Peer("broken, float32", "float32", lambda matrix: matrix * float("nan"))
    race = newton_schulz.Race(
        [broken], [], newton_schulz.Rates(), type("Silent", (), {"round": lambda *_: None})(), 1.0
    )
    (case,) = race.cases(newton_schulz.Job(32, 32, "test"), 0.1)
    row = case.row(broken.name)
    assert "NOT FINITE" in row.note and row.accuracy is None and case.rows[0].accuracy is not None


def test_shapes_that_do_not_fit_the_budget_are_named():
    from zeromuon.commands.bench.kernels import newton_schulz

    race = type("Race", (), {"estimate": lambda self, job: job.operations / 1e11})()
    jobs = newton_schulz.default_jobs()
    kept, left_out = newton_schulz._that_fit(jobs, race, Budget(10.0, Clock()))
    assert len(kept) + len(left_out) == len(jobs) and kept[0].key == "512x512"
    assert any("14336x4096" in line and "--full" in line for line in left_out)


def test_a_dtype_of_ours_that_cannot_run_is_a_row_with_its_reason(monkeypatch):
    from zeromuon.commands.bench.kernels import newton_schulz

    def refuses(job, dtype, matrices):
        raise ValueError(f"{dtype} needs AVX512_BF16")

    monkeypatch.setattr(newton_schulz, "_ours", refuses)
    contenders, missing = newton_schulz._all_of_ours(newton_schulz.Job(8, 8), [])
    assert not contenders and [row.why for row in missing][1] == "bfloat16 needs AVX512_BF16"


def test_a_busy_machine_is_named():
    from zeromuon.commands.bench.core.machine import OtherLoad, load_words

    assert "NOT idle" in load_words(1.5) and "NOT" not in load_words(0.01)
    assert OtherLoad().cores() >= 0.0


# ---- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--shape", "12"], "ROWSxCOLUMNS"),
        (["--shape", "0x5"], "ROWSxCOLUMNS"),
        (["--shape", "65536x65536"], "GB are free"),
        (["--shape", "8x8", "--only", "adamw"], "leave out one"),
        (["--only", "sgd"], "newton_schulz"),
        (["--threads", "0"], "whole number from 1"),
        (["--threads", "9999999"], "whole number from 1"),
        (["--budget-seconds", "-3"], "whole number"),
        (["--parameters", "many"], "whole number"),
        (["--thread", "1"], 'did you mean "--threads"'),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=words):
        command.run(["kernels", *arguments])
    assert not list(tmp_path.iterdir())


def test_a_folder_with_results_is_refused(tmp_path):
    report.write_json(tmp_path, synthetic())
    with pytest.raises(ValueError, match="has results"):
        kernels.run(["--out", str(tmp_path)])


def test_a_folder_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not one"):
        kernels.run(["--out", str(tmp_path / "file" / "results")])


def test_an_unknown_bench_names_the_nearest(capsys):
    with pytest.raises(ValueError, match='did you mean "kernels"'):
        command.run(["kernel"])
    assert command.run([]) == 0 and "kernels" in capsys.readouterr().out


# ---- real runs -----------------------------------------------------------------------------------


@pytest.fixture
def bench(start):
    """bench(*arguments): the running command. The peers are not compiled: the compiler takes longer than the tests."""
    command = [sys.executable, "-m", "zeromuon", "bench", "kernels"]
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return lambda *arguments: start([*command, *arguments], env=environment(), **pipes)


def test_a_tiny_run_end_to_end(bench, tmp_path):
    running = bench(*TINY, "--threads", "1", "--out", str(tmp_path / "out"))
    text, progress = running.communicate(timeout=120)
    assert running.returncode == 0, progress
    found = json.loads((tmp_path / "out" / "kernels.json").read_text())
    (case,) = found["cases"]
    rows = {row["name"]: row for row in case["rows"]}
    assert case["key"] == "64x128" and rows["zeromuon"]["accuracy"]["greatest"] < 1.2
    for name in ("DeepSpeed standard, float32", "DeepSpeed gram, float32", "torch.optim.Muon, as it ships"):
        assert rows[name]["ratio"]["median"] > 0 and rows[name]["accuracy"]["greatest"] < 1.3
    assert "TORCHDYNAMO_DISABLE=1" in found["header"]["environment"]
    assert "figures to reach" in text and "64x128" in progress and (tmp_path / "out" / "kernels.png").exists()


def test_a_tiny_run_of_the_elementwise_passes(tmp_path, monkeypatch):
    from zeromuon.commands.bench.kernels import adamw, deepspeed_adam
    from zeromuon.commands.bench.core.session import Session

    monkeypatch.setattr(deepspeed_adam, "build", lambda say, longest: "cpu_adam was not built: no compiler")
    session = Session(verdicts.KERNELS, tmp_path / "out", 2.0)
    adamw.run(100_000, session)
    cases = session.results.cases
    assert [case.key for case in cases] == ["fp32", "bf16", "plain", "momentum", "apply"]
    for case in cases:
        assert case.rows[0].status == results.MEASURED, case.rows[0].why
        assert case.row("copy roof").of_roof is not None
    assert cases[0].row(adamw.CHAIN).why == "RuntimeError: cpu_adam was not built: no compiler"
    assert cases[2].row(adamw.TORCH_FUSED).ratio is not None


def test_an_interrupt_leaves_what_was_measured(bench, tmp_path):
    out = tmp_path / "out" / "kernels.json"
    running = bench(
        "--only",
        "newton_schulz",
        "--shape",
        "32x32",
        "--shape",
        "2048x2048",
        "--budget-seconds",
        "600",
        "--out",
        str(out.parent),
    )
    end = time.monotonic() + 300
    while not out.exists() and time.monotonic() < end:
        time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    text, progress = running.communicate(timeout=300)
    assert running.returncode == report.INTERRUPTED, progress
    assert "INTERRUPTED" in text and "interrupted" in progress
    found = json.loads(out.read_text())
    assert found["interrupted"] and [case["key"] for case in found["cases"]] == ["32x32"]
