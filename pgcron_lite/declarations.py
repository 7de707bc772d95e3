"""Declarations of tasks and schedules: the decorators that apps and blueprints have in common."""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, Unpack, overload

from .checks import written_name
from .errors import OptionError
from .hints import near_miss
from .interfaces import App
from .retry import Backoff, Duration, RetryOn
from .schedules.api import DeclaredOptions, When, declare
from .schedules.schedule import Schedule
from .schedules.timezones import TimeZone
from .schedules.timing import Cron, Every
from .task import Task, check_function, task_options

P = ParamSpec("P")
R = TypeVar("R")


class Declarations(ABC):
    """Base class of `PgCron` and `TaskBlueprint`: a set of tasks and schedules that decorators fill."""

    def __init__(self) -> None:
        self.tasks: dict[str, Task[..., Any]] = {}
        # Schedules declared in code. `app.schedules` reads the database, where they take effect when a worker starts.
        self.declared: dict[str, Schedule] = {}

    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...

    @overload
    def task(
        self,
        function: None = None,
        /,
        *,
        name: str | None = None,
        queue: str = "default",
        priority: int = 0,
        max_attempts: int = 5,
        backoff: Backoff | Duration | None = None,
        retry_on: type[BaseException] | tuple[type[BaseException], ...] | None = None,
        discard_on: type[BaseException] | tuple[type[BaseException], ...] = (),
        retry: Sequence[RetryOn] = (),
        max_crashes: int = 3,
        keep_result: bool = True,
    ) -> Callable[[Callable[P, R]], Task[P, R]]: ...

    def task(
        self, function: Callable[P, R] | None = None, /, *, name: str | None = None, **options: Any
    ) -> Task[P, R] | Callable[[Callable[P, R]], Task[P, R]]:
        """Register a function as a task: `@app.task`, or `@app.task(queue="mail", max_attempts=8)`."""
        known = ("queue", "priority", "max_attempts", "backoff", "retry_on", "discard_on", "retry", "max_crashes",
                 "keep_result")
        for option in options:
            if option not in known:
                raise OptionError(f"@app.task has no option {option!r}{near_miss(option, known)}")
        checked = task_options(rules=options.pop("retry", ()), **options)
        given = None if name is None else written_name(name)

        def register(function: Callable[P, R]) -> Task[P, R]:
            if isinstance(function, Task):
                raise OptionError(
                    f"{function.name} is a task already: write @app.task below @app.cron and @app.every, next to the"
                    " function, or give its options to one of them"
                )
            self._check_open("register a task")
            check_function(function)
            task = Task(self, function, given or self._name_for(function), checked)
            self._add_task(task)
            return task

        return register if function is None else register(function)

    def cron(
        self, expression: str, /, *, tz: TimeZone = "UTC", **options: Unpack[DeclaredOptions]
    ) -> Callable[[Callable[P, R] | Task[P, R]], Task[P, R]]:
        """Run the decorated function or task by a cron expression: `@app.cron("30 2 * * *", tz="Europe/Berlin")`."""
        return self.schedule(Cron(expression, tz), tz=tz, **options)

    def every(
        self, interval: Duration, /, **options: Unpack[DeclaredOptions]
    ) -> Callable[[Callable[P, R] | Task[P, R]], Task[P, R]]:
        """Run the decorated function or task at a fixed interval: `@app.every("10s")`."""
        return self.schedule(Every(interval).interval, **options)

    def schedule(
        self, when: When, /, *, tz: TimeZone = "UTC", **options: Unpack[DeclaredOptions]
    ) -> Callable[[Callable[P, R] | Task[P, R]], Task[P, R]]:
        """Run the decorated function or task by a cron expression or an interval: `"*/5 * * * *"`, `"every 10s"`."""

        def register(target: Callable[P, R] | Task[P, R]) -> Task[P, R]:
            self._check_open("declare a schedule")
            return declare(target, when, tz, options, on=self)

        return register

    def _add_task(self, task: Task[..., Any]) -> None:
        """Add a task, or raise `OptionError` if another one has its name."""
        self._check_task(task)
        self.tasks[task.name] = task

    def _add_schedule(self, schedule: Schedule) -> None:
        """Add a schedule, or raise `OptionError` if another one has its name."""
        self._check_schedule(schedule)
        self.declared[schedule.name] = schedule

    def _check_task(self, task: Task[..., Any]) -> None:
        earlier = self.tasks.get(task.name)
        if earlier is not None and _place(earlier.function) != _place(task.function):
            raise OptionError(
                f"two tasks are named {task.name!r}: {_place(earlier.function)} and {_place(task.function)};"
                " give one of them name=..."
            )

    def _check_schedule(self, schedule: Schedule) -> None:
        earlier = self.declared.get(schedule.name)
        if earlier is not None and earlier.dumps() != schedule.dumps():
            raise OptionError(f"two schedules are named {schedule.name!r}; give one of them name=...")

    @abstractmethod
    def _bound_app(self) -> App:
        """Return the app that the tasks are registered on."""

    @abstractmethod
    def _name_for(self, function: Callable[..., Any]) -> str:
        """Return the name of a task that is given none."""

    @abstractmethod
    def _check_open(self, what: str) -> None:
        """Raise `SetupFinished` if it is too late for a declaration."""


def task_name(function: Callable[..., Any]) -> str:
    """Return `module.function`. The module of a script is the name it would be imported by, never `__main__`."""
    module = function.__module__
    if module == "__main__":
        main = sys.modules["__main__"]
        spec = getattr(main, "__spec__", None)
        if spec is not None:
            module = spec.name.removesuffix(".__main__")
        elif getattr(main, "__file__", None):
            module = Path(str(main.__file__)).stem
        else:
            raise OptionError(
                f"{function.__qualname__} is defined at an interactive prompt, where no worker can find it;"
                " put it into a module, or give it name=..."
            )
    qualified = function.__qualname__.replace(".<locals>", "")
    if function.__name__ == "<lambda>":
        raise OptionError("a lambda has no name that a worker can look up; define a function, or give it name=...")
    return f"{module}.{qualified}"


def _place(function: Callable[..., Any]) -> str:
    # A decorator gives all functions that it wraps the same code.
    code = getattr(inspect.unwrap(function), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
