"""Lateness of the ticks of many schedules, and the cost of keeping ten thousand schedules."""

from __future__ import annotations

import functools
import time

from ..trial import Failed, Trial, share
from ..workload import Figures, Size, Workload

# The first round uses new connections, and may begin in the middle of a round.
WARM_UP_ROUNDS = 1


def lateness(case: str, trial: Trial, size: Size) -> Figures:
    """Return the milliseconds from a tick to the body of its job: all at the same second, or spread over ten."""
    trial.call("schedule", count=size.schedules, case=case, every_seconds=size.tick_seconds)
    worker = trial.start("work", task="stamp", slots=None)
    rounds = WARM_UP_ROUNDS + size.rounds
    trial.until(lambda: len(trial.notes()) >= rounds * size.schedules, "its schedules have run", rounds * 15 + 60)
    worker.stop()
    waits = [wait / 1000 for wait in trial.notes()[WARM_UP_ROUNDS * size.schedules :]]
    if min(waits) < 0:
        raise Failed("a tick came before its time")
    return {"p99 ms": share(waits, 99), "p50 ms": share(waits, 50), "max ms": max(waits), "ticks": len(waits)}


def upkeep(trial: Trial, size: Size) -> Figures:
    """Return statements, transactions and CPU per second of a worker that keeps schedules of which few are due."""
    trial.call("schedule", count=size.kept, case="spread", every_seconds=3600)
    with trial.requests() as requests:
        worker = trial.start("work", task="stamp", slots=None)
        # All their first ticks are planned by then.
        trial.until(lambda: trial.remaining() >= size.kept, "its schedules are planned", 120)
        time.sleep(5)
        requests.restart()
        ran, cpu, began = trial.marked().bodies, trial.worker_cpu_seconds(), time.monotonic()
        time.sleep(size.idle_seconds)
        took = time.monotonic() - began
        used, counted, ran = trial.worker_cpu_seconds() - cpu, requests.read(), trial.marked().bodies - ran
    worker.must_live()
    figures = {**{f"{name}/s": number / took for name, number in counted.items()}, "CPU %": used / took * 100}
    worker.stop()
    return {**figures, "ticks/s": ran / took}


WORKLOADS = (
    Workload("ticks", "1,000 schedules, spread over ten seconds: from the tick to the body", "ms",
             functools.partial(lateness, "spread"), less_is_better=True, is_quick=True),
    Workload("ticks-at-once", "1,000 schedules, all due in the same second: from the tick to the body", "ms",
             functools.partial(lateness, "same second"), less_is_better=True),
    Workload("ticks-10000", "Cost of keeping 10,000 hourly schedules", "statements/s", upkeep, less_is_better=True),
)  # fmt: skip
