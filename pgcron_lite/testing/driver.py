"""The driver of the test worker: starts it, steps it until nothing is left to do now, and moves the clock.

There is one worker at a time, or none.
"""

from __future__ import annotations

import os
import sys
import uuid
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from ..clock import Clock
from ..config import Settings
from ..contrib.pings import PingKind, Pings
from ..errors import PgCronError
from ..job import WorkerCard
from ..schedules import schedule
from ..worker.loop import Worker
from ..worker.maintenance import version
from .clock import Forecast, ManualClock, NoForecast
from .inline_slots import InlineSlots, RunLock
from .run_record import RunRecord

if TYPE_CHECKING:
    from ..app import PgCron
    from ..store import Store

# More runs than this without any time passing are an endless loop.
MAX_AT_ONCE = 100_000


class Driver:
    """A driver that steps the test worker, and appends each run to `runs`."""

    def __init__(
        self,
        store: Store,
        control: WorkerControl,
        forecast: Forecast | NoForecast,
        run_lock: RunLock,
        runs: list[RunRecord],
    ) -> None:
        self.store = store
        self.control = control
        # Duration of the runs of a task, if `takes` has set one.
        self.spans: dict[str, timedelta] = {}
        # Seconds that the worker would sleep now.
        self.wait = 0.0
        self._forecast = forecast
        self._run_lock = run_lock
        self._runs = runs
        self._first = self._at_once = 0
        self._raises = False
        self._error: BaseException | None = None

    def begin(self, *, raises: bool) -> None:
        """Begin a call from the test, which may have registered, enqueued or changed anything before."""
        self._forecast.forget()
        self.control.keep_up()
        self._first, self._raises, self._error = len(self._runs), raises, None
        self.come_to_a_moment()

    @property
    def ran(self) -> list[RunRecord]:
        """The runs since `begin`."""
        return self._runs[self._first :]

    def come_to_a_moment(self) -> None:
        """Prepare for a new time, at which other things are due."""
        self._at_once = 0
        if self.control.worker is not None:
            self._forecast.point_out(self.control.worker)

    def turn(self) -> None:
        """Step the worker until it has nothing more to do at this time."""
        asked_again = False
        while (worker := self.control.worker) is not None:
            slots = self.control.slots
            self._end_what_is_over(slots)
            self.wait = worker.step()
            self._let_out(slots)
            if slots.waiting:
                asked_again = False
                self._serve_all(worker, slots)
            elif slots.ended:
                continue
            elif not asked_again and self._forecast.is_something_due(self.wait):
                # Only once: a job that cannot run now, such as one in a paused queue, stays due.
                asked_again = True
                worker.claim_soon()
            elif self._forecast.has_undecided_ticks:
                worker.scheduler.due_at = 0.0
            elif self._forecast.is_over(worker):
                return

    def _end_what_is_over(self, slots: InlineSlots) -> None:
        if slots.next_end is not None:
            for run in slots.end_until(self.store.now()):
                self._handle(run)

    def _serve_all(self, worker: Worker, slots: InlineSlots) -> None:
        """Run all claimed jobs before the next step, which writes their outcomes together, as a worker does."""
        while slots.waiting and self.control.worker is worker and self._error is None:
            self._serve(slots)

    def _serve(self, slots: InlineSlots) -> None:
        """Run one job to its end, or to the end of its worker."""
        self._refuse_a_circle()
        self._run_lock.serving = job = slots.next_job
        try:
            run = slots.begin(self.store.now(), self.spans.get(job.task))
        finally:
            self._run_lock.serving = None
        self._runs.append(run)
        if run.state == "crashed":
            self.control.crash()
        elif run.state != "running":
            self._handle(run)

    def _refuse_a_circle(self) -> None:
        self._at_once += 1
        if self._at_once > MAX_AT_ONCE:
            raise PgCronError(
                f"{MAX_AT_ONCE:,} jobs have run and no time has passed: what is due enqueues, retries or snoozes"
                f" itself without a delay. The last was {self._runs[-1]}."
            )

    # Errors that reach the test

    def _handle(self, run: RunRecord) -> None:
        """Handle the end of a run: keep the first error that must reach the test."""
        if self._error is None and run.is_trouble and (self._raises or _is_for_the_test(run.error)):
            self._error = run.error

    def _let_out(self, slots: InlineSlots) -> None:
        """Raise that error once the outcome of its job is written."""
        if self._error is not None and not slots.ended:
            error, self._error = self._error, None
            raise error


def _is_for_the_test(error: BaseException | None) -> bool:
    """Return True for errors that are not the job's: Ctrl-C, and what `pytest.fail()` or a timeout plugin raises."""
    if isinstance(error, Exception):
        return False
    pytest = sys.modules.get("pytest")
    ends = () if pytest is None else (pytest.fail.Exception, pytest.skip.Exception, pytest.exit.Exception)
    return isinstance(error, (KeyboardInterrupt, *ends))


class TimeDriver:
    """A driver that moves the clock of the test, and runs everything that becomes due on the way."""

    def __init__(self, manual_clock: ManualClock, forecast: Forecast, driver: Driver) -> None:
        self._manual_clock = manual_clock
        self._forecast = forecast
        self._driver = driver

    def until(self, end: datetime) -> None:
        """Move the clock to `end`, and run what is due until then, `end` included."""
        while True:
            self._driver.turn()
            following = self._next_moment()
            if following is None or following > end:
                break
            self._manual_clock.move(following)
            self._driver.come_to_a_moment()
        self._manual_clock.move(end)

    def _next_moment(self) -> datetime | None:
        control = self._driver.control
        if control.worker is None:
            # Nothing happens without a worker.
            return None
        return self._forecast.next_moment(control.worker, control.tasks, self._driver.wait, control.slots.next_end)


STOPPED = "the worker is stopped; t.start_worker() starts another"


class WorkerControl:
    """Start, stop and crash of the test worker. At any time there is one, or none."""

    def __init__(
        self,
        app: PgCron,
        store: Store,
        forecast: Forecast | NoForecast,
        clock: Clock,
        *,
        keeps_schedules: bool,
        sent: list[tuple[str, PingKind, str]],
    ) -> None:
        self.worker: Worker | None = None
        # Names of the app's tasks, as of the start of the worker.
        self.tasks: tuple[str, ...] = ()
        self._generation: str | None = None
        self._settings: Settings | None = None
        self._app = app
        self._store = store
        self._forecast = forecast
        self._clock = clock
        self._keeps_schedules = keeps_schedules
        self._pings = _Noted(sent)

    @property
    def slots(self) -> InlineSlots:
        """The slots of the worker."""
        assert self.worker is not None
        assert isinstance(self.worker.slots, InlineSlots)
        return self.worker.slots

    def present(self, what: str) -> Worker:
        """Return the worker. Raise `PgCronError` if there is none, since `what` needs one."""
        if self.worker is None:
            raise PgCronError(f"{what}: {STOPPED}")
        return self.worker

    def start(self) -> None:
        app, store = self._app, self._store
        generation, self.tasks, self._settings = self._knowledge()
        self._generation = generation
        card = WorkerCard(
            uuid.uuid4(), "testing", os.getpid(), ("*",), self._settings.slots, "inline", version(), generation
        )
        if self._keeps_schedules:
            app._check_declared()
            store.declare(app.name, generation, app._definitions)
        store.register(card)
        self._forecast.disturb()
        self.worker = Worker(
            app, store, card, plans_ticks=self._keeps_schedules, slots=InlineSlots, clock=self._clock,
            spread=self._forecast.spread, pings=self._pings,
        )  # fmt: skip
        if self._keeps_schedules:
            self.worker.scheduler.step()

    def stop(self) -> None:
        """Stop the worker: it releases its jobs and deregisters."""
        if self.worker is None:
            return
        self.slots.give_up("released")
        worker, self.worker = self.worker, None
        worker.stop()
        worker.step()
        worker.release(0.0)
        worker.store.forget(worker.id)

    def crash(self) -> None:
        """Crash the worker, and start another."""
        self.slots.give_up("crashed")
        self.start()

    def abandon(self) -> None:
        """Drop the worker that another thread steps. That thread stops after its job, whose outcome is not written."""
        self.worker = None

    def keep_up(self) -> None:
        """Replace the worker if tasks, schedules or settings have changed since it started, as a deploy does."""
        if self.worker is not None and self._knowledge() != (self._generation, self.tasks, self._settings):
            self.stop()
            self.start()

    def _knowledge(self) -> tuple[str, tuple[str, ...], Settings]:
        app = self._app
        definitions = app._definitions if self._keeps_schedules else {}
        return schedule.generation(app.name, definitions), tuple(app.tasks), app.settings


class _Noted(Pings):
    """Pings that are recorded instead of sent."""

    def __init__(self, sent: list[tuple[str, PingKind, str]]) -> None:
        super().__init__()
        self._sent = sent

    def send(self, url: str, kind: PingKind, text: str = "") -> None:
        self._sent.append((url, kind, text))

    def close(self, seconds: float) -> None:
        """No-op: no ping is being sent."""
