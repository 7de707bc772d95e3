"""What `delay()` returns: something to hold on to while a job is under way."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from . import payload
from .clock import monotonic
from .errors import JobCancelled, JobFailed, UnknownJob, WaitTimeout
from .job import Job, State

if TYPE_CHECKING:
    from .app import PgCron

R = TypeVar("R", covariant=True)

FIRST_LOOK, LONGEST_PAUSE = 0.01, 0.5


class Handle(Generic[R]):
    """A job by its id. Asking it anything asks the database."""

    __slots__ = ("_app", "id")

    def __init__(self, app: PgCron, job_id: int) -> None:
        self._app = app
        self.id = job_id

    def __repr__(self) -> str:
        return f"<Handle #{self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and (self._app, self.id) == (other._app, other.id)

    def __hash__(self) -> int:
        return hash((id(self._app), self.id))

    def job(self) -> Job:
        """The job as it is now. Raises `UnknownJob` when it is no longer kept, or was never committed."""
        found = self._app.store.get(self.id)
        if found is None:
            raise UnknownJob(
                f"there is no job #{self.id}: it was deleted, its history was pruned, or the transaction that"
                " enqueued it has not been committed"
            )
        return found

    @property
    def state(self) -> State:
        return self.job().state

    def wait(self, timeout: float | None = None) -> R:
        """The task's result, once there is one.

        Raises `JobFailed`, `JobCancelled`, or `WaitTimeout` after `timeout` seconds; the job goes on regardless.
        """
        if self._app.stage is not None:
            # Nobody else runs jobs there, so nothing would end while we wait.
            self._app.stage.wait_for(self)
        deadline = None if timeout is None else monotonic() + timeout
        pause = FIRST_LOOK
        while not (job := self.job()).is_final:
            remaining = pause if deadline is None else min(pause, deadline - monotonic())
            if remaining <= 0:
                raise WaitTimeout(f"{job} is still {job.state} after {timeout:g} s; it goes on")
            time.sleep(remaining)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        return cast(R, _result(self._app, job))

    def result(self) -> R:
        """The result of a job that has ended; like `wait` without waiting."""
        return self.wait(timeout=0)

    def cancel(self) -> bool:
        """Cancel the job if it has not begun. False if it is running or has ended."""
        return self._app.store.cancel(self.id)

    def retry(self) -> bool:
        """Queue a failed or cancelled job again, due now, with all its attempts."""
        done = self._app.store.retry(self.id)
        if done:
            self._app.store.ring()
        return done


def _result(app: PgCron, job: Job) -> Any:
    """What an ended job returned, or the exception that says why it did not."""
    if job.state == "failed":
        raise JobFailed(f"{job} failed: {job.error}")
    if job.state == "cancelled":
        raise JobCancelled(f"{job} was cancelled: {job.error}")
    if job.result is None:
        return None
    task = app.tasks.get(job.task)
    return payload.loads(job.result) if task is None else task.arguments.loads_result(job.result)
