"""A worker process: start, one loop around one sleep, signals, grace, exit code.

A shutdown in order: the signal handler writes a byte; the sleep ends; the worker claims nothing more and hands back
what has not begun; what runs may finish within the grace; the rest is handed back without costing an attempt; the
worker leaves the table; the process ends with 0.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from . import green, plan, supervise
from .clock import monotonic
from .errors import DatabaseUnavailable, LoginRefused, PgCronError
from .heart import Guard, Guarded, Heart
from .job import WorkerCard
from .signals import Signals
from .start import check, introduce, version
from .wake import Wake
from .worker import Bell, Worker, check_slots

if TYPE_CHECKING:
    from .app import PgCron, Store

logger = logging.getLogger("pgcron_lite")

OK, FAILED, UNREACHABLE, MISFIT, FORCED = 0, 1, 69, 78, 130
HANG_SECONDS = 20.0
# So many logins refused in a row, over some ten seconds, mean new credentials: the platform starts us again with them.
MOST_REFUSALS = 8
# How long the listener leaves its connection to a heart that finds none.
REST_SECONDS = 30.0
# What a run reports to the outside is waited for so long at the end.
REPORT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker is run. What is not given comes from the app's settings."""

    queues: tuple[str, ...]
    slots: int
    grace: timedelta
    drain: bool = False
    max_seconds: float | None = None
    fail_fast: bool = False
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    parent: int | None = None
    takes_jobs: bool = True
    plans_ticks: bool = True


def run_worker(
    app: PgCron,
    *,
    queues: Any = None,
    slots: int | None = None,
    gevent: bool = False,
    processes: int = 1,
    drain: bool = False,
    max_seconds: float | None = None,
    grace: Any = None,
    fail_fast: bool = False,
    scheduler: bool = True,
    jobs: bool = True,
) -> int:
    """Run a worker, or several processes of them, until told to stop. Returns the exit code."""
    if gevent:
        green.ensure_patched()
    if processes != 1 and not supervise.is_child():
        return supervise.run(app, processes)
    settings = app.settings.with_values({"queues": queues, "slots": slots, "grace": grace}, "run_worker()")
    options = WorkerOptions(
        queues=settings.queues,
        slots=check_slots(settings.slots),
        grace=settings.grace,
        drain=drain,
        max_seconds=max_seconds,
        fail_fast=fail_fast,
        parent=supervise.take_parent(),
        id=supervise.take_id() or uuid.uuid4(),
        takes_jobs=jobs,
        plans_ticks=scheduler,
    )
    return Process(app, options).run()


class Process:
    """One worker with its heart and its doorbell, and the loop that turns it."""

    def __init__(self, app: PgCron, options: WorkerOptions) -> None:
        self.app = app
        self.options = options
        self.exit_code = OK
        self._wake = Wake()
        self._signals = Signals(self._wake.ring)
        self._interrupts = 0
        self._deadline: float | None = None
        self._said_at = 0.0
        self._heart_said: str | None = None
        self._store: Store | None = None
        self._worker: Worker | None = None
        self._heart: Heart | None = None

    def run(self) -> int:
        self._signals.take()
        guard = Guard(self._watched)
        guard.start()
        try:
            store = self._store = self.app.open_store("pgcron worker", size=1)
            card = self._card()
            if not self._ready(store, card):
                return self.exit_code
            return self._work(store, card)
        finally:
            guard.stop()
            self._signals.give_back()
            self._wake.close()

    # Starting

    def _card(self) -> WorkerCard:
        return WorkerCard(
            id=self.options.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            # Who only keeps schedules serves no queue, for whoever asks which of them are served.
            queues=self.options.queues if self.options.takes_jobs else (),
            slots=self.options.slots if self.options.takes_jobs else 1,
            mode="gevent" if green.is_patched() else "threads",
            version=version(),
            generation=plan.generation(self.app.name, self.app.definitions),
        )

    def _ready(self, store: Store, card: WorkerCard) -> bool:
        """Wait for the database, see that its schema and its label are ours, and take a place in it."""
        pause, said, refused = 0.2, False, 0
        while not self._signals:
            try:
                check(self.app, store)
                store.declare(self.app.name, card.generation or "", self.app.definitions)
                store.register(card)
                introduce(self.app, store, card, plans_ticks=self.options.plans_ticks)
            except DatabaseUnavailable as error:
                if self.options.fail_fast:
                    raise
                if not said:
                    logger.warning("waiting for the database: %s", error)
                said = True
                refused = refused + 1 if isinstance(error, LoginRefused) else 0
                if refused >= MOST_REFUSALS:
                    return self._locked_out(str(error))
                self._wake.wait(pause)
                pause = min(pause * 2, 5.0)
            else:
                return True
        logger.info("stopped before the database was there")
        return False

    def _locked_out(self, why: str) -> bool:
        logger.error("giving up, the database has refused the login %d times: %s", MOST_REFUSALS, why)
        self.exit_code = UNREACHABLE
        return False

    def _work(self, store: Store, card: WorkerCard) -> int:
        self.app.freeze("its worker is running")
        bell = store.open_bell(self._wake.ring)
        worker = self._worker = Worker(
            self.app, store, card, bell=bell, tell=self._wake.ring,
            takes_jobs=self.options.takes_jobs, plans_ticks=self.options.plans_ticks,
        )
        heart = Heart(
            lambda: self.app.open_store("pgcron heart", size=1),
            card.id,
            self.app.settings.lease.total_seconds(),
            report=self._condition,
            tell=self._wake.ring,
        )
        self._heart = heart
        try:
            heart.start()
            self.app.events.send("worker_started", worker=card)
            self._loop(worker, heart)
        finally:
            heart.stop()
            self._leave(worker, bell)
        return self.exit_code

    # The loop

    def _loop(self, worker: Worker, heart: Heart) -> None:
        """Turn the worker until it is to stop and nothing runs any more, or the grace is over."""
        ends = None if self.options.max_seconds is None else monotonic() + self.options.max_seconds
        while True:
            wait = worker.step()
            self._heed(worker, heart)
            if ends is not None and monotonic() >= ends:
                self._stop(worker, f"{self.options.max_seconds:g} s are over")
            if self.options.drain and not worker.stopping and _is_drained(worker):
                self._stop(worker, "nothing is due")
            if worker.stopping:
                if worker.is_idle() or self._grace_is_over(worker):
                    return
                wait = min(wait, 1.0, max(0.0, (self._deadline or 0.0) - monotonic()))
            if ends is not None:
                wait = min(wait, max(0.0, ends - monotonic()))
            self._sleep(worker, wait)

    def _sleep(self, worker: Worker, seconds: float) -> None:
        # Who stops does not listen: what has been rung would end every sleep.
        fd = worker.bell.fileno() if worker.bell is not None and not worker.stopping else None
        self._wake.wait(seconds, () if fd is None else (fd,))

    def _heed(self, worker: Worker, heart: Heart) -> None:
        """Act on what signals, the heart and the parent have noted."""
        self._signals.keep()
        for number in self._signals:
            self._heed_signal(worker, number)
        if heart.failure is not None:
            logger.error("the heart stopped; finishing what runs, then ending", exc_info=heart.failure)
            heart.failure = None
            self.exit_code = FAILED
            self._stop(worker, "without a heart its jobs would be taken for a dead worker's")
        if heart.is_refused:
            self._become_another(worker, heart)
        if worker.refused_logins >= MOST_REFUSALS and not worker.stopping:
            self._locked_out("the password was changed, or the role")
            self._stop(worker, "no login")
        self._hear_heart(worker, heart)
        if self.options.parent not in (None, os.getppid()):
            self._stop(worker, "the process that started this one is gone")

    def _hear_heart(self, worker: Worker, heart: Heart) -> None:
        """Say when the heart alone cannot reach the database, and give it the listener's place there."""
        if heart.trouble is None:
            self._heart_said = None
        elif self._heart_said is None and worker.is_well and heart.silence > heart.interval * 1.5:
            self._heart_said = heart.trouble
            logger.error("the heart cannot beat, and without it this worker is taken for dead: %s", heart.trouble)
            if worker.bell is not None:
                worker.bell.rest(REST_SECONDS)

    def _become_another(self, worker: Worker, heart: Heart) -> None:
        """We were silent for a whole lease (frozen, or cut off), and our jobs were given to others."""
        logger.warning(
            "this worker was silent for too long and has been declared dead; what it was running is dropped when it"
            " ends, and it goes on under a new name"
        )
        card = replace(worker.card, id=uuid.uuid4())
        try:
            worker.become(card)
        except DatabaseUnavailable:
            return  # noted still; the next turn tries again
        heart.go_on_as(card.id)

    # Stopping

    def _heed_signal(self, worker: Worker, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                self.exit_code = FORCED
                self._deadline = 0.0
                return
        # A platform may send SIGTERM to every process and several times: more of them mean nothing more.
        hint = " Ctrl-C again hands it back now." if number == signal.SIGINT and worker.running else ""
        self._stop(worker, signal.Signals(number).name, hint)

    def _stop(self, worker: Worker, why: str, hint: str = "") -> None:
        if worker.stopping:
            return
        worker.stop()
        grace = self.options.grace.total_seconds()
        self._deadline = monotonic() + grace
        running = worker.slots.busy
        doing = f"{running} job{'s' if running != 1 else ''} running, waiting up to {grace:g} s" if running else "idle"
        logger.info("stopping (%s): %s.%s", why, doing, hint)
        self.app.events.send("worker_stopping", worker=worker.card)
        self._wake.ring()

    def _grace_is_over(self, worker: Worker) -> bool:
        now = monotonic()
        if self._deadline is not None and now >= self._deadline:
            return True
        if now - self._said_at >= 5.0:
            self._said_at = now
            logger.info("still running: %s", ", ".join(str(job) for job in list(worker.running.values())[:5]))
        return False

    def _leave(self, worker: Worker, bell: Bell | None) -> None:
        """Hand back what is left, leave the table, close everything."""
        try:
            left = worker.release()
            for job in left:
                logger.warning("%s did not end within the grace; it is handed back and runs again", job)
            worker.store.forget(worker.id)
            if left:
                worker.store.ring()
        except PgCronError as error:
            logger.warning("could not hand back: %s. A living worker rescues it.", error)
        worker.slots.close()
        worker.scheduler.close(REPORT_SECONDS)
        if bell is not None:
            bell.close()
        self.app.events.send("worker_stopped", worker=worker.card)
        worker.store.close()
        self.app.close()
        self.app.thaw()
        logger.info("stopped")

    # Watching

    def _condition(self) -> tuple[int, float, bool]:
        """What the heart tells the database about us."""
        worker = self._worker
        if worker is None:
            return 0, 0.0, False
        return worker.slots.busy, monotonic() - worker.turned_at, worker.stopping

    def _watched(self) -> Iterator[tuple[Guarded, float]]:
        """Whose statements the guard ends, and after how many seconds."""
        if self._store is not None:
            yield self._store, HANG_SECONDS
        if self._worker is not None and self._worker.bell is not None:
            yield self._worker.bell, HANG_SECONDS
        heart = self._heart
        if heart is not None and heart.store is not None:
            # Half an interval leaves time to connect and beat again before the lease is over.
            yield heart.store, max(heart.interval / 2, 1.0)


def leave(code: int) -> None:
    """End the process with `code`, even if tasks have left threads behind that would hold it up."""
    slots = [t for t in threading.enumerate() if t.name.startswith("pgcron-slot-")]
    others = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    if others:
        logger.warning("tasks left threads behind that do not end: %s", ", ".join(others))
    if not slots and not others:
        sys.exit(code)
    if "pgcron_lite.shell" in sys.modules:
        # Their jobs have been handed back, and nobody would watch these commands any more.
        sys.modules["pgcron_lite.shell"].kill_all()
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _is_drained(worker: Worker) -> bool:
    try:
        return worker.drained()
    except DatabaseUnavailable:
        return False
