"""`python -m ovss_refine` is the command `ovss-refine`, for `torchrun` and the like."""

import sys

from ovss_refine.cli import main

if __name__ == "__main__":
    sys.exit(main())
