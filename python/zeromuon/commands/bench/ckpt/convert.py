"""One conversion in this process, which tells what it took: ours, DeepSpeed's own scripts as their command lines call them, or
none, only as many bytes written. No torch but a peer's.

usage: python -m zeromuon.commands.bench.ckpt.convert zeromuon|zero_to_fp32|ds_to_universal|write ARGUMENT...
"""

import os
import resource
import sys
import time
from types import SimpleNamespace

from ....ranks.channel import tell
from ..step.memory import resident_bytes

STARTED = "ZEROMUON_BENCH_STARTED"  # time.monotonic() of the start of the process
CHUNK_BYTES = 4 << 20


def zeromuon(*arguments: str):
    """`zeromuon ckpt`."""
    from ...cli import main as command_line

    return lambda: command_line(["ckpt", *arguments])


def zero_to_fp32(source: str, output: str):
    """--safe_serialization, and its defaults: fp32, shards of 5 GB."""
    import huggingface_hub  # noqa: F401 (the function imports them when it runs)
    import safetensors.torch  # noqa: F401
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_fp32_state_dict

    return lambda: convert_zero_checkpoint_to_fp32_state_dict(source, output, safe_serialization=True)


def ds_to_universal(source: str, output: str):
    """Its defaults: 4 processes extract, 2 merge."""
    from deepspeed.checkpoint import ds_to_universal as script

    arguments = SimpleNamespace(
        input_folder=source,
        output_folder=output,
        num_extract_workers=4,
        num_merge_workers=2,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=False,
    )
    return lambda: script.main(arguments)


def write(size: str, output: str):
    """No conversion: as many bytes, written one after the other."""

    def run() -> None:
        with open(output, "wb", buffering=0) as out:
            chunk, left = os.urandom(CHUNK_BYTES), int(size)
            while left > 0:
                left -= out.write(chunk[: min(left, CHUNK_BYTES)])

    return run


def peak_bytes() -> int:
    """The most that this process, or one that it has waited for, had resident; mapped pages count."""
    return max(resident_bytes("VmHWM"), 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)


CONVERSIONS = {"zeromuon": zeromuon, "zero_to_fp32": zero_to_fp32, "ds_to_universal": ds_to_universal, "write": write}


def main(name: str, *arguments: str) -> int:
    run = CONVERSIONS[name](*arguments)
    imported = time.monotonic() - float(os.environ[STARTED])
    status = run() or 0
    tell(import_seconds=imported, peak_bytes=peak_bytes())
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
