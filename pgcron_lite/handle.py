"""Handle of a job: what `delay()` returns."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import durations
from .clock import monotonic
from .errors import JobCancelled, JobFailed, WaitTimeout
from .hints import HANDLE_METHODS, refuse_attribute
from .interfaces import App
from .job import Job, State
from .retry import Duration
from .serialization import json_codec

R = TypeVar("R", covariant=True)

FIRST_LOOK, MAX_PAUSE = 0.01, 0.5

class Handle(Generic[R]):
    """A job by its id. Every method queries the database."""

    __slots__ = ("_app", "id")

    def __init__(self, app: App, job_id: int) -> None:
        self._app = app
        self.id = job_id

    def __repr__(self) -> str:
        return f"<Handle #{self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and (self._app, self.id) == (other._app, other.id)

    def __hash__(self) -> int:
        return hash((id(self._app), self.id))

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(self, name, "a handle", "handle", HANDLE_METHODS)

    def job(self) -> Job:
        """Return the job as it is now. Raises `UnknownJob` when it is no longer kept, or was never committed."""
        return self._app.jobs.get(self.id)

    def state(self) -> State:
        """Return the job's state: "queued", "running", "done", "failed" or "cancelled"."""
        return self.job().state

    def done(self) -> bool:
        """Return True if the job has ended: done, failed or cancelled."""
        return self.job().is_final

    def result(self, timeout: Duration | None = None) -> R:
        """Wait for the job to end and return the task's result.

        `timeout` is a duration such as "10s", a number of seconds or a timedelta. 0 does not wait, None waits without
        a limit. Raises `JobFailed` or `JobCancelled`, and `WaitTimeout` if the job has not ended in time, which does
        not affect the job.
        """
        seconds = None if timeout is None else durations.duration(timeout, name="timeout").total_seconds()
        if self._app._harness is not None:
            # In a test nothing else runs jobs, so the job would not end during the wait.
            self._app._harness.wait_for(self.id)
        deadline = None if seconds is None else monotonic() + seconds
        pause = FIRST_LOOK
        while not (job := self.job()).is_final:
            remaining = pause if deadline is None else min(pause, deadline - monotonic())
            if remaining <= 0:
                raise WaitTimeout(f"{job} is still {job.state} after {seconds:g} s; it goes on")
            time.sleep(remaining)
            pause = min(pause * 1.5, MAX_PAUSE)
        return cast(R, _result(self._app, job))

    def cancel(self) -> bool:
        """Cancel the job if it has not begun. Return False if it is running or has ended."""
        return self._app.jobs.cancel(self.id)

    def retry(self) -> bool:
        """Queue a failed or cancelled job again, due now, with all its attempts. Return False if it is neither."""
        return self._app.jobs.retry(self.id)


def _result(app: App, job: Job) -> Any:
    """Return the result of an ended job, or raise the exception for its end."""
    if job.state == "failed":
        raise JobFailed(f"{job} failed: {job.error}")
    if job.state == "cancelled":
        raise JobCancelled(f"{job} was cancelled: {job.error}")
    if job.result is None:
        return None
    task = app.tasks.get(job.task)
    return json_codec.loads(job.result) if task is None else task.arguments.loads_result(job.result)
