"""The app: registry of tasks and hooks, filled while your modules are imported. It opens the queue at first use.

A process may have several apps. Constructing one stores its settings and does nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, cast

from . import config, interfaces
from .admin import Jobs, Queues
from .blueprint import TaskBlueprint
from .calls import CallOptions, GivenOptions, checked_call, job_by_name, with_options
from .checks import checked_id, header_texts, written_name
from .config import SettingValues
from .declarations import Declarations, task_name
from .errors import OptionError, SetupFinished, UnknownTask
from .events import EventName, Events
from .handle import Handle
from .hints import APP_METHODS, near_miss, refuse_attribute
from .job import Job, NewJob
from .retry import Duration
from .schedules.api import Schedules
from .schedules.timezones import TimeZone
from .task import Task

if TYPE_CHECKING:
    from .memory import MemoryStore
    from .store import Store
    from .testing.harness import Harness

logger = logging.getLogger(__name__)

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


class PgCron(Declarations):
    """Tasks, hooks, and the queue they belong to.

    `url` and every other setting may be left to the environment, as in PGCRON_DATABASE_URL. `memory://` keeps the
    queue in this process, for tests.
    """

    def __init__(self, name: str = "app", *, url: str | None = None, **settings: Unpack[SettingValues]) -> None:
        # A URL passed by mistake is not repeated here or in `repr`: it may contain a password.
        if not isinstance(name, str) or "://" in name:
            raise OptionError(
                "PgCron(...): the first argument is the app's name; the database is url=..., as in"
                " PgCron('shop', url='postgresql://...')"
            )
        super().__init__()
        self.name = name
        self.events = Events()
        self.arounds: list[Around] = []
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
        self._harness: interfaces.Harness | None = None
        self._overruling: tuple[str, Mapping[str, Any]] = ("", {})

    def __repr__(self) -> str:
        return f"<PgCron {self.name!r}>"

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            refuse_attribute(self, name, "an app", "app", APP_METHODS)

    # Cached properties and not attributes, so that mocks with `spec=PgCron` have them.

    @functools.cached_property
    def schedules(self) -> Schedules:
        """The schedules in the database."""
        return Schedules(self)

    @functools.cached_property
    def jobs(self) -> Jobs:
        """The jobs of the queue, live and ended."""
        return Jobs(lambda: self.store)

    @functools.cached_property
    def queues(self) -> Queues:
        """The queues."""
        return Queues(lambda: self.store)

    # Setting up

    def register(self, blueprint: TaskBlueprint) -> None:
        """Add the tasks and schedules of a blueprint, including those that it declares later."""
        if not isinstance(blueprint, TaskBlueprint):
            raise OptionError(
                f"app.register({blueprint!r}): expected a TaskBlueprint, as in app.register(mail). A single function is"
                " registered with @app.task"
            )
        blueprint._bind(self)

    def enable_shell(self, *, env: Iterable[str] = (), **options: Any) -> Task[..., dict[str, Any]]:
        """Register the task `pgcron.shell`, which runs a shell command. Options as for `@app.task`.

        A command gets only a few variables of the worker's environment (PATH, HOME and similar, not DATABASE_URL), and
        those that `env` names, as in `env=["BACKUP_DIR"]`.

        Nothing else registers it. Once it is registered, anyone who may write to the queue can run any command as the
        worker's user. A failed command is not retried unless `max_attempts` is given.
        """
        from .contrib.crontab import shell

        return self.task(name=SHELL, **{"max_attempts": 1, **options})(shell.passing(env))

    def on(self, event: EventName) -> Callable[[F], F]:
        """Call the decorated function whenever `event` has happened, with the values that it names as parameters."""

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

    def configure(self, source: str = "configure()", **settings: Unpack[SettingValues]) -> None:
        """Set settings after construction and before the first use. Arguments of the constructor take precedence.

        A second call replaces the first.
        """
        config.Settings().with_values(settings, source)
        earlier, self._configured = self._configured, (source, {**settings})
        if self._settings is not None and self._settings != self._read_settings():
            self._configured = earlier
            raise SetupFinished(
                f"{source} comes too late: {self!r} has been used already, with other settings. Set them before its"
                " first use."
            )

    def _freeze(self, why: str) -> None:
        """Refuse further registrations: a worker has published the tasks it knows."""
        self._frozen_by = why
        # A worker's tasks share one connection, however many are open.
        if self._store is not None:
            self._store.shrink(1)

    def _thaw(self) -> None:
        """Allow registrations again, after the worker has ended."""
        self._frozen_by = None

    @property
    def _is_running(self) -> bool:
        """Return True while a worker of this app runs in this process."""
        return self._frozen_by is not None

    # Using

    @property
    def settings(self) -> config.Settings:
        """The settings, read once at first use."""
        if self._settings is None:
            self._settings = self._read_settings()
        return self._settings

    def _source_of(self, setting: Literal["database_url", "direct_url"]) -> str:
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
                    self._store = self._open_store("pgcron", size=size, checks_label=True)
        return self._store

    def _open_store(self, application: str, *, size: int, checks_label: bool = False) -> Store:
        """Return a new store with up to `size` connections, whose application name is `application`.

        With `checks_label`, each new connection refuses a database of another environment. A worker checks it once,
        when it starts.
        """
        if self.settings.is_memory:
            return self._open_memory()
        from .pg.store import PostgresStore
        from .pg.url import parse_url

        settings = self.settings
        where = parse_url(settings.url(), application=application, source=self._source_of("database_url"))
        direct = settings.direct_url and parse_url(
            settings.direct_url, application="pgcron listener", source=self._source_of("direct_url")
        )
        return PostgresStore(
            where, settings.schema, direct=direct or None, size=size, rings=settings.notify,
            check_label=settings.check_label if checks_label else None,
        )  # fmt: skip

    def _enqueue(self, jobs: Sequence[NewJob], conn: Any = None) -> list[int]:
        """Insert jobs in a separate transaction, or in the caller's on `conn`."""
        if conn is None:
            ids = self.store.enqueue(jobs)
        elif self.settings.is_memory:
            if self._harness is None:
                raise OptionError("conn=...: the memory store has no transactions; pass a conn only with PostgreSQL")
            ids = self.store.enqueue(jobs)
        else:
            from .pg.caller_transaction import check_database, enqueue_on

            check_database(conn, self._checked, self.settings.check_label, schema=self.settings.schema)
            ids = enqueue_on(conn, jobs, schema=self.settings.schema, rings=self.settings.notify)
        if self.events.wants("job_enqueued"):
            for job, job_id in zip(jobs, ids, strict=True):
                self.events.send("job_enqueued", task=job.task, job_id=job_id)
        if self._harness is not None:
            self._harness.enqueued_on(conn)
        return ids

    def _complete(self, conn: Any, job_id: int, claim: uuid.UUID, result: str) -> bool:
        """End a running job on the caller's connection. Tasks call `current_job.complete`."""
        if self.settings.is_memory:
            return cast("MemoryStore", self.store).complete(job_id, claim, result)
        from .pg.caller_transaction import complete_on

        return complete_on(conn, job_id, claim, result, schema=self.settings.schema)

    def _headers_for(self, task: interfaces.NamedTask, given: Mapping[str, str]) -> Mapping[str, str]:
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
        return Handle(self, checked_id(job_id, "handle"))

    def send(
        self,
        task: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        **options: Unpack[GivenOptions],
    ) -> Handle[Any]:
        """Enqueue a task by its name: `app.send("shop.add", args=[1, 2], priority=5)`. Options as for `Task.options`.

        The task need not be registered in this process. If it is not, its options are the defaults (queue "default",
        five attempts), whatever its decorator says in the workers' code, its arguments are not checked, and they are
        given either by position or by name.
        """
        if isinstance(task, Task):
            raise OptionError(f"send({task!r}): expected a task's name, here {task.name!r}; or call its delay()")
        call = with_options(CallOptions(), "send()", options)
        if written_name(task, "task") in self.tasks:
            args, kwargs = checked_call(args, kwargs)
            return self.tasks[task].options(**options).delay(*args, **kwargs)
        return Handle(self, self._enqueue([job_by_name(self, task, args, kwargs, call)], call.conn)[0])

    def _check_declared(self) -> None:
        """Raise `OptionError` if a schedule runs a task that this app does not have."""
        for schedule in self.declared.values():
            if schedule.task not in self.tasks:
                raise OptionError(
                    f"schedule {schedule.name!r} runs the task {schedule.task!r}, which is not registered on {self!r}."
                    " If it is a task of a blueprint: app.register(...)"
                )

    @property
    def _definitions(self) -> dict[str, str]:
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
    def _under_test(self, harness: interfaces.Harness, settings: Mapping[str, Any]) -> Iterator[None]:
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

    def _reread_settings(self) -> None:
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
        **settings: Unpack[SettingValues],
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
        self._harness, self._overruling = harness, overruling
        self._store, self._settings = store, settings

    def _read_settings(self) -> config.Settings:
        source, configured = self._configured or ("", {})
        settings = config.from_environment().with_values(configured, source).with_values(self._given, repr(self))
        by, overruling = self._overruling
        return settings.with_values(overruling, by)

    def _bound_app(self) -> PgCron:
        return self

    def _name_for(self, function: Callable[..., Any]) -> str:
        return task_name(function)

    def _check_open(self, what: str) -> None:
        if self._frozen_by is not None:
            raise SetupFinished(
                f"cannot {what} on {self!r}: {self._frozen_by}. Import the module that does this earlier."
            )

    def _open_memory(self) -> Store:
        from .memory import MemoryStore

        if self._store is not None:
            return self._store
        if self._harness is not None:
            self._store = self._harness.store
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
