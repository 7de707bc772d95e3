"""The job that is running here, for the task that wants to know.

Each slot, thread or greenlet, has its own; what a task hands to other threads does not take it along.
"""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from . import plan
from .errors import PgCronError
from .job import Job
from .value import value

if TYPE_CHECKING:
    from .app import PgCron


@value
class Running:
    """A job and what its task may ask of the worker."""

    app: PgCron
    job: Job
    is_stopping: Callable[[], bool]


running: contextvars.ContextVar[Running] = contextvars.ContextVar("pgcron_running")


class CurrentJob:
    """The running job; `if current_job:` asks whether there is one."""

    def __bool__(self) -> bool:
        return running.get(None) is not None

    def __repr__(self) -> str:
        return f"<current job {self.job}>" if self else "<no current job>"

    @property
    def job(self) -> Job:
        """The job as it was claimed."""
        return _running().job

    @property
    def id(self) -> int:
        return self.job.id

    @property
    def task(self) -> str:
        return self.job.task

    @property
    def attempt(self) -> int:
        return self.job.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        return self.job.headers

    @property
    def schedule(self) -> str | None:
        """The name of the schedule that this job runs for, if it does."""
        return self.headers.get(plan.SCHEDULE)

    @property
    def tick(self) -> datetime | None:
        """The moment this run was due, in UTC; None for a job of no schedule."""
        return plan.told(self.headers, plan.TICK)

    @property
    def previous_tick(self) -> datetime | None:
        """The tick of the last run before this one that was done. What came after it is this run's to do."""
        return plan.told(self.headers, plan.PREVIOUS)

    @property
    def is_caught_up(self) -> bool:
        """Is this run so late that it makes up for a missed one, or a backfill?"""
        return plan.CAUGHT_UP in self.headers

    @property
    def stopping(self) -> bool:
        """Has the worker been told to stop? A long task may finish a part and raise `Snooze` or `Retry`."""
        return _running().is_stopping()

    def complete(self, conn: Any, result: Any = None) -> None:
        """End this job on your own connection: your data and the completion are committed together, or not at all.

        Raises `PgCronError` when the job is no longer this worker's; let it roll your transaction back.
        """
        here = _running()
        claim = here.job.claim
        assert isinstance(claim, uuid.UUID)
        text = here.app.find_task(here.job.task).arguments.dumps_result(result, here.app.settings.payload_limit)
        if not here.app.complete(conn, here.job.id, claim, text):
            raise PgCronError(
                f"{here.job} is no longer this worker's: it was taken for dead and its jobs were given to others."
                " Roll back; the effect belongs to whoever runs the job now."
            )


def _running() -> Running:
    found = running.get(None)
    if found is None:
        raise PgCronError("there is no current job here: current_job is for code that a worker runs in a task")
    return found


current_job = CurrentJob()
