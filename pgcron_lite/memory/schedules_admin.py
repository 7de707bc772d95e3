"""Operator queries and actions on schedules."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from ..schedules.ticks import ScheduleView, TickView
from .schedules_declarations import Declarations
from .schedules_tables import ScheduleRow, TickRow


class SchedulesAdmin(Declarations):
    """Methods for operators, about schedules."""

    def schedules(self, name: str | None = None) -> list[ScheduleView]:
        with self._lock:
            rows = [row for row in self._schedules.values() if name in (None, row.name)]
            return [self._schedule_view(row) for row in sorted(rows, key=lambda row: row.name)]

    def ticks(
        self, schedule: str, *, before: datetime | None = None, until: datetime | None = None, limit: int = 50
    ) -> list[TickView]:
        with self._lock:
            rows = [
                tick
                for tick in self._ticks.get(schedule, {}).values()
                if (before is None or tick.tick < before)
                and (until is None or tick.tick <= until or tick.outcome is not None)
            ]
            return [_tick_view(tick) for tick in sorted(rows, key=lambda tick: tick.tick, reverse=True)[:limit]]

    def put_schedule(
        self, name: str, app: str, definition: str, *, replace: bool
    ) -> Literal["added", "replaced", "exists", "missing", "code"]:
        with self._lock:
            row = self._schedules.get(name)
            if not replace:
                if row is not None:
                    return "exists"
                self._insert(name, "hand", app, definition)
                return "added"
            if row is None:
                return "missing"
            if row.origin == "code":
                return "code"
            self._withdraw(row, entirely=False, why="the schedule was replaced")
            self._define(row, app, definition)
            return "replaced"

    def remove_schedule(self, name: str) -> Literal["removed", "missing", "code"]:
        with self._lock:
            row = self._schedules.get(name)
            if row is None:
                return "missing"
            if row.origin == "code":
                return "code"
            self._withdraw(row, entirely=True, why="the schedule was removed")
            del self._schedules[name]
            self._restore_declared(name)
            return "removed"

    def pause_schedule(self, name: str) -> bool:
        with self._lock:
            row = self._schedules.get(name)
            if row is None:
                return False
            self._withdraw(row, entirely=True, why="paused")
            row.paused_at = row.paused_at or self.now()
            row.alarm = row.alarm_tick = None
            row.plan_at = self.now() if row.retired_at is None else None
            return True

    def resume_schedule(self, name: str) -> bool:
        with self._lock:
            row = self._schedules.get(name)
            if row is None or row.paused_at is None:
                return False
            row.paused_at, row.revision = None, row.revision + 1
            row.plan_at = self.now() if row.retired_at is None else None
            return True

    def _schedule_view(self, row: ScheduleRow) -> ScheduleView:
        ticks = self._ticks.get(row.name, {}).values()
        waiting = (tick for tick in ticks if tick.is_waiting)
        following = min(waiting, key=lambda tick: (self._is_outdated(tick), tick.order), default=None)
        last = max((tick for tick in ticks if not tick.is_waiting), key=lambda tick: tick.tick, default=None)
        return ScheduleView(
            row.name, row.definition, row.origin, row.app, row.paused_at, row.retired_at,
            following.tick if following else None, last.tick if last else None,
            (last.outcome or "running") if last else None, row.runs, row.alarm, row.alarm_tick, row.trouble,
            row.last_tick, following.due_at if following else None,
            any(tick.outcome is None and tick.started_at is not None for tick in ticks),
        )


def _tick_view(tick: TickRow) -> TickView:
    return TickView(
        tick.schedule, tick.tick, tick.kind, tick.due_at, tick.planned_at, tick.started_at, tick.finished_at,
        tick.outcome, tick.reason, tick.job_id,
    )
