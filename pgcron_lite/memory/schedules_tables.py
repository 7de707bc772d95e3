"""Tables of schedules and their ticks, with the deadlines of both.

Declarations in code are in `schedules_declarations`; the methods of the store are in `schedules_planning`,
`schedules_ticks` and `schedules_admin`.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from ..job import Job
from ..schedules.ticks import LATE, WATCH_EVERY, Kind
from .deadlines import Deadlines
from .tables import Tables


@dataclass(slots=True)
class ScheduleRow:
    """A schedule's row."""

    name: str
    origin: Literal["code", "hand"]
    app: str
    definition: str
    options: dict[str, Any]
    last_tick: datetime
    planning: Deadlines[ScheduleRow]
    _plan_at: datetime | None = None
    starts_at: datetime | None = None
    generation: str | None = None
    revision: int = 0
    runs: int = 0
    last_end: datetime | None = None
    paused_at: datetime | None = None
    retired_at: datetime | None = None
    alarm: Literal["missed", "late"] | None = None
    alarm_tick: datetime | None = None
    trouble: str | None = None

    @property
    def plan_at(self) -> datetime | None:
        """The time at which its next ticks are decided; None for never."""
        return self._plan_at

    @plan_at.setter
    def plan_at(self, time: datetime | None) -> None:
        self._plan_at = time
        if time is not None:
            self.planning.add(time, self)


@dataclass(slots=True)
class TickRow:
    """A tick's row."""

    schedule: str
    tick: datetime
    kind: Kind
    due_at: datetime
    late_at: datetime | None
    job_id: int | None
    planned_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    outcome: str | None = None
    reason: str | None = None

    @property
    def is_waiting(self) -> bool:
        """True if it has neither begun nor ended."""
        return self.started_at is None and self.outcome is None

    @property
    def is_fresh(self) -> bool:
        """True if it was decided in time and has not begun."""
        return self.kind == "tick" and self.started_at is None and self.planned_at <= self.due_at

    @property
    def order(self) -> tuple[datetime, datetime]:
        """The sort key of the runs of a schedule that run one after the other."""
        return self.due_at, self.tick


class SchedulesTables(Tables):
    """The tables of schedules. Methods with an underscore are called with the lock held."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        self._schedules: dict[str, ScheduleRow] = {}
        # All ticks by schedule and tick; the open ones likewise; and those that have a job, by the job's id.
        self._ticks: dict[str, dict[datetime, TickRow]] = {}
        self._open_ticks: dict[str, dict[datetime, TickRow]] = {}
        self._tick_of: dict[int, TickRow] = {}
        # The ticks of each schedule whose jobs are done, sorted.
        self._done: dict[str, list[datetime]] = {}
        # Schedules by the time of their next planning; ticks by age; ticks by the time after which they are missed if
        # they have not begun; and by the time after which they are late if they have not ended.
        self._planning: Deadlines[ScheduleRow] = Deadlines(self._is_planned)
        self._by_age: Deadlines[TickRow] = Deadlines(self._is_kept)
        self._unbegun: Deadlines[TickRow] = Deadlines(lambda _, tick: tick.is_waiting)
        self._begun: Deadlines[TickRow] = Deadlines(lambda _, tick: tick.outcome is None)
        # Ids of jobs that were removed from the queue and may belong to open ticks.
        self._gone: set[int] = set()
        self._watched_at: datetime | None = None

    # Rows of schedules

    def _insert(self, name: str, origin: Literal["code", "hand"], app: str, definition: str) -> ScheduleRow:
        now = self.now()
        row = ScheduleRow(name, origin, app, definition, json.loads(definition), now, self._planning)
        self._schedules[name] = row
        row.plan_at = now
        return row

    def _define(self, row: ScheduleRow, app: str, definition: str) -> None:
        row.app, row.definition, row.options = app, definition, json.loads(definition)
        row.plan_at, row.trouble, row.revision = self.now(), None, row.revision + 1

    def _withdraw(self, row: ScheduleRow, *, entirely: bool, why: str) -> None:
        """Withdraw the runs that have not begun: those of future ticks, and with `entirely` also those that are due."""
        now = self.now()
        for tick in list(self._open_ticks.get(row.name, {}).values()):
            job = self._jobs.get(tick.job_id or 0)
            is_ours = tick.kind == "tick" and tick.started_at is None and (entirely or tick.tick > now)
            if not is_ours or job is None or job.state != "queued" or job.attempt != 0:
                continue
            self._drop(job.id)
            row.runs = max(0, row.runs - 1)
            if tick.tick > now:
                self._delete_tick(tick)
            else:
                self._finish_tick(tick, "skipped", now, why)
        kept = [tick.tick for tick in self._ticks.get(row.name, {}).values() if tick.kind == "tick"]
        row.last_tick = max([min(row.last_tick, now), *kept])
        row.revision += 1

    def _is_outdated(self, tick: TickRow) -> bool:
        """Return True if its job is queued under another task or queue than its schedule names now.

        Possibly no worker knows that task any more. So an outdated run does not block other runs.
        """
        job, row = self._jobs.get(tick.job_id or 0), self._schedules.get(tick.schedule)
        if job is None or row is None or job.state != "queued":
            return False
        return (job.task, job.queue) != (row.options.get("task", job.task), row.options.get("queue", "default"))

    # Rows of ticks, in the order of their life cycle

    def _insert_tick(self, tick: TickRow) -> None:
        self._ticks.setdefault(tick.schedule, {})[tick.tick] = tick
        self._by_age.add(tick.tick, tick)
        if tick.job_id is not None:
            self._tick_of[tick.job_id] = tick
            self._unbegun.add(tick.due_at + LATE, tick)
            self._open_ticks.setdefault(tick.schedule, {})[tick.tick] = tick

    def _reopen(self, job: Job) -> None:
        """Open the tick of `job` again: the job has ended, and a user retries it."""
        tick, now = self._tick_of.get(job.id), self.now()
        # A job that was created after the run had ended is not the tick's. It has the id of a deleted job.
        if tick is None or (tick.finished_at is not None and job.created_at > tick.finished_at):
            return
        tick.late_at = None if tick.late_at is None else tick.late_at + (now - tick.due_at)
        tick.kind, tick.due_at = "manual", now
        tick.started_at = tick.finished_at = tick.outcome = tick.reason = None
        self._unbegun.add(tick.due_at + LATE, tick)
        self._open_ticks.setdefault(tick.schedule, {})[tick.tick] = tick

    def _begin(self, tick: TickRow, at: datetime, waited: timedelta) -> None:
        """Record that a run begins. `waited` is how long it waited for the run before it."""
        tick.started_at = at
        tick.late_at = None if tick.late_at is None else tick.late_at + waited
        if tick.late_at is not None:
            self._begun.add(tick.late_at, tick)

    def _undo_begin(self, tick: TickRow) -> None:
        """Record that a run has not begun after all, because a newer run has begun in its place."""
        tick.started_at = None
        self._unbegun.add(tick.due_at + LATE, tick)

    def _finish_tick(self, tick: TickRow, outcome: str, at: datetime, reason: str | None = None) -> None:
        tick.outcome, tick.finished_at, tick.reason = outcome, at, reason
        self._open_ticks.get(tick.schedule, {}).pop(tick.tick, None)
        if outcome == "done":
            bisect.insort(self._done.setdefault(tick.schedule, []), tick.tick)

    def _delete_tick(self, tick: TickRow) -> None:
        self._ticks[tick.schedule].pop(tick.tick, None)
        self._open_ticks.get(tick.schedule, {}).pop(tick.tick, None)
        self._tick_of.pop(tick.job_id or 0, None)
        if tick.outcome == "done":
            self._done[tick.schedule].remove(tick.tick)

    def _drop(self, job_id: int) -> Job | None:
        if job_id in self._tick_of:
            self._gone.add(job_id)
        return super()._drop(job_id)

    def _with_new_id(self, job: Job) -> Job:
        stored = super()._with_new_id(job)
        tick = self._tick_of.get(job.id)
        if tick is not None and tick.outcome is None and tick.schedule in job.headers.values():
            del self._tick_of[job.id]
            tick.job_id = stored.id
            self._tick_of[stored.id] = tick
            self._gone.add(stored.id)
        return stored

    # Deadlines

    def _next_watch(self, now: datetime) -> datetime:
        """Return the time of the next search for runs that are missed or late."""
        return now if self._watched_at is None else self._watched_at + WATCH_EVERY

    def _is_planned(self, time: datetime, row: ScheduleRow) -> bool:
        return row.plan_at == time and self._schedules.get(row.name) is row

    def _is_kept(self, time: datetime, tick: TickRow) -> bool:
        return self._ticks.get(tick.schedule, {}).get(tick.tick) is tick
