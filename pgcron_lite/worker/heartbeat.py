"""Heartbeats: sending this worker's, and watching those of the others.

The heartbeat runs outside the gevent hub and on a separate connection. It never logs and takes no lock that a task
could hold: it only sets attributes, which the worker's loop reads. A guard in another thread cuts off statements that
hang, those of the loop and those of the heartbeat.

A worker is dead when its heartbeat counter, read over one unbroken connection, has not changed for a whole lease. No
wall clocks are compared, neither the database's nor ours: the reaper measures with this process's monotonic clock.
After a jump of a clock, an outage in which no worker could send heartbeats, or a freeze of the reaper, the observation
starts again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Protocol

from ..clock import Clock, monotonic
from ..errors import DatabaseRefused, DatabaseUnavailable, SchemaMismatch
from ..job import Job
from . import gevent_support

if TYPE_CHECKING:
    from ..store import Store

GUARD_SECONDS = 0.5


class Heartbeat:
    """The heartbeat of one worker: three beats per lease."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        worker: uuid.UUID,
        lease_seconds: float,
        *,
        report: Callable[[], tuple[int, float, bool]],
        wake_loop: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.interval = lease_seconds / 3
        # State for the worker's loop to read.
        self.failure: BaseException | None = None
        self.is_refused = False
        self.trouble: str | None = None
        # When the attempt started that ended with `trouble`.
        self.trouble_at = 0.0
        self.last_beat = monotonic()
        self.store: Store | None = None
        self._open_store = open_store
        self._report = report
        self._wake_loop = wake_loop
        self._wake = gevent_support.wake_outside_the_hub()
        self._stopping = False
        self._stopped = False

    def start(self) -> None:
        gevent_support.start_outside_the_hub(self._run, "pgcron-heartbeat")

    def stop(self, timeout: float = 2.0) -> None:
        """Stop the heartbeat and close its connection. Wait for that up to `timeout` seconds."""
        self._stopping = True
        self._wake.ring()
        deadline = monotonic() + timeout
        while not self._stopped and monotonic() < deadline:
            time.sleep(0.005)

    @property
    def silence(self) -> float:
        """The seconds since the last beat."""
        return monotonic() - self.last_beat

    def continue_as(self, worker: uuid.UUID) -> None:
        """Continue under a new worker id, after the old one was declared dead."""
        self.worker = worker
        self.is_refused = False
        self._wake.ring()

    def _run(self) -> None:
        try:
            self.store = self._open_store()
            beat_at = 0.0
            while not self._stopping:
                if monotonic() >= beat_at:
                    beat_at = monotonic() + self._beat()
                self._wake.wait(max(0.0, beat_at - monotonic()))
        except BaseException as error:
            self.failure = error
            self._wake_loop()
        finally:
            if self.store is not None:
                self.store.close()
            self._stopped = True
            self._wake.close()

    def _beat(self) -> float:
        """Send one beat. Return the seconds until the next."""
        assert self.store is not None
        worker, began = self.worker, monotonic()
        running, idle_loop, stopping = self._report()
        try:
            if self.store.beat(worker, running, idle_loop, stopping):
                self.last_beat, self.trouble = monotonic(), None
            elif worker == self.worker:
                self.is_refused = True
                self._wake_loop()
        except (DatabaseUnavailable, DatabaseRefused, SchemaMismatch) as error:
            self.trouble_at, self.trouble = began, str(error)
            # Sooner than usual: after an outage the reapers wait for one lease only.
            return min(1.0, self.interval)
        return self.interval


class Guarded(Protocol):
    """An object that sends statements, and whose current statement can be ended from another thread."""

    @property
    def busy_seconds(self) -> float: ...

    def cut(self) -> None: ...


class Guard:
    """A thread outside the hub that cuts off hanging statements: a frozen server or pooler never sends an error.

    It never waits for the database. So it calls `pulse` in each turn, to show that Python runs in this process.
    """

    def __init__(
        self, watched: Callable[[], Iterable[tuple[Guarded, float]]], pulse: Callable[[], None] = lambda: None
    ) -> None:
        # The last exception that a task threw into this thread, as into every thread. Read by the worker's loop.
        self.failure: BaseException | None = None
        self._watched = watched
        self._pulse = pulse
        self._wake = gevent_support.wake_outside_the_hub()
        self._stopping = False

    def start(self) -> None:
        gevent_support.start_outside_the_hub(self._run, "pgcron-guard")

    def stop(self) -> None:
        self._stopping = True
        self._wake.ring()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except BaseException as error:
                # Continue: without pulses the watchdog would end a healthy process.
                self.failure = error
        self._wake.close()

    def _turn(self) -> None:
        # Wait first, so that a permanent error is met only twice a second.
        self._wake.wait(GUARD_SECONDS)
        self._pulse()
        for guarded, seconds in self._watched():
            if guarded.busy_seconds > seconds:
                guarded.cut()


class Reaper:
    """An observer of the other workers' heartbeats. Any number of reapers may run at the same time."""

    def __init__(self, store: Store, lease_seconds: float, clock: Clock = monotonic) -> None:
        self.lease_seconds = lease_seconds
        self.interval = min(5.0, lease_seconds / 6)
        self._store = store
        self._clock = clock
        self._generation = -1
        self._seen: dict[uuid.UUID, tuple[int, float]] = {}

    def step(self, me: uuid.UUID, pulses: Mapping[uuid.UUID, int]) -> list[Job]:
        """Record the current heartbeats, reap workers that were silent for a lease, and return the rescued jobs."""
        now = self._clock()
        if self._store.generation != self._generation:
            # This is a new connection: there may have been a time without heartbeats, or without a view of them.
            self._seen.clear()
            self._generation = self._store.generation
        watched = {}
        for worker, beat in pulses.items():
            if worker != me:
                last, since = self._seen.get(worker, (None, now))
                watched[worker] = (beat, since if beat == last else now)
        self._seen = watched
        silent = [(w, beat) for w, (beat, since) in watched.items() if now - since >= self.lease_seconds]
        return self._store.reap(silent) if silent else []
