"""One of two ranks, each on a kernel of its own as far as it can see; their hosts have one name. Prints what binding says.

`hosts_of_one_name.py MEMINFO`: what this machine tells of its memory while the optimizer is bound.
"""

from __future__ import annotations

import os
import subprocess
import sys

from small_engine import small_engine


def main(memory: str) -> None:
    import zeromuon

    engine = small_engine(width=2048)
    subprocess.run(["mount", "--bind", memory, "/proc/meminfo"], check=True)
    try:
        zeromuon.attach(engine)
        said = "bound"
    except (MemoryError, ValueError) as error:
        said = str(error)
    print(f"rank {os.environ['RANK']}: {said}", flush=True)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
