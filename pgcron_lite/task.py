"""A task: a function, and the options with which its calls are enqueued."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Generic, ParamSpec, TypeVar

from . import durations, retry
from . import job as bounds
from .errors import OptionError, refuses_unknown_options
from .handle import Handle
from .interfaces import App
from .job import MAX_CRASHES, NewJob
from .retry import RetryPolicy
from .serialization.arguments import Arguments
from .serialization.json_codec import short

P = ParamSpec("P")
R = TypeVar("R")

Due = str | int | float | timedelta | datetime


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


# Marks an option that was not given, where None is a likely mistake.
NOT_GIVEN: Any = object()


class Task(Generic[P, R]):
    """A registered function. A call runs it in this process; `delay` enqueues it for a worker."""

    def __init__(self, app: App, function: Callable[P, R], name: str, options: TaskOptions) -> None:
        functools.update_wrapper(self, function)
        self.app = app
        self.name = name
        self.function = function
        self.settings = options
        self.arguments = Arguments(function, name)
        self._call = CallOptions()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue this call. Arguments that the function would not accept raise TypeError here."""
        return Handle(self.app, self.app.enqueue(self._jobs([(args, kwargs)]), self._call.conn)[0])

    def map(self, calls: Iterable[Any]) -> list[Handle[R]]:
        """Enqueue many calls in one statement: a tuple of positional arguments each, or a dict of keywords.

        For a task with one parameter, anything else is its argument: `task.map([1, 2])`.
        """
        if isinstance(calls, (str, bytes, Mapping)):
            raise TypeError(f"map({short(calls)}): expected a list of calls, as in [(1, 2), (3, 4)] or [{{'x': 1}}]")
        takes_one = self.arguments.takes_one
        jobs = self._jobs(_spread(call, index, takes_one) for index, call in enumerate(calls))
        return [Handle(self.app, job_id) for job_id in self.app.enqueue(jobs, self._call.conn)]

    @refuses_unknown_options("options()")
    def options(
        self,
        *,
        execute_after: Due | None = None,
        priority: int | None = None,
        queue: str | None = None,
        max_attempts: int | None = None,
        conn: Any = NOT_GIVEN,
        headers: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
    ) -> Task[P, R]:
        """Return a copy of this task whose calls have other options.

        `conn` is your own connection, cursor or session: the job is committed with your data, or not at all.
        """
        if conn is None:
            raise OptionError(
                "options(conn=None): expected your connection or session, so that the job is committed with your data."
                " Leave conn out to enqueue in a separate transaction."
            )
        changed = copy.copy(self)
        changed._call = replace(
            self._call,
            queue=self._call.queue if queue is None else queue_name(queue),
            priority=self._call.priority if priority is None else priority_number(priority),
            max_attempts=self._call.max_attempts if max_attempts is None else retry.attempts(max_attempts),
            execute_after=self._call.execute_after if execute_after is None else durations.due(execute_after),
            conn=self._call.conn if conn is NOT_GIVEN else conn,
            headers=self._call.headers if headers is None else header_texts(headers),
            tags=self._call.tags + tag_names(tags),
        )
        return changed

    def _jobs(self, calls: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> list[NewJob]:
        call, own, app, dumps = self._call, self.settings, self.app, self.arguments.dumps
        # Shared values are computed once: there may be a hundred thousand calls.
        limit = app.settings.payload_limit
        queue = call.queue or own.queue
        priority = own.priority if call.priority is None else call.priority
        max_attempts = call.max_attempts or own.policy.most_attempts
        return [
            NewJob(
                self.name, dumps(args, kwargs, limit), queue, priority, call.execute_after, max_attempts,
                own.max_crashes, app.headers_for(self, call.headers), call.tags,
            )
            for args, kwargs in calls
        ]  # fmt: skip


def task_options(
    *,
    queue: str = "default",
    priority: int = 0,
    max_attempts: int = 5,
    backoff: retry.Backoff | retry.Duration | None = None,
    retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
    discard_on: type[BaseException] | tuple[type[BaseException], ...] = (),
    rules: Sequence[retry.RetryOn] = (),
    max_crashes: int = MAX_CRASHES,
    keep_result: bool = True,
) -> TaskOptions:
    """Return the options of `@app.task`, each checked."""
    for rule in rules:
        if not isinstance(rule, retry.RetryOn):
            raise OptionError(f"retry=[...]: expected RetryOn(SomeError, max_attempts=..., backoff=...), got {rule!r}")
    if (
        not isinstance(max_crashes, int)
        or isinstance(max_crashes, bool)
        or not 1 <= max_crashes <= bounds.CRASHES_LIMIT
    ):
        raise OptionError(f"max_crashes={max_crashes!r}: expected a whole number from 1 to {bounds.CRASHES_LIMIT}")
    if not isinstance(keep_result, bool):
        raise OptionError(f"keep_result={keep_result!r}: expected True or False")
    return TaskOptions(
        queue=queue_name(queue),
        priority=priority_number(priority),
        policy=RetryPolicy(
            max_attempts=retry.attempts(max_attempts),
            backoff=retry.Backoff() if backoff is None else retry.as_backoff(backoff),
            retry_on=None if retry_on is None else retry.exception_types(retry_on, "retry_on"),
            discard_on=retry.exception_types(discard_on, "discard_on"),
            rules=tuple(rules),
        ),
        max_crashes=max_crashes,
        keep_result=keep_result,
    )


def check_function(function: object) -> None:
    """Raise `OptionError` for a function that a worker cannot run by its name, with an alternative."""
    if not callable(function):
        raise OptionError(f"@app.task expects a function, got {function!r}; options go by name: @app.task(queue=...)")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError(f"{function!r} is async; tasks are plain functions: call asyncio.run(...) inside one")
    if inspect.isgeneratorfunction(function):
        raise OptionError(f"{function!r} is a generator; a task runs to its end and returns")
    if isinstance(function, (staticmethod, type)) or not hasattr(function, "__qualname__"):
        raise OptionError(f"{function!r} has no name that a worker can look up; register a plain function")


def written_name(value: object) -> str:
    """Return `value` if it is a valid explicit name of a task."""
    if not isinstance(value, str) or not value or len(value) > 200 or not value.isprintable() or value != value.strip():
        raise OptionError(f"name={value!r}: expected 1 to 200 printable characters, such as 'mail.send'")
    if value.split(".")[0] == "__main__":
        raise OptionError(f"name={value!r}: __main__ is another module in each process; leave it out of the name")
    return value


def queue_name(value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > 100 or not value.isprintable() or value == "*":
        raise OptionError(f"queue={value!r}: expected a name of 1 to 100 printable characters (* is for workers)")
    if "," in value or value != value.strip():
        raise OptionError(f"queue={value!r}: a queue's name has no comma and no spaces around it")
    return value


def priority_number(value: object) -> int:
    lowest, highest = bounds.LOWEST_PRIORITY, bounds.HIGHEST_PRIORITY
    if not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest:
        raise OptionError(
            f"priority={value!r}: expected a whole number from {lowest} to {highest}; higher runs earlier, 0 is usual"
        )
    return value


def tag_names(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(t, str) and t and t.isprintable() for t in value):
        raise OptionError(f"tags={value!r}: expected a list of words, such as tags=['import']")
    if len(value) > bounds.MAX_TAGS or any(len(t) > bounds.MAX_TAG for t in value):
        raise OptionError(
            f"tags={short(value)}: expected up to {bounds.MAX_TAGS} words of up to {bounds.MAX_TAG} characters"
            " each"
        )
    return tuple(value)


def header_texts(value: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise OptionError(f"headers={value!r}: expected a dict of texts")
    for name, text in value.items():
        if not (isinstance(name, str) and isinstance(text, str) and "\0" not in name + text):
            raise OptionError(f"headers: {name!r}: {text!r}: expected text for both, without NUL")
    # A character takes up to four bytes, and an entry has some overhead.
    if sum(4 * len(name) + 4 * len(text) + 16 for name, text in value.items()) > bounds.MAX_HEADERS_SIZE:
        raise OptionError(
            f"headers: {len(value):,} headers with {sum(map(len, [*value, *value.values()])):,} characters in total are"
            f" too large; up to {bounds.MAX_HEADERS_SIZE // 1024} kB are stored with a job. Pass the data as an"
            " argument."
        )
    return dict(value)


def _spread(call: object, index: int, takes_one: bool) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
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
