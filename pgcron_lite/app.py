"""The app: registry of tasks and hooks, filled while your modules are imported. It opens the queue at first use.

A process may have several apps. Constructing one stores its settings and does nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypedDict, TypeVar, Unpack, cast, overload

from . import config, interfaces
from .errors import OptionError, SetupFinished, UnknownTask, near_miss
from .events import Events
from .handle import Handle
from .job import Job, NewJob
from .retry import Backoff, Duration, RetryOn
from .schedules.api import DeclaredOptions, Schedules, When, declare
from .schedules.schedule import Schedule
from .schedules.timezones import TimeZone
from .schedules.timing import Cron, Every
from .task import Task, check_function, header_texts, task_options, written_name

if TYPE_CHECKING:
    from .memory import MemoryStore
    from .store import Store
    from .testing.harness import Harness

logger = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

class RunOptions(TypedDict, total=False):
    """The options of `PgCron.run_worker`. Those left out come from the app's settings."""

    queues: str | Sequence[str] | None
    slots: int | None
    gevent: bool
    processes: int
    drain: bool
    max_seconds: float | None
    grace: Duration | None
    fail_fast: bool
    scheduler: bool
    jobs: bool
    log_format: Literal["text", "logfmt", "json"] | None
    log_level: str | None


Around = Callable[[Job], Iterator[None]]

# The task that `PgCron.enable_shell` registers.
SHELL = "pgcron.shell"


class PgCron:
    """Tasks, hooks, and the queue they belong to.

    `url` and every other setting may be left to the environment (see `config.Settings`). `memory://` keeps the queue
    in this process, for tests.
    """

    def __init__(self, name: str = "app", *, url: str | None = None, **settings: Any) -> None:
        # A URL passed by mistake is not repeated here or in `repr`: it may contain a password.
        if not isinstance(name, str) or "://" in name:
            raise OptionError(
                "PgCron(...): the first argument is the app's name; the database is url=..., as in"
                " PgCron('shop', url='postgresql://...')"
            )
        self.name = name
        self.tasks: dict[str, Task[..., Any]] = {}
        self.events = Events()
        self.arounds: list[Around] = []
        # Schedules declared in code. `schedules` reads the database, where these take effect at the next worker start.
        self.declared: dict[str, Schedule] = {}
        self.schedules = Schedules(self)
        self._given: dict[str, Any] = {"database_url": url, **settings}
        config.Settings().with_values(self._given, f"PgCron({name!r})")
        self._configured: tuple[str, dict[str, Any]] | None = None
        self._settings: config.Settings | None = None
        self._store: Store | None = None
        # The databases of callers' connections whose environment label has been checked.
        self._checked: set[str] = set()
        self._opening = threading.Lock()
        self._frozen_by: str | None = None
        # The active test harness, and its settings, which take precedence over all others.
        self.harness: interfaces.Harness | None = None
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
        """Run the decorated function or task by a cron expression or an interval: "*/5 * * * *" or "every 10s"."""

        def register(target: Callable[P, R] | Task[P, R]) -> Task[P, R]:
            self._check_open("declare a schedule")
            return declare(self, target, when, tz, options)

        return register

    def enable_shell(self, *, env: Iterable[str] = (), **options: Any) -> Task[..., dict[str, Any]]:
        """Register the task `pgcron.shell`, which runs a shell command. Options as for `@app.task`.

        A command gets only a few variables of the worker's environment (PATH, HOME and similar, not DATABASE_URL), and
        those that `env` names, as in `env=["BACKUP_DIR"]`.

        Nothing else registers it. Once it is registered, anyone who may write to the queue can run any command as the
        worker's user. A failed command is not retried unless `max_attempts` is given.
        """
        from .contrib.crontab import shell

        return self.task(name=SHELL, **{"max_attempts": 1, **options})(shell.passing(env))

    def on(self, event: str) -> Callable[[F], F]:
        """Call the decorated function whenever `event` has happened; `events.EVENTS` lists the values it may take."""

        def register(receiver: F) -> F:
            self._check_open(f"listen to {event!r}")
            self.events.add(event, receiver)
            return receiver

        return register

    def around(
        self, hook: Callable[[Job], Iterator[None]], /, *, outermost: bool = False
    ) -> Callable[[Job], Iterator[None]]:
        """Run the decorated generator around every job: up to its `yield` before, the rest after, errors included.

        The hook added first is the outermost. `outermost=True` is for a hook that the others need, such as an app
        context: it goes around all of them.
        """
        import inspect

        self._check_open("add an around hook")
        if not inspect.isgeneratorfunction(hook):
            raise OptionError(f"@app.around expects a generator function with one yield, got {hook!r}")
        try:
            inspect.signature(hook).bind(None)
        except TypeError:
            raise OptionError(
                f"@app.around calls {hook.__name__}{inspect.signature(hook)} with one argument, the job:"
                f" def {hook.__name__}(job): ..."
            ) from None
        self.arounds.insert(0 if outermost else len(self.arounds), hook)
        return hook

    def configure(self, source: str = "configure()", **settings: Any) -> None:
        """Set settings after construction and before the first use. Arguments of the constructor take precedence.

        A second call replaces the first.
        """
        config.Settings().with_values(settings, source)
        earlier, self._configured = self._configured, (source, settings)
        if self._settings is not None and self._settings != self._read_settings():
            self._configured = earlier
            raise SetupFinished(
                f"{source} comes too late: {self!r} has been used already, with other settings. Set them before its"
                " first use."
            )

    def freeze(self, why: str) -> None:
        """Refuse further registrations: a worker has published the tasks it knows."""
        self._frozen_by = why
        # A worker's tasks share one connection, however many are open.
        if self._store is not None:
            self._store.shrink(1)

    def thaw(self) -> None:
        """Allow registrations again, after the worker has ended."""
        self._frozen_by = None

    @property
    def is_running(self) -> bool:
        """Return True while a worker of this app runs in this process."""
        return self._frozen_by is not None

    # Using

    @property
    def settings(self) -> config.Settings:
        """The settings, read once at first use."""
        if self._settings is None:
            self._settings = self._read_settings()
        return self._settings

    def source_of(self, setting: Literal["database_url", "direct_url"]) -> str:
        """Return the source of a URL, for messages: an argument or the name of a variable."""
        by, overruling = self._overruling
        source, configured = self._configured or ("", {})
        if overruling.get(setting):
            return by
        if self._given.get(setting):
            return f"PgCron({self.name!r}, {'url' if setting == 'database_url' else setting}=...)"
        if configured.get(setting):
            return source
        return config.database_source() if setting == "database_url" else config.direct_source()

    @property
    def store(self) -> Store:
        """The queue, opened at first use."""
        if self._store is None:
            with self._opening:
                if self._store is None:
                    size = self.settings.connections if self._frozen_by is None else 1
                    self._store = self.open_store("pgcron", size=size, checks_label=True)
        return self._store

    def open_store(self, application: str, *, size: int, checks_label: bool = False) -> Store:
        """Return a new store with up to `size` connections, whose application name is `application`.

        With `checks_label`, each new connection refuses a database of another environment. A worker checks it once,
        when it starts.
        """
        if self.settings.is_memory:
            return self._open_memory()
        from .pg.store import PostgresStore
        from .pg.url import parse_url

        settings = self.settings
        where = parse_url(settings.url(), application=application, source=self.source_of("database_url"))
        direct = settings.direct_url and parse_url(
            settings.direct_url, application="pgcron listener", source=self.source_of("direct_url")
        )
        return PostgresStore(
            where, settings.schema, direct=direct or None, size=size, rings=settings.notify,
            check_label=settings.check_label if checks_label else None,
        )  # fmt: skip

    def enqueue(self, jobs: Sequence[NewJob], conn: Any = None) -> list[int]:
        """Insert jobs in a separate transaction, or in the caller's on `conn`."""
        if isinstance(cast("object", jobs), str):
            raise OptionError(
                f"app.enqueue({jobs!r}, ...) takes jobs, not a name. Call the task: some_task.delay(...)."
                " A producer that cannot import it runs: select pgcron.enqueue('name', '{\"argument\": 1}')."
            )
        if conn is None:
            ids = self.store.enqueue(jobs)
        elif self.settings.is_memory:
            if self.harness is None:
                raise OptionError("conn=...: the memory store has no transactions; pass a conn only with PostgreSQL")
            ids = self.store.enqueue(jobs)
        else:
            from .pg.caller_transaction import check_database, enqueue_on

            check_database(conn, self._checked, self.settings.check_label, schema=self.settings.schema)
            ids = enqueue_on(conn, jobs, schema=self.settings.schema, rings=self.settings.notify)
        if self.events.wants("job_enqueued"):
            for job, job_id in zip(jobs, ids, strict=True):
                self.events.send("job_enqueued", task=job.task, job_id=job_id)
        if self.harness is not None:
            self.harness.enqueued_on(conn)
        return ids

    def complete(self, conn: Any, job_id: int, claim: uuid.UUID, result: str) -> bool:
        """End a running job on the caller's connection. Tasks call `current_job.complete`."""
        if self.settings.is_memory:
            return cast("MemoryStore", self.store).complete(job_id, claim, result)
        from .pg.caller_transaction import complete_on

        return complete_on(conn, job_id, claim, result, schema=self.settings.schema)

    def headers_for(self, task: interfaces.RegisteredTask, given: Mapping[str, str]) -> Mapping[str, str]:
        """Return the headers of a job: the caller's, and those that `job_enqueuing` receivers add."""
        if not self.events.wants("job_enqueuing"):
            return given
        headers = dict(given)
        self.events.send("job_enqueuing", task=task.name, headers=headers)
        try:
            return header_texts(headers)
        except OptionError:
            logger.exception("a receiver of job_enqueuing added an invalid header; no added header is stored")
            return given

    def handle(self, job_id: int) -> Handle[Any]:
        """Return a handle for a job whose id you kept."""
        if not isinstance(job_id, int) or isinstance(job_id, bool):
            raise OptionError(f"app.handle({job_id!r}): expected the job's id as a whole number, which is handle.id")
        return Handle(self, job_id)

    @property
    def definitions(self) -> dict[str, str]:
        """The declared schedules as the database stores them."""
        return {name: schedule.dumps() for name, schedule in self.declared.items()}

    def find_task(self, name: str) -> Task[..., Any]:
        """Return the task called `name`, or raise `UnknownTask`."""
        try:
            return self.tasks[name]
        except KeyError:
            raise UnknownTask(
                f"no task named {name!r} on app {self.name!r}{near_miss(name, self.tasks) or '.'}"
                " Import the module that defines it before starting the worker."
            ) from None

    @contextlib.contextmanager
    def under_test(self, harness: interfaces.Harness, settings: Mapping[str, Any]) -> Iterator[None]:
        """Attach `harness`, a new queue and `settings`, which take precedence. Restore the app at the end."""
        before = self._store, self._settings
        self._stand(harness, ("testing()", settings), None, None)
        try:
            yield
        finally:
            opened = self._store
            self._stand(None, ("", {}), *before)
            if opened is not None:
                opened.close()

    def reread_settings(self) -> None:
        """Discard the settings that were read. Until the next use reads them again, `configure` may change them."""
        self._settings = None

    def close(self) -> None:
        """Close the connections this app has opened; it opens new ones if it is used again."""
        if self._store is not None and not self.settings.is_memory:
            store, self._store = self._store, None
            store.close()

    def reset(self) -> None:
        """Close, and read the settings again at the next use. Tasks and hooks stay; a queue in memory is discarded."""
        self.close()
        self._store = self._settings = None

    # Doors. They lead to modules that import this one, and so import them when they are called. tests/test_layers.py
    # lists these three, and refuses any other import that closes a circle.

    def init_app(self, flask_app: Any) -> None:
        """Connect this app with a Flask app: settings from its config, an app context around every job."""
        from .contrib import flask

        flask.init_app(self, flask_app)

    def testing(
        self,
        *,
        at: str | datetime | None = None,
        tz: TimeZone = "UTC",
        clock: Any = None,
        inline: bool = False,
        raises: bool = False,
        schedules: bool = True,
        **settings: Any,
    ) -> Harness:
        """Put this app under test for a block: `with app.testing(at="2026-03-28 12:00") as t: ...`.

        The queue is in memory, with a clock that starts at `at` and that `t.advance()` moves; or in the database at
        `url=`. `inline` runs jobs as they are enqueued. `raises` raises the exceptions of tasks. `settings` as for
        `PgCron`. The end of the block restores the app.
        """
        from .testing.harness import Harness

        return Harness(
            self, at=at, tz=tz, clock=clock, inline=inline, raises=raises, schedules=schedules, **settings
        )

    def run_worker(self, **options: Unpack[RunOptions]) -> int:
        """Run a worker until it is stopped; return the exit code: `raise SystemExit(app.run_worker())`.

        The options are those of `pgcron worker`: `queues` ("mail,reports" or a list), `slots`, `grace`, `gevent`,
        `processes`, `drain` (end when nothing is due any more), `max_seconds`, `fail_fast` (raise
        `DatabaseUnavailable` instead of waiting for the database), `scheduler=False` (leave the schedules to others),
        `jobs=False` (keep the schedules and run nothing), `log_format` ("text", "logfmt" or "json") and `log_level`.

        It logs to standard error unless the program has set up logging, or always if `log_format` is given. SIGTERM,
        SIGHUP and Ctrl-C stop it in the main thread. In another thread signals do not reach it, so give it `drain` or
        `max_seconds`; it also stops when the main thread has ended. It never ends the process. A process has one
        worker at a time, and a job cannot run one.
        """
        from .worker import logs, process

        for option in options:
            if option not in RunOptions.__annotations__:
                raise OptionError(
                    f"run_worker() has no option {option!r}{near_miss(option, RunOptions.__annotations__)}"
                )
        given: dict[str, Any] = {**options}
        logs.set_up_for_program(given.pop("log_format", None), given.pop("log_level", None))
        return process.run_worker(self, **given)

    # What these share

    def _stand(
        self,
        harness: interfaces.Harness | None,
        overruling: tuple[str, Mapping[str, Any]],
        store: Store | None,
        settings: config.Settings | None,
    ) -> None:
        self.harness, self._overruling = harness, overruling
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
                f"cannot {what} on {self!r}: {self._frozen_by}. Import the module that does this earlier."
            )

    def _open_memory(self) -> Store:
        from .memory import MemoryStore

        if self._store is not None:
            return self._store
        if self.harness is not None:
            self._store = self.harness.store
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
    code = getattr(function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)
