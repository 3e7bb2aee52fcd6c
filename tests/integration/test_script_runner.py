"""`python -m zeromuon SCRIPT` runs a script as python does, with both optimizer types registered."""

import json
import subprocess
import sys

import pytest

from tests.integration import hosts

SHOWS = """
import json, sys
import beside
print("SHOWN", json.dumps([__name__, __file__, sys.argv, sys.path[0], beside.VALUE]))
"""
ALONE = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
# DeepSpeed's own Muon needs reduce_scatter false, and without torch_adam compiles an Adam for two minutes.
TRAINS_MUON = """
import deepspeed, torch
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3, "reduce_scatter": False},
          "optimizer": {"type": "Muon", "params": {"lr": 0.01, "torch_adam": True}}}
engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
engine.backward(engine(torch.ones(1, 8)).sum())
engine.step()
"""
PLAIN_IMPORT = """
import deepspeed, torch, torch.optim
from deepspeed.runtime import engine
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero import utils

def seen():
    own = {f"{m.__name__}.{k}": id(v) for m in (deepspeed, torch.optim, DeepSpeedEngine, engine, utils) for k, v in vars(m).items()
           if not k.startswith("__")}
    return own, list(utils.ZERO_SUPPORTED_OPTIMIZERS)

before = seen()
import zeromuon
zeromuon.ZeroMuon, zeromuon.param_groups, zeromuon.attach, zeromuon.register, zeromuon.unregister
print("UNCHANGED", seen() == before)
"""
PUT_BACK = (
    PLAIN_IMPORT
    + """
zeromuon.register(replace_muon=True)
zeromuon.register(replace_muon=True)
print("CHANGED", sum(seen()[0].get(key) != value for key, value in before[0].items()), seen()[1] != before[1])
zeromuon.unregister()
print("PUT BACK", seen() == before)
"""
)


def run(folder, *arguments, **variables):
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=hosts.environment(**variables),
        text=True,
        capture_output=True,
        timeout=hosts.SECONDS_PER_LAUNCH,
    )


@pytest.fixture
def scripts(tmp_path):
    """A folder with scripts/shows.py, which imports scripts/beside.py."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "shows.py").write_text(SHOWS)
    (tmp_path / "scripts" / "beside.py").write_text("VALUE = 5\n")
    return tmp_path


def shown(process):
    assert process.returncode == 0, process.stderr
    return json.loads(next(line for line in process.stdout.splitlines() if line.startswith("SHOWN"))[5:])


def test_a_script_sees_the_name_arguments_and_path_that_python_gives_it(scripts):
    arguments = ("scripts/shows.py", "--lr", "0.1", "-m", "x")
    assert shown(run(scripts, "-m", "zeromuon", *arguments)) == shown(run(scripts, *arguments))


def test_a_module_sees_the_name_and_arguments_that_python_gives_it(scripts):
    name, file, arguments, _, value = shown(run(scripts / "scripts", "-m", "zeromuon", "-m", "shows", "--lr", "0.1"))
    assert (name, file, value) == ("__main__", str(scripts / "scripts" / "shows.py"), 5)
    assert arguments == [file, "--lr", "0.1"]


def test_the_local_rank_of_deepspeeds_launcher_is_passed_on(scripts):
    arguments = shown(run(scripts, "-m", "zeromuon", "--local_rank=1", "scripts/shows.py", "--lr", "0.1"))[2]
    assert arguments == ["scripts/shows.py", "--local_rank=1", "--lr", "0.1"]


def test_the_exit_status_of_a_script_is_the_one_of_the_process(tmp_path):
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(7)\n")
    assert run(tmp_path, "-m", "zeromuon", "ends.py").returncode == 7


def test_an_error_in_a_script_shows_its_traceback(tmp_path):
    (tmp_path / "fails.py").write_text("def inner():\n    raise ValueError('of mine')\n\n\ninner()\n")
    process = run(tmp_path, "-m", "zeromuon", "fails.py")
    assert process.returncode == 1
    assert "ValueError: of mine" in process.stderr and "line 2, in inner" in process.stderr


@pytest.mark.parametrize(
    "arguments, error",
    [
        (("absent.py",), "error: python -m zeromuon absent.py: expected a script, there is no such file"),
        (("-m",), "error: python -m zeromuon -m: expected the name of a module to run, found nothing"),
        (("-m", "absent_module"), "error: python -m zeromuon -m absent_module: no module named absent_module"),
    ],
)
def test_what_names_nothing_to_run_ends_with_2_and_one_line(tmp_path, arguments, error):
    process = run(tmp_path, "-m", "zeromuon", *arguments)
    assert (process.returncode, process.stderr.strip()) == (2, error)


def test_importing_zeromuon_changes_nothing_in_deepspeed_or_torch(tmp_path):
    process = run(tmp_path, "-c", PLAIN_IMPORT)
    assert "UNCHANGED True" in process.stdout, process.stdout + process.stderr


def test_one_call_puts_back_all_that_registering_changed(tmp_path):
    process = run(tmp_path, "-W", "error::UserWarning:zeromuon", "-c", PUT_BACK)
    assert "CHANGED 8 True" in process.stdout, process.stdout + process.stderr
    assert "PUT BACK True" in process.stdout, process.stdout + process.stderr


@pytest.mark.parametrize(
    "before, whose", [((), "deepspeed."), (("-m", "zeromuon"), "zeromuon.optimizer.optimizer.ZeroMuon")]
)
def test_type_muon_is_ours_under_the_runner_and_deepspeeds_without_it(tmp_path, before, whose):
    (tmp_path / "train.py").write_text(TRAINS_MUON)
    process = run(tmp_path, *before, "train.py", **ALONE, ZEROMUON_PROBE=str(tmp_path))
    assert process.returncode == 0, process.stderr[-4000:]
    report = json.loads((tmp_path / "rank0.json").read_text())
    assert report["optimizer"].startswith(whose)
    assert report.get("steps") == (1 if before else None)
