"""The test harness: `with app.testing() as t:` gives the app a queue for tests, which `t` controls.

It uses the parts of production: a worker with its scheduler, reaper and suspects. Their clock is moved by the test, and
their slots run jobs in the calling thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from .. import durations
from ..calls import Due
from ..errors import OptionError, PgCronError, UnknownTask, WaitTimeout
from ..job import Job
from ..retry import Duration
from ..schedules.schedule import SCHEDULE
from ..schedules.ticks import TickView
from ..schedules.timezones import TimeZone, zone
from ..task import Task
from . import after_commit
from .clock import ManualClock
from .driver import Driver
from .explain import ExpectedJob, explain_waiting
from .inline_slots import Crash
from .run_record import RunRecord
from .session import Session, settings_of

if TYPE_CHECKING:
    from ..app import PgCron
    from ..contrib.pings import PingKind
    from ..store import Store

_ALL = 1_000_000
_REAL_TIME = (
    "in PostgreSQL the time is the server's, which no test can move. Leave out url= for a queue in memory, whose clock"
    " can be moved, or make jobs due with execute_after=."
)


class Harness:
    """An app under test. Created by `PgCron.testing`, and entered with `with`."""

    def __init__(
        self,
        app: PgCron,
        *,
        at: str | datetime | None = None,
        tz: TimeZone = "UTC",
        clock: Any = None,
        inline: bool = False,
        raises: bool = False,
        schedules: bool = True,
        **settings: Any,
    ) -> None:
        self.app: Final = app
        self._inline, self._raises = inline, raises
        self._tz = ZoneInfo(zone(tz).name)
        in_force = settings_of(settings)
        # None for a queue on a server, which has its own clock.
        self._manual_clock: ManualClock | None = None
        if in_force["database_url"].startswith("memory:"):
            self._manual_clock = ManualClock(at, self._tz, clock)
        elif at is not None or clock is not None:
            raise OptionError(f"at= and clock=: {_REAL_TIME}")
        self._session = Session(app, self._manual_clock, in_force, schedules)
        self._names = NameLookup(app, self._session)

    def __repr__(self) -> str:
        where = "on a database" if self._manual_clock is None else f"{self.now:%Y-%m-%d %H:%M:%S %Z}"
        return f"<{self.app.name!r} under test, {where}>"

    def __enter__(self) -> Harness:
        self._session.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session.end(is_in_trouble=error is not None)

    # Time

    @property
    def sent(self) -> list[tuple[str, PingKind, str]]:
        """The pings that monitors would have received: url, kind and text."""
        return self._session.sent

    @property
    def now(self) -> datetime:
        """The time of the test, in `tz`."""
        return (self.store.now() if self._manual_clock is None else self._manual_clock.look()).astimezone(self._tz)

    def advance(
        self, span: Duration | None = None, *, to: str | datetime | None = None, raises: bool | None = None
    ) -> list[RunRecord]:
        """Move the clock, and run everything that becomes due in order, each at its time. Return the runs."""
        manual_clock = self._movable("advance()")
        with self._turn("advance()") as driver:
            driver.begin(raises=self._raises if raises is None else raises)
            self._session.time_driver.until(manual_clock.target(span, to))
            return driver.ran

    def takes(self, task: Task[..., Any] | str, span: Duration) -> None:
        """Let runs of `task` last for `span` on the clock of the test, so that they can overlap and crash.

        The function is called when the run begins; its outcome is written when the run ends.
        """
        self._movable("takes()")
        self._session.driver.spans[self._names.task(task).name] = durations.duration(span, name="takes")

    # Running

    def drain(self, *, raises: bool | None = None) -> list[RunRecord]:
        """Run everything that is due, and the jobs that this enqueues, in this thread. Return the runs.

        Errors of tasks are handled as in production; with `raises=True` the first one is raised too, after that.
        """
        with self._turn("drain()") as driver:
            driver.begin(raises=self._raises if raises is None else raises)
            driver.control.present("drain()")
            driver.turn()
            return driver.ran

    def runs(self, of: str | Task[..., Any] | None = None) -> list[RunRecord]:
        """Return the runs of this block, oldest first: of a schedule by its name, of a task, or all."""
        if of is None:
            return list(self._session.runs)
        if isinstance(of, str) and (of not in self.app.tasks or self._names.is_schedule(of)):
            name = self._names.schedule(of)
            return [run for run in self._session.runs if run.schedule == name]
        name = self._names.task(of).name
        return [run for run in self._session.runs if run.task == name]

    def ticks(self, schedule: str) -> list[TickView]:
        """Return the past ticks of a schedule, oldest first, with their outcomes and the reasons of skipped ones."""
        now, views = self.store.now(), self.store.ticks(self._names.schedule(schedule), limit=_ALL)
        return [view for view in reversed(views) if view.due_at <= now]

    # Inspecting

    def enqueued(
        self, task: Task[..., Any] | str | None = None, *, queue: str | None = None, schedule: str | None = None
    ) -> list[Job]:
        """Return the waiting jobs, due or not, oldest first. Jobs that a schedule has planned only with `schedule`."""
        name = None if task is None else self._names.task(task).name
        planned_by = None if schedule is None else self._names.schedule(schedule)
        waiting = self.store.find(states=["queued"], task=name, queue=queue, limit=_ALL)
        return [job for job in reversed(waiting) if job.headers.get(SCHEDULE) == planned_by]

    def assert_enqueued(
        self,
        task: Task[..., Any] | str,
        /,
        *args: Any,
        execute_after: Due | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> Job:
        """Assert that a job of `task` waits, with these arguments (if any), in this queue, due then. Return the job.

        A duration as `execute_after` counts from when the job was enqueued. Jobs planned by schedules do not count.
        """
        __tracebackhide__ = True
        wanted = ExpectedJob(
            self._names.task(task), args, kwargs, execute_after, queue, self.app.settings.payload_limit
        )
        waiting = self.enqueued()
        for job in waiting:
            if wanted.fits(job):
                return job
        planned = [job for job in self.store.find(states=["queued"], limit=_ALL) if SCHEDULE in job.headers]
        raise AssertionError(wanted.missed(waiting, planned, self._session.runs))

    # Workers

    def crash_worker(self) -> None:
        """Kill the worker, as by kill -9, right after it has claimed what is due, and start another.

        Its jobs are rescued when it has been silent for a lease. Called from a task, the worker dies at that point.
        """
        self._movable("crash_worker()", "the jobs of a dead worker are rescued after a lease, and ")
        if self._session.run_lock.serving is not None:
            raise Crash
        with self._turn("crash_worker()") as driver:
            driver.begin(raises=False)
            worker = driver.control.present("crash_worker()")
            worker.claim_soon()
            worker.step()
            driver.control.crash()

    def stop_worker(self) -> None:
        """Stop the worker, as in an outage or a deploy: it releases its jobs. Ticks pass until another starts."""
        with self._turn("stop_worker()") as driver:
            driver.control.present("stop_worker()")
            driver.control.stop()

    def start_worker(self, *, raises: bool | None = None) -> list[RunRecord]:
        """Start a worker again. It runs what is due, and catches up missed ticks by the policy of each schedule."""
        with self._turn("start_worker()") as driver:
            if driver.control.worker is not None:
                raise PgCronError("start_worker(): there is a worker already; t.stop_worker() stops it")
            driver.control.start()
            return self.drain(raises=raises)

    # What the app and its handles call

    @property
    def store(self) -> Store:
        return self._session.driver.store

    def enqueued_on(self, conn: Any) -> None:
        """Handle newly enqueued jobs, which are in the caller's transaction if `conn` has one."""
        if not self._inline:
            return
        if conn is not None and self._manual_clock is None:
            after_commit.after(conn, self._run_inline)
        else:
            self._run_inline()

    def wait_for(self, job_id: int) -> None:
        """Run what is due, unless a job is running already. Raise `WaitTimeout` if the job has not ended then."""
        handle, run_lock = self.app.handle(job_id), self._session.run_lock
        job = handle.job()
        if not job.is_final and run_lock.serving is None and self._has_worker:
            self.drain()
            job = handle.job()
        if not job.is_final:
            why = run_lock.obstacle or explain_waiting(
                job, self.app, self._session.driver.control, self.store.now(), self._tz
            )
            raise WaitTimeout(f"{job} is still {job.state}, and in a test no other worker runs it: {why}")

    def _run_inline(self) -> None:
        # The jobs that a task enqueues run after it, as in production, at any depth.
        if self._session.run_lock.serving is None and self._has_worker:
            self.drain()

    # What these share

    @property
    def _has_worker(self) -> bool:
        return self._session.is_on and self._session.driver.control.worker is not None

    @contextlib.contextmanager
    def _turn(self, what: str) -> Iterator[Driver]:
        with self._session.run_lock.taken(what):
            driver = self._session.driver
            if self._manual_clock is not None:
                self._manual_clock.follow()
            yield driver

    def _movable(self, what: str, why: str = "") -> ManualClock:
        """Return the clock of the test. Raise `OptionError` if there is none, since `what` needs one."""
        if self._manual_clock is None:
            raise OptionError(f"{what}: {why}{_REAL_TIME}")
        return self._manual_clock


class NameLookup:
    """Lookup of tasks and schedules by name, in an app and in the runs of its block."""

    def __init__(self, app: PgCron, session: Session) -> None:
        self._app = app
        self._session = session

    def task(self, asked: Task[..., Any] | str) -> Task[..., Any]:
        """Return the task of this app that `asked` names."""
        app = self._app
        name = asked.name if isinstance(asked, Task) else asked
        if not isinstance(name, str):
            raise OptionError(f"expected a task of {app!r} or its name, got {asked!r}")
        if name not in app.tasks and name in app.declared:
            meant = app.declared[name].task
            raise UnknownTask(f"no task named {name!r} on app {app.name!r}: that is a schedule, of task {meant!r}")
        return app.find_task(name)

    def schedule(self, name: str) -> str:
        """Return `name` if a schedule has it. Raise with the near miss if not."""
        if not isinstance(name, str):
            raise OptionError(f"expected the name of a schedule, got {name!r}")
        if not self.is_schedule(name) and not self._session.driver.store.schedules(name):
            self._app.schedules.get(name)  # raises UnknownSchedule
        return name

    def is_schedule(self, name: str) -> bool:
        """Return True if the code declares the schedule, or if it has run."""
        return name in self._app.declared or any(run.schedule == name for run in self._session.runs)
