"""What is known of what happens next: in memory all of it, on a server nothing.

Moments at which nothing happens are not visited, so the worker is told where to look. What it does on its own, now and
then, it does only while others may need it: while there is a worker to be buried, or a job that has to run alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from datetime import datetime, timedelta

from ..clock import Spread
from ..memory import MemoryStore
from ..memory.agenda import earliest
from ..ticks import MARGIN
from ..worker import Worker
from .timeline import Timeline

# Sooner than this is now: stopwatches are a little less exact than the clock on the wall.
SOON = 1e-4
_MOMENT = timedelta(microseconds=1)


class Outlook:
    """Of a queue in memory, which goes by the time of the test."""

    def __init__(self, store: MemoryStore, timeline: Timeline, *, keeps_schedules: bool) -> None:
        self._store = store
        self._timeline = timeline
        self._keeps_schedules = keeps_schedules
        self._jobs_at: datetime | None = None
        self._ticks_at: datetime | None = None
        self._alarm_at: datetime | None = None
        # Is there nobody else, and no suspect? Then nothing happens but what is in the tables.
        self._is_calm = False

    def spread(self, low: float, high: float) -> float:
        """How often a worker looks around on its own: as usual while others may need it, and otherwise when we say so.

        We know what falls due, and spend no time on moments that bring nothing.
        """
        return math.inf if self._is_calm else high

    def disturb(self) -> None:
        """A new worker has come, and may have a dead one to bury."""
        self._is_calm = False

    def forget(self) -> None:
        """The test may have enqueued, or changed whatever it likes."""
        self._jobs_at = self._ticks_at = self._alarm_at = None

    def point_out(self, worker: Worker) -> None:
        """Have the worker look where something has fallen due, and everywhere when we have not looked ourselves."""
        now = self._timeline()
        if self._jobs_at is None or self._jobs_at <= now:
            worker.look_soon()
        if self._ticks_at is not None and self._ticks_at <= now:
            worker.scheduler.due_at = 0.0
        if not self._is_calm or self._alarm_at is None or self._alarm_at <= now:
            worker.look_around_soon()

    def next_moment(self, worker: Worker, tasks: Sequence[str], wait: float, end: datetime | None) -> datetime | None:
        """When something happens next that is not happening now.

        The worker knows these tasks, and would sleep for `wait` seconds; a run that lasts is over at `end`.
        """
        store = self._store
        self._jobs_at, self._alarm_at = store.next_moments(tasks)
        self._ticks_at = store.next_planning if self._keeps_schedules else None
        if self._ticks_at is not None:
            # Ticks are decided ahead of time; half a minute later is as good, and often the moment of a run.
            self._ticks_at += MARGIN
        self._is_calm = not store.is_disturbed(worker.id)
        turn = None
        if not self._is_calm:
            # Who watches for the dead, and who runs suspects, goes by a stopwatch of its own.
            turn = self._timeline() + max(_MOMENT, timedelta(seconds=min(wait, 60.0)))
        return earliest(self._jobs_at, self._ticks_at, self._alarm_at, end, turn)

    def is_something_due(self, wait: float) -> bool:
        """Would the worker, which says so, be back at once, or has a job enqueued what nobody has told it of?"""
        return wait <= SOON or self._store.is_something_due()

    @property
    def has_undecided_ticks(self) -> bool:
        planning = self._store.next_planning if self._keeps_schedules else None
        return planning is not None and planning <= self._timeline()

    def is_over(self, worker: Worker) -> bool:
        """Is there nothing left to do at this moment, when nothing is due?"""
        return True


class NoOutlook:
    """Of a server, which has its own time and other visitors. The worker looks everywhere until it finds nothing."""

    has_undecided_ticks = False
    spread: Spread = staticmethod(random.uniform)

    def disturb(self) -> None:
        """Nothing was taken for certain."""

    def forget(self) -> None:
        """Nothing was known."""

    def point_out(self, worker: Worker) -> None:
        worker.look_soon()
        worker.look_around_soon()

    def is_something_due(self, wait: float) -> bool:
        return wait <= SOON

    def is_over(self, worker: Worker) -> bool:
        return worker.drained()
