"""Value types of jobs, outcomes, queues and workers: never changed, and cheap to construct."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """Make a dataclass with slots that is frozen for the type checker only.

    A dataclass that is frozen at run time sets each field with a function call. For a job that does nothing, this was
    a quarter of the worker's CPU time.
    """
    return dataclass(slots=True)(cls)


State = Literal["queued", "running", "done", "failed", "cancelled"]

LIVE: tuple[State, ...] = ("queued", "running")
FINAL: tuple[State, ...] = ("done", "failed", "cancelled")

# The header in which a job names the schedule that it is a run of.
SCHEDULE = "pgcron-schedule"
MAX_CRASHES = 3
MAX_ERRORS = 10
# Maximum number of running jobs that are listed with a worker.
RUNNING_SHOWN = 5

# Limits that the table enforces for every writer: see migration 0007.
LOWEST_PRIORITY, HIGHEST_PRIORITY = -100, 100
CRASHES_LIMIT = 100
MAX_TAGS, MAX_TAG = 100, 100
MAX_HEADERS_SIZE = 64 * 1024

# Header of a job that got a new id at its end because its id was already in the history. The value is the earlier id.
EARLIER_ID = "pgcron-earlier-id"


@value
class NewJob:
    """A job to be enqueued."""

    task: str
    args: str = "{}"
    queue: str = "default"
    priority: int = 0
    execute_after: timedelta | datetime | None = None
    max_attempts: int = 5
    max_crashes: int = MAX_CRASHES
    headers: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@value
class Job:
    """A job as stored in the database. `args` and `result` are JSON text, decoded only where they are needed."""

    id: int
    task: str
    queue: str
    priority: int
    state: State
    args: str
    headers: Mapping[str, str]
    tags: tuple[str, ...]
    execute_after: datetime
    attempt: int
    max_attempts: int
    crashes: int
    max_crashes: int
    alone: bool
    claim: uuid.UUID | None
    worker: uuid.UUID | None
    created_at: datetime
    claimed_at: datetime | None
    errors: tuple[Mapping[str, Any], ...] = ()
    finished_at: datetime | None = None
    result: str | None = None
    # The reason why the row could not be decoded. Such a job is not run.
    flaw: str | None = None

    def __str__(self) -> str:
        return self.text(self.max_attempts)

    def text(self, limit: int) -> str:
        """Return the job as it appears in all messages: `send_email#412 (attempt 2/5)`, where 5 is `limit`.

        A run of a schedule whose name differs from its task's also names the schedule: several may run one task.
        """
        schedule = self.headers.get(SCHEDULE)
        run_of = f" of {schedule}" if schedule and schedule != self.task else ""
        return f"{self.task}#{self.id}{run_of} (attempt {self.attempt}/{limit})"

    def __hash__(self) -> int:
        return hash((self.id, self.state, self.claim))

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    def changed(self, **changes: Any) -> Job:
        """Return a copy with other values; faster than `dataclasses.replace`."""
        return Job(**dict(zip(_NAMES, _VALUES(self), strict=True)) | changes)

    @property
    def error(self) -> str | None:
        """The last error, in one line; None if there is none."""
        return str(self.errors[-1].get("error")) if self.errors else None


_NAMES = tuple(each.name for each in fields(Job))
_VALUES = operator.attrgetter(*_NAMES)


@value
class Outcome:
    """The result of one attempt, as it is written to the database.

    `state` is a final one, or `queued` if the job is to run again: after `delay` seconds, or at its original due time
    if `delay` is None. With `gives_back` the attempt does not count.
    """

    id: int
    claim: uuid.UUID
    state: State
    result: str | None = None
    error: Mapping[str, Any] | None = None
    delay: float | None = None
    gives_back: bool = False


@dataclass(slots=True)
class PipelineReply:
    """The results of a pipelined settle and claim: the settled ids, the number of claimed jobs, and the jobs.

    The jobs are decoded once, on demand.
    """

    settled: set[int] = field(default_factory=set)
    count: int = 0
    jobs: Callable[[], list[Job]] = list


@dataclass(frozen=True, slots=True)
class Look:
    """A worker's summary of the table: seconds until its next job is due, and the heartbeat count of every worker.

    `due_in` is negative for a job that could be claimed now, and None if there is no job. A count of -1 belongs to a
    worker that holds jobs and is not in the table. `plan_in` is the time in seconds until a scheduler has something to
    do. `held` counts the running jobs of the querying worker, for each of its claims.
    """

    due_in: float | None
    pulses: Mapping[uuid.UUID, int]
    plan_in: float | None = None
    ticks_want_watching: bool = False
    held: Mapping[uuid.UUID, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """The registration of a worker process. `id` is random for each start, because host names are reused."""

    id: uuid.UUID
    host: str
    pid: int
    queues: tuple[str, ...]
    slots: int
    mode: str
    version: str
    # Identifies the set of schedules that its code declares.
    generation: str | None = None


def hand_back(job: Job, delay: float | None = None) -> Outcome:
    """Return the outcome that queues `job` again. A shutdown is not its fault: no attempt and no error is recorded."""
    assert job.claim is not None
    return Outcome(job.id, job.claim, "queued", delay=delay, gives_back=True)


@dataclass(frozen=True, slots=True)
class QueueView:
    """The state of a queue, and the numbers of its jobs."""

    name: str
    due: int
    deferred: int
    running: int
    oldest_seconds: float
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as operators see it."""

    id: uuid.UUID
    host: str
    pid: int
    version: str
    queues: tuple[str, ...]
    slots: int
    mode: str
    running: int
    stopping: bool
    started_at: datetime
    silent_seconds: float
    idle_loop: float
    # Its longest-running jobs, as (id, task), at most RUNNING_SHOWN.
    jobs: tuple[tuple[int, str], ...] = ()


# Maximum number of jobs that one log line names.
MAX_NAMED = 10


def named(jobs: Sequence[Job]) -> str:
    """Return a list of jobs for a log line: `2 jobs: a#1, b#2`."""
    names = ", ".join(f"{job.task}#{job.id}" for job in jobs[:MAX_NAMED])
    more = f" and {len(jobs) - MAX_NAMED} more" if len(jobs) > MAX_NAMED else ""
    return f"{len(jobs)} job{'s' if len(jobs) > 1 else ''}: {names}{more}"
