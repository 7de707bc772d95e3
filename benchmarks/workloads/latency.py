"""Time from the call that enqueues to the body, in a worker with nothing else to do and in one with other jobs."""

from __future__ import annotations

import functools

from ..trial import Failed, Trial, share
from ..workload import Figures, Size, Workload

EVERY_SECONDS = 0.05
LOAD_PER_SECOND = 200
# The first jobs use new connections and statements that are not prepared yet.
WARM_UP = 20


def latency(load: int, trial: Trial, size: Size) -> Figures:
    """Return the milliseconds that a job waits, one each 50 ms, beside `load` others per second."""
    worker = trial.start("work", task="stamp", slots=None)
    count = WARM_UP + size.beats
    seconds = count * EVERY_SECONDS
    others = int(load * (seconds + 2))
    programs = [trial.start("trickle", task="stamp", count=count, every_seconds=EVERY_SECONDS)]
    if load:
        programs.append(trial.start("trickle", task="noop", count=others, every_seconds=1 / load))
    for program in programs:
        program.answer(seconds * 3 + 60)
    trial.until(lambda: len(trial.notes()) >= count, "every job has arrived")
    trial.until(lambda: trial.remaining() == 0, "its tables say that all jobs are finished")
    worker.stop()
    notes = trial.notes()
    if len(notes) != count:
        raise Failed(f"{count} jobs were sent, and {len(notes)} have arrived")
    waits = [wait / 1000 for wait in notes[WARM_UP:]]
    return {"p50 ms": share(waits, 50), "p95 ms": share(waits, 95), "p99 ms": share(waits, 99), "max ms": max(waits)}


WORKLOADS = (
    Workload("latency", "Pick-up by an idle worker, a job each 50 ms", "ms", functools.partial(latency, 0),
             less_is_better=True, is_quick=True),
    Workload("latency-load", f"Pick-up under {LOAD_PER_SECOND} other jobs/s, a job each 50 ms", "ms",
             functools.partial(latency, LOAD_PER_SECOND), less_is_better=True),
)  # fmt: skip
