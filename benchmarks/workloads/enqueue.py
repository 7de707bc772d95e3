"""Enqueueing: one job per commit by one producer and by eight at once, and many jobs at a time."""

from __future__ import annotations

import functools

from ..trial import Failed, Trial
from ..workload import Figures, Size, Workload

WARM_UP = 20


def one_by_one(producers: int, trial: Trial, size: Size) -> Figures:
    """Return the jobs per second of `producers` processes that start at the same time."""
    # Eight producers share the commits and reach several times the rate of one, although each of them is slower.
    seconds = size.seconds if producers == 1 else size.seconds / 2
    count = trial.contestant.jobs("enqueue", seconds, least=50)
    programs = [trial.start("enqueue", count=count, warm_up=WARM_UP) for _ in range(producers)]
    trial.await_ready(producers)
    trial.go()
    answers = [program.answer() for program in programs]
    took = max(a["ended"] for a in answers) - min(a["began"] for a in answers)
    _all_there(trial, producers * (count + WARM_UP))
    return {"jobs/s": producers * count / took * 1e6, "jobs": producers * count}


def bulk(trial: Trial, size: Size) -> Figures:
    """Return the jobs per second when many are enqueued at once."""
    # A contestant without a bulk API would need minutes for all of them.
    count = trial.contestant.jobs("bulk", size.seconds * 10, most=size.bulk)
    program = trial.start("bulk", count=count)
    trial.await_ready(1)
    trial.go()
    answer = program.answer(600)
    _all_there(trial, count + answer.get("warm_up", 0))
    return {"jobs/s": count / (answer["ended"] - answer["began"]) * 1e6, "jobs": count}


def _all_there(trial: Trial, count: int) -> None:
    found = trial.remaining()
    if found != count:
        raise Failed(f"enqueued {count} jobs, and {found} are there")


WORKLOADS = (
    Workload("enqueue-1", "Enqueue, one job per commit, 1 producer", "jobs/s", functools.partial(one_by_one, 1),
             is_quick=True),
    Workload("enqueue-8", "Enqueue, one job per commit, 8 producers at once", "jobs/s",
             functools.partial(one_by_one, 8)),
    Workload("bulk", "Enqueue in bulk", "jobs/s", bulk, is_quick=True),
)  # fmt: skip
