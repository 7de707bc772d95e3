"""Command that runs the simulation with many seeds, or replays one.

``python -m tests.simulation --seeds 10000`` runs seeds 1 to 10000; ``--minutes 5`` runs seeds for five minutes;
``--seed 42 --trace`` replays one seed and prints all events.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator

from .run import Options, Result, run
from .world import FAULTS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many seeds to run (default: 1000)")
    parser.add_argument("--first", type=int, default=1, help="the first seed (default: 1)")
    parser.add_argument("--minutes", type=float, help="run seeds for this long instead of --seeds")
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--trace", action="store_true", help="print all events; with --seed")
    parser.add_argument("--without", default="", help=f"faults to leave out, separated by commas: {','.join(FAULTS)}")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="how many to run at once")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failing seed")
    given = parser.parse_args()
    options = Options(faults=frozenset(FAULTS) - set(filter(None, given.without.split(","))))
    without = f" --without {given.without}" if given.without else ""
    if given.seed is not None:
        result = run(given.seed, options, traces=given.trace)
        print("\n".join(result.trace))
        print(f"seed {given.seed}: {result.violation or 'all invariants hold'} ({result.steps} events)")
        return int(result.violation is not None)
    return _run_many(given, options, without)


def _run_many(given: argparse.Namespace, options: Options, without: str) -> int:
    began, found = time.monotonic(), collections.Counter[str]()
    count = steps = jobs = 0
    seeds = itertools.count(given.first) if given.minutes else range(given.first, given.first + given.seeds)
    with contextlib.ExitStack() as exits:
        for result in _results(seeds, options, given.processes, exits):
            count, steps, jobs = count + 1, steps + result.steps, jobs + result.jobs
            if result.violation is not None:
                found[result.violation.kind] += 1
                print(f"seed {result.seed}: {result.violation}")
                print(f"  replay: python -m tests.simulation --seed {result.seed} --trace{without}", flush=True)
                if not given.keep_going:
                    break
            if given.minutes and time.monotonic() - began > given.minutes * 60:
                break
    took = time.monotonic() - began
    print(f"{count:,} seeds, {steps:,} events, {jobs:,} jobs in {took:.1f} s: {count / took * 60:,.0f} seeds a minute")
    print("violations:", ", ".join(f"{kind} {n}" for kind, n in found.most_common()) or "none")
    return int(bool(found))


def _results(
    seeds: Iterable[int], options: Options, processes: int, exits: contextlib.ExitStack
) -> Iterator[Result]:
    """Return the results in the order of the seeds."""
    if processes == 1:
        return (run(seed, options) for seed in seeds)
    pool = exits.enter_context(multiprocessing.get_context("fork").Pool(processes))
    endless = iter(seeds)
    # In batches, because a pool would read an endless iterator completely before it starts.
    portions = iter(lambda: list(itertools.islice(endless, 64 * processes)), [])
    return (result for portion in portions for result in pool.imap(functools.partial(run, options=options), portion, 8))


if __name__ == "__main__":
    sys.exit(main())
