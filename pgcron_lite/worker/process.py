"""Worker process: start, one loop around one sleep, signals, grace, exit code.

`run_worker` returns the exit code and restores the process; `exits.leave`, for the command line, ends the process.

An orderly shutdown: the signal handler writes a byte, which ends the sleep; the worker stops claiming and hands back
the jobs that have not started; running jobs may finish within the grace; the rest is handed back without using up an
attempt; the worker deletes its row; the process ends with exit code 0.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import random
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from ..clock import monotonic
from ..context import running
from ..errors import (
    DatabaseRefused,
    DatabaseUnavailable,
    LatePatch,
    LoginRefused,
    OptionError,
    PgCronError,
    SchemaMismatch,
)
from ..job import WorkerCard, named
from ..schedules import schedule
from . import gevent_support, supervisor
from .heartbeat import Guard, Guarded, Heartbeat
from .loop import MAX_PAUSE, MAX_PAUSE_REFUSED, Bell, Worker
from .maintenance import check_limits, check_start, log_start, version
from .signals import Signals
from .slots import check_slots
from .streams import Streams
from .supervisor import Status
from .wake import Wake
from .watchdog import Watchdog

if TYPE_CHECKING:
    from ..app import PgCron
    from ..store import Store

logger = logging.getLogger("pgcron_lite")

OK, FAILED, UNREACHABLE, MISFIT, FORCED = 0, 1, 69, 78, 130
HANG_SECONDS = 20.0  # See `pg.bounded_connection` for what bounds the same wait elsewhere.
# After this many refused logins in a row, over some ten seconds, the credentials have probably changed: the process
# exits, and the platform restarts it with the new ones. A drain ends after as many refused statements, over some five
# seconds.
MAX_REFUSALS = 8
# How long the listener stays disconnected, to free its connection for a heartbeat that cannot connect.
REST_SECONDS = 30.0
# How often an idle worker repairs its signal handlers and standard streams.
REPAIR_SECONDS = 1.0
# How long to wait at the end for pings that are being sent.
REPORT_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Options of one worker, with the app's settings as defaults already applied."""

    queues: tuple[str, ...]
    slots: int
    grace: timedelta
    drain: bool = False
    max_seconds: float | None = None
    fail_fast: bool = False
    id: uuid.UUID = field(default_factory=uuid.uuid4)
    parent: int | None = None
    status: Status | None = None
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
    """Run a worker, or several processes of them, until a signal stops it. Return the exit code."""
    _check_end(max_seconds)
    _check_flags(gevent=gevent, drain=drain, fail_fast=fail_fast, scheduler=scheduler, jobs=jobs)
    if _ended_children:
        # This is a child, and the program calls run_worker() again. The parent runs that worker too: running it here
        # as well would start it once more per child.
        logger.info("this worker process has ended; the process that started it continues")
        return OK
    with _only_worker(app):
        check_limits()
        if gevent:
            _ensure_patched()
        settings = app.settings.with_values({"queues": queues, "slots": slots, "grace": grace}, "run_worker()")
        check_slots(settings.slots)
        if processes != 1 and not supervisor.is_child():
            return supervisor.run(app, processes, settings.grace.total_seconds())
        options = WorkerOptions(
            queues=settings.queues,
            slots=settings.slots,
            grace=settings.grace,
            drain=drain,
            max_seconds=max_seconds,
            fail_fast=fail_fast,
            parent=supervisor.take_parent(),
            status=supervisor.take_status(),
            id=supervisor.take_id() or uuid.uuid4(),
            takes_jobs=jobs,
            plans_ticks=scheduler,
        )
        worker = Process(app, options)
        code = worker.run()
        if options.status is not None:
            options.status.report_end(code, has_left=worker.has_left, is_over=worker.is_over)
        if options.parent is not None:
            _ended_children.append(worker.options.id)
        return code


# The worker of this process, if it ran under a supervisor and has ended.
_ended_children: list[uuid.UUID] = []


def _preload_libgcc() -> None:
    """Load the library that glibc needs to end threads. Without it an exit aborts, and later memory may be short."""
    with contextlib.suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")


def _check_flags(**flags: object) -> None:
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise OptionError(f"{name}={value!r}: expected True or False")


# The worker of this process, by process id, so that a forked child counts as having none.
_working: dict[int, tuple[str, str]] = {}


@contextlib.contextmanager
def _only_worker(app: PgCron) -> Iterator[None]:
    """Refuse a second worker in this process."""
    here = running.get(None)
    if here is not None:
        raise PgCronError(
            f"run_worker() was called inside a job, {here.job}, and a job cannot run a worker in its own process. To"
            " run other jobs, enqueue them with delay(); to run another worker, start `pgcron worker` as a separate"
            " program."
        )
    mine = (app.name, threading.current_thread().name)
    # A single operation, so that only one of two threads can succeed.
    first = _working.setdefault(os.getpid(), mine)
    if first is not mine:
        raise PgCronError(
            f"run_worker() was called while a worker of the app {first[0]!r} runs in this process, in the thread"
            f" {first[1]!r}. A process has one worker: raise its slots=, or start another process with `pgcron worker`."
        )
    try:
        yield
    finally:
        _working.pop(os.getpid(), None)


def _ensure_patched() -> None:
    if not gevent_support.is_patched() and threading.current_thread() is not threading.main_thread():
        raise LatePatch(
            "run_worker(gevent=True) starts the program again, patched from the beginning, which only the main thread"
            " may do. Call it there, or put gevent.monkey.patch_all() first in the program."
        )
    gevent_support.ensure_patched()


def _check_end(max_seconds: object) -> None:
    is_number = isinstance(max_seconds, (int, float)) and not isinstance(max_seconds, bool)
    if max_seconds is not None and not (is_number and max_seconds > 0):  # type: ignore[operator]
        raise OptionError(f"max_seconds={max_seconds!r}: expected a number of seconds above 0")


class Process:
    """A worker with its heartbeat and its doorbell, and the loop that steps it."""

    def __init__(self, app: PgCron, options: WorkerOptions) -> None:
        self.app = app
        self.options = options
        self.exit_code = OK
        # True if it has drained its queues, or if `max_seconds` are over.
        self.is_over = False
        # True if it has handed back all jobs and deleted its row.
        self.has_left = False
        self._owns_process = threading.current_thread() is threading.main_thread()
        self._streams = Streams()
        # For `_repair_after_tasks`.
        self._was_busy, self._repair_at = False, 0.0
        self._watchdog: Watchdog | None = None
        self._wake = Wake()
        self._signals = Signals(self._wake.ring)
        self._interrupts = 0
        self._deadline: float | None = None
        # The end of `max_seconds`, which include the wait for the database.
        self._ends: float | None = None
        self._logged_at = 0.0
        self._logged_trouble: str | None = None
        self._store: Store | None = None
        self._worker: Worker | None = None
        self._heartbeat: Heartbeat | None = None
        self._guard = Guard(self._watched, pulse=self._pulse)
        # The new id to continue under, from the first attempt to register it until the database has confirmed it.
        self._next_card: WorkerCard | None = None

    def run(self) -> int:
        _preload_libgcc()
        self._ends = None if self.options.max_seconds is None else monotonic() + self.options.max_seconds
        self._signals.install()
        self._streams.save()
        self._watchdog = self._start_watchdog()
        try:
            self._guard.start()
            self.app._check_declared()
            store = self._store = self.app._open_store("pgcron worker", size=1)
            card = self._card()
            if not self._ready(store, card):
                return self.exit_code
            return self._work(store, card)
        finally:
            if self._watchdog is not None:
                self._watchdog.close()
            self._guard.stop()
            self._streams.close()
            self._signals.restore()
            self._wake.close()

    # Starting

    def _card(self) -> WorkerCard:
        return WorkerCard(
            id=self.options.id,
            host=socket.gethostname(),
            pid=os.getpid(),
            # A process that only plans schedules lists no queues, so that it does not count as serving them.
            queues=self.options.queues if self.options.takes_jobs else (),
            slots=self.options.slots if self.options.takes_jobs else 1,
            mode="gevent" if gevent_support.is_patched() else "threads",
            version=version(),
            generation=schedule.generation(self.app.name, self.app._definitions),
        )

    def _ready(self, store: Store, card: WorkerCard) -> bool:
        """Wait for the database, check its schema and environment label, and register the worker."""
        pause, was_logged, refused = 0.2, False, 0
        while not self._signals:
            try:
                check_start(self.app, store)
                store.declare(self.app.name, card.generation or "", self.app._definitions)
                if self.options.status is not None:
                    self.options.status.set_worker_id(card.id)
                store.register(card)
                log_start(self.app, store, card, plans_ticks=self.options.plans_ticks)
            except DatabaseUnavailable as error:
                if self.options.fail_fast:
                    raise
                if not was_logged:
                    logger.warning("waiting for the database: %s", error)
                was_logged = True
                refused = refused + 1 if isinstance(error, LoginRefused) else 0
                if refused >= MAX_REFUSALS:
                    return self._login_refused(str(error))
                left = math.inf if self._ends is None else self._ends - monotonic()
                if left <= 0:
                    return self._not_reached(error)
                self._wake.wait(min(left, pause * random.uniform(0.5, 1.0)))
                pause = min(pause * 2, MAX_PAUSE_REFUSED if refused else MAX_PAUSE)
            else:
                return True
        logger.info("stopped before the database was available")
        return False

    def _login_refused(self, why: str) -> bool:
        logger.error("giving up: the database has refused the login %d times: %s", MAX_REFUSALS, why)
        self.exit_code = UNREACHABLE
        return False

    def _not_reached(self, why: DatabaseUnavailable) -> bool:
        logger.error("the database was not available within %g s: %s", self.options.max_seconds, why)
        self.exit_code = UNREACHABLE
        return False

    def _work(self, store: Store, card: WorkerCard) -> int:
        self.app._freeze("its worker is running")
        bell = store.open_bell(self._wake.ring)
        worker = self._worker = Worker(
            self.app, store, card, bell=bell, wake_loop=self._wake.ring,
            takes_jobs=self.options.takes_jobs, plans_ticks=self.options.plans_ticks,
        )
        heartbeat = Heartbeat(
            lambda: self.app._open_store("pgcron heartbeat", size=1),
            card.id,
            self.app.settings.lease.total_seconds(),
            report=self._report,
            wake_loop=self._wake.ring,
        )
        self._heartbeat = heartbeat
        try:
            heartbeat.start()
            self.app.events.send("worker_started", worker=card)
            self._loop(worker, heartbeat)
        finally:
            heartbeat.stop()
            self._leave(worker, bell)
        return self.exit_code

    # The loop

    def _loop(self, worker: Worker, heartbeat: Heartbeat) -> None:
        """Call `worker.step()` until the worker is stopping and no job runs, or the grace is over."""
        while True:
            # Before the step, which writes outcomes and logs them: whoever sees a job done may send a signal at once.
            self._repair_after_tasks(worker)
            wait = worker.step()
            self._handle_events(worker, heartbeat)
            if self._ends is not None and monotonic() >= self._ends:
                self.is_over = True
                self._stop(worker, f"{self.options.max_seconds:g} s are over")
            if self.options.drain and not worker.stopping:
                self._check_drain(worker)
            if worker.stopping:
                if worker.is_idle() or self._grace_is_over(worker):
                    return
                wait = min(wait, 1.0, max(0.0, (self._deadline or 0.0) - monotonic()))
            if self._ends is not None:
                wait = min(wait, max(0.0, self._ends - monotonic()))
            self._sleep(worker, wait)

    def _repair_after_tasks(self, worker: Worker) -> None:
        """Undo what a task may have done to the signal handlers and to the standard streams."""
        # Until the turn after the last job has ended. Later only threads that tasks have left behind can do it, and
        # once a second is enough: in each turn, it would delay the job that an idle worker is woken for.
        is_busy, now = bool(worker.running) or worker.has_begun_jobs, monotonic()
        if is_busy or self._was_busy or now >= self._repair_at:
            self._repair_at = now + REPAIR_SECONDS
            self._signals.reinstall()
            self._streams.repair()
        self._was_busy, worker.has_begun_jobs = is_busy, False

    def _sleep(self, worker: Worker, seconds: float) -> None:
        # A stopping worker does not read the doorbell, so pending notifications would end every sleep.
        fd = worker.bell.fileno() if worker.bell is not None and not worker.stopping else None
        self._wake.wait(seconds, () if fd is None else (fd,))

    def _handle_events(self, worker: Worker, heartbeat: Heartbeat) -> None:
        """Handle signals, failures of the heartbeat and of the guard, and the end of the parent."""
        for number in self._signals:
            self._handle_signal(worker, number)
        if heartbeat.failure is not None:
            logger.error("the heartbeat stopped; finishing running jobs, then exiting", exc_info=heartbeat.failure)
            heartbeat.failure = None
            self.exit_code = FAILED
            self._stop(worker, "without a heartbeat other workers take over its jobs")
        if self._guard.failure is not None:
            logger.error("the guard of this worker's statements failed and continues", exc_info=self._guard.failure)
            self._guard.failure = None
        if heartbeat.is_refused:
            self._register_again(worker, heartbeat)
        if worker.refused_logins >= MAX_REFUSALS and not worker.stopping:
            self._login_refused("the password was changed, or the role")
            self._stop(worker, "login refused")
        self._check_heartbeat(worker, heartbeat)
        if self.options.parent not in (None, os.getppid()):
            self._stop(worker, "the process that started this one has ended")
        if not self._owns_process and not threading.main_thread().is_alive():
            self._stop(worker, "the main thread of the program has ended")

    def _check_heartbeat(self, worker: Worker, heartbeat: Heartbeat) -> None:
        """Log a heartbeat that alone cannot reach the database, and free the listener's connection for it."""
        if heartbeat.trouble is None:
            self._logged_trouble = None
        elif self._logged_trouble is None and _fails_alone(worker, heartbeat):
            self._logged_trouble = heartbeat.trouble
            logger.error(
                "the heartbeat cannot reach the database, and other workers will treat this one as dead: %s",
                heartbeat.trouble,
            )
            if worker.bell is not None:
                worker.bell.rest(REST_SECONDS)

    def _register_again(self, worker: Worker, heartbeat: Heartbeat) -> None:
        """Register under a new id: this worker was silent for a whole lease, and other workers got its jobs."""
        if self._next_card is None:
            logger.warning(
                "this worker was silent for too long and has been declared dead; the outcomes of its running jobs are"
                " dropped, and it continues under a new id"
            )
            # Chosen once. An attempt whose reply was lost may be committed later. With a different id in each attempt
            # it would move our jobs to an id that we no longer use.
            self._next_card = replace(worker.card, id=uuid.uuid4())
        card = self._next_card
        try:
            worker.register_as(card)
        except (DatabaseUnavailable, DatabaseRefused) as error:
            logger.warning("cannot register under the new id yet, trying again: %s", error)
            return  # `is_refused` is still set, so the next turn tries again.
        self._next_card = None
        heartbeat.continue_as(card.id)
        if self.options.status is not None:
            self.options.status.set_worker_id(card.id)

    # Stopping

    def _check_drain(self, worker: Worker) -> None:
        """End a drain that is complete, or that cannot complete because the database refuses its statements."""
        if worker.refusals >= MAX_REFUSALS:
            logger.error("the drain ends unfinished, after %d refusals: %s", worker.refusals, worker.refusal)
            self.exit_code = FAILED
            self.is_over = True
            self._stop(worker, "the database refuses its statements")
        elif _is_drained(worker):
            self._end_drain(worker)

    def _end_drain(self, worker: Worker) -> None:
        """Stop, with exit code FAILED if there are outcomes that the database refuses to store."""
        why = "nothing is due"
        if refused := worker.unstorable:
            logger.error("the drain ends, but the outcomes of %s could not be stored", named(refused))
            if blocked := worker.blocked_tasks:
                logger.error("for that reason not all jobs of %s were claimed", ", ".join(map(repr, blocked)))
            why = "the database refuses outcomes"
            self.exit_code = FAILED
        self.is_over = True
        self._stop(worker, why)

    def _handle_signal(self, worker: Worker, number: int) -> None:
        if number == signal.SIGINT:
            self._interrupts += 1
            if self._interrupts > 1:
                self.exit_code = FORCED
                self._deadline = 0.0
                return
        # Repeated SIGTERMs change nothing: a platform may send it to every process, and several times.
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
        if now - self._logged_at >= 5.0:
            self._logged_at = now
            logger.info("still running: %s", ", ".join(str(job) for job in list(worker.running.values())[:5]))
        return False

    def _leave(self, worker: Worker, bell: Bell | None) -> None:
        """Hand back the remaining jobs, delete the worker's row, close everything."""
        try:
            left = worker.release()
            refused = worker.unstorable
            for job in left:
                if job in refused:
                    logger.error("%s ended, but its outcome could not be stored; it runs again", job)
                else:
                    logger.warning("%s did not end within the grace; it is handed back and runs again", job)
            worker.store.forget(worker.id)
            self.has_left = True
            if left:
                worker.store.ring()
        except PgCronError as error:
            logger.warning("could not hand back jobs: %s. Another worker will rescue them.", error)
        if worker.slots.busy and "pgcron_lite.contrib.crontab.shell" in sys.modules:
            # Their jobs run again elsewhere, and these commands would run at the same time.
            sys.modules["pgcron_lite.contrib.crontab.shell"].kill_running()
        worker.slots.close()
        worker.scheduler.close(REPORT_SECONDS)
        if bell is not None:
            bell.close()
        self.app.events.send("worker_stopped", worker=worker.card)
        worker.store.close()
        self.app.close()
        self.app._thaw()
        logger.info("stopped")

    # Watching

    def _start_watchdog(self) -> Watchdog | None:
        """Start the watchdog, which ends this process if it runs no Python for longer than a lease.

        Only if the worker runs in the main thread: otherwise the process belongs to another program.
        """
        settings = self.app.settings
        if not self._owns_process or not settings.hang_exit or settings.is_memory:
            return None
        lease = settings.lease.total_seconds()
        try:
            return Watchdog(max(lease * 1.25, lease + 3.0))
        except OSError as error:
            logger.warning("a job that keeps the interpreter lock (GIL) will not be ended: %s", error)
            return None

    def _pulse(self) -> None:
        if self._watchdog is not None:
            self._watchdog.pulse()

    def _report(self) -> tuple[int, float, bool]:
        """Return the state of this worker that the heartbeat writes into its row."""
        worker = self._worker
        if worker is None:
            return 0, 0.0, False
        return worker.slots.busy, monotonic() - worker.turned_at, worker.stopping

    def _watched(self) -> Iterator[tuple[Guarded, float]]:
        """Yield the objects that the guard watches, each with the limit in seconds for its statements."""
        if self._store is not None:
            yield self._store, HANG_SECONDS
        if self._worker is not None and self._worker.bell is not None:
            yield self._worker.bell, HANG_SECONDS
        heartbeat = self._heartbeat
        if heartbeat is not None and heartbeat.store is not None:
            # Half an interval leaves time to reconnect and send a heartbeat before the lease is over.
            yield heartbeat.store, max(heartbeat.interval / 2, 1.0)


def _fails_alone(worker: Worker, heartbeat: Heartbeat) -> bool:
    """Return True if the heartbeat has been silent for too long while the loop reaches the database."""
    # After an outage the loop often reconnects before the heartbeat, by less than a second.
    if not worker.is_healthy or heartbeat.trouble_at <= worker.healthy_since:
        return False
    return heartbeat.silence > heartbeat.interval * 1.5


def _is_drained(worker: Worker) -> bool:
    try:
        return worker.drained()
    except (DatabaseUnavailable, DatabaseRefused, SchemaMismatch):
        # The next turn meets the same error, and logs it.
        worker.claim_soon()
        return False
