"""A task: a function, and how its calls are put into the queue."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from . import moment, retry
from .arguments import Arguments
from .errors import OptionError
from .handle import Handle
from .job import MAX_CRASHES, NewJob
from .retry import RetryPolicy

if TYPE_CHECKING:
    from .app import PgCron

P = ParamSpec("P")
R = TypeVar("R")

Due = str | int | float | timedelta | datetime

SMALLINT = 32_767


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What is the same for all calls of a task."""

    queue: str = "default"
    priority: int = 0
    policy: RetryPolicy = field(default_factory=RetryPolicy)
    max_crashes: int = MAX_CRASHES
    keep_result: bool = True


@dataclass(frozen=True, slots=True)
class CallOptions:
    """What is said for one call, by `Task.options`."""

    queue: str | None = None
    priority: int | None = None
    max_attempts: int | None = None
    execute_after: timedelta | datetime | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    conn: Any = None


class Task(Generic[P, R]):
    """A registered function. Call it to run it here and now; `delay` has a worker run it."""

    def __init__(self, app: PgCron, function: Callable[P, R], name: str, options: TaskOptions) -> None:
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
        """Enqueue this call. A call the function would refuse is refused here."""
        return Handle(self.app, self.app.enqueue(self._jobs([(args, kwargs)]), self._call.conn)[0])

    def map(self, calls: Iterable[tuple[Any, ...] | Mapping[str, Any]]) -> list[Handle[R]]:
        """Enqueue many calls in one statement: a tuple of positional arguments each, or a dict of keywords."""
        jobs = self._jobs(_spread(call, index) for index, call in enumerate(calls))
        return [Handle(self.app, job_id) for job_id in self.app.enqueue(jobs, self._call.conn)]

    def options(
        self,
        *,
        execute_after: Due | None = None,
        priority: int | None = None,
        queue: str | None = None,
        max_attempts: int | None = None,
        conn: Any = None,
        headers: Mapping[str, str] | None = None,
        tags: Sequence[str] = (),
    ) -> Task[P, R]:
        """This task with other options for the calls made from what is returned.

        `conn` is your own connection, cursor or session: the job is committed with your data, or not at all.
        """
        changed = copy.copy(self)
        changed._call = replace(
            self._call,
            queue=self._call.queue if queue is None else queue_name(queue),
            priority=self._call.priority if priority is None else priority_number(priority),
            max_attempts=self._call.max_attempts if max_attempts is None else retry.attempts(max_attempts),
            execute_after=self._call.execute_after if execute_after is None else moment.due(execute_after),
            conn=self._call.conn if conn is None else conn,
            headers=self._call.headers if headers is None else header_texts(headers),
            tags=self._call.tags + tag_names(tags),
        )
        return changed

    def _jobs(self, calls: Iterable[tuple[tuple[Any, ...], Mapping[str, Any]]]) -> list[NewJob]:
        call, own, app, dumps = self._call, self.settings, self.app, self.arguments.dumps
        # What all of them share is found once: there may be a hundred thousand.
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
    """Options as given at decoration, each checked."""
    for rule in rules:
        if not isinstance(rule, retry.RetryOn):
            raise OptionError(f"retry=[...]: expected RetryOn(SomeError, max_attempts=..., backoff=...), got {rule!r}")
    if not isinstance(max_crashes, int) or isinstance(max_crashes, bool) or not 1 <= max_crashes <= 100:
        raise OptionError(f"max_crashes={max_crashes!r}: expected a whole number from 1 to 100")
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
    """Refuse what cannot be run in a worker by its name, with the way out."""
    if not callable(function):
        raise OptionError(f"@app.task expects a function, got {function!r}; options go by name: @app.task(queue=...)")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise OptionError(f"{function!r} is async; tasks are plain functions: call asyncio.run(...) inside one")
    if inspect.isgeneratorfunction(function):
        raise OptionError(f"{function!r} is a generator; a task runs to its end and returns")
    if isinstance(function, (staticmethod, type)) or not hasattr(function, "__qualname__"):
        raise OptionError(f"{function!r} has no name of its own to be found by; register a plain function")


def written_name(value: object) -> str:
    """A task's name as given by hand."""
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
    if not isinstance(value, int) or isinstance(value, bool) or not -SMALLINT <= value <= SMALLINT:
        raise OptionError(f"priority={value!r}: expected a whole number; higher runs earlier, 0 is usual")
    return value


def tag_names(value: Sequence[str]) -> tuple[str, ...]:
    if isinstance(value, str) or not all(isinstance(t, str) and t and t.isprintable() for t in value):
        raise OptionError(f"tags={value!r}: expected a list of words, such as tags=['import']")
    return tuple(value)


def header_texts(value: Mapping[str, str]) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise OptionError(f"headers={value!r}: expected a dict of texts")
    for name, text in value.items():
        if not (isinstance(name, str) and isinstance(text, str) and "\0" not in name + text):
            raise OptionError(f"headers: {name!r}: {text!r}: expected text for both, without NUL")
    return dict(value)


def _spread(call: object, index: int) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    if isinstance(call, tuple):
        return call, {}
    if isinstance(call, Mapping):
        return (), call
    raise TypeError(
        f"map(): item {index} is {call!r}; expected a tuple of arguments, as in [(1, 2), (3, 4)] or [('one',)],"
        " or a dict of keywords"
    )
