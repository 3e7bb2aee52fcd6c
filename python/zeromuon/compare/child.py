"""Measures one row on one system, on every rank: torchrun ... -m zeromuon.compare.child ROW SYSTEM OUT [--spoil]"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    name, system, out = sys.argv[1:4]
    from . import training

    training.start(spoil="--spoil" in sys.argv)
    import torch.distributed as dist

    from . import checkpoints, fp32, sixteen_bits

    measure = next(getattr(m, name) for m in (fp32, sixteen_bits, checkpoints) if hasattr(m, name))
    try:
        result = {"value": float(measure(system))}
    except Exception as error:  # whatever a system raises is what is reported of it
        result = {"error": f"{type(error).__name__}: {str(error)[:300]}"}
    # The first error is the cause; those of ranks that waited for the first come later.
    if (dist.get_rank() == 0 or "error" in result) and not Path(out).exists():
        part = Path(f"{out}.{dist.get_rank()}")
        part.write_text(json.dumps(result))
        os.replace(part, out)
    sys.stdout.flush()
    # A rank that failed alone would leave the others waiting in a collective.
    os._exit(0)


if __name__ == "__main__":
    main()
