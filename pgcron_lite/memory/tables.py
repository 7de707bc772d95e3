"""The tables of a queue in memory: jobs, history, workers, and the clock and the lock they are kept by."""

from __future__ import annotations

import itertools
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from ..errors import OptionError
from ..job import Job, NewJob, WorkerCard

# Between these a job may be due.
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Pulse:
    """A worker's row."""

    card: WorkerCard
    started_at: datetime
    beat_at: datetime
    beat: int = 0
    running: int = 0
    idle_loop: float = 0.0
    stopping: bool = False


class Tables:
    """What all verbs work on. A verb holds the lock while it does."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        self._clock = clock or (lambda: datetime.now(UTC))
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        self._history: dict[int, Job] = {}
        self._workers: dict[uuid.UUID, Pulse] = {}

    def now(self) -> datetime:
        return self._clock()

    def _add(self, jobs: Sequence[NewJob]) -> list[int]:
        now = self.now()
        fresh = [_fresh(next(self._ids), new, now) for new in jobs]
        self._jobs.update((job.id, job) for job in fresh)
        return [job.id for job in fresh]


def _fresh(job_id: int, new: NewJob, now: datetime) -> Job:
    due = new.execute_after
    try:
        due = due if isinstance(due, datetime) else now + (due or timedelta(0))
    except OverflowError:
        due = datetime.max.replace(tzinfo=UTC)
    _check(new, due)
    return Job(
        id=job_id, task=new.task, queue=new.queue, priority=new.priority, state="queued", args=new.args,
        headers=dict(new.headers), tags=tuple(new.tags), execute_after=due,
        attempt=0, max_attempts=new.max_attempts, crashes=0, max_crashes=new.max_crashes, alone=False,
        claim=None, worker=None, created_at=now, claimed_at=None,
    )


def _check(new: NewJob, due: datetime) -> None:
    """Refuse what the constraints of the real table refuse."""
    smallest, largest = -(2**15), 2**15 - 1
    holds = {
        "task": 0 < len(new.task) <= 200,
        "queue": 0 < len(new.queue) <= 100,
        "priority": smallest <= new.priority <= largest,
        "max_attempts": 1 <= new.max_attempts <= largest,
        "max_crashes": 1 <= new.max_crashes <= largest,
        "args": new.args.lstrip()[:1] in ("{", "["),
        "execute_after": EARLIEST <= due <= LATEST,
    }
    wrong = [name for name, is_fine in holds.items() if not is_fine]
    if wrong:
        raise OptionError(f"a job with {wrong[0]}={getattr(new, wrong[0])!r} cannot be stored")
