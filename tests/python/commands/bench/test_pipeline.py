"""`zeromuon bench pipeline`: the models, the file of rates, what is measured of a played step, the report, a tiny run."""

import copy
import json
import re

import pytest

from tests.integration import hosts
from zeromuon.base.shipped import config_file
from zeromuon.commands.bench import command
from zeromuon.commands.bench.played import outcome, rates, tables
from zeromuon.commands.bench.core import report
from zeromuon.commands.bench.played import command as pipeline
from zeromuon.commands.bench.played.models import MODELS, Decoder, Parameter
from zeromuon.commands.bench.played.outcome import Played
from zeromuon.commands.bench.played.rates import Scenario
from zeromuon.optimizer import trace

TINY = Decoder(64, 16, 160, 512, 6, biases=True, tied=True).model("tiny", "Tiny")
# Slow enough for a tiny model: what matters is the work, not the latencies.
VALUES = {
    "dram_bytes_per_s": 1e8,
    "to_device_bytes_per_s": 5e7,
    "to_host_bytes_per_s": 5e7,
    "flops_per_s": 1e11,
    "device_bytes_per_s": 1e12,
    "wire_bytes_per_s": 1e8,
    "wire_latency_s": 1e-6,
    "task_latency_s": 0,
    "launch_s": 0,
}


def content(**changed) -> dict:
    """Of a file of rates: one machine, one case."""
    return {
        "world_size": 2,
        "rates": {name: {"value": value, "why": "a test"} for name, value in VALUES.items()},
        "machines": {"m": {"title": "a machine", **{name: name for name in VALUES}}},
        "cases": [
            {"machine": "m", "models": ["tiny"], "homes": ["shard"], "momentum_dtypes": ["float32"], "balanced": False}
        ],
        **changed,
    }


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(MODELS, "tiny", TINY)


def written(folder, given: dict):
    path = folder / "rates.json"
    path.write_text(json.dumps(given))
    return path


def scenarios(folder, **changed) -> list[Scenario]:
    return list(rates.load(written(folder, content(**changed))).scenarios)


def of_case(**changed) -> list[dict]:
    return [{**content()["cases"][0], **changed}]


# ---- the models ----------------------------------------------------------------------------------


def test_the_models_have_as_many_parameters_as_the_published_ones():
    assert MODELS["llama-3-8b"].numel == 8_030_261_248
    assert MODELS["qwen2.5-3b"].numel == 3_085_938_688
    assert [p.name for p in MODELS["qwen2.5-3b"].adamw if p.cols] == ["embed"], "its head is the embedding"


def test_hidden_matrices_get_muon_and_nothing_else():
    for model in (MODELS["llama-3-8b"], MODELS["qwen2.5-3b"]):
        assert len(model.muon) % 7 == 0 and all(p.cols for p in model.muon)
        assert {p.name for p in model.adamw if p.cols} <= {"embed", "lm_head"}


def test_a_sub_group_closes_with_the_parameter_that_fills_it():
    from zeromuon.commands.bench.played import play

    parameters = tuple(Parameter(str(i), 10) for i in range(5))
    assert [len(group) for group in play.sub_groups(parameters, 2, 10)] == [2, 2, 1]
    assert [len(group) for group in play.sub_groups(parameters, 2, 25)] == [5]
    assert [len(group) for group in play.sub_groups(parameters, 3, 4)] == [1] * 5, (
        "a rank has 4 of each, one is padding"
    )


# ---- the file of rates ---------------------------------------------------------------------------


def test_the_shipped_rates_cover_both_models_three_links_all_homes_and_two_balanced_cases():
    given = rates.load(hosts.ROOT / "configs" / rates.FILE)
    found = given.scenarios
    assert given.world_size == 8 and config_file(rates.FILE, "--rates").name == rates.FILE
    links = {s.machine.rates["to_device_bytes_per_s"] for s in found if not s.balanced}
    assert links == {25e9, 50e9, 300e9} and len([s for s in found if s.balanced]) == 2
    plain = {(s.model.key, s.machine.name, s.home, s.momentum_dtype) for s in found if not s.balanced}
    assert len(plain) == 2 * 3 * len(rates.HOMES) * len(rates.FLOATS)
    assert all(source for s in found for source in s.machine.sources.values())


@pytest.mark.parametrize(
    "path, value, words",
    [
        (
            ("rates", "flops_per_s", "value"),
            -1,
            r"rates\.flops_per_s\.value: expected a number that is not negative, got -1",
        ),
        (("rates", "flops_per_s", "value"), 0, r"rates\.flops_per_s\.value: expected a positive number"),
        (("rates", "flops_per_s", "value"), "fast", r"not negative, got \"fast\""),
        (("rates", "flops_per_s", "value"), True, "not negative, got true"),
        (("rates", "flops_per_s", "value"), float("nan"), "not negative, got NaN"),
        (("rates", "flops_per_s", "why"), " ", r"rates\.flops_per_s\.why: expected words"),
        (("rates", "flops_per_s", "why"), None, r"rates\.flops_per_s\.source: missing"),
        (("rates", "flops_per_s", "unit"), "B/s", r"rates\.flops_per_s\.unit: unknown key; expected value, why"),
        (("rates", "flops_per_s"), 5, r"rates\.flops_per_s: expected an object"),
        (("machines", "m", "flops_per_s"), "flop", r"machines\.m\.flops_per_s: expected one of .*, got \"flop\""),
        (("machines", "m", "flops_per_s"), None, r"machines\.m\.flops_per_s: missing"),
        (("machines", "m", "flops"), "flops_per_s", r"machines\.m\.flops: unknown key"),
        (("cases", 0, "models"), ["gpt"], r"cases\[0\]\.models\[0\]: expected one of .*llama-3-8b"),
        (("cases", 0, "models"), [], r"cases\[0\]\.models: expected a list"),
        (("cases", 0, "homes"), ["disk"], r"cases\[0\]\.homes\[0\]: expected one of device, shard, streamed"),
        (("cases", 0, "momentum_dtypes"), "float32", r"momentum_dtypes: expected a list"),
        (("cases", 0, "machine"), "n", r"cases\[0\]\.machine: expected one of m"),
        (("cases", 0, "balanced"), 1, r"cases\[0\]\.balanced: expected true or false"),
        (("cases",), [], "cases: expected a list with one case"),
        (("world_size",), 0, "world_size: expected a whole number from 1"),
        (("world_size",), 2.5, "world_size: expected a whole number from 1"),
        (("world_size",), None, "world_size: missing"),
        (("ranks",), 2, "ranks: unknown key"),
    ],
)
def test_a_bad_file_of_rates_is_refused_with_its_name_and_the_key(path, value, words, tmp_path):
    given = copy.deepcopy(content())
    inner = given
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    with pytest.raises(ValueError, match=r"rates\.json: " + ".*" + words):
        rates.load(written(tmp_path, given))


@pytest.mark.parametrize(
    "text, words",
    [
        ("{", "expected JSON"),
        ("[]", "the whole file: expected an object"),
        ('{"world_size": 1, "world_size": 2}', '"world_size" stands twice'),
    ],
)
def test_a_file_that_is_not_an_object_of_json_is_refused(text, words, tmp_path):
    (tmp_path / "rates.json").write_text(text)
    with pytest.raises(ValueError, match=r"rates\.json: .*" + words):
        rates.load(tmp_path / "rates.json")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match="none.json: cannot be read"):
        rates.load(tmp_path / "none.json")


def test_a_case_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tiny/m/shard-float32 is in two of them"):
        scenarios(tmp_path, cases=of_case() + of_case())


# ---- what is measured ----------------------------------------------------------------------------


@pytest.fixture(params=[(home, dtype) for home in rates.HOMES for dtype in rates.FLOATS], ids="-".join)
def scenario(request, tmp_path) -> Scenario:
    home, dtype = request.param
    (found,) = scenarios(tmp_path, cases=of_case(homes=[home], momentum_dtypes=[dtype]))
    return found


def test_no_lane_works_longer_than_the_makespan_and_a_serial_step_takes_longer(scenario):
    from zeromuon.commands.bench.played import play as played

    row = played.play(scenario)
    assert 0 < row.owner_s <= row.resources["compute"] * 1.001
    assert row.bound_s == max(row.resources.values()) <= row.makespan_s < row.serial_s
    assert row.ratio >= 1 and 0 < row.hidden < 1
    assert row.device_bytes > 0 and row.pinned_bytes > 0


def test_the_resources_are_the_bytes_and_operations_over_the_rates(scenario):
    """Recounted by hand: elements of a rank, and what each stage reads, writes and copies of them."""
    from zeromuon.commands.bench.played import play as played

    row = played.play(scenario)
    muon, adamw = TINY.muon_numel / 2, sum(p.numel for p in TINY.adamw) / 2
    stored = 4 if scenario.momentum_dtype == "float32" else 2
    on_cpu, streamed = scenario.home == "shard", stored if scenario.home == "streamed" else 0
    cpu = muon * (4 + 4 + 2 + 2 + (4 + 2 * stored + 2 if on_cpu else 0)) + adamw * 30
    to_device = muon * ((2 if on_cpu else 4) + streamed + 2) + adamw * 2
    to_host = muon * (2 + streamed)
    assert row.resources["cpu"] == pytest.approx(cpu / 1e8, rel=0.01)
    assert row.resources["to_device"] == pytest.approx(to_device / 5e7, rel=0.01)
    assert row.resources["to_host"] == pytest.approx(to_host / 5e7, rel=0.01)
    assert row.wire_mean == pytest.approx(4 * 0.5 / 2, rel=0.01) and row.wire_met


def test_latencies_are_no_part_of_the_bound(tmp_path):
    from zeromuon.commands.bench.played import play as played

    of_tasks = [name for name in rates.LATENCIES if name != "launch_s"]
    slow = content()["rates"] | {name: {"value": 1e-3, "why": "a test"} for name in of_tasks}
    (without,), (with_them,) = scenarios(tmp_path), scenarios(tmp_path, rates=slow)
    first, second = played.play(without), played.play(with_them)
    assert second.makespan_s > first.makespan_s
    assert second.resources == pytest.approx(first.resources, abs=1e-6)


def test_every_shipped_case_reaches_its_figures():
    """On the virtual clock: nothing here depends on the machine that runs the test."""
    from zeromuon.commands.bench.played import play as played

    rows = [played.play(s) for s in rates.load(hosts.ROOT / "configs" / rates.FILE).scenarios]
    # Of a step of 20 ms the first bucket's way in and the last one's way out are a tenth.
    limits = [(row, outcome.RATIO_LIMIT if row.bound_s > 25e-3 else 1.15) for row in rows]
    assert [row.key for row, limit in limits if row.ratio > limit or not row.wire_met] == []
    assert [row.key for row in rows if row.balanced and row.apart > outcome.BALANCE] == []
    # Newton-Schulz of a rank with most of it: 62 ms are possible, see docs/performance.md.
    owners = [row.owner_s for row in rows if row.key.startswith("llama-3-8b/c2c")]
    assert owners and max(owners) <= 1.3 * 62e-3


def test_cases_that_are_to_be_balanced_are_checked():
    far = row_of("far", {"cpu": 1.0, "to_device": 0.7, "compute": 0.1}, balanced=True)
    near = row_of("near", {"cpu": 0.81, "to_device": 1.0, "compute": 0.1}, balanced=True)
    assert far.apart == pytest.approx(0.3) and near.two_largest == [("to_device", 1.0), ("cpu", 0.81)]
    text = "\n".join(tables._balance([far, near, row_of("other", {"cpu": 1.0, "to_device": 0.1})]))
    assert re.search(r"far: cpu 1000\.0 ms and to_device 700\.0 ms, 30\.0 % apart: NOT within 20 %", text)
    assert re.search(r"near: to_device .* 19\.0 % apart: within 20 %", text) and len(text.splitlines()) == 3


# ---- the report ----------------------------------------------------------------------------------


def row_of(key: str, resources: dict, makespan=1.2, balanced=False, wire_mean=1.0) -> Played:
    return Played(key, balanced, makespan, resources, "cpu of rank 0", 0.1, 2.4, wire_mean, 1.1, 1.0, 2**20, 2**21)


def test_the_table_has_the_verdicts_and_the_worst_case(tmp_path):
    rows = [
        row_of("good", {"cpu": 1.15, "to_device": 0.1}),
        row_of("late", {"cpu": 1.0, "to_device": 0.1}, wire_mean=1.02),
    ]
    given = rates.load(written(tmp_path, content()))
    text = report.text(tables.results_of(given, rows, "late"))
    assert re.search(
        r"good +1200\.0 +1150\.0 +cpu of rank 0 +100\.0 +1\.043 +met +2400\.0 +50 % .* met +1 +2$", text, re.MULTILINE
    )
    assert re.search(r"late .* 1\.200 +NOT met .* 1\.0200 +1\.1000 +NOT met", text)
    assert re.search(r"<= 1\.1 +1\.20  NOT met \(late\)", text) and re.search(
        r"<= 1\.01 +1\.02  NOT met \(late\)", text
    )
    assert re.search(r"^m +a machine: per rank DRAM 0 GB/s", text, re.MULTILINE)


# ---- runs ----------------------------------------------------------------------------------------


def test_a_tiny_run_writes_table_json_picture_and_trace(tmp_path, capsys):
    from matplotlib.image import imread

    path, out = written(tmp_path, content(cases=of_case(homes=["shard", "streamed"]))), tmp_path / "out"
    drawn = "tiny/m/streamed-float32"
    assert command.run(["pipeline", "--rates", str(path), "--case", drawn, "--out", str(out)]) == 0
    said = capsys.readouterr()
    found = json.loads((out / "pipeline.json").read_text())
    assert [row["key"] for row in found["rows"]] == ["tiny/m/shard-float32", drawn] and found["drawn"] == drawn
    assert set(found["rows"][0]) >= {
        "makespan_s",
        "bound_s",
        "ratio",
        "met",
        "serial_s",
        "hidden",
        "wire_mean",
        "apart",
    }
    assert found["machines"]["m"]["sources"]["flops_per_s"] == "a test"
    assert (out / "pipeline.txt").read_text().strip() in said.out and drawn in said.err
    picture = imread(out / "pipeline.png")
    assert min(picture.shape[:2]) > 300 and picture[..., :3].std() > 0.05
    rows = json.loads((out / pipeline.TRACE_FILE).read_text())["traceEvents"]
    spans = [row for row in rows if row["ph"] == "X"]
    names = {(row["pid"], row["tid"]): row["args"]["name"] for row in rows if row["name"] == "thread_name"}
    assert {(row["pid"], names[row["pid"], row["tid"]]) for row in spans} == {
        (rank, lane) for rank in (0, 1) for lane in ("step", *trace.lanes())
    }
    assert max(row["ts"] + row["dur"] for row in spans) == pytest.approx(1e6 * found["rows"][1]["makespan_s"])


def test_the_case_with_the_largest_ratio_is_drawn_when_none_is_named(tmp_path, capsys):
    path, out = written(tmp_path, content(cases=of_case(homes=list(rates.HOMES)))), tmp_path / "out"
    assert pipeline.run(["--rates", str(path), "--out", str(out)]) == 0
    found = json.loads((out / "pipeline.json").read_text())
    assert found["drawn"] == max(found["rows"], key=lambda row: row["ratio"])["key"]
    assert f"the timeline of {found['drawn']}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--case", "tiny/m/shard-float23"], 'did you mean "tiny/m/shard-float32"'),
        (["--cases", "x"], 'did you mean "--case"'),
        (["--out", "rates.json/results"], "is not one"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path, content())
    with pytest.raises(ValueError, match=words):
        command.run(["pipeline", "--rates", str(path), *arguments])
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_with_results_is_refused(tmp_path):
    (tmp_path / "pipeline.json").touch()
    with pytest.raises(ValueError, match="has results"):
        pipeline.run(["--rates", str(written(tmp_path, content())), "--out", str(tmp_path)])
