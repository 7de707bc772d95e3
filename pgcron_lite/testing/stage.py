"""The block `with app.testing() as t:`: your app on a queue of its own, and what a test can do with it.

The machines are those of production: a worker with its scheduler, reaper and quarantine. They stand on a clock that
the test moves, and their slots run jobs in the thread that asks for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

from .. import moment, plan
from ..errors import OptionError, PgCronError, WaitTimeout
from ..job import Job
from ..retry import Duration
from ..task import Due, Task
from ..ticks import TickView
from ..zone import zone
from . import commits
from .block import Block, settings_of
from .crank import Crank
from .here import Crash
from .names import Names
from .obstacle import obstacle
from .run import Run
from .timeline import Timeline
from .wanted import Wanted

if TYPE_CHECKING:
    from ..app import PgCron, Store
    from ..handle import Handle
    from ..ping import Kind

_ALL = 1_000_000
_REAL_TIME = (
    "in PostgreSQL the time is the server's, which no test can move. Leave out url= to travel in time in memory, or"
    " make jobs due with execute_after=."
)


class Stage:
    """An app under test. Made by `PgCron.testing`, and entered with `with`."""

    def __init__(
        self,
        app: PgCron,
        *,
        at: str | datetime | None = None,
        tz: str = "UTC",
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
        # On a server there is none.
        self._timeline: Timeline | None = None
        if in_force["database_url"].startswith("memory:"):
            self._timeline = Timeline(at, self._tz, clock)
        elif at is not None or clock is not None:
            raise OptionError(f"at= and clock=: {_REAL_TIME}")
        self._block = Block(app, self._timeline, in_force, schedules)
        self._names = Names(app, self._block)

    def __repr__(self) -> str:
        where = "on a database" if self._timeline is None else f"{self.now:%Y-%m-%d %H:%M:%S %Z}"
        return f"<{self.app.name!r} under test, {where}>"

    def __enter__(self) -> Stage:
        self._block.begin(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._block.end(is_in_trouble=error is not None)

    # Time

    @property
    def sent(self) -> list[tuple[str, Kind, str]]:
        """What monitors would have been told: url, kind and text."""
        return self._block.sent

    @property
    def now(self) -> datetime:
        """What time it is, on the clock of `tz`."""
        return (self.store.now() if self._timeline is None else self._timeline.look()).astimezone(self._tz)

    def advance(
        self, span: Duration | None = None, *, to: str | datetime | None = None, raises: bool | None = None
    ) -> list[Run]:
        """Let time pass: everything that falls due happens in its order, each at its moment. What ran is returned."""
        timeline = self._movable("advance()")
        with self._turn("advance()") as crank:
            crank.begin(raises=self._raises if raises is None else raises)
            self._block.passage.until(timeline.target(span, to))
            return crank.ran

    def takes(self, task: Task[..., Any] | str, span: Duration) -> None:
        """From now on, a run of `task` lasts so long on the clock of the test: it may be overtaken, and crash.

        The function is called when the run begins; how it ends is written when it is over.
        """
        self._movable("takes()")
        self._block.crank.spans[self._names.task(task).name] = moment.duration(span, name="takes")

    # Running

    def drain(self, *, raises: bool | None = None) -> list[Run]:
        """Run everything that is due, and what that enqueues, here and now. What ran is returned.

        What a task raises is dealt with as in production; with `raises=True` the first error comes out as well, once
        it has been.
        """
        with self._turn("drain()") as crank:
            crank.begin(raises=self._raises if raises is None else raises)
            crank.post.present("drain()")
            crank.turn()
            return crank.ran

    def runs(self, of: str | Task[..., Any] | None = None) -> list[Run]:
        """What has run in this block, the oldest first: of a schedule by its name, of a task, or all of it."""
        if of is None:
            return list(self._block.runs)
        if isinstance(of, str) and (of not in self.app.tasks or self._names.is_schedule(of)):
            name = self._names.schedule(of)
            return [run for run in self._block.runs if run.schedule == name]
        name = self._names.task(of).name
        return [run for run in self._block.runs if run.task == name]

    def ticks(self, schedule: str) -> list[TickView]:
        """What became of the ticks of a schedule that have come, the oldest first: those left out say why."""
        now, views = self.store.now(), self.store.ticks(self._names.schedule(schedule), limit=_ALL)
        return [view for view in reversed(views) if view.due_at <= now]

    # Looking

    def enqueued(
        self, task: Task[..., Any] | str | None = None, *, queue: str | None = None, schedule: str | None = None
    ) -> list[Job]:
        """The jobs that wait, due or not, the oldest first. Those that schedules have planned only by `schedule`."""
        name = None if task is None else self._names.task(task).name
        planned_by = None if schedule is None else self._names.schedule(schedule)
        waiting = self.store.find(states=["queued"], task=name, queue=queue, limit=_ALL)
        return [job for job in reversed(waiting) if job.headers.get(plan.SCHEDULE) == planned_by]

    def assert_enqueued(
        self,
        task: Task[..., Any] | str,
        /,
        *args: Any,
        execute_after: Due | None = None,
        queue: str | None = None,
        **kwargs: Any,
    ) -> Job:
        """A job of `task` waits: with these arguments, if any are given, in this queue, due then. Returns it.

        A duration as `execute_after` counts from when the job was enqueued. What schedules have planned does not count.
        """
        __tracebackhide__ = True
        wanted = Wanted(self._names.task(task), args, kwargs, execute_after, queue, self.app.settings.payload_limit)
        waiting = self.enqueued()
        for job in waiting:
            if wanted.fits(job):
                return job
        planned = [job for job in self.store.find(states=["queued"], limit=_ALL) if plan.SCHEDULE in job.headers]
        raise AssertionError(wanted.missed(waiting, planned, self._block.runs))

    # Workers

    def crash_worker(self) -> None:
        """The worker dies, as by kill -9, and another starts. What is due it has just claimed, and dies with it.

        What it held is rescued when it has been silent for a lease. Called from a task, that is where the worker dies.
        """
        self._movable("crash_worker()", "what a dead worker held is rescued after a lease, and ")
        if self._block.turns.serving is not None:
            raise Crash
        with self._turn("crash_worker()") as crank:
            crank.begin(raises=False)
            worker = crank.post.present("crash_worker()")
            worker.look_soon()
            worker.step()
            crank.post.bury()

    def stop_worker(self) -> None:
        """An outage, or a deploy: the worker stops and hands back what it runs. Ticks go by until another starts."""
        with self._turn("stop_worker()") as crank:
            crank.post.present("stop_worker()")
            crank.post.dismiss()

    def start_worker(self, *, raises: bool | None = None) -> list[Run]:
        """Start a worker again. It runs what is due, and makes up for what was missed as each schedule says."""
        with self._turn("start_worker()") as crank:
            if crank.post.worker is not None:
                raise PgCronError("start_worker(): there is a worker already; t.stop_worker() stops it")
            crank.post.hire()
            return self.drain(raises=raises)

    # What the app and its handles call

    @property
    def store(self) -> Store:
        return self._block.crank.store

    def enqueued_on(self, conn: Any) -> None:
        """Jobs have just been enqueued, in a transaction of the caller's if `conn` is one."""
        if not self._inline:
            return
        if conn is not None and self._timeline is None:
            commits.after(conn, self._run_inline)
        else:
            self._run_inline()

    def wait_for(self, handle: Handle[Any]) -> None:
        """Somebody wants the end of a job: run what is due, if that is not what is happening already."""
        job, turns = handle.job(), self._block.turns
        if not job.is_final and turns.serving is None and self._has_worker:
            self.drain()
            job = handle.job()
        if not job.is_final:
            why = turns.obstacle or obstacle(job, self.app, self._block.crank.post, self.store.now(), self._tz)
            raise WaitTimeout(f"{job} is still {job.state}, and in a test nobody else goes on with it: {why}")

    def _run_inline(self) -> None:
        # What a task enqueues runs after it: as in production, and however deep it goes.
        if self._block.turns.serving is None and self._has_worker:
            self.drain()

    # What these share

    @property
    def _has_worker(self) -> bool:
        return self._block.is_on and self._block.crank.post.worker is not None

    @contextlib.contextmanager
    def _turn(self, what: str) -> Iterator[Crank]:
        with self._block.turns.taken(what):
            crank = self._block.crank
            if self._timeline is not None:
                self._timeline.follow()
            yield crank

    def _movable(self, what: str, why: str = "") -> Timeline:
        """The time of the test, which `what` needs."""
        if self._timeline is None:
            raise OptionError(f"{what}: {why}{_REAL_TIME}")
        return self._timeline
