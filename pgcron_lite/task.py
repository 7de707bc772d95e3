"""A task: a function, and the options with which its calls are enqueued."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, Unpack

from . import job as bounds
from . import retry
from .calls import Call, CallOptions, GivenOptions, TaskOptions, call_of, new_jobs, with_options
from .checks import priority_number, queue_name
from .errors import OptionError
from .handle import Handle
from .hints import TASK_METHODS, refuse_attribute
from .interfaces import App
from .job import MAX_CRASHES, NewJob
from .retry import RetryPolicy
from .serialization.arguments import Arguments
from .serialization.json_codec import short

P = ParamSpec("P")
R = TypeVar("R")


class Registry(Protocol):
    """The place where a task is registered: an app, or a blueprint that an app has registered or will register."""

    def _bound_app(self) -> App: ...


class Task(Generic[P, R]):
    """A registered function. A call runs it in this process; `delay` enqueues it for a worker."""

    def __init__(self, registry: Registry, function: Callable[P, R], name: str, options: TaskOptions) -> None:
        functools.update_wrapper(self, function)
        self._registry = registry
        self.name = name
        self.function = function
        self.settings = options
        self.arguments = Arguments(function, name)
        self._call = CallOptions()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(self, name, "a task", "task", TASK_METHODS)

    @property
    def app(self) -> App:
        """The app that the task is registered on."""
        return self._registry._bound_app()

    def delay(self, *args: P.args, **kwargs: P.kwargs) -> Handle[R]:
        """Enqueue this call. Arguments that the function would not accept raise TypeError here."""
        app = self.app
        return Handle(app, app._enqueue(self._jobs(app, [(args, kwargs)]), self._call.conn)[0])

    def map(self, calls: Iterable[Any]) -> list[Handle[R]]:
        """Enqueue many calls in one statement: a tuple of positional arguments each, or a dict of keywords.

        For a task with one parameter, anything else is its argument: `task.map([1, 2])`.
        """
        if isinstance(calls, (str, bytes, Mapping)):
            raise TypeError(f"map({short(calls)}): expected a list of calls, as in [(1, 2), (3, 4)] or [{{'x': 1}}]")
        app, takes_one = self.app, self.arguments.takes_one
        jobs = self._jobs(app, (call_of(call, index, takes_one) for index, call in enumerate(calls)))
        return [Handle(app, job_id) for job_id in app._enqueue(jobs, self._call.conn)]

    def options(self, **given: Unpack[GivenOptions]) -> Task[P, R]:
        """Return a copy of this task whose calls have other options.

        `execute_after` is a duration from now or a datetime; `priority`, `queue` and `max_attempts` replace those of
        the task; `headers` are texts, and `tags` are words to find the job by. `conn` is your own connection, cursor
        or session: the job is committed with your data, or not at all.
        """
        changed = copy.copy(self)
        changed._call = with_options(self._call, "options()", given)
        return changed

    def _jobs(self, app: App, calls: Iterable[Call]) -> list[NewJob]:
        return new_jobs(app, self, calls, self.settings, self._call, self.arguments.dumps)


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
