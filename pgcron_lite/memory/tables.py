"""Tables of a queue in memory: jobs, history, workers and queues, with their clock and their lock."""

from __future__ import annotations

import bisect
import itertools
import logging
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from .. import job as bounds
from ..errors import OptionError
from ..job import EARLIER_ID, FINAL, MAX_ERRORS, Job, NewJob, State, WorkerCard
from ..serialization.json_codec import MAX_SIZE, short

logger = logging.getLogger(__name__)

SMALLINT = 2**15
_ALL_TAGS = bounds.MAX_TAGS * bounds.MAX_TAG
# The range of due times.
EARLIEST, LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(9000, 1, 1, tzinfo=UTC)
# Sorts after every id.
_LAST = sys.maxsize


@dataclass(slots=True)
class WorkerRow:
    """A worker's row."""

    card: WorkerCard
    started_at: datetime
    beat_at: datetime
    beat: int = 0
    running: int = 0
    idle_loop: float = 0.0
    stopping: bool = False


class Tables:
    """The tables. Every public method holds the lock while it uses them."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        self._clock = clock or (lambda: datetime.now(UTC))
        self._lock = threading.RLock()
        self._ids = itertools.count(1)
        self._jobs: dict[int, Job] = {}
        # Queued jobs by due time, the suspects among them, and the running jobs.
        self._queue: list[tuple[datetime, int]] = []
        self._suspects: set[int] = set()
        self._held: dict[int, None] = {}
        self._history: dict[int, Job] = {}
        # For each final state, the jobs in history by the time of their end.
        self._ends: dict[State, list[tuple[datetime, int]]] = {state: [] for state in FINAL}
        self._workers: dict[uuid.UUID, WorkerRow] = {}
        # Paused queues with the time of the pause, and the facts stored by `note_fact`.
        self._paused: dict[str, datetime] = {}
        self._facts: dict[str, str] = {}

    def now(self) -> datetime:
        return self._clock()

    def _add(self, jobs: Sequence[NewJob]) -> list[int]:
        now = self.now()
        fresh = [_fresh(self._next_id(), new, now) for new in jobs]
        for job in fresh:
            self._keep(job)
        return [job.id for job in fresh]

    def mend_sequence(self) -> int:
        """Advance the sequence of ids past the ids in use. Return by how much it was behind."""
        with self._lock:
            last = next(self._ids) - 1
            newest = max([last, *self._jobs, *self._history])
            self._ids = itertools.count(newest + 1)
            return newest - last

    def _next_id(self) -> int:
        """Return an id that is not in use."""
        job_id = next(self._ids)
        while job_id in self._jobs or job_id in self._history:
            job_id = next(self._ids)
        return job_id

    def _keep(self, job: Job) -> Job:
        """Store a job that has not ended."""
        self._drop(job.id)
        self._jobs[job.id] = job
        if job.state == "running":
            self._held[job.id] = None
        else:
            bisect.insort(self._queue, (job.execute_after, job.id))
            if job.alone:
                self._suspects.add(job.id)
        return job

    def _drop(self, job_id: int) -> Job | None:
        """Remove a job that has not ended."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return None
        if job.state == "running":
            self._held.pop(job_id, None)
            return job
        self._suspects.discard(job_id)
        place = bisect.bisect_left(self._queue, (job.execute_after, job_id))
        if self._queue[place : place + 1] == [(job.execute_after, job_id)]:
            del self._queue[place]
        return job

    def _end(self, job: Job) -> Job:
        """Move a job that has ended now into history. Return the job as it is stored."""
        assert job.finished_at is not None
        self._drop(job.id)
        earlier = self._history.get(job.id)
        if earlier is not None and earlier.claim is not None and earlier.claim == job.claim:
            # This end is already stored.
            return earlier
        kept = job if earlier is None else self._with_new_id(job)
        self._history[kept.id] = kept
        bisect.insort(self._ends[kept.state], (job.finished_at, kept.id))
        return kept

    def _with_new_id(self, job: Job) -> Job:
        """Return `job` with a new id, because history has another job with its id."""
        fresh = self._next_id()
        logger.error(
            "job %d has ended, and history has another job of that id: it is stored under the id %d", job.id, fresh
        )
        return job.changed(id=fresh, headers={**job.headers, EARLIER_ID: str(job.id)})

    def _erase(self, job_id: int) -> bool:
        """Remove a job from history. Return False if it is not there."""
        job = self._history.pop(job_id, None)
        if job is None:
            return False
        assert job.finished_at is not None
        ends = self._ends[job.state]
        del ends[bisect.bisect_left(ends, (job.finished_at, job_id))]
        return True

    def _running(self) -> list[Job]:
        return [self._jobs[job_id] for job_id in self._held if job_id in self._jobs]

    def _queued(self, since: datetime | None, until: datetime | None) -> Iterator[Job]:
        """Yield the jobs that are due after `since` and up to `until`, earliest first."""
        first = 0 if since is None else bisect.bisect_right(self._queue, (since, _LAST))
        end = len(self._queue) if until is None else bisect.bisect_right(self._queue, (until, _LAST))
        for _, job_id in itertools.islice(self._queue, first, end):
            if job_id in self._jobs:
                yield self._jobs[job_id]

    def _claimable(self, queues: Sequence[str], tasks: Sequence[str], until: datetime | None = None) -> Iterator[Job]:
        """Yield the queued jobs that a worker of these queues and tasks may claim, earliest first.

        With `until`, only those that are due by then.
        """
        for job in self._queued(None, until):
            if job.task in tasks and serves(queues, job.queue) and job.queue not in self._paused:
                yield job


def serves(queues: Sequence[str], queue: str) -> bool:
    return queue in queues or "*" in queues


def error_entry(job: Job, at: datetime, error: str) -> dict[str, Any]:
    """Return an entry for the job's error history."""
    return {"attempt": job.attempt, "at": at.isoformat(), "error": error}


def with_error(errors: tuple[Any, ...], error: dict[str, Any]) -> tuple[Any, ...]:
    """Return the error history with one more entry. The oldest is dropped if there are too many."""
    return (*errors[-(MAX_ERRORS - 1):], error)


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
    """Raise OptionError for a job that violates a constraint of the table in PostgreSQL."""
    wrong = (
        "task" if not 0 < len(new.task) <= 200
        else "queue" if not 0 < len(new.queue) <= 100
        else "priority" if not bounds.LOWEST_PRIORITY <= new.priority <= bounds.HIGHEST_PRIORITY
        else "max_attempts" if not 1 <= new.max_attempts < SMALLINT
        else "max_crashes" if not 1 <= new.max_crashes <= bounds.CRASHES_LIMIT
        else "args" if new.args.lstrip()[:1] not in ("{", "[") or len(new.args.encode()) > MAX_SIZE
        else "headers" if _headers_size(new.headers) > bounds.MAX_HEADERS_SIZE
        else "tags" if len(new.tags) > bounds.MAX_TAGS or len("".join(new.tags)) > _ALL_TAGS
        else "execute_after" if not EARLIEST <= due <= LATEST
        else None
    )  # fmt: skip
    if wrong is not None:
        raise OptionError(f"a job with {wrong}={short(getattr(new, wrong))} cannot be stored")


def _headers_size(headers: Mapping[str, str]) -> int:
    """Return the size in bytes of `headers` as jsonb."""
    return 8 + sum(8 + len(name.encode()) + len(text.encode()) for name, text in headers.items())
