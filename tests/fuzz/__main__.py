"""Runs hostile input of every kind and counts what comes of it: `make fuzz`."""

import argparse
import random
import sys

from tests.fuzz.watch import SHARES, Defect, count_cases, run_kinds


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=2000, help="over all kinds (2000)")
    parser.add_argument("--seed", type=int, default=None, help="by default another one each time; it is printed")
    parser.add_argument("--kinds", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", type=int, help="the number of a single case, which is printed; with one kind")
    options = parser.parse_args()
    if options.only is not None and len(options.kinds) > 1:
        parser.error("--only needs one of --kinds")
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    cases = count_cases(options.cases, options.kinds)
    results = run_kinds(cases, seed, options.processes, options.only)
    print(f"\n{'':12}{'cases':>8}{'right':>8}{'refused':>9}{'defects':>9}")
    defects: list[Defect] = []
    for kind, result in results.items():
        numbers = result.right, result.refused, len(result.defects)
        print(f"{kind:12}{sum(numbers):8}{numbers[0]:8}{numbers[1]:9}{numbers[2]:9}")
        defects += result.defects
    for defect in defects:
        again = f"--kinds {defect.kind} --cases {options.cases} --seed {seed} --only {defect.number}"
        if len(options.kinds) > 1:
            again = again.replace(f"--cases {options.cases}", f"--cases {cases[defect.kind]}")
        print(f"\n{defect.detail}\n    python -m tests.fuzz {again}")
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
