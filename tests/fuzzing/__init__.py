"""Random and hostile calls of the library, each made of a seed alone, and what must hold of them.

`check(seed)` makes one case and tries everything on it. `tests/test_fuzz.py` runs a few hundred
seeds, `benchmarks/fuzz.py` thousands.
"""

from fuzzing.checks import check as check
from fuzzing.probe import Report as Report
