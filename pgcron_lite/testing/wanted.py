"""Whether a job that waits is the one that a test asks for, and what to say when none is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from .. import moment, plan
from ..errors import PayloadError
from ..job import Job
from ..task import Due, Task
from .run import Run

MOST_SHOWN = 20


class Wanted:
    """What a job has to be."""

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
            # There and back, as the arguments of the job have been.
            self._call = call_of(task, task.arguments.dumps(args, kwargs, limit))
        self._due = None if execute_after is None else moment.due(execute_after)
        self._queue = queue

    def fits(self, job: Job) -> bool:
        return job.task == self._task.name and not self._differences(job)

    def missed(self, waiting: Sequence[Job], planned: Sequence[Job], runs: Sequence[Run]) -> str:
        """What was asked for, and what there is instead: jobs that wait, or that schedules have planned, and runs."""
        same = [job for job in waiting if job.task == self._task.name]
        lines = [f"no job like this waits: {self}"]
        if same:
            # Those that come closest first, and otherwise the oldest.
            same.sort(key=self._distance)
            lines += ["of this task there wait:", *_shown([self._line(job) for job in same])]
        elif waiting:
            lines += ["there wait, of other tasks:", *_shown([f"{job.task} {job.args}" for job in waiting])]
        else:
            lines.append("no job waits at all")
        for name in sorted({job.headers[plan.SCHEDULE] for job in planned if job.task == self._task.name}):
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
        """What would have to be otherwise for this job of the task to be the one."""
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
        """The options of ours that may have been meant for the task."""
        given = {"queue": self._queue, "execute_after": self._due}
        parameters = inspect.signature(self._task.function).parameters
        return [
            f"{name}= is the job's own; an argument of {self._task.name} that is called {name} goes by position"
            for name, value in given.items()
            if value is not None and name in parameters
        ]


def call_of(task: Task[..., Any], text: str) -> dict[str, Any] | None:
    """The arguments by the names of the parameters, with the defaults; None if the function takes no such call."""
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
        return f"{moment.spoken(-due)} before it was enqueued"
    return f"{moment.spoken(due)} after it was enqueued" if due else "at once"


def _spelled(call: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in call.items())


def _shown(lines: list[str]) -> list[str]:
    more = [f"  … and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    return [f"  {line}" for line in lines[:MOST_SHOWN]] + more
