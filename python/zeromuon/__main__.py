"""`python -m zeromuon VERB` is the command line; `python -m zeromuon SCRIPT.py` or `-m MODULE` runs that with
both optimizer types registered."""

import sys

from .commands import script
from .commands.cli import main


def _main() -> int:
    arguments = sys.argv[1:]
    if not script.is_script(arguments):
        return main(arguments)
    try:
        script.run(arguments)
    except script.Usage as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(_main())
