"""`python -m zeromuon VERB` is the command line `zeromuon VERB`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
