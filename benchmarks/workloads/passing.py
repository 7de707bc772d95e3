"""Throughput while another session holds a transaction open, as a backup does: dead rows cannot be removed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import psycopg

from ..trial import Trial
from ..workload import Figures, Size, Workload

# This many seconds at its usual rate show whether a contestant slows down.
MAX_SECONDS = 20.0
# A contestant that needs longer than this is measured by what it has done.
PATIENCE = 60.0


def passing(trial: Trial, size: Size) -> Figures:
    """Return the jobs per second with the open transaction: first tenth, last tenth, and all against none open."""
    count = trial.contestant.jobs("drain", MAX_SECONDS, most=size.passing)
    trial.fill(count)
    free = _run(trial, count)
    with trial.another() as other:
        other.fill(count)
        with _snapshot(other):
            held = _run(other, count)
    return {
        "held/free": held["all"] / free["all"],
        "held": held["all"],
        "held, first tenth": held["first"],
        "held, last tenth": held["last"],
        "free": free["all"],
        "free, last tenth": free["last"],
        "jobs": count,
    }


@contextlib.contextmanager
def _snapshot(trial: Trial) -> Iterator[None]:
    """Hold a transaction open that sees the database as it is now."""
    with trial.server.connect(trial.database) as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with conn.transaction():
            conn.execute("select count(*) from pg_class")
            yield


def _run(trial: Trial, count: int) -> dict[str, float]:
    worker = trial.start("work", task="noop", slots=None)
    trial.until(lambda: trial.marked().bodies > 0, "its first job has run")
    seen = [(0, time.monotonic())]

    def enough() -> bool:
        now, bodies = time.monotonic(), trial.marked().bodies
        if bodies > seen[-1][0]:
            seen.append((bodies, now))
        return bodies >= count or now - seen[0][1] > PATIENCE

    trial.until(enough, f"{count} jobs have run", PATIENCE + 30)
    worker.kill()
    return {
        "all": _rate(seen, 0, seen[-1][0]),
        "first": _rate(seen, 0, count // 10),
        "last": _rate(seen, seen[-1][0] - count // 10, seen[-1][0]),
    }


def _rate(seen: list[tuple[int, float]], start: int, end: int) -> float:
    """Return the jobs per second between two numbers of jobs, as exactly as they were sampled."""
    first = next(look for look in seen if look[0] >= start)
    last = next((look for look in seen if look[0] >= end), seen[-1])
    return (last[0] - first[0]) / max(last[1] - first[1], 1e-6)


WORKLOADS = (
    Workload("long-transaction", "Jobs that pass through while a transaction is held open: rate against without it",
             "ratio", passing),
)  # fmt: skip
