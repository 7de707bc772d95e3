"""Drain of a backlog: jobs that do nothing by one process and by several, and jobs that sleep for a millisecond."""

from __future__ import annotations

import functools
import math
import time

from ..trial import PATIENCE, Failed, Trial
from ..workload import Figures, Size, Workload

# Maximum number of tries, each with more jobs, if the first workers leave too few for the last.
TURNS = 4


def drain(workers: int, trial: Trial, size: Size, *, task: str = "noop", slots: int | None = None) -> Figures:
    """Return the jobs per second from the time when all processes are at work to the last completion.

    Jobs that were done before do not count, so imports and connecting are not part of the figure.
    """
    pace = "drain" if task == "noop" or "sleep" not in trial.contestant.pace else "sleep"
    # Those that start first work while the last still imports.
    count = trial.contestant.jobs(pace, size.seconds * (1 + math.log2(workers) / 2))
    for _ in range(TURNS):
        with trial.another() as fresh:
            figures = _drained(fresh, workers, count, task, slots)
        if figures is not None:
            return figures
        count *= 3
    raise Failed(f"of {count // 3} jobs too few were left when the last worker began: raise its pace")


def _drained(trial: Trial, workers: int, count: int, task: str, slots: int | None) -> Figures | None:
    """Return the figures of one drain of `count` jobs; None if too few of them were left when all were at work."""
    trial.fill(count, task)
    programs = [trial.start("work", task=task, slots=slots) for _ in range(workers)]
    trial.until(lambda: trial.marked().processes >= workers or trial.marked().bodies >= count, "all workers work")
    began, before = time.monotonic(), trial.marked()
    jobs = count - before.bodies
    if before.processes < workers or jobs < count / 4:
        return None
    cpu, database_cpu = trial.worker_cpu_seconds(), trial.server.cpu_seconds()
    trial.until(lambda: trial.marked().bodies >= count, f"{count} jobs have run", PATIENCE * 2)
    last_body = trial.marked().last
    ended = finished(trial)
    cpu, database_cpu = trial.worker_cpu_seconds() - cpu, trial.server.cpu_seconds() - database_cpu
    for program in programs:
        program.stop()
    done = trial.marked().bodies
    if done != count:
        raise Failed(f"{count} jobs were there, and {done} bodies have run")
    return {
        "jobs/s": jobs / (ended - began),
        "bodies/s": jobs / max(last_body - began, 1e-6),
        "worker CPU µs/job": cpu / jobs * 1e6,
        "database CPU µs/job": database_cpu / jobs * 1e6,
        "jobs": jobs,
    }


def finished(trial: Trial) -> float:
    """Return the time when the last job was finished, by the contestant's own tables."""
    if not trial.remaining_sql:
        # The query takes a separate process, so the time of the last body is used; but all must be finished.
        last = trial.marked().last
        trial.until(lambda: trial.remaining() == 0, "its tables say that all jobs are finished")
        return last
    trial.until(lambda: trial.remaining() == 0, "its tables say that all jobs are finished")
    return time.monotonic()


WORKLOADS = (
    Workload("drain-1", "Drain, jobs that do nothing, 1 process", "jobs/s", functools.partial(drain, 1),
             is_quick=True),
    Workload("drain-2", "Drain, jobs that do nothing, 2 processes", "jobs/s", functools.partial(drain, 2)),
    Workload("drain-4", "Drain, jobs that do nothing, 4 processes", "jobs/s", functools.partial(drain, 4)),
    Workload("drain-sleep", "Drain, jobs that sleep 1 ms, 1 process with 100 slots", "jobs/s",
             functools.partial(drain, 1, task="sleep", slots=100)),
)  # fmt: skip
