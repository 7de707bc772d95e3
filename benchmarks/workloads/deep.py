"""Twenty thousand due jobs in a table that also holds a million others, against a table with nothing else in it."""

from __future__ import annotations

import time

from ..trial import Trial, Unsupported
from ..workload import Figures, Size, Workload

CASES = {"due": "1M due", "future": "1M future", "urgent": "1M future, urgent", "history": "1M finished"}
# A slow contestant is measured by what it has done in this time.
MAX_SECONDS = 20.0


def deep(trial: Trial, size: Size) -> Figures:
    """Return the jobs per second of the first due jobs, in each table."""
    due = trial.contestant.jobs("drain", size.seconds * 2, most=size.due)
    # Prepared like the others: after a checkpoint, the first change of a page costs more than the next.
    trial.settle_down()
    figures = {"alone": _rate(trial, due)}
    for case, title in CASES.items():
        with trial.another() as other:
            try:
                other.call("deepen", patience=1200, case=case, count=size.deep)
            except Unsupported:
                continue
            other.settle_down()
            figures[title] = _rate(other, due)
    worst = min(rate for name, rate in figures.items() if name != "alone")
    return {"worst/alone": worst / figures["alone"], **figures, "due jobs": due}


def _rate(trial: Trial, due: int) -> float:
    trial.fill(due)
    worker = trial.start("work", task="noop", slots=None)
    trial.until(lambda: trial.marked().bodies > 0, "its first job has run", 300)
    began = time.monotonic()
    trial.until(lambda: trial.marked().bodies >= due or time.monotonic() - began > MAX_SECONDS, "it has run enough")
    worker.kill()
    marked = trial.marked()
    return marked.bodies / max(marked.last - marked.first, 1e-6)


WORKLOADS = (
    Workload("deep", "Due jobs in a deep table: rate against a table of their own", "ratio", deep),
)  # fmt: skip
