"""Memory, time and what is printed are in proportion to the files, whatever the files say."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

MIB = 1 << 20
# A verb's peak grows by at most this much and so many times the bytes of pickles, headers and indices.
ALWAYS_BYTES, PER_BYTE = 64 * MIB, 32
# Prints what the largest child took, in bytes, and its exit status.
MEASURED = """
import resource, subprocess, sys
status = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=sys.stderr).returncode
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(status, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime)
"""


def measured(*arguments) -> tuple[int, int, float, str]:
    """(exit status, peak bytes, CPU seconds, standard error) of `zeromuon ckpt`."""
    command = [sys.executable, "-m", "zeromuon", "ckpt", *map(str, arguments)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *command], capture_output=True, text=True, check=True)
    status, peak, seconds = done.stdout.split()
    return int(status), int(peak), float(seconds), done.stderr


@pytest.fixture(scope="module")
def idle_bytes(tmp_path_factory) -> int:
    """What the verb takes for next to nothing."""
    file = tmp_path_factory.mktemp("small") / "small.pt"
    torch.save({"w": torch.zeros(2)}, file)
    return measured("inspect", file)[1]


def torch_file(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


def safetensors_file(path: Path, header: dict, data_bytes: int) -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(data_bytes))
    return path


def header_of(names) -> dict:
    return {n: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]} for i, n in enumerate(names)}


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [b"]", b"}", b")", b"\x8f", b"K\x07", b"N", b"]]a", b"}K\x01Ns", b"K\x01\x85", b"]\x94", b"(", b"cm\nn\n", b"N)R"],
)
def test_a_pickle_takes_memory_in_proportion_to_its_bytes_or_is_refused(tmp_path, idle_bytes, value):
    count = 8_000_000 // len(value)
    body = b"(" * count + b"t" * count if value == b"(" else b"(" + value * count + b"l"
    file = torch_file(tmp_path / "w.pt", b"\x80\x04" + body + b".")
    status, peak, _, error = measured("inspect", file)
    assert peak - idle_bytes <= ALWAYS_BYTES + PER_BYTE * file.stat().st_size, (peak - idle_bytes) / file.stat().st_size
    expected = ("bytes of memory, got more", "nested values", "expected a dict of tensors")
    assert status == 2 and any(text in error for text in expected), error


def test_good_files_of_many_small_things_are_read_within_the_bound(tmp_path, idle_bytes):
    torch.save({f"layers.{i}.weight": torch.zeros(1) for i in range(20_000)}, tmp_path / "tensors.pt")
    torch.save({"w": torch.zeros(1), "samples": list(range(500_000))}, tmp_path / "numbers.pt")
    torch.save({"w": torch.zeros(1), "lists": [[i] for i in range(100_000)]}, tmp_path / "lists.pt")
    torch.save(
        {"w": torch.zeros(1), "texts": {f"key {i}": f"value {i}" for i in range(100_000)}}, tmp_path / "texts.pt"
    )
    safetensors_file(tmp_path / "header.safetensors", header_of(f"layers.{i}.weight" for i in range(100_000)), 400_000)
    for file in tmp_path.iterdir():
        status, peak, _, error = measured("inspect", file)
        assert status == 0, f"{file}: {error}"
        bound = ALWAYS_BYTES + PER_BYTE * file.stat().st_size
        assert peak - idle_bytes <= bound, f"{file.name}: {(peak - idle_bytes) / file.stat().st_size}"


def test_pythons_own_pickles_of_nested_values_are_read(tmp_path):
    value = {"a": [[], {}, (), [1, [2, [3]]], {"b": {"c": []}}], "e": set(), "n": None}
    for protocol in (2, 3, 4, 5):
        file = torch_file(tmp_path / f"{protocol}.pt", pickle.dumps([value], protocol))
        error = measured("inspect", file)[3]
        assert "got [{'a': [[], {}, (), [1, [2, [3]]], {'b': {'c': []}}], 'e':" in error, error


# ---- what is printed -----------------------------------------------------------------------------


def printed(*arguments) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "zeromuon", "ckpt", *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_one_long_name_among_many_makes_no_row_longer_than_the_terminal(tmp_path):
    names = [f"w{chr(97 + i % 26)}{i}x" for i in range(3000)]
    file = safetensors_file(tmp_path / "m.safetensors", header_of([*names, "n" * 60_000]), 4 * 3001)
    lines = printed("inspect", file).splitlines()
    assert max(map(len, lines)) <= 200 and any("nnn...nnn" in line for line in lines)
    whole = printed("inspect", file, "--all")
    assert "n" * 60_000 in whole and len(whole) < 60_000 + 3100 * 220, "no other row is padded to it"


def test_long_metadata_is_cut_and_whole_on_request(tmp_path):
    tensors = header_of(f"layers.{i}.w" for i in range(3000))
    long = {"__metadata__": {"k" * 20_000: "v", "text": "t" * 5_000_000, "steers": "\x1b[2J" * 100_000}}
    file = safetensors_file(tmp_path / "m.safetensors", {**long, **tensors}, 4 * 3000)
    out = printed("inspect", file)
    assert len(out) < 10_000 and max(map(len, out.splitlines())) <= 200 and "\x1b" not in out
    whole = printed("inspect", file, "--all")
    assert "t" * 5_000_000 in whole and "k" * 20_000 in whole and len(whole) < 7_000_000


def test_a_name_of_more_than_64_kib_is_refused_and_not_printed(tmp_path):
    for name in ("\x01" * 16_000_000, "n" * 65_537):
        file = safetensors_file(tmp_path / "m.safetensors", header_of([name]), 4)
        status, _, _, error = measured("inspect", file)
        assert status == 2 and "tensor names of at most 64 KiB" in error and len(error) < 1000
    torch.save({"n" * 65_537: torch.zeros(1)}, tmp_path / "w.pt")
    status, _, _, error = measured("inspect", tmp_path / "w.pt")
    assert status == 2 and "names of tensors of at most 64 KiB" in error and len(error) < 1000


def test_a_file_name_with_a_nul_in_an_index_is_refused(tmp_path):
    safetensors_file(tmp_path / "part", header_of(["w"]), 4).rename(tmp_path / "part.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "part.safetensors\0of another kind"}}))
    status, _, _, error = measured("inspect", index)
    assert status == 2 and "the name of a file in the same folder" in error


# ---- time and limits -----------------------------------------------------------------------------


@pytest.mark.full
def test_the_time_to_inspect_is_linear_in_the_tensors(tmp_path):
    def file_of(count: int) -> Path:
        header = header_of(f"layers.{i // 9}.p{i % 9}.weight" for i in range(count))
        return safetensors_file(tmp_path / f"{count}.safetensors", header, 4 * count)

    files = [file_of(count) for count in (10, 200_000, 400_000)]  # beyond what caches hold
    rounds = [[measured("inspect", file)[2] for file in files] for _ in range(4)]
    idle, once, twice = (min(seconds) for seconds in zip(*rounds))
    assert (twice - idle) / (once - idle) <= 2.6


def test_too_little_memory_is_an_error_that_leaves_nothing(tmp_path):
    torch.save({f"w{i}": torch.zeros(250_000) for i in range(40)}, tmp_path / "w.pt")
    ended = set()
    for limit_mib in range(16, 400, 3):
        out = tmp_path / "out"
        done = subprocess.run(
            [sys.executable, "-m", "zeromuon", "ckpt", "export", str(tmp_path / "w.pt"), "-o", str(out)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit_mib * MIB, limit_mib * MIB)),
        )
        ended.add(done.returncode)
        assert done.returncode in (0, 1, 2), f"{limit_mib} MiB: {done.returncode} {done.stderr[-500:]}"
        assert "terminate called" not in done.stderr, f"{limit_mib} MiB: {done.stderr[-500:]}"
        assert not list(tmp_path.rglob("*.partial")), f"{limit_mib} MiB: {done.stderr[-500:]}"
        if out.exists() and done.returncode == 0:
            break
    assert 0 in ended and len(ended) > 1
