"""Random and hostile calls of the library, checked against the float64 reference.

    python benchmarks/fuzz.py [--cases 5000] [--seed 0]

Case `i` is made of the number `seed + i` alone: a failure of seed S comes again with
`--seed S --cases 1`. Prints the checks by kind, how many differences rounding the inputs explains,
and every failure; ends with status 1 if there is one. The cases are in `tests/fuzzing`.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fuzzing import Report, check


def main() -> int:
    """Run the cases and print what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case")
    args = parser.parse_args()
    total, start = Report(), time.perf_counter()
    for seed in range(args.seed, args.seed + args.cases):
        report = check(seed)
        total.add(report)
        for _, kind, what in report.failures:
            print(f"seed {seed}: {kind}: {what}", flush=True)
    print("\n| check | number | explained | failed |")
    print("|---|---|---|---|")
    failed = [kind for _, kind, _ in total.failures]
    for kind, number in sorted(total.checks.items()):
        print(f"| {kind} | {number} | {total.explained[kind]} | {failed.count(kind)} |")
    print(f"| all | {total.checks.total()} | {total.explained.total()} | {len(failed)} |")
    calls = total.checks["global state"]
    print(f"\n{args.cases} cases, {calls} calls in {time.perf_counter() - start:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
