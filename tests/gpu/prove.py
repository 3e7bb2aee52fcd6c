"""`./run gpu prove N`, or `./prove N` in a folder of `./run gpu pack`: shows on one GPU that zeromuon works there.

    1  builds, and compares each operation of the GPU with the CPU; pinned memory and its rates
    2  Newton-Schulz in every form and data type against its definition in double; its times
    3  whole steps on 1 to 3 ranks that share the GPU: every home of the momentum, faults
    4  training with DeepSpeed over NCCL, on as many ranks as there are GPUs

Each ends within 8 minutes, prints as it goes, can be repeated alone, and writes a table and a JSON file; its exit status is
0 when all held. What 1 built (build/gpu) serves the others, also on another machine of the same kind. No network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "gpu"
TESTS = BUILD / "tests" / "gpu_tests"
SECONDS = 480
PARTS = {
    "1": "DeviceOperations.*:PinnedMemory.*:Order.*",
    "2": "BatchedNewtonSchulz.*:NewtonSchulzTimes.*",
    "3": "PipelineOnGpu.*",
}


def main(words: list[str]) -> int:
    if len(words) != 1 or words[0] not in (*PARTS, "4"):
        sys.exit(__doc__)
    part, began = words[0], time.monotonic()
    pack = _pack()
    _check_machine(pack)
    if part == "1":
        _build(pack)
    if not TESTS.exists():
        sys.exit(f"error: {TESTS} is not there: run part 1 first, or bring build/gpu from where it ran")
    rows = _training(pack) if part == "4" else _gpu_tests(part)
    _report(part, rows, time.monotonic() - began)
    return 0 if rows and all(row["held"] for row in rows) else 1


# ---- what is here --------------------------------------------------------------------------------


def _pack() -> Path | None:
    """The folder of `./run gpu pack`: that around these sources, or one that was made here; None: the system's headers."""
    found = [folder for folder in (ROOT.parent, ROOT / "build" / "gpu-pack") if (folder / "pack.json").is_file()]
    return found[0] if found else None


def _check_machine(pack: Path | None) -> None:
    """Ends with one line for what this pack was not made for, and for what is missing."""
    made_for = json.loads((pack / "pack.json").read_text()) if pack else {}
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if made_for.get("python", here) != here:
        sys.exit(
            f"error: this pack is for Python {made_for['python']}, and python3 is {here}: make one with --python {here}"
        )
    try:
        import torch
    except ImportError as error:
        sys.exit(f"error: python3 ({sys.executable}) cannot import torch: {error}")
    minor = ".".join(torch.__version__.split(".")[:2])
    if made_for.get("torch", minor) != minor:
        sys.exit(
            f"error: this pack is for torch {made_for['torch']}, here is {torch.__version__}: make one with --torch {minor}"
        )
    if torch.version.cuda is None:
        sys.exit(f"error: torch {torch.__version__} is a build for CPUs: install one for CUDA")


def _require_tools() -> None:
    nvcc = shutil.which("nvcc", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"]))
    missing = [name for name in ("cmake", "c++") if shutil.which(name) is None] + ([] if nvcc else ["nvcc"])
    import sysconfig

    header = Path(sysconfig.get_path("include")) / "Python.h"
    missing += [] if header.exists() else [f"{header} (python3-dev)"]
    if missing:
        sys.exit(f"error: not on this machine: {', '.join(missing)}")


# ---- part 1: the build ---------------------------------------------------------------------------


def _build(pack: Path | None) -> None:
    import torch

    _require_tools()
    here = torch.cuda.is_available()
    architecture = "".join(map(str, torch.cuda.get_device_capability())) if here else "90"
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DZEROMUON_CUDA=ON", "-DZEROMUON_ONEDNN=OFF", "-DZEROMUON_IN_PLACE=ON"]
    options += [f"-DZEROMUON_CUDA_ARCHITECTURES={architecture}", f"-DPython3_EXECUTABLE={sys.executable}"]
    options += ["-DCMAKE_UNITY_BUILD=ON", "-DCMAKE_UNITY_BUILD_BATCH_SIZE=10"]
    if pack:
        headers = pack / "usr"
        options += [f"-DCMAKE_PREFIX_PATH={headers}", "-DBoost_NO_BOOST_CMAKE=ON", f"-DBOOST_ROOT={headers}"]
    if shutil.which("ninja"):
        options += ["-G", "Ninja"]
    _run(["cmake", "-S", str(ROOT), "-B", str(BUILD), *options])
    targets = ["_core", "_lab", "_ckpt", "gpu_tests"]
    _run(["cmake", "--build", str(BUILD), "--parallel", str(os.cpu_count() or 1), "--target", *targets])


def _run(command: list[str]) -> None:
    print("$", " ".join(command), flush=True)
    if subprocess.run(command).returncode != 0:
        sys.exit(f"error: {command[0]} failed: what it said is above")


# ---- parts 1 to 3: programs in C++ ---------------------------------------------------------------


def _gpu_tests(part: str) -> list[dict]:
    import torch

    told = BUILD / f"prove-{part}-tests.json"
    told.unlink(missing_ok=True)
    command = [str(TESTS), f"--gtest_filter={PARTS[part]}", f"--gtest_output=json:{told}"]
    try:
        status = subprocess.run(command, timeout=SECONDS).returncode
    except subprocess.TimeoutExpired:
        status = f"none after {SECONDS} s"
    if not told.exists():
        return [{"name": PARTS[part], "held": False, "seconds": 0.0, "why": f"exit status {status}"}]
    rows = []
    for suite in json.loads(told.read_text())["testsuites"]:
        for test in suite["testsuite"]:
            why = "; ".join(failure["failure"].splitlines()[0] for failure in test.get("failures", []))
            skipped = test.get("result") == "SKIPPED"
            rows.append(
                {
                    "name": f"{suite['name']}.{test['name']}",
                    "held": not why and not skipped,
                    "seconds": float(test["time"].rstrip("s")),
                    "why": why or ("skipped: there is no GPU" if skipped else ""),
                }
            )
    if not torch.cuda.is_available():
        rows.append(
            {
                "name": "a GPU",
                "held": False,
                "seconds": 0.0,
                "why": "torch sees none: what ran did so on the fake device",
            }
        )
    return rows


# ---- part 4: DeepSpeed ---------------------------------------------------------------------------


def _training(pack: Path | None) -> list[dict]:
    site, told = BUILD / "site", BUILD / "prove-4-tests.xml"
    if pack:
        for wheel in sorted((pack / "wheels").iterdir()):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(site)
    paths = [str(ROOT), str(ROOT / "python"), *([str(site)] if pack else [])]
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", f"--junitxml={told}"]
    command += ["tests/multirank/test_parity_nccl.py"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")])}
    told.unlink(missing_ok=True)
    try:
        status = subprocess.run(command, cwd=ROOT, env=environment, timeout=SECONDS).returncode
    except subprocess.TimeoutExpired:
        status = f"none after {SECONDS} s"
    if not told.exists():
        return [
            {
                "name": "tests/multirank/test_parity_nccl.py",
                "held": False,
                "seconds": 0.0,
                "why": f"exit status {status}",
            }
        ]
    import xml.etree.ElementTree as xml

    rows = []
    for case in xml.parse(told).iter("testcase"):
        trouble = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
        why = "" if trouble is None else (trouble.get("message") or trouble.tag).splitlines()[0]
        rows.append(
            {"name": case.get("name"), "held": trouble is None, "seconds": float(case.get("time", 0)), "why": why}
        )
    return rows


# ---- what came of it -----------------------------------------------------------------------------


def _report(part: str, rows: list[dict], seconds: float) -> None:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    about = {"part": int(part), "gpu": gpu, "torch": torch.__version__, "cuda": torch.version.cuda, "seconds": seconds}
    print(f"\npart {part} on {gpu}, torch {torch.__version__}, {seconds:.0f} s")
    for row in rows:
        print(f"{'held' if row['held'] else 'NOT':5} {row['seconds']:7.1f} s  {row['name']}  {row['why'][:200]}")
    written = BUILD / f"prove-{part}.json"
    written.write_text(json.dumps({**about, "rows": rows}, indent=2) + "\n")
    print(f"written: {written}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
