"""A run on two hosts: network namespaces of this machine with a link between them, a name each, and the commands of the documents."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.integration import doc_blocks
from tests.python.commands.finetune.conftest import KEPT_MEMORY
from tests.python.commands.finetune.test_runs import losses, weights

pytestmark = pytest.mark.full
HOSTS = {"zeromuon-a": "10.77.0.1", "zeromuon-b": "10.77.0.2"}
STEPS, STAGE_TIMEOUT_S = 8, 4
PLAIN_RANK = Path(__file__).parents[2] / "ranks" / "plain_rank.py"
ERROR = re.compile(r"^error: (rank .*)$", re.MULTILINE)
OURS, DEEPSPEEDS = "zeromuon.optimizer.optimizer ZeroMuon step_requests", "zeromuon.deepspeed.watch _Watch pre_step"
# In rank 0: takes the link down when the method that TEST_CUT names is called for the third time.
CUT = """
import os, subprocess, sys, threading, time

def _patch():
    module, kind, name = os.environ["TEST_CUT"].split()
    while not hasattr(sys.modules.get(module), kind):
        time.sleep(0.01)
    kind = getattr(sys.modules[module], kind)
    method, calls = getattr(kind, name), []
    def cut(*given):
        calls.append(1)
        if len(calls) == 3:
            subprocess.run(["ip", "link", "set", "wire", "down"], check=True)
        return method(*given)
    setattr(kind, name, cut)

if os.environ.get("RANK") == "0" and os.environ.get("TEST_CUT"):
    threading.Thread(target=_patch, daemon=True).start()
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def remove_hosts() -> None:
    for host in HOSTS:
        with contextlib.suppress(subprocess.CalledProcessError, FileNotFoundError):
            ip("netns", "del", host)


@pytest.fixture
def hosts():
    """Namespaces with a link of their own; skipped where this process may not make them."""
    remove_hosts()
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        a, b = HOSTS
        ip("link", "add", "name", "wire", "netns", a, "type", "veth", "peer", "name", "wire", "netns", b)
        for host, address in HOSTS.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "wire")
            for device in ("wire", "lo"):
                ip("-n", host, "link", "set", device, "up")
    except FileNotFoundError:
        pytest.skip("iproute2 is missing: no network namespaces")
    except subprocess.CalledProcessError as error:
        remove_hosts()
        pytest.skip(f"this process may not make network namespaces: {error.stderr.decode().strip()}")
    yield HOSTS
    remove_hosts()


def on_host(host: str, script: str, names: Path) -> list[str]:
    """The command that runs the script there. names: a file, which is written, that the host knows all of them by."""
    names.write_text("".join(f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **HOSTS}.items()))
    script = f"hostname {host}\nmount --bind {names} /etc/hosts\n{script}"
    return ["ip", "netns", "exec", host, "unshare", "--uts", "--mount", "bash", "-e", "-c", script]


def cutting(hook: Path, cut: str) -> dict[str, str]:
    """The variables of ranks of which the first takes the link down in its third call of a method. hook: a new folder."""
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(CUT)
    paths = filter(None, [str(hook), os.environ.get("PYTHONPATH")])
    return {"TEST_CUT": cut, "PYTHONPATH": os.pathsep.join(paths)}


def start(
    host: str, rendezvous: str, options: list, out: Path, log: Path, restarts: int = 0, **variables
) -> subprocess.Popen:
    """The command of docs/integration.md on one host, with more options at its end."""
    first = next(iter(HOSTS.values()))
    script = doc_blocks.command("several_machines").rstrip()
    for written, meant in {
        "=eth0": "=wire",
        "my-run": rendezvous,
        "10.0.0.1:": f"{first}:",
        "10.0.0.2": HOSTS[host],
        "MODEL": options[1],
        "TEXT": options[3],
        "/shared/run": out,
        " -m zeromuon": f" --max-restarts {restarts} -m zeromuon",
    }.items():
        assert script.count(written) == 1, written
        script = script.replace(written, str(meant))
    inside = on_host(host, f"{script} {shlex.join(map(str, options[4:]))}", log.with_name("hosts"))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    own = {"OMP_NUM_THREADS": "1", "PATH": path, **KEPT_MEMORY, **variables}
    with open(log, "w") as file:
        return subprocess.Popen(inside, env={**os.environ, **own}, stdout=file, stderr=subprocess.STDOUT)


def ranks_of(started: list[subprocess.Popen]) -> list[psutil.Process]:
    """Processes that run a rank."""
    found = []
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(process.pid).children(recursive=True)
            found += [
                child
                for child in family
                if "-m zeromuon" in (line := " ".join(child.cmdline())) and "torchrun" not in line
            ]
    return [process for process in found if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def options(model: Path, text_file: Path) -> list:
    sizes = ["--batch", 4, "--seq-len", 16, "--steps", STEPS, "--save-every", 2]
    timeout = f"optimizer.params.stage_timeout_s={STAGE_TIMEOUT_S}"
    return ["--model", model, "--data", text_file, *sizes, "--set", "bf16.enabled=false", "--set", timeout]


@pytest.fixture(scope="module")
def on_one_host(command, masked_model, text_file, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    status, output = command(*options(masked_model, text_file), "--ranks", 4, "--out", out).finish()
    assert status == 0, output
    return out


def run_on_both(
    hosts, rendezvous: str, options: list, out: Path, restarts: int = 0, **variables
) -> tuple[list, list[Path]]:
    logs = [out.with_name(f"{rendezvous}-{host}.log") for host in hosts]
    return [start(host, rendezvous, options, out, log, restarts, **variables) for host, log in zip(hosts, logs)], logs


def bytes_sent(host: str) -> int:
    """Over the link, since it was made."""
    said = subprocess.run(
        ["ip", "-n", host, "-s", "-j", "link", "show", "wire"], check=True, capture_output=True
    ).stdout
    return json.loads(said)[0]["stats64"]["tx"]["bytes"]


@contextlib.contextmanager
def cut_run(hosts, cut: str, options: list, out: Path):
    """A run whose link goes down in the third step. Gives its processes and logs once two steps are done; ends them after."""
    started, logs = run_on_both(hosts, "cut", options, out, **cutting(out.with_name("hook"), cut))
    try:
        with ended_with_their_ranks(started):
            wait_for_two_steps(out, started, logs)
            yield started, logs
    finally:
        for host in hosts:
            ip("-n", host, "link", "set", "wire", "up")


def wait_for_two_steps(out: Path, started: list[subprocess.Popen], logs: list[Path]) -> None:
    wait_for(lambda: (out / "metrics.jsonl").exists() and len(losses(out)) >= 2, started, logs)


def wait_for(condition, started: list[subprocess.Popen], logs: list[Path]) -> None:
    deadline = time.monotonic() + 240
    while not condition():
        assert time.monotonic() < deadline and all(p.poll() is None for p in started), logs[0].read_text()[-4000:]
        time.sleep(0.05)


@contextlib.contextmanager
def ended_with_their_ranks(started: list[subprocess.Popen]):
    try:
        yield
    finally:
        for process in started:
            for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            process.kill()
            process.wait()


def finish(started: list[subprocess.Popen], logs: list[Path]) -> None:
    for process, log in zip(started, logs):
        assert process.wait(300) == 0, log.read_text()[-4000:]


def test_two_hosts_end_with_the_bits_of_one(hosts, masked_model, text_file, on_one_host, tmp_path):
    out = tmp_path / "run"
    finish(*run_on_both(hosts, "whole", options(masked_model, text_file), out))
    assert weights(out) == weights(on_one_host) and losses(out) == losses(on_one_host)
    # Each host keeps half of the weights, and the other gathers them in each step at least once.
    assert all(bytes_sent(host) > STEPS * len(weights(out)) / 2 for host in hosts), "the link was used"


def test_a_link_that_goes_down_in_a_step_ends_all_ranks_with_a_cause_and_a_resume_goes_on(
    hosts, masked_model, text_file, on_one_host, tmp_path
):
    out, limit_s = tmp_path / "run", 2.5 * STAGE_TIMEOUT_S + 10
    with cut_run(hosts, OURS, options(masked_model, text_file), out) as (started, logs):
        cut_at = time.monotonic()
        while ranks_of(started) and time.monotonic() < cut_at + 120:
            time.sleep(0.1)
        seconds = time.monotonic() - cut_at
        said = [log.read_text() for log in logs]
        assert seconds <= limit_s, f"{seconds:.0f} s: {said[0][-3000:]} {said[1][-3000:]}"
    for host, text in enumerate(said):
        assert errors_of(text) == {f"rank {2 * host}", f"rank {2 * host + 1}"}, text[-4000:]
        assert "no progress for" in text and "(stage_timeout_s)" in text, text[-4000:]
    for error in ERROR.findall(said[0]):
        assert "rank 2 does not answer" in error and "rank 3 does not answer" in error, error
    for error in ERROR.findall(said[1]):
        assert f"the store of the process group, at {HOSTS['zeromuon-a']}, does not answer" in error, error
    finish(*run_on_both(hosts, "again", [*options(masked_model, text_file), "--resume"], out))
    assert weights(out) == weights(on_one_host) and losses(out) == losses(on_one_host)


def start_plain_ranks(hosts, folder: Path) -> tuple[list[subprocess.Popen], list[Path]]:
    """Two on each host, of a script without a launcher; rank 0 takes the link down in its third step."""
    first, script = next(iter(hosts.values())), PLAIN_RANK
    started, logs, cut = [], [], cutting(folder / "hook", OURS)
    for rank, host in enumerate(host for host in hosts for _ in range(2)):
        own = {"RANK": rank, "LOCAL_RANK": rank % 2, "WORLD_SIZE": 4, "MASTER_ADDR": first, "MASTER_PORT": 29500}
        own |= {"GLOO_SOCKET_IFNAME": "wire", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": 1, **cut}
        inside = on_host(host, f"exec {sys.executable} {script} {STAGE_TIMEOUT_S}", folder / "hosts")
        logs.append(folder / f"rank{rank}.log")
        with open(logs[-1], "w") as file:
            given = {"env": {**os.environ, **{k: str(v) for k, v in own.items()}}, "stdout": file, "stderr": file}
            started.append(subprocess.Popen(inside, **given))
    return started, logs


def test_a_script_whose_link_goes_down_in_a_step_ends_on_all_ranks(hosts, tmp_path):
    started, logs = start_plain_ranks(hosts, tmp_path)
    with ended_with_their_ranks(started):
        wait_for(lambda: "step 1\n" in logs[0].read_text(), started, logs)
        cut_at, limit_s = time.monotonic(), 2.5 * STAGE_TIMEOUT_S + 10
        while any(rank.poll() is None for rank in started) and time.monotonic() < cut_at + limit_s:
            time.sleep(0.1)
        statuses = [rank.poll() for rank in started]
        said = [log.read_text() for log in logs]
        assert None not in statuses, f"not ended after {limit_s:g} s: {statuses}, {said[2][-3000:]}"
    assert all(status != 0 and "no progress for" in text for status, text in zip(statuses, said)), said


def errors_of(text: str) -> set[str]:
    return {error.partition(":")[0] for error in ERROR.findall(text)}


def test_ranks_that_a_collective_of_deepspeed_waits_for_are_named(hosts, masked_model, text_file, tmp_path):
    out = tmp_path / "run"
    with cut_run(hosts, DEEPSPEEDS, options(masked_model, text_file), out) as (_, logs):
        deadline, text = time.monotonic() + 2.5 * STAGE_TIMEOUT_S + 10, ""
        while "rank 3 does not answer" not in text:
            assert time.monotonic() < deadline, text[-4000:]
            time.sleep(0.1)
            text = logs[0].read_text()
    assert re.search(
        r"has waited for more than 4 s in DeepSpeed's part of engine.step\(\): rank 2 does not answer", text
    )


def test_a_rank_that_is_killed_on_one_host_restarts_all_and_the_bits_are_the_same(
    hosts, masked_model, text_file, on_one_host, tmp_path
):
    out = tmp_path / "run"
    started, logs = run_on_both(
        hosts, "killed", options(masked_model, text_file), out, restarts=1, TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1"
    )
    with ended_with_their_ranks(started):
        wait_for((out / "checkpoints" / "latest").exists, started, logs)
        next(rank for rank in ranks_of(started) if rank.environ().get("RANK") == "3").kill()
        finish(started, logs)
    assert "going on from the checkpoint of step" in logs[0].read_text()
    assert weights(out) == weights(on_one_host) and losses(out) == losses(on_one_host)
