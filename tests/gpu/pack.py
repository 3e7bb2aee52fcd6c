"""`./run gpu pack --python 3.12 --torch 2.11`: one folder for a GPU machine without network.

It carries the sources, the headers and libraries that the build needs beside torch, nvcc and CMake, and the wheels that
DeepSpeed needs beside torch, for that Python. There: `./prove 1`, then 2, 3 and 4. See docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 60 << 20
SYSTEM = Path("/usr")
LIBRARIES = ("libgtest.a", "libgmock.a", "libgtest_main.a", "libgmock_main.a")
# What DeepSpeed, and the tests of it, import beside torch and numpy.
WHEELS = "hjson pydantic pydantic-core annotated-types typing-inspection typing-extensions packaging py-cpuinfo msgpack"
WHEELS += " einops tqdm psutil pytest pluggy iniconfig pygments"
PROVE = """#!/bin/sh
# Parts 1 to 4, in this order; each can be repeated alone.
exec python3 "$(dirname "$0")/zeromuon/tests/gpu/prove.py" "$@"
"""


def main() -> int:
    options = _arguments()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    print("sources", flush=True)
    _sources(options.out / "zeromuon")
    print("headers and libraries", flush=True)
    _system(options.out / "usr")
    print(f"wheels for Python {options.python}", flush=True)
    _wheels(options.out / "wheels", options.python)
    facts = {"python": options.python, "torch": options.torch, "commit": _git("rev-parse", "HEAD").strip()}
    (options.out / "pack.json").write_text(json.dumps(facts, indent=2) + "\n")
    (options.out / "prove").write_text(PROVE)
    (options.out / "prove").chmod(0o755)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    if size > MOST_BYTES:
        sys.exit(f"error: {options.out} has {size >> 20} MiB, expected at most {MOST_BYTES >> 20}")
    print(f"{options.out}: {size / 2**20:.1f} MiB; copy it, and run ./prove 1 there")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./run gpu pack", description=__doc__.partition("\n")[0])
    parser.add_argument("--python", required=True, metavar="X.Y", help="of that machine")
    parser.add_argument("--torch", required=True, metavar="X.Y", help="of that machine, 2.11 to 2.15")
    parser.add_argument("-o", dest="out", type=Path, default=ROOT / "build" / "gpu-pack", help="the folder to write")
    options = parser.parse_args()
    for name in ("python", "torch"):
        if not re.fullmatch(r"\d+\.\d+", getattr(options, name)):
            parser.error(f"--{name} {getattr(options, name)}: expected two numbers, as 3.12")
    if not 11 <= int(options.torch.split(".")[1]) <= 15 or not options.torch.startswith("2."):
        parser.error(f"--torch {options.torch}: expected 2.11 to 2.15")
    return options


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def _sources(target: Path) -> None:
    """Tracked files as they are now, but for the inputs of tests that need no GPU."""
    for name in _git("ls-files", "-z").split("\0"):
        if name and not name.startswith(("tests/fuzz/corpus", "tests/python/ckpt/fixtures", "docs/pictures")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)


def _system(target: Path) -> None:
    for header in _boost_headers():
        (target / header.relative_to(SYSTEM)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(header, target / header.relative_to(SYSTEM))
    for folder in ("include/nlohmann", "share/cmake/nlohmann_json", "include/gtest", "include/gmock"):
        shutil.copytree(SYSTEM / folder, target / folder)
    (target / "lib").mkdir()
    for library in LIBRARIES:
        shutil.copy(next(SYSTEM.glob(f"lib/*/{library}")), target / "lib" / library)


def _boost_headers() -> list[Path]:
    """Those that the sources come to."""
    sources = [ROOT / name for name in _git("ls-files", "*.cpp", "*.h").split()]
    wanted = {line for file in sources for line in re.findall(r"^#include <boost/.*>$", file.read_text(), re.MULTILINE)}
    text = "\n".join(sorted(wanted | {"#include <boost/version.hpp>"})) + "\n"
    command = ["g++", "-std=c++20", "-DBOOST_ASIO_DISABLE_CONCEPTS", "-M", "-x", "c++", "-"]
    found = subprocess.run(command, input=text, check=True, capture_output=True, text=True).stdout
    return sorted({Path(word) for word in found.split() if word.startswith("/usr/include/boost/")})


def _wheels(target: Path, python: str) -> None:
    target.mkdir()
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps", "-d", target]
    command += ["--python-version", python, "--only-binary=:all:", "--platform", "manylinux_2_28_x86_64"]
    command += ["--platform", "manylinux2014_x86_64", "--platform", "any"]
    constraints = _pinned((ROOT / "constraints.txt").read_text() + (ROOT / "requirements.txt").read_text())
    subprocess.run([*map(str, command), *(constraints.get(name, name) for name in WHEELS.split())], check=True)
    _deepspeed(target)


def _pinned(text: str) -> dict[str, str]:
    """Name, as pip compares it -> requirement."""
    lines = [line.strip() for line in text.splitlines() if re.match(r"[\w.-]+==", line.strip())]
    return {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower(): line for line in lines}


def _deepspeed(target: Path) -> None:
    """It comes as sources alone; installed it is pure Python. Written as a wheel is: a zip to unpack."""
    import deepspeed

    package = Path(deepspeed.__file__).parent
    about = next(package.parent.glob("deepspeed-*.dist-info"))
    with zipfile.ZipFile(target / f"{about.stem}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted([*package.rglob("*"), *about.rglob("*")]):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, file.relative_to(package.parent))


if __name__ == "__main__":
    sys.exit(main())
