"""Whether a job that waits is the one that a test asks for, and what to say when none is."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from .. import moment
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
        return (
            job.task == self._task.name
            and (self._queue is None or job.queue == self._queue)
            and (self._due is None or self._is_due_then(job))
            and (self._call is None or self._call == call_of(self._task, job.args))
        )

    def missed(self, here: Sequence[Job], runs: Sequence[Run]) -> str:
        """What was asked for, and what there is instead."""
        same = [job for job in here if job.task == self._task.name]
        lines = [f"no job like this waits: {self}"]
        if same:
            lines += ["of this task there wait:", *_shown([line_of(self._task, job) for job in same])]
        elif here:
            lines += ["there wait, of other tasks:", *_shown([f"{job.task} {job.args}" for job in here])]
        else:
            lines.append("no job waits at all")
        done = [run for run in runs if run.task == self._task.name]
        if done:
            lines += ["it has run already:", *_shown([f"{run} {run.job.args}" for run in done])]
        return "\n".join(lines)

    def __str__(self) -> str:
        told = self._task.name
        told += "(…)" if self._call is None else f"({_spelled(self._call)})"
        if self._queue is not None:
            told += f" in queue {self._queue!r}"
        if isinstance(self._due, timedelta):
            told += f", due {moment.spoken(self._due)} after it was enqueued"
        elif self._due is not None:
            told += f", due {self._due.isoformat(' ')}"
        return told

    def _is_due_then(self, job: Job) -> bool:
        assert self._due is not None
        if isinstance(self._due, datetime):
            return job.execute_after == self._due
        return job.execute_after - job.created_at == self._due


def call_of(task: Task[..., Any], text: str) -> dict[str, Any] | None:
    """The arguments by the names of the parameters, with the defaults; None if the function takes no such call."""
    try:
        args, kwargs = task.arguments.loads(text)
        bound = inspect.signature(task.function).bind(*args, **kwargs)
    except (TypeError, PayloadError):
        return None
    bound.apply_defaults()
    return dict(bound.arguments)


def line_of(task: Task[..., Any], job: Job) -> str:
    call = call_of(task, job.args)
    told = f"#{job.id} {job.args if call is None else '(' + _spelled(call) + ')'}, queue {job.queue!r}"
    ahead = job.execute_after - job.created_at
    told += f", due {moment.spoken(ahead)} after it was enqueued" if ahead > timedelta(0) else ", due at once"
    if ahead > timedelta(0):
        told += f" ({job.execute_after.isoformat(' ')})"
    return told + (f", attempt {job.attempt + 1}: {job.error}" if job.attempt else "")


def _spelled(call: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in call.items())


def _shown(lines: list[str]) -> list[str]:
    more = [f"  … and {len(lines) - MOST_SHOWN} more"] if len(lines) > MOST_SHOWN else []
    return [f"  {line}" for line in lines[:MOST_SHOWN]] + more
