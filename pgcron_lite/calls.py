"""Calls of tasks: their options, and the jobs that are enqueued for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypedDict

from . import durations, retry
from .checks import header_texts, priority_number, queue_name, tag_names
from .errors import OptionError
from .hints import near_miss
from .interfaces import App, NamedTask
from .job import MAX_CRASHES, NewJob
from .retry import RetryPolicy
from .serialization import json_codec
from .serialization.json_codec import short

Due = str | int | float | timedelta | datetime
# A call: its positional arguments, and those by name.
Call = tuple[tuple[Any, ...], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """Options of all calls of a task."""

    queue: str = "default"
    priority: int = 0
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    max_crashes: int = MAX_CRASHES
    keep_result: bool = True


@dataclass(frozen=True, slots=True)
class CallOptions:
    """Options of single calls, set by `Task.options`."""

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    execute_after: timedelta | datetime | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    conn: Any = None


class GivenOptions(TypedDict, total=False):
    """The options of a call, as `Task.options` and `PgCron.send` take them."""

    execute_after: Due | None
    priority: int | None
    queue: str | None
    max_attempts: int | None
    conn: Any
    headers: Mapping[str, str] | None
    tags: Sequence[str]


def with_options(earlier: CallOptions, where: str, given: GivenOptions) -> CallOptions:
    """Return `earlier` with the options that are `given` in the call `where`, each checked."""
    for option in given:
        if option not in GivenOptions.__annotations__:
            near = near_miss(option, GivenOptions.__annotations__) or "."
            if where == "send()":
                near += " Arguments of the task go to args=[...] or kwargs={...}"
            raise OptionError(f"{where} has no option {option!r}{near}")
    if "conn" in given and given["conn"] is None:
        raise OptionError(
            f"{where.removesuffix(')')}conn=None): expected your connection or session, so that the job is committed"
            " with your data. Leave conn out to enqueue in a separate transaction."
        )
    queue, priority, max_attempts = given.get("queue"), given.get("priority"), given.get("max_attempts")
    execute_after, headers = given.get("execute_after"), given.get("headers")
    return replace(
        earlier,
        queue=earlier.queue if queue is None else queue_name(queue),
        priority=earlier.priority if priority is None else priority_number(priority),
        max_attempts=earlier.max_attempts if max_attempts is None else retry.attempts(max_attempts),
        execute_after=earlier.execute_after if execute_after is None else durations.due(execute_after),
        conn=given.get("conn", earlier.conn),
        headers=earlier.headers if headers is None else header_texts(headers),
        tags=earlier.tags + tag_names(given.get("tags", ())),
    )


def new_jobs(
    app: App,
    task: NamedTask,
    calls: Iterable[Call],
    own: TaskOptions,
    call: CallOptions,
    dumps: Callable[[tuple[Any, ...], Mapping[str, Any], int], str],
) -> list[NewJob]:
    """Return a job for each of `calls`, whose arguments `dumps` writes as JSON text of a limited size."""
    # Shared values are computed once: there may be a hundred thousand calls.
    limit = app.settings.payload_limit
    queue = call.queue or own.queue
    priority = own.priority if call.priority is None else call.priority
    max_attempts = call.max_attempts or own.policy.most_attempts
    return [
        NewJob(
            task.name, dumps(args, kwargs, limit), queue, priority, call.execute_after, max_attempts,
            own.max_crashes, app._headers_for(task, call.headers), call.tags,
        )
        for args, kwargs in calls
    ]  # fmt: skip


def job_by_name(
    app: App, name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None, call: CallOptions
) -> NewJob:
    """Return the job of a task that this process knows by its name alone."""
    task = ByName(name)
    [job] = new_jobs(app, task, [checked_call(args, kwargs)], TaskOptions(), call, task.dumps)
    return job


@dataclass(frozen=True, slots=True)
class ByName:
    """A task without its function, so without the names and types of its parameters."""

    name: str

    def dumps(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], limit: int) -> str:
        """Return the arguments as JSON text: an array of those by position, or an object of those by name."""
        if args and kwargs:
            raise OptionError(
                f"send({self.name!r}, ...): this process does not know the task's parameters, so give its arguments"
                " either by position, args=[...], or by name, kwargs={...}"
            )
        return json_codec.dumps(list(args) if args else dict(kwargs), path="args", limit=limit)


def checked_call(args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> Call:
    """Return the call with these arguments, which come from a caller."""
    if not isinstance(args, list | tuple):
        raise OptionError(f"send(args={short(args)}): expected a list, as in args=[1, 2]; names go to kwargs={{...}}")
    named = {} if kwargs is None else kwargs
    if not isinstance(named, Mapping) or not all(isinstance(name, str) for name in named):
        raise OptionError(f"send(kwargs={short(kwargs)}): expected a dict of names and values")
    return tuple(args), named


def call_of(call: object, index: int, takes_one: bool) -> Call:
    """Return the call that item `index` of the argument of `Task.map` describes."""
    if isinstance(call, tuple):
        return call, {}
    if isinstance(call, Mapping):
        return (), call
    if takes_one:
        return (call,), {}
    raise TypeError(
        f"map(): item {index} is {call!r}; expected a tuple of arguments, as in [(1, 2), (3, 4)],"
        " or a dict of keywords"
    )
