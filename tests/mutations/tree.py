"""A copy of the sources, which mutations edit and build. It is kept, so that only what changed is built again."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Iterator

from .catalogue import PYTEST, Mutation

ROOT = Path(__file__).resolve().parents[2]
TREE = ROOT / "build" / "mutations"
COPIED = ("CMakeLists.txt", "pyproject.toml", "cmake", "csrc", "offload", "zero3", "python", "tests", "configs")


def copy_sources() -> None:
    """Brings the copy up to date: files that are the same keep their times, and others go."""
    for name in COPIED:
        source, copy = ROOT / name, TREE / name
        files = [path for path in source.rglob("*") if path.is_file()] if source.is_dir() else [source]
        wanted = {TREE / path.relative_to(ROOT): path for path in files if "__pycache__" not in path.parts}
        for old in set(copy.rglob("*") if copy.is_dir() else []) - set(wanted):
            if old.is_file():
                old.unlink()
        for to, path in wanted.items():
            if not (to.exists() and filecmp.cmp(path, to, shallow=path.suffix == ".so")):
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, to) if path.suffix == ".so" else to.write_bytes(path.read_bytes())


@contextlib.contextmanager
def edited(mutation: Mutation) -> Iterator[None]:
    path = TREE / mutation.path
    original = path.read_text()
    found = original.count(mutation.before)
    if found != 1:
        sys.exit(
            f'mutation "{mutation.name}": expected its text once in {mutation.path}, found it '
            f"{found} times; the source changed: update tests/mutations/catalogue.py"
        )
    path.write_text(original.replace(mutation.before, mutation.after))
    try:
        yield
    finally:
        path.write_text(original)


def build(program: str) -> Path:
    """A program of GoogleTest. That of the plan, which takes no libtorch, is not optimised: it is soon built."""
    kind = "Debug" if program == "plan_tests" else "Release"
    folder = (
        TREE / "build" / kind.lower()
    )  # as deep as a build of the sources, so that ccache knows what it compiled there
    if not (folder / "build.ninja").exists():
        options = ["-DZEROMUON_CUDA=OFF", f"-DCMAKE_BUILD_TYPE={kind}", f"-DPython3_EXECUTABLE={sys.executable}"]
        _cmake("-S", str(TREE), "-B", str(folder), "-G", "Ninja", *options)
    _cmake("--build", str(folder), "--target", program)
    return folder / "tests" / program


def _cmake(*arguments: str) -> None:
    variables = {"CCACHE_BASEDIR": str(TREE), "CCACHE_NOHASHDIR": "1", **os.environ}
    if shutil.which("ccache"):
        variables["CMAKE_CXX_COMPILER_LAUNCHER"] = "ccache"
    done = subprocess.run(["cmake", *arguments], env=variables, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"mutations: cmake {' '.join(arguments)} failed:\n{(done.stdout + done.stderr)[-3000:]}")


def environment() -> dict[str, str]:
    """For processes that import the package and the tests of the copy, and only these."""
    paths = os.pathsep.join([str(TREE), str(TREE / "python")])
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import zeromuon; print(zeromuon.__file__)"
    where = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True).stdout
    if not where.startswith(str(TREE)):
        sys.exit(
            f"zeromuon would be imported from {where.strip()}, not from the mutated copy in {TREE}: "
            f"uninstall it from this environment and run ./run setup"
        )
    return variables


def run(runner: str, tests: list[str], variables: dict[str, str]) -> dict[str, str]:
    """test -> "passed", "failed", or what else became of it (skipped, missing, an error outside of the test)."""
    if runner == PYTEST:
        command = [sys.executable, "-m", "pytest", "-q", "-rA", "--tb=line", "-p", "no:cacheprovider", *tests]
        marks = {"passed": "PASSED ", "failed": "FAILED "}
    else:
        command = [str(build(runner)), f"--gtest_filter={':'.join(tests)}"]
        marks = {"passed": "[       OK ] ", "failed": "[  FAILED  ] "}
    done = subprocess.run(command, cwd=TREE, env=variables, capture_output=True, text=True, errors="replace")
    lines = done.stdout.splitlines()

    def fate(test: str) -> str:
        for word, mark in marks.items():
            if any(
                line == mark + test or line.startswith((f"{mark}{test} (", f"{mark}{test},", f"{mark}{test} -"))
                for line in lines
            ):
                return word
        return "neither passed nor failed; the end of the output:\n" + (done.stdout + done.stderr)[-2000:]

    return {test: fate(test) for test in tests}
