"""Runs the parity selection against other releases of DeepSpeed, each in an environment of its own.

    python -m tests.versions 0.18.0 0.19.5

Each release is installed without its dependencies into build/versions/deepspeed-X, which goes first on the path of the
ranks, with an extension cache of its own. Prints one row of markdown per release: docs/integration.md has them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tests.multirank.configurations import PARITY, SIXTEEN_BITS, USERS
from tests.multirank.launch import ROOT, row, run_rows

HEADING = (
    "| DeepSpeed | torch | transformers | fp32: cases, largest error | 16 bits: cases, largest error | checkpoints "
    "| persistent parameters |\n|---|---|---|---|---|---|---|"
)
FP32 = (*PARITY, *USERS)
CHECKPOINTS = (
    row("resumed", "save_load_go_on", offload=True),
    row("saved under zero.Init", "zero_init_on_one_side", saving=True),
    row("zero_to_fp32", "zero_to_fp32", dtype="bf16"),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.versions", description=__doc__.splitlines()[0])
    parser.add_argument("releases", nargs="+", metavar="VERSION", help="of DeepSpeed, for instance 0.18.0")
    parser.add_argument("--ranks", type=int, default=2)
    options = parser.parse_args()
    print(HEADING, flush=True)
    missed = [release for release in options.releases if not _run(release, options.ranks)]
    if missed:
        print(f"not all held with DeepSpeed {', '.join(missed)}; the reasons are above", file=sys.stderr)
    return 1 if missed else 0


def _run(release: str, ranks: int) -> bool:
    """Prints the row of one release; whether everything held."""
    print(f"DeepSpeed {release}: installing, then {len(_rows())} rows on {ranks} ranks", file=sys.stderr, flush=True)
    folder = _install(release)
    os.environ["TORCH_EXTENSIONS_DIR"] = str(folder / "extensions")
    results = run_rows(ranks, _rows(), first_paths=(str(folder),))
    ran = {r["deepspeed"] for r in results.values() if "deepspeed" in r}
    if ran and ran != {release}:
        raise ValueError(f"expected DeepSpeed {release} on the ranks, found {', '.join(sorted(ran))}")
    cells = [
        _cell(results, [c for c in FP32 if not c.persistence]),
        _cell(results, [c for c in SIXTEEN_BITS if not c.persistence]),
        _checkpoint_cell(results),
        _cell(results, [c for c in (*FP32, *SIXTEEN_BITS) if c.persistence]),
    ]
    print(f"| {release} | {version('torch')} | {version('transformers')} | {' | '.join(cells)} |", flush=True)
    return "FAILED" not in "".join(cells)


def _rows() -> list[dict]:
    fp32 = [row(c.name, "parity", **c.as_dict()) for c in FP32]
    return [*fp32, *(row(c.name, "captured", **c.as_dict()) for c in SIXTEEN_BITS), *CHECKPOINTS]


def _install(release: str) -> Path:
    folder = ROOT / "build" / "versions" / f"deepspeed-{release}"
    if not (folder / f"deepspeed-{release}.dist-info").is_dir():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--no-deps",
                "--no-build-isolation",
                "--target",
                str(folder),
                f"deepspeed=={release}",
            ],
            env={**os.environ, "DS_BUILD_OPS": "0", "DS_ACCELERATOR": "cpu"},
            check=True,
        )
    return folder


def _cell(results: dict, cases) -> str:
    failed = [c.name for c in cases if "failed" in results[c.name] or not _holds(results[c.name])]
    for name in failed:
        print(f"{name}: {results[name].get('failed', results[name])}", file=sys.stderr)
    held = [results[c.name] for c in cases if c.name not in failed]
    worst = max((r["error"] for r in held if r["error"] <= r["bar"]), default=0.0)
    return f"{len(held)} of {len(cases)}, {worst:.1e}" + (" FAILED" if failed else "")


def _holds(result: dict) -> bool:
    """Within the bar; a bf16 wire has one of its own."""
    return result["error"] <= result["bar"] or result.get("update_error", 1.0) <= 1e-2


def _checkpoint_cell(results: dict) -> str:
    failed = [r["id"] for r in CHECKPOINTS if results[r["id"]].get("same") not in (True, [True, True])]
    for name in failed:
        print(f"{name}: {results[name].get('failed', results[name])}", file=sys.stderr)
    return f"{len(CHECKPOINTS) - len(failed)} of {len(CHECKPOINTS)}" + (" FAILED" if failed else "")


if __name__ == "__main__":
    sys.exit(main())
