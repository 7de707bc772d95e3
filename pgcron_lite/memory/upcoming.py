"""Queries of the test harness: when the next event is due, and whether other workers or suspects need attention."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime

from ..schedules.timing import MICROSECOND
from .deadlines import earliest
from .schedules_tables import SchedulesTables


class Upcoming(SchedulesTables):
    """Queries of `testing.Harness`. Only the memory store has them."""

    def is_something_due(self) -> bool:
        """Return True if a job is due, even if no worker may claim it."""
        return any(True for _ in self._queued(None, self.now()))

    @property
    def next_planning(self) -> datetime | None:
        """The time of the next planning, or None."""
        return self._planning.first

    def next_moments(self, tasks: Sequence[str]) -> tuple[datetime | None, datetime | None]:
        """Return when the next job of these tasks is due, and the earliest time of the next alarm."""
        with self._lock:
            now = self.now()
            jobs = (j.execute_after for j in self._queued(now, None) if j.task in tasks and j.queue not in self._paused)
            return next(jobs, None), self._next_alarm(now)

    def is_disturbed(self, worker: uuid.UUID | None) -> bool:
        """Return True if there is another worker, which may have to be reaped, or a job that has to run alone.

        Also return True if `worker` is not registered, or another worker holds a job.
        """
        with self._lock:
            if self._suspects or len(self._workers) > 1 or worker not in self._workers:
                return True
            return any(self._jobs[job_id].worker != worker for job_id in self._held)

    def _next_alarm(self, now: datetime) -> datetime | None:
        """Return the earliest time at which `watch` can find a tick that has not begun or ended in time."""
        first = earliest(self._unbegun.first, self._begun.first)
        if first is None:
            return None
        alarm_at = max(first + MICROSECOND, self._next_watch(now))
        return alarm_at if alarm_at > now else None
