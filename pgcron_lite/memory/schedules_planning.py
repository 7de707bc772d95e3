"""Planning of schedules: storing decided ticks with their jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from ..schedules.ticks import EARLY, Entry, Move, Tick
from .schedules_tables import ScheduleRow, SchedulesTables, TickRow


class SchedulesPlanning(SchedulesTables):
    """Methods for a scheduler."""

    def plan(
        self,
        decide: Callable[[Entry, datetime], Move],
        name: str | None = None,
        *,
        limit: int = 200,
        gives_way: bool = True,
    ) -> list[Move] | None:
        with self._lock:
            now = self.now()
            rows = self._due(now, limit) if name is None else self._named(name)
            moves = [decide(self._entry(row, now), now) for row in rows]
            return [move for row, move in zip(rows, moves, strict=True) if self._move(row, move)]

    def add_ticks(self, schedule: str, ticks: Sequence[Tick]) -> dict[datetime, int]:
        with self._lock:
            return self._write(schedule, ticks)

    # Parts of a plan. The caller holds the lock.

    def _due(self, now: datetime, limit: int) -> list[ScheduleRow]:
        due = {row.name: (time, row) for time, row in self._planning.take(now + EARLY)}
        for time, row in due.values():
            # It stays due until its plan is written.
            self._planning.add(time, row)
        return [due[name][1] for name in sorted(due, key=lambda name: (due[name][0], name))][:limit]

    def _named(self, name: str) -> list[ScheduleRow]:
        row = self._schedules.get(name)
        return [] if row is None or row.retired_at is not None else [row]

    def _entry(self, row: ScheduleRow, now: datetime) -> Entry:
        still_open = self._open_ticks.get(row.name, {}).values()
        return Entry(
            row.name, row.definition, row.revision, row.last_tick, row.runs, row.paused_at is not None,
            not all(self._is_outdated(tick) for tick in still_open), row.last_end, row.starts_at,
            any(tick.kind == "tick" and tick.tick > now for tick in still_open),
        )

    def _move(self, row: ScheduleRow, move: Move) -> bool:
        """Write the move, unless the row has changed since the decision. Return False if it has."""
        if row.revision != move.revision:
            return False
        row.last_tick, row.plan_at = max(row.last_tick, move.last_tick), move.plan_at
        row.trouble, row.revision = move.trouble, row.revision + 1
        # A move without trouble has also decided the run at the start.
        row.starts_at = None if move.trouble is None else row.starts_at
        self._write(move.name, move.ticks)
        return True

    def _write(self, schedule: str, ticks: Sequence[Tick]) -> dict[datetime, int]:
        """Store ticks with their jobs. Return the ids of the jobs by tick."""
        now = self.now()
        written = [self._write_one(schedule, tick, now) for tick in ticks if self._is_fresh(schedule, tick)]
        return {row.tick: row.job_id for row in written if row.job_id is not None}

    def _is_fresh(self, schedule: str, tick: Tick) -> bool:
        # A skipped tick may be backfilled by a user. No other tick gets a second run.
        existing = self._ticks.get(schedule, {}).get(tick.tick)
        return existing is None or (existing.outcome == "skipped" and tick.kind == "backfill")

    def _write_one(self, schedule: str, tick: Tick, now: datetime) -> TickRow:
        job_id = None if tick.job is None else self._add([tick.job])[0]
        row = TickRow(schedule, tick.tick, tick.kind, tick.due_at, tick.late_at, job_id, now)
        self._insert_tick(row)
        if job_id is None:
            self._finish_tick(row, "skipped", now, tick.reason)
        elif tick.kind == "tick" and schedule in self._schedules:
            self._schedules[schedule].runs += 1
        return row
