"""`python -m ovss_refine` runs the command `ovss-refine`, as `torchrun` needs it."""

import sys

from ovss_refine.cli import main

if __name__ == "__main__":
    sys.exit(main())
