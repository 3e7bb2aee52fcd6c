"""DeepSpeed's own conversion scripts, as their command lines call them, and how long their imports took.

Started by path: python peer.py IMPORTS_FILE zero_to_fp32|ds_to_universal|write ARGUMENT...
"""

import json
import os
import sys
import time
from types import SimpleNamespace

CHUNK_BYTES = 4 << 20


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


CONVERSIONS = {"zero_to_fp32": zero_to_fp32, "ds_to_universal": ds_to_universal, "write": write}


def main(imports_file: str, name: str, *arguments: str) -> None:
    run = CONVERSIONS[name](*arguments)
    imported = time.monotonic() - float(os.environ["ZEROMUON_BENCH_STARTED"])
    with open(imports_file, "w") as out:
        json.dump({"import_seconds": imported}, out)
    run()


if __name__ == "__main__":
    main(*sys.argv[1:])
