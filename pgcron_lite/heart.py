"""The heart of a worker process: it says "alive" to the database, whatever the tasks are doing.

It runs outside the hub, on a connection of its own, and never logs or touches anything that a task could hold. What
it notices it notes; the worker's loop reads the notes. Beside it a guard ends statements that hang, those of the loop
and the heart's own.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from . import green
from .clock import monotonic
from .errors import DatabaseUnavailable, SchemaMismatch
from .wake import Wake

if TYPE_CHECKING:
    from .app import Store

GUARD_SECONDS = 0.5


class Heart:
    """Beats for one worker, three times a lease."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        worker: uuid.UUID,
        lease_seconds: float,
        *,
        report: Callable[[], tuple[int, float, bool]],
        tell: Callable[[], None],
    ) -> None:
        self.worker = worker
        self.interval = lease_seconds / 3
        # Notes for the worker's loop.
        self.failure: BaseException | None = None
        self.is_refused = False
        self.trouble: str | None = None
        self.last_beat = monotonic()
        self.store: Store | None = None
        self._open_store = open_store
        self._report = report
        self._tell = tell
        self._wake = Wake()
        self._stopping = False
        self._stopped = False

    def start(self) -> None:
        green.start_outside_the_hub(self._run, "pgcron-heart")

    def stop(self, patience: float = 2.0) -> None:
        """Stop beating and close the connection; waits a moment for it."""
        self._stopping = True
        self._wake.ring()
        deadline = monotonic() + patience
        while not self._stopped and monotonic() < deadline:
            time.sleep(0.005)

    @property
    def silence(self) -> float:
        """Seconds since the last beat."""
        return monotonic() - self.last_beat

    def go_on_as(self, worker: uuid.UUID) -> None:
        """Beat for a new identity, after the old one was declared dead."""
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
            self._tell()
        finally:
            if self.store is not None:
                self.store.close()
            self._stopped = True

    def _beat(self) -> float:
        """One beat. Returns seconds until the next."""
        assert self.store is not None
        worker = self.worker
        running, idle_loop, stopping = self._report()
        try:
            if self.store.beat(worker, running, idle_loop, stopping):
                self.last_beat, self.trouble = monotonic(), None
            elif worker == self.worker:
                self.is_refused = True
                self._tell()
        except (DatabaseUnavailable, SchemaMismatch) as error:
            self.trouble = str(error)
            # Sooner than usual: after an outage the reapers watch for one lease only.
            return min(1.0, self.interval)
        return self.interval


class Guarded(Protocol):
    """What sends statements, and can be told from another thread to end them."""

    @property
    def busy_seconds(self) -> float: ...

    def cut(self) -> None: ...


class Guard:
    """Ends statements that hang, from outside the hub: a server or a pooler that is frozen sends no error, ever."""

    def __init__(self, watched: Callable[[], Iterable[tuple[Guarded, float]]]) -> None:
        self._watched = watched
        self._wake = Wake()
        self._stopping = False

    def start(self) -> None:
        green.start_outside_the_hub(self._run, "pgcron-guard")

    def stop(self) -> None:
        self._stopping = True
        self._wake.ring()

    def _run(self) -> None:
        while not self._stopping:
            for guarded, seconds in self._watched():
                if guarded.busy_seconds > seconds:
                    guarded.cut()
            self._wake.wait(GUARD_SECONDS)
