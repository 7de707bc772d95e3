"""Explanations for failed assertions: why no job matches, and why a job has not run."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta, tzinfo
from typing import TYPE_CHECKING, Any

from .. import durations
from ..calls import Due
from ..errors import PayloadError
from ..hints import near_miss
from ..job import Job
from ..schedules import schedule
from ..task import Task
from .driver import STOPPED, WorkerControl
from .run_record import RunRecord

if TYPE_CHECKING:
    from ..app import PgCron

MAX_SHOWN = 20


class ExpectedJob:
    """The properties that a job must have."""

    def __init__(
        self,
        task: Task[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        execute_after: Due | None,
        queue: str | None,
        limit: int,
    ) -> None:
        self._task = task
        self._call: dict[str, Any] | None = None
        if args or kwargs:
            # Encoded and decoded, as the arguments of the job have been.
            self._call = call_of(task, task.arguments.dumps(args, kwargs, limit))
        self._due = None if execute_after is None else durations.due(execute_after)
        self._queue = queue

    def fits(self, job: Job) -> bool:
        return job.task == self._task.name and not self._differences(job)

    def missed(self, waiting: Sequence[Job], planned: Sequence[Job], runs: Sequence[RunRecord]) -> str:
        """Return the message of the assertion: the expected job, and the waiting and planned jobs and runs instead."""
        same = [job for job in waiting if job.task == self._task.name]
        lines = [f"no such job is waiting: {self}"]
        if same:
            # The closest match first, then the oldest.
            same.sort(key=self._distance)
            lines += ["waiting jobs of this task:", *_shown([self._line(job) for job in same])]
        elif waiting:
            lines += ["waiting jobs of other tasks:", *_shown([f"{job.task} {job.args}" for job in waiting])]
        else:
            lines.append("no job is waiting at all")
        for name in sorted({job.headers[schedule.SCHEDULE] for job in planned if job.task == self._task.name}):
            lines.append(f"schedule {name!r} has planned it, which does not count: t.enqueued(schedule={name!r})")
        done = [run for run in runs if run.task == self._task.name]
        if done:
            lines += ["it has run already:", *_shown([f"{run} {run.job.args}" for run in done])]
        return "\n".join(lines + self._mistaken())

    def __str__(self) -> str:
        told = self._task.name
        told += "(…)" if self._call is None else f"({_spelled(self._call)})"
        if self._queue is not None:
            told += f" in queue {self._queue!r}"
        return told if self._due is None else f"{told}, due {_when(self._due)}"

    def _differences(self, job: Job) -> list[str]:
        """Return how this job of the task differs from the expected one."""
        found = [] if self._call is None else self._other_arguments(job)
        if self._queue is not None and job.queue != self._queue:
            found.append(f"queue: {job.queue!r}, not {self._queue!r}")
        if isinstance(self._due, datetime) and job.execute_after != self._due:
            found.append(f"due: {_when(job.execute_after)}, not {_when(self._due)}")
        elif isinstance(self._due, timedelta) and _ahead(job) != self._due:
            found.append(f"due: {_when(_ahead(job))}, not {_when(self._due)}")
        return found

    def _other_arguments(self, job: Job) -> list[str]:
        call = call_of(self._task, job.args)
        if call is None or self._call is None:
            return [f"arguments: {self._task.name}{inspect.signature(self._task.function)} does not take them"]
        return [f"{name}: {call[name]!r}, not {value!r}" for name, value in self._call.items() if call[name] != value]

    def _distance(self, job: Job) -> int:
        return len(self._differences(job))

    def _line(self, job: Job) -> str:
        call = call_of(self._task, job.args)
        told = f"#{job.id} {job.args if call is None else '(' + _spelled(call) + ')'}, queue {job.queue!r}"
        told += f", due {_when(_ahead(job))}"
        if _ahead(job):
            told += f" ({_when(job.execute_after)})"
        if job.attempt:
            told += f", attempt {job.attempt + 1}: {job.error}"
        return f"{told}\n    differs in {'; '.join(self._differences(job))}"

    def _mistaken(self) -> list[str]:
        """Return hints for options of `assert_enqueued` that may have been meant as arguments of the task."""
        given = {"queue": self._queue, "execute_after": self._due}
        parameters = inspect.signature(self._task.function).parameters
        return [
            f"{name}= is an option of the job; pass an argument of {self._task.name} named {name} by position"
            for name, value in given.items()
            if value is not None and name in parameters
        ]


def call_of(task: Task[..., Any], text: str) -> dict[str, Any] | None:
    """Return the arguments by parameter, with defaults; None if the function cannot be called with them."""
    try:
        args, kwargs = task.arguments.loads(text)
        bound = inspect.signature(task.function).bind(*args, **kwargs)
    except (TypeError, PayloadError):
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def _ahead(job: Job) -> timedelta:
    return job.execute_after - job.created_at


def _when(due: timedelta | datetime) -> str:
    if isinstance(due, datetime):
        return due.isoformat(" ")
    if due < timedelta(0):
        return f"{durations.spoken(-due)} before it was enqueued"
    return f"{durations.spoken(due)} after it was enqueued" if due else "at once"


def _spelled(call: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in call.items())


def _shown(lines: list[str]) -> list[str]:
    more = [f"  … and {len(lines) - MAX_SHOWN} more"] if len(lines) > MAX_SHOWN else []
    return [f"  {line}" for line in lines[:MAX_SHOWN]] + more


LATER = "t.advance() lets time pass"


def explain_waiting(job: Job, app: PgCron, control: WorkerControl, now: datetime, tz: tzinfo) -> str:
    """Return the reason why `job` has not ended after everything due has run."""
    if job.state == "running":
        return _of_a_running(job, control)
    if control.worker is None:
        return STOPPED
    if job.execute_after > now:
        return f"it is due at {job.execute_after.astimezone(tz):%Y-%m-%d %H:%M:%S %Z}; {LATER}"
    if job.task not in app.tasks:
        return f"no task named {job.task!r} is registered on {app!r}{near_miss(job.task, app.tasks)}"
    if any(view.name == job.queue and view.paused_at for view in app.store.queues()):
        return f"its queue {job.queue!r} is paused"
    return _of_a_due(job, control)


def _of_a_running(job: Job, control: WorkerControl) -> str:
    if control.worker is not None and job.worker == control.worker.id:
        return f"it lasts for longer; {LATER}"
    return f"the worker that ran it has died, and it is rescued after a lease; {LATER}"


def _of_a_due(job: Job, control: WorkerControl) -> str:
    if job.alone:
        return f"a worker has died with it, so it runs alone when the others have ended; {LATER}"
    if control.slots.free == 0:
        return f"every slot has a run that lasts for longer; {LATER}"
    if schedule.SCHEDULE in job.headers:
        return f"another run of its schedule comes first; {LATER}"
    return f"the worker does not take it yet; {LATER}"
