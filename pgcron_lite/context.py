"""The current job, for the code of a task.

Each slot, a thread or a greenlet, has its own. Other threads that a task uses do not have one.
"""

from __future__ import annotations

import contextvars
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from .errors import PgCronError
from .interfaces import App
from .job import Job, value
from .schedules import schedule


@value
class Running:
    """A running job, and the state of the worker that its task may query."""

    app: App
    job: Job
    is_stopping: Callable[[], bool]


running: contextvars.ContextVar[Running] = contextvars.ContextVar("pgcron_running")


class CurrentJob:
    """The running job. `current_job` is falsy where no job runs."""

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
        """The name of the schedule that this job is a run of, or None."""
        return self.headers.get(schedule.SCHEDULE)

    @property
    def tick(self) -> datetime | None:
        """The tick of this run, in UTC; None for a job without a schedule."""
        return self._told(schedule.TICK)

    @property
    def previous_tick(self) -> datetime | None:
        """The tick of the last earlier run that is done. This run covers the time since then."""
        return self._told(schedule.PREVIOUS)

    @property
    def is_caught_up(self) -> bool:
        """Return True if this run is late enough to count as catching up a missed tick, or belongs to a backfill."""
        return self.schedule is not None and schedule.CAUGHT_UP in self.headers

    @property
    def stopping(self) -> bool:
        """Return True if the worker is stopping. A long task may then finish a part and raise `Snooze` or `Retry`."""
        return _running().is_stopping()

    def complete(self, conn: Any, result: Any = None) -> None:
        """End this job on your own connection: your data and the completion are committed together, or not at all.

        Raises `PgCronError` if the job is no longer this worker's. Let the error roll back your transaction.
        """
        here = _running()
        claim = here.job.claim
        assert isinstance(claim, uuid.UUID)
        text = here.app.find_task(here.job.task).arguments.dumps_result(result, here.app.settings.payload_limit)
        if not here.app._complete(conn, here.job.id, claim, text):
            raise PgCronError(
                f"{here.job} is no longer this worker's: it was considered dead and its jobs were given to others."
                " Roll back: the job and its effect now belong to another worker."
            )

    def _told(self, header: str) -> datetime | None:
        # A worker removes these headers from jobs without a tick, which may contain any text there.
        return None if self.schedule is None else schedule.header_time(self.headers, header)


def _running() -> Running:
    found = running.get(None)
    if found is None:
        raise PgCronError("there is no current job here: current_job is for code that a worker runs in a task")
    return found


current_job = CurrentJob()
