"""The app: what collects tasks and hooks while your modules are imported, and opens the queue when it is first needed.

An app is explicit; there may be several in one process. Constructing one stores its settings and does nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar, Unpack, cast, overload

from . import config
from .errors import OptionError, SetupFinished, UnknownTask, near_miss
from .events import Events
from .handle import Handle
from .job import Job, NewJob
from .plan import Schedule
from .retry import Backoff, Duration, RetryOn
from .schedule import Cron, Every
from .schedules import DeclaredOptions, Schedules, When, declare
from .task import Task, check_function, header_texts, task_options, written_name

if TYPE_CHECKING:
    from .memory import MemoryStore
    from .pg.store import PostgresStore
    from .testing.stage import Stage

    Store: TypeAlias = MemoryStore | PostgresStore

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

Around = Callable[[Job], Iterator[None]]

# The task that `PgCron.enable_shell` registers.
SHELL = "pgcron.shell"


class PgCron:
    """Tasks, hooks, and the queue they belong to.

    `url` and every other setting may be left to the environment (see `config.Settings`). `memory://` keeps the queue
    in this process, for tests.
    """

    def __init__(self, name: str = "app", *, url: str | None = None, **settings: Any) -> None:
        if not isinstance(name, str):
            raise OptionError(f"PgCron({name!r}): the first argument is the app's name; the database is url=...")
        self.name = name
        self.tasks: dict[str, Task[..., Any]] = {}
        self.events = Events()
        self.arounds: list[Around] = []
        # What the code says; `schedules` looks at the database, where it comes into force with the next worker.
        self.declared: dict[str, Schedule] = {}
        self.schedules = Schedules(self)
        self._given: dict[str, Any] = {"database_url": url, **settings}
        config.Settings().with_values(self._given, f"PgCron({name!r})")
        self._configured: tuple[str, dict[str, Any]] | None = None
        self._settings: config.Settings | None = None
        self._store: Store | None = None
        self._opening = threading.Lock()
        self._frozen_by: str | None = None
        # The test block that this app stands in, and the settings that hold there before all others.
        self.stage: Stage | None = None
        self._overruling: tuple[str, Mapping[str, Any]] = ("", {})

    def __repr__(self) -> str:
        return f"<PgCron {self.name!r}>"

    # Setting up

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
            self._check_open("register a task")
            check_function(function)
            task = Task(self, function, given or task_name(function), checked)
            self._add(task)
            return task

        return register if function is None else register(function)

    def cron(
        self, expression: str, /, *, tz: str = "UTC", **options: Unpack[DeclaredOptions]
    ) -> Callable[[Callable[P, R] | Task[P, R]], Task[P, R]]:
        """Run the decorated function or task by a cron expression: `@app.cron("30 2 * * *", tz="Europe/Berlin")`."""
        return self.schedule(Cron(expression, tz), tz=tz, **options)

    def every(
        self, interval: Duration, /, **options: Unpack[DeclaredOptions]
    ) -> Callable[[Callable[P, R] | Task[P, R]], Task[P, R]]:
        """Run the decorated function or task at even distances: `@app.every("10s")`."""
        return self.schedule(Every(interval).interval, **options)

    def schedule(
        self, when: When, /, *, tz: str = "UTC", **options: Unpack[DeclaredOptions]
    ) -> Callable[[Callable[P, R] | Task[P, R]], Task[P, R]]:
        """Like `cron` and `every`: "*/5 * * * *" and "every 10s" are both understood."""

        def register(target: Callable[P, R] | Task[P, R]) -> Task[P, R]:
            self._check_open("declare a schedule")
            return declare(self, target, when, tz, options)

        return register

    def enable_shell(self, **options: Any) -> Task[..., dict[str, Any]]:
        """Register the task `pgcron.shell`, which runs a command of the shell. Options as for `@app.task`.

        Nothing else registers it: from here on whoever may write to the queue can run any command as the user that the
        worker runs as. A command that fails is not tried again, unless `max_attempts` says so.
        """
        from . import shell

        return self.task(name=SHELL, **{"max_attempts": 1, **options})(shell.run)

    def on(self, event: str) -> Callable[[F], F]:
        """Call the decorated function whenever `event` has happened; see `events.EVENTS` for what it may ask for."""

        def register(receiver: F) -> F:
            self._check_open(f"listen to {event!r}")
            self.events.add(event, receiver)
            return receiver

        return register

    def around(
        self, hook: Callable[[Job], Iterator[None]], /, *, outermost: bool = False
    ) -> Callable[[Job], Iterator[None]]:
        """Run the decorated generator around every job: up to its `yield` before, the rest after, errors included.

        The hook added first is the outermost; what others stand on, as an app context, may ask to go around them all.
        """
        import inspect

        self._check_open("add an around hook")
        if not inspect.isgeneratorfunction(hook):
            raise OptionError(f"@app.around expects a generator function with one yield, got {hook!r}")
        self.arounds.insert(0 if outermost else len(self.arounds), hook)
        return hook

    def configure(self, source: str = "configure()", **settings: Any) -> None:
        """Give settings later than at construction, before the first use; what the constructor was given wins.

        A second call takes the place of the first.
        """
        config.Settings().with_values(settings, source)
        earlier, self._configured = self._configured, (source, settings)
        if self._settings is not None and self._settings != self._read_settings():
            self._configured = earlier
            raise SetupFinished(
                f"{source} comes too late: {self!r} has been used already, with other settings. Give them before that."
            )

    def init_app(self, flask_app: Any) -> None:
        """Connect this app with a Flask app: settings from its config, an app context around every job."""
        from .contrib import flask

        flask.init_app(self, flask_app)

    def freeze(self, why: str) -> None:
        """From now on nothing may be registered: a worker has said which tasks it knows."""
        self._frozen_by = why
        # A worker's tasks share one connection, whatever was opened before.
        if self._store is not None:
            self._store.shrink(1)

    def thaw(self) -> None:
        """The worker has ended; what comes next may register again."""
        self._frozen_by = None

    @property
    def is_running(self) -> bool:
        """Does a worker of this app run in this process?"""
        return self._frozen_by is not None

    # Using

    @property
    def settings(self) -> config.Settings:
        """The settings, read once at first use."""
        if self._settings is None:
            self._settings = self._read_settings()
        return self._settings

    @property
    def store(self) -> Store:
        """The queue, opened at first use."""
        if self._store is None:
            with self._opening:
                if self._store is None:
                    size = self.settings.connections if self._frozen_by is None else 1
                    self._store = self.open_store("pgcron", size=size)
        return self._store

    def open_store(self, application: str, *, size: int) -> Store:
        """A store of its own, with up to `size` connections that show as `application`."""
        if self.settings.is_memory:
            return self._open_memory()
        from .pg.address import address
        from .pg.store import PostgresStore

        settings = self.settings
        where = address(settings.url(), application=application)
        direct = settings.direct_url and address(settings.direct_url, application="pgcron listener")
        return PostgresStore(where, settings.schema, direct=direct or None, size=size, rings=settings.notify)

    def enqueue(self, jobs: Sequence[NewJob], conn: Any = None) -> list[int]:
        """Insert jobs: in a transaction of our own, or in the caller's on `conn`."""
        if conn is None:
            ids = self.store.enqueue(jobs)
        elif self.settings.is_memory:
            if self.stage is None:
                raise OptionError("conn=...: the memory store has no transactions; pass a conn only with PostgreSQL")
            ids = self.store.enqueue(jobs)
        else:
            from .pg.callers import enqueue_on

            ids = enqueue_on(conn, jobs, schema=self.settings.schema, rings=self.settings.notify)
        if self.events.wants("job_enqueued"):
            for job, job_id in zip(jobs, ids, strict=True):
                self.events.send("job_enqueued", task=job.task, job_id=job_id)
        if self.stage is not None:
            self.stage.enqueued_on(conn)
        return ids

    def complete(self, conn: Any, job_id: int, claim: uuid.UUID, result: str) -> bool:
        """End a running job on the caller's connection; `current_job.complete` is the way to say it."""
        if self.settings.is_memory:
            return cast("MemoryStore", self.store).complete(job_id, claim, result)
        from .pg.callers import complete_on

        return complete_on(conn, job_id, claim, result, schema=self.settings.schema)

    def headers_for(self, task: Task[..., Any], given: Mapping[str, str]) -> Mapping[str, str]:
        """The headers a job travels with: the caller's, and what `job_enqueuing` receivers add."""
        if not self.events.wants("job_enqueuing"):
            return given
        headers = dict(given)
        self.events.send("job_enqueuing", task=task.name, headers=headers)
        try:
            return header_texts(headers)
        except OptionError:
            logger.exception("a receiver of job_enqueuing added what is no header; the job goes without")
            return given

    def handle(self, job_id: int) -> Handle[Any]:
        """A handle for a job whose id you kept."""
        return Handle(self, job_id)

    @property
    def definitions(self) -> dict[str, str]:
        """The declared schedules as the database keeps them."""
        return {name: schedule.dumps() for name, schedule in self.declared.items()}

    def find_task(self, name: str) -> Task[..., Any]:
        """The task of that name."""
        try:
            return self.tasks[name]
        except KeyError:
            raise UnknownTask(
                f"no task named {name!r} on app {self.name!r}{near_miss(name, self.tasks) or '.'}"
                " Import the module that defines it before starting the worker."
            ) from None

    def testing(
        self,
        *,
        at: str | datetime | None = None,
        tz: str = "UTC",
        clock: Any = None,
        inline: bool = False,
        raises: bool = False,
        schedules: bool = True,
        **settings: Any,
    ) -> Stage:
        """This app under test: `with app.testing(at="2026-03-28 12:00") as t: ...`. Afterwards it is as it was.

        Its queue is in memory, where `at` is the time and `t.advance()` lets it pass; or in the database at `url=`.
        `inline` runs jobs as they are enqueued; `raises` brings out what tasks raise. `settings` as for `PgCron`.
        """
        from .testing.stage import Stage

        return Stage(
            self, at=at, tz=tz, clock=clock, inline=inline, raises=raises, schedules=schedules, **settings
        )

    @contextlib.contextmanager
    def under_test(self, stage: Stage, settings: Mapping[str, Any]) -> Iterator[None]:
        """Stand on `stage`, with a queue of its own and these settings before all others. Then it is as it was."""
        before = self._store, self._settings
        self._stand(stage, ("testing()", settings), None, None)
        try:
            yield
        finally:
            opened = self._store
            self._stand(None, ("", {}), *before)
            if opened is not None:
                opened.close()

    def reread_settings(self) -> None:
        """Read the settings anew at the next use. Until then they may be set up, as if nobody had read them."""
        self._settings = None

    def run_worker(self, **options: Any) -> None:
        """Run a worker until it is told to stop, then exit the process. See `process.WorkerOptions`."""
        from . import process

        process.leave(process.run_worker(self, **options))

    def close(self) -> None:
        """Close the connections this app has opened; it opens new ones if it is used again."""
        if self._store is not None and not self.settings.is_memory:
            store, self._store = self._store, None
            store.close()

    def reset(self) -> None:
        """Close, and read the settings anew at the next use. Tasks and hooks stay; a queue in memory is gone."""
        self.close()
        self._store = self._settings = None

    def _stand(
        self,
        stage: Stage | None,
        overruling: tuple[str, Mapping[str, Any]],
        store: Store | None,
        settings: config.Settings | None,
    ) -> None:
        self.stage, self._overruling = stage, overruling
        self._store, self._settings = store, settings

    def _read_settings(self) -> config.Settings:
        source, configured = self._configured or ("", {})
        settings = config.from_environment().with_values(configured, source).with_values(self._given, repr(self))
        by, overruling = self._overruling
        return settings.with_values(overruling, by)

    def _add(self, task: Task[..., Any]) -> None:
        earlier = self.tasks.get(task.name)
        if earlier is not None and _place(earlier.function) != _place(task.function):
            raise OptionError(
                f"two tasks are named {task.name!r}: {_place(earlier.function)} and {_place(task.function)};"
                " give one of them name=..."
            )
        self.tasks[task.name] = task

    def _check_open(self, what: str) -> None:
        if self._frozen_by is not None:
            raise SetupFinished(
                f"cannot {what} on {self!r}: {self._frozen_by}. Import the module that does this before that."
            )

    def _open_memory(self) -> Store:
        from .memory import MemoryStore

        if self._store is not None:
            return self._store
        if self.stage is not None:
            self._store = self.stage.store
            return self._store
        if os.environ.get("DYNO"):
            warnings.warn(
                f"{self!r} keeps its queue in memory, on what looks like a production host: jobs are lost when the"
                " process ends. Set PGCRON_DATABASE_URL.",
                RuntimeWarning,
                stacklevel=4,
            )
        self._store = MemoryStore()
        return self._store


def task_name(function: Callable[..., Any]) -> str:
    """`module.function`, and never `__main__`: a script's tasks carry the name it would be imported by."""
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
        raise OptionError("a lambda has no name to be found by; define a function, or give it name=...")
    return f"{module}.{qualified}"


def _place(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
