"""Applies every mutation to a copy of the sources and shows that the suite catches it.

    python -m tests.mutations [--only TEXT]

Exits with 1 when a mutation survives, or when the unchanged copy fails (then nothing is shown).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .catalogue import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
COPIED = ("CMakeLists.txt", "pyproject.toml", "cmake", "csrc", "offload", "zero3", "python", "tests", "configs")
# A configuration each with accumulation and active clipping; see tests/multirank.
MULTIRANK_TESTS = ["tests/multirank", "-m", "mutation_check", "-x", "-q", "-p", "no:cacheprovider"]


def copy_sources(to: Path) -> None:
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, to / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, to / name)


def run_plan_tests(tree: Path) -> subprocess.CompletedProcess:
    build = tree / "build"
    if not build.is_dir():
        configure = [
            "cmake",
            "-S",
            str(tree),
            "-B",
            str(build),
            "-G",
            "Ninja",
            "-DZEROMUON_CUDA=OFF",
            "-DCMAKE_BUILD_TYPE=Debug",
            f"-DPython3_EXECUTABLE={sys.executable}",
        ]
        subprocess.run(configure, check=True, capture_output=True)
    built = subprocess.run(["cmake", "--build", str(build), "--target", "plan_tests"], capture_output=True, text=True)
    if built.returncode != 0:
        sys.exit(f"a mutation does not compile:\n{built.stdout[-3000:]}")
    return subprocess.run([str(build / "tests" / "plan_tests")], capture_output=True, text=True)


def run_multirank_tests(tree: Path) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(tree / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import zeromuon; print(zeromuon.__file__)"],
        env=environment,
        capture_output=True,
        text=True,
    ).stdout
    if not where.startswith(str(tree)):
        sys.exit(
            f"zeromuon would be imported from {where.strip()}, not from the mutated copy in {tree}: "
            f"uninstall it from this environment and run ./run setup"
        )
    return subprocess.run(
        [sys.executable, "-m", "pytest", *MULTIRANK_TESTS], cwd=tree, env=environment, capture_output=True, text=True
    )


RUNNERS = {"plan": run_plan_tests, "multirank": run_multirank_tests}


def apply(tree: Path, mutation: Mutation) -> str:
    """Edits the copy; returns the text that stood there before."""
    path = tree / mutation.path
    original = path.read_text()
    found = original.count(mutation.before)
    if found != 1:
        sys.exit(
            f'mutation "{mutation.name}": expected its text once in {mutation.path}, found it '
            f"{found} times; the source changed: update tests/mutations/catalogue.py"
        )
    path.write_text(original.replace(mutation.before, mutation.after))
    return original


def caught(tree: Path, mutation: Mutation) -> bool:
    original = apply(tree, mutation)
    try:
        started = time.monotonic()
        result = RUNNERS[mutation.tier](tree)
        verdict = "caught" if result.returncode != 0 else "SURVIVED"
        print(f"  {verdict:<9} {mutation.name} ({mutation.tier} tests, {time.monotonic() - started:.0f} s)", flush=True)
        print("            " + first_failure(result), flush=True)
        return result.returncode != 0
    finally:
        (tree / mutation.path).write_text(original)


def first_failure(result: subprocess.CompletedProcess) -> str:
    lines = result.stdout.splitlines()
    for mark in ("[  FAILED  ]", "E  ", "FAILED "):
        hit = next((line.strip() for line in lines if line.lstrip().startswith(mark)), None)
        if hit:
            return hit[:160]
    return lines[-1][:160] if lines else "no output"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="mutations whose name contains this text")
    chosen = [m for m in MUTATIONS if parser.parse_args().only in m.name]
    if not chosen:
        parser.error("no mutation has such a name: " + ", ".join(m.name for m in MUTATIONS))
    with tempfile.TemporaryDirectory(prefix="zeromuon-mutations-") as folder:
        tree = Path(folder)
        copy_sources(tree)
        for tier in sorted({m.tier for m in chosen}):
            result = RUNNERS[tier](tree)
            if result.returncode != 0:
                print(f"the unchanged sources fail the {tier} tests:\n{result.stdout[-4000:]}")
                return 1
            print(f"  passed    the unchanged sources ({tier} tests)", flush=True)
        survived = [m.name for m in chosen if not caught(tree, m)]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} mutations caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
