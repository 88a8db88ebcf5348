"""Run random calls against the reference, with every byte around every array watched: `make fuzz`.

Case i is that of seed + i, whatever the number of processes; a failure is made simpler and printed as a line to run.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import fuzzing

# Failures beyond these are most likely of the same causes.
MOST_REPORTS = 10


def failure_of(seed: int) -> int | None:
    """The seed, if its case fails."""
    return seed if fuzzing.first_problem(fuzzing.random_case(seed)) else None


def main() -> int:
    """Run the cases; 1 if one of them fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first case")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    started = time.perf_counter()
    if arguments.processes > 1:
        with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
            failed = [seed for seed in pool.imap(failure_of, seeds, chunksize=100) if seed is not None]
    else:
        failed = [seed for seed in seeds if failure_of(seed) is not None]
    seconds = time.perf_counter() - started
    for seed in failed[:MOST_REPORTS]:
        print(fuzzing.report(fuzzing.random_case(seed)))
    print(f"{len(failed)} of {arguments.cases} cases failed, seeds from {arguments.seed} on; {seconds:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
