"""What a job is: the states, the row as it is enqueued and as it is read, and what one attempt may come to.

Plain values. The legal moves between states are written down here once; the stores enforce them.

::

    queued ──claim──▶ running ──▶ done | failed | cancelled
      ▲                  │
      └──────────────────┘   retry · snooze · hand-back · rescue from a dead worker

Deferred, retrying and snoozed jobs are *queued* with a later `execute_after`.
"""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import Any, Literal

from .value import value

State = Literal["queued", "running", "done", "failed", "cancelled"]

LIVE: tuple[State, ...] = ("queued", "running")
FINAL: tuple[State, ...] = ("done", "failed", "cancelled")

MAX_CRASHES = 3
MAX_ERRORS = 10


@value
class NewJob:
    """A job on its way into the table."""

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
    """A job as the database holds it. `args` and `result` are JSON text, decoded only by who needs them."""

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

    def __str__(self) -> str:
        return f"{self.task}#{self.id} (attempt {self.attempt}/{self.max_attempts})"

    @property
    def is_final(self) -> bool:
        return self.state in FINAL

    def changed(self, **changes: Any) -> Job:
        """The same with other values; quicker than `dataclasses.replace`."""
        return Job(**dict(zip(_NAMES, _VALUES(self), strict=True)) | changes)

    @property
    def error(self) -> str | None:
        """The last thing that went wrong, in one line."""
        return str(self.errors[-1].get("error")) if self.errors else None


_NAMES = tuple(each.name for each in fields(Job))
_VALUES = operator.attrgetter(*_NAMES)


@value
class Outcome:
    """What one attempt came to, and what is to be written about it.

    `state` is a final one, or `queued` when the job is to run again: after `delay` seconds, or when it was due
    anyway if `delay` is None. `gives_back` says the attempt does not count.
    """

    id: int
    claim: uuid.UUID
    state: State
    result: str | None = None
    error: Mapping[str, Any] | None = None
    delay: float | None = None
    gives_back: bool = False


@dataclass(slots=True)
class Exchange:
    """What came of settling and claiming in one go: the ids that were settled, and how many jobs, and which.

    The jobs are decoded when they are asked for, once.
    """

    settled: set[int] = field(default_factory=set)
    count: int = 0
    jobs: Callable[[], list[Job]] = list


@dataclass(frozen=True, slots=True)
class Look:
    """What a worker sees of the table from afar: seconds until a job of its is due, and the beat of every worker.

    Seconds are negative for a job that could be claimed now, and None if there is none at all. A beat of -1 is that
    of a worker that holds jobs and is not in the table. `plan_in` are seconds until a scheduler has something to do.
    """

    due_in: float | None
    pulses: Mapping[uuid.UUID, int]
    plan_in: float | None = None
    ticks_want_watching: bool = False


@dataclass(frozen=True, slots=True)
class WorkerCard:
    """What a worker process says about itself. `id` is drawn at random for each start: host names come back."""

    id: uuid.UUID
    host: str
    pid: int
    queues: tuple[str, ...]
    slots: int
    mode: str
    version: str
    # Which set of schedules its code declares.
    generation: str | None = None


def hand_back(job: Job, delay: float | None = None) -> Outcome:
    """The job goes back unharmed: a shutdown is not its fault, so neither attempt nor error is recorded."""
    assert job.claim is not None
    return Outcome(job.id, job.claim, "queued", delay=delay, gives_back=True)


@dataclass(frozen=True, slots=True)
class QueueView:
    """How a queue stands."""

    name: str
    due: int
    deferred: int
    running: int
    oldest_seconds: float
    paused_at: datetime | None


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as others see it."""

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
