"""The block `with app.testing() as t:`: your app on a queue of its own, and what a test can do with it.

The machines are those of production: a worker with its scheduler, reaper and quarantine. They stand on a clock that
the test moves, and their slots run jobs in the thread that asks for it. Time goes from event to event: to the next
moment at which a job is due, a tick is to be decided, a run ends, or a worker finds that another is dead.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import threading
import uuid
from datetime import datetime, timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, cast

from .. import moment, plan
from ..clock import Clock, Spread, monotonic
from ..config import Settings
from ..errors import DatabaseUnavailable, OptionError, PgCronError, WaitTimeout
from ..job import Job, WorkerCard
from ..memory import MemoryStore
from ..memory.agenda import earliest
from ..moment import LONGEST
from ..retry import Duration
from ..start import version
from ..task import Due, Task
from ..ticks import MARGIN, TickView
from ..worker import Worker
from . import asked, commits
from .here import Crash, Here, Noted, Run
from .timeline import Timeline

if TYPE_CHECKING:
    from ..app import PgCron, Store
    from ..handle import Handle
    from ..ping import Kind

# So many runs while no time passes are a circle.
MOST_AT_ONCE = 100_000
# Sooner than this is now: stopwatches are a little less exact than the clock on the wall.
SOON = 1e-4
_MOMENT = timedelta(microseconds=1)


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
        self.sent: list[tuple[str, Kind, str]] = []
        self._inline, self._raises, self._keeps_schedules = inline, raises, schedules
        self._settings = {"database_url": "memory://", "keep_done": LONGEST, "keep_failed": LONGEST, **_named(settings)}
        self._is_memory = str(self._settings["database_url"]).startswith("memory:")
        if not self._is_memory:
            self._settings.setdefault("direct_url", self._settings["database_url"])
            if at is not None or clock is not None:
                raise OptionError(f"at= and clock=: {_REAL_TIME}")
        self._timeline = Timeline(at, tz, clock)
        self._before: tuple[Any, ...] | None = None
        self._store: Store | None = None
        self._worker: Worker | None = None
        self._known_by_worker: tuple[str, tuple[str, ...], Settings | None] = ("", (), None)
        self._runs: list[Run] = []
        self._lasting: dict[str, timedelta] = {}
        # Whose turn it is to run jobs, and which one runs.
        self._turns = threading.RLock()
        self._serving: Job | None = None
        self._raised: BaseException | None = None
        self._at_once = 0
        # What we know of the moment at which something happens next.
        self._jobs_at: datetime | None = None
        self._ticks_at: datetime | None = None
        self._alarm_at: datetime | None = None
        self._is_calm = False
        self._wait = 0.0

    def __repr__(self) -> str:
        return f"<{self.app.name!r} under test, {self.now:%Y-%m-%d %H:%M:%S %Z}>"

    def __enter__(self) -> Stage:
        app = self.app
        if app.stage is not None:
            raise PgCronError(
                f"{app!r} is under test already: one app.testing() block of an app does not stand in another."
                " Use the t of the outer one, or end that first."
            )
        if app.is_running:
            raise PgCronError(f"{app!r} has a worker running in this process; testing() would take its queue away")
        self._before = (app._store, app._settings)
        app._overruling, app._settings, app._store = ("testing()", self._settings), None, None
        app.stage = self
        try:
            self._store = app._store = MemoryStore(self._timeline) if self._is_memory else app.store
            if not self._is_memory:
                app.store.check_schema()
            self._hire()
            # What the code under test is about to say, as `init_app` does, is not late: only we have read them.
            app._settings = None
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._turns:
            self._leave()

    # Time

    @property
    def now(self) -> datetime:
        """What time it is, on the clock of `tz`."""
        if not self._is_memory:
            return self.store.now().astimezone(self._timeline.tz)
        return (self._timeline.missing() or self._timeline()).astimezone(self._timeline.tz)

    def advance(
        self, span: Duration | None = None, *, to: str | datetime | None = None, raises: bool | None = None
    ) -> list[Run]:
        """Let time pass: everything that falls due happens in its order, each at its moment. What ran is returned."""
        if not self._is_memory:
            raise OptionError(f"advance(): {_REAL_TIME}")
        with self._turn("advance()"):
            first = len(self._runs)
            self._follow()
            self._pass_until(self._timeline.target(span, to), self._raises if raises is None else raises)
            return self._runs[first:]

    def takes(self, task: Task[..., Any] | str, span: Duration) -> None:
        """From now on, a run of `task` lasts so long on the clock of the test: it may be overtaken, and crash.

        The function is called when the run begins; how it ends is written when it is over.
        """
        if not self._is_memory:
            raise OptionError(f"takes(): {_REAL_TIME}")
        self._lasting[self._known(task)] = moment.duration(span, name="takes")

    # Running

    def drain(self, *, raises: bool | None = None) -> list[Run]:
        """Run everything that is due, and what that enqueues, here and now. What ran is returned.

        What a task raises is dealt with as in production; with `raises=True` the first error comes out as well, once
        it has been.
        """
        with self._turn("drain()"):
            first = len(self._runs)
            self._follow()
            if self._worker is None:
                raise PgCronError("drain(): the worker is stopped; t.start_worker() starts another")
            self._point_out()
            self._run_what_is_due(self._raises if raises is None else raises)
            return self._runs[first:]

    def runs(self, of: str | Task[..., Any] | None = None) -> list[Run]:
        """What has run in this block, the oldest first: of a schedule by its name, of a task, or all of it."""
        if of is None:
            return list(self._runs)
        if isinstance(of, Task):
            return [run for run in self._runs if run.task == of.name]
        if of not in self.app.declared and of not in {run.schedule for run in self._runs}:
            if of in self.app.tasks:
                return [run for run in self._runs if run.task == of]
            self.app.schedules.get(of)  # raises, and suggests the near miss
        return [run for run in self._runs if run.schedule == of]

    def ticks(self, schedule: str) -> list[TickView]:
        """What became of the ticks of a schedule that have come, the oldest first: those left out say why."""
        self.app.schedules.get(schedule)
        now = self.store.now()
        return [view for view in reversed(self.store.ticks(schedule, limit=1_000_000)) if view.due_at <= now]

    # Looking

    def enqueued(
        self, task: Task[..., Any] | str | None = None, *, queue: str | None = None, schedule: str | None = None
    ) -> list[Job]:
        """The jobs that wait, due or not, the oldest first. Those that schedules have planned only by `schedule`."""
        name = None if task is None else self._known(task)
        return [
            job for job in reversed(self.store.find(states=["queued"], task=name, queue=queue, limit=1_000_000))
            if job.headers.get(plan.SCHEDULE) == schedule
        ]

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
        found = self.app.find_task(self._known(task))
        wanted = asked.Wanted(found, args, kwargs, execute_after, queue, self.app.settings.payload_limit)
        here = self.enqueued()
        for job in here:
            if wanted.fits(job):
                return job
        raise AssertionError(wanted.missed(here, self._runs))

    # Workers

    def crash_worker(self) -> None:
        """The worker dies, as by kill -9, and another starts. What is due it has just claimed, and dies with it.

        What it held is rescued when it has been silent for a lease. Called from a task, that is where the worker dies.
        """
        if not self._is_memory:
            raise OptionError(f"crash_worker(): what a dead worker held is rescued after a lease, and {_REAL_TIME}")
        if self._serving is not None:
            raise Crash
        with self._turn("crash_worker()"):
            self._follow()
            worker = self._present("crash_worker()")
            worker.look_soon()
            worker.step()
            self._bury()

    def stop_worker(self) -> None:
        """An outage, or a deploy: the worker stops and hands back what it runs. Ticks go by until another starts."""
        with self._turn("stop_worker()"):
            self._present("stop_worker()")
            self._dismiss()

    def start_worker(self, *, raises: bool | None = None) -> list[Run]:
        """Start a worker again. It runs what is due, and makes up for what was missed as each schedule says."""
        with self._turn("start_worker()"):
            if self._worker is not None:
                raise PgCronError("start_worker(): there is a worker already; t.stop_worker() stops it")
            self._hire()
            return self.drain(raises=raises)

    # What the app and its handles call

    @property
    def store(self) -> Store:
        if self._store is None:
            raise PgCronError("this test block has ended; what it has run can be looked at, its queue is gone")
        return self._store

    def enqueued_on(self, conn: Any) -> None:
        """Jobs have just been enqueued, in a transaction of the caller's if `conn` is one."""
        if not self._inline:
            return
        if conn is not None and not self._is_memory:
            commits.after(conn, self._run_inline)
        else:
            self._run_inline()

    def wait_for(self, handle: Handle[Any]) -> None:
        """Somebody wants the end of a job: run what is due, if that is not what is happening already."""
        job = handle.job()
        if not job.is_final and self._serving is None and self._worker is not None:
            self.drain()
            job = handle.job()
        if job.is_final:
            return
        if self._serving is not None:
            why = f"{self._serving} waits for it, and it runs after that"
        elif self._worker is None:
            why = "the worker is stopped; t.start_worker() starts another"
        elif job.state == "running":
            why = "it lasts for longer; t.advance() lets time pass"
        elif job.execute_after > self.store.now():
            when = job.execute_after.astimezone(self._timeline.tz)
            why = f"it is due at {when:%Y-%m-%d %H:%M:%S %Z}; t.advance() lets time pass"
        else:
            why = "its task is not registered, its queue is paused, or it waits for another"
        raise WaitTimeout(f"{job} is still {job.state}, and in a test nobody else goes on with it: {why}")

    def _run_inline(self) -> None:
        # What a task enqueues runs after it: as in production, and however deep it goes.
        if self._serving is None and self._store is not None and self._worker is not None:
            self.drain()

    # One worker after the other

    def _hire(self) -> None:
        app, store = self.app, self.store
        definitions = app.definitions if self._keeps_schedules else {}
        generation = plan.generation(app.name, definitions)
        self._known_by_worker = generation, tuple(app.tasks), app.settings
        card = WorkerCard(
            uuid.uuid4(), "testing", os.getpid(), ("*",), app.settings.slots, "inline", version(), generation
        )
        if self._keeps_schedules:
            store.declare(app.name, generation, definitions)
        store.register(card)
        if self._is_memory:
            self._look_whether_calm()
        clock: Clock = self._timeline.seconds if self._is_memory else monotonic
        spread: Spread = self._spread if self._is_memory else random.uniform
        self._worker = Worker(
            app, store, card, plans_ticks=self._keeps_schedules, slots=Here, clock=clock, spread=spread,
            pings=Noted(self.sent),
        )
        if self._keeps_schedules:
            self._worker.scheduler.step()

    def _dismiss(self) -> None:
        worker, self._worker = self._worker, None
        if worker is None:
            return
        slots = _slots(worker)
        slots.give_up("released")
        worker.stop()
        worker.step()
        worker.release(0.0)
        worker.store.forget(worker.id)

    def _bury(self) -> None:
        """The worker is dead; another takes its place."""
        assert self._worker is not None
        _slots(self._worker).give_up("crashed")
        self._hire()

    def _leave(self) -> None:
        app = self.app
        try:
            if self._store is not None and not self._is_memory:
                # A fixture may have dropped the database already.
                with contextlib.suppress(DatabaseUnavailable):
                    self._dismiss()
        finally:
            if not self._is_memory:
                app.close()
            self._worker = self._store = None
            app.stage, app._overruling = None, ("", {})
            if self._before is not None:
                app._store, app._settings = self._before

    def _present(self, what: str) -> Worker:
        if self._worker is None:
            raise PgCronError(f"{what}: the worker is stopped; t.start_worker() starts another")
        return self._worker

    def _keep_up(self) -> None:
        """What has been registered meanwhile comes with a worker that knows it, as by a deploy."""
        definitions = self.app.definitions if self._keeps_schedules else {}
        known = plan.generation(self.app.name, definitions), tuple(self.app.tasks), self.app.settings
        if self._known_by_worker != known:
            self._dismiss()
            self._hire()

    # The loop

    def _turn(self, what: str) -> _Turn:
        if self._serving is not None and self._is_mine:
            way_out = ' Say how long a run lasts with t.takes(task, "20m").' if what == "advance()" else ""
            raise PgCronError(f"{what} within a task ({self._serving}): a task cannot turn its own worker.{way_out}")
        return _Turn(self)

    @property
    def _is_mine(self) -> bool:
        """Does this thread have the turn? Another's waits for its end."""
        return self._turns._is_owned()  # type: ignore[attr-defined,no-any-return]

    def _follow(self) -> None:
        """Begin a turn: take over the time to which the test has moved its own clock, and what it has registered."""
        self.store  # noqa: B018  says so if the block has ended
        self._jobs_at = self._ticks_at = self._alarm_at = None
        if (there := self._timeline.missing()) is not None:
            self._timeline.move(there)
        if self._worker is not None:
            self._keep_up()
        self._at_once = 0

    def _pass_until(self, end: datetime, raises: bool) -> None:
        self._point_out()
        while self._worker is not None:
            self._run_what_is_due(raises)
            following = self._next_moment()
            if following is None or following > end:
                break
            self._timeline.move(following)
            self._at_once = 0
            self._point_out()
        self._timeline.move(end)

    def _next_moment(self) -> datetime | None:
        """When something happens next that is not happening now."""
        worker = self._worker
        assert worker is not None
        slots = _slots(worker)
        store = cast(MemoryStore, self.store)
        self._jobs_at, self._alarm_at = store.next_moments(self._known_by_worker[1])
        self._ticks_at = store.next_planning if self._keeps_schedules else None
        if self._ticks_at is not None:
            # Ticks are decided ahead of time; half a minute later is as good, and often the moment of a run.
            self._ticks_at += MARGIN
        ends = slots.under_way[0][0] if slots.under_way else None
        self._look_whether_calm()
        turn = None
        if not self._is_calm:
            # Who watches for the dead, and who runs suspects, goes by a stopwatch of its own.
            turn = self._timeline() + max(_MOMENT, timedelta(seconds=min(self._wait, 60.0)))
        return earliest(self._jobs_at, self._ticks_at, self._alarm_at, ends, turn)

    def _point_out(self) -> None:
        """Have the worker look where something has fallen due, and everywhere when we have not looked ourselves."""
        now = self._timeline()
        if self._worker is None:
            return
        if self._jobs_at is None or self._jobs_at <= now:
            self._worker.look_soon()
        if self._ticks_at is not None and self._ticks_at <= now and self._keeps_schedules:
            self._worker.scheduler.due_at = 0.0
        if not self._is_calm or self._alarm_at is None or self._alarm_at <= now:
            self._worker.look_around_soon()

    def _look_whether_calm(self) -> None:
        """Is there nobody else, and no suspect? Then nothing happens but what is in the tables."""
        me = None if self._worker is None else self._worker.id
        self._is_calm = not cast(MemoryStore, self.store).is_disturbed(me)

    def _run_what_is_due(self, raises: bool) -> None:
        """Turn the worker until it has nothing more to do at this moment."""
        if self._worker is None:
            return
        asked_again = False
        while self._worker is not None:
            worker = self._worker
            slots = _slots(worker)
            if self._is_memory and slots.under_way:
                slots.end_until(self._timeline())
            self._wait = worker.step()
            if self._raised is not None and not slots.ended:
                # Now that it is written what became of the job.
                error, self._raised = self._raised, None
                if raises:
                    raise error
            if slots.waiting:
                asked_again = False
                # What was claimed together is written together, as a worker does.
                while slots.waiting and self._worker is worker and not (raises and self._raised):
                    self._serve(slots)
            elif slots.ended:
                continue
            elif not asked_again and (self._wait <= SOON or self._is_something_due()):
                # Once: what cannot be done now, as its queue is paused, stays due.
                asked_again = True
                worker.look_soon()
            elif self._has_undecided_ticks():
                worker.scheduler.due_at = 0.0
            elif self._is_memory or worker.drained():
                return

    def _is_something_due(self) -> bool:
        """Has the last job enqueued what nobody has told the worker of?"""
        return self._is_memory and cast(MemoryStore, self.store).is_something_due()

    def _has_undecided_ticks(self) -> bool:
        if not (self._is_memory and self._keeps_schedules):
            return False
        planning = cast(MemoryStore, self.store).next_planning
        return planning is not None and planning <= self._timeline()

    def _serve(self, slots: Here) -> None:
        """Run one job to its end, or to the end of its worker."""
        self._at_once += 1
        if self._at_once > MOST_AT_ONCE:
            raise PgCronError(
                f"{MOST_AT_ONCE:,} jobs have run and no time has passed: what is due enqueues, retries or snoozes"
                f" itself without a delay. The last was {self._runs[-1]}."
            )
        self._serving = slots.next_job
        try:
            run, ended = slots.serve(self._timeline() if self._is_memory else self.store.now(), self._lasts)
        finally:
            self._serving = None
        self._runs.append(run)
        if isinstance(run.error, Crash):
            run.state = "crashed"
            self._bury()
            self._worker.look_soon()  # type: ignore[union-attr]
        elif run.job.task not in self._lasting:
            slots.ends(run, ended)
        if run.is_trouble and self._raised is None and run.state != "crashed":
            self._raised = run.error

    def _spread(self, low: float, high: float) -> float:
        """How often a worker looks around on its own: as usual while others may need it, and otherwise when we say so.

        We know what falls due, and spend no time on moments that bring nothing.
        """
        return math.inf if self._is_calm else high

    def _lasts(self, job: Job) -> timedelta | None:
        return self._lasting.get(job.task)

    def _known(self, task: Task[..., Any] | str) -> str:
        return self.app.find_task(task.name if isinstance(task, Task) else task).name


class _Turn:
    """The thread that runs jobs; another that wants to waits."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def __enter__(self) -> None:
        self._stage._turns.acquire()

    def __exit__(self, *error: object) -> None:
        self._stage._turns.release()


def _slots(worker: Worker) -> Here:
    assert isinstance(worker.slots, Here)
    return worker.slots


def _named(given: dict[str, Any]) -> dict[str, Any]:
    """As they are called in `PgCron(...)`, where the database is `url`."""
    return {"database_url" if name == "url" else name: value for name, value in given.items()}


_REAL_TIME = (
    "in PostgreSQL the time is the server's, which no test can move. Leave out url= to travel in time in memory, or"
    " make jobs due with execute_after=."
)
