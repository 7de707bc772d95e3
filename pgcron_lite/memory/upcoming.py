"""What tests that travel in time ask besides: when something happens next, and whether nobody needs watching."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from ..schedules.timing import MICROSECOND
from .deadlines import earliest
from .schedules_tables import SchedulesTables


class Upcoming(SchedulesTables):
    """The questions of `testing.Harness`. No other store answers them."""

    def is_something_due(self) -> bool:
        """Is a job due, whether or not a worker may take it?"""
        return any(True for _ in self._queued(None, self.now()))

    @property
    def next_planning(self) -> datetime | None:
        """When ticks are to be decided next."""
        return self._planning.first

    def next_moments(self, tasks: Sequence[str]) -> tuple[datetime | None, datetime | None]:
        """When the next job of these tasks is due, and when the next alarm could be."""
        with self._lock:
            now = self.now()
            jobs = (j.execute_after for j in self._queued(now, None) if j.task in tasks and j.queue not in self._paused)
            return next(jobs, None), self._next_alarm(now)

    def is_disturbed(self, worker: uuid.UUID | None) -> bool:
        """Is there a worker besides this one, whom it may have to bury, or a job that has to run alone?"""
        with self._lock:
            if self._suspects or len(self._workers) > 1 or worker not in self._workers:
                return True
            return any(self._jobs[job_id].worker != worker for job_id in self._held)

    def _next_alarm(self, now: datetime) -> datetime | None:
        """When the next tick could be found not to have begun or ended in time."""
        first = earliest(self._unbegun.first, self._begun.first)
        if first is None:
            return None
        moment = max(first + MICROSECOND, self._next_watch(now))
        return moment if moment > now else None
