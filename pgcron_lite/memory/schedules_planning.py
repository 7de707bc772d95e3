"""Planning: which ticks are decided, and the jobs that go with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from ..schedules.ticks import EARLY, Entry, Move, Tick
from .schedules_tables import ScheduleRow, SchedulesTables, TickRow


class SchedulesPlanning(SchedulesTables):
    """The verbs of a scheduler."""

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
            rows = self._due(now, limit) if name is None else self._called(name)
            moves = [decide(self._entry(row, now), now) for row in rows]
            return [move for row, move in zip(rows, moves, strict=True) if self._move(row, move)]

    def add_ticks(self, schedule: str, ticks: Sequence[Tick]) -> dict[datetime, int]:
        with self._lock:
            return self._write(schedule, ticks)

    # One plan; the lock is held.

    def _due(self, now: datetime, limit: int) -> list[ScheduleRow]:
        due = {row.name: (moment, row) for moment, row in self._planning.take(now + EARLY)}
        for moment, row in due.values():
            # Until it is written, it is still to be done.
            self._planning.add(moment, row)
        return [due[name][1] for name in sorted(due, key=lambda name: (due[name][0], name))][:limit]

    def _called(self, name: str) -> list[ScheduleRow]:
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
        """Make the move if the row is still the one that was judged."""
        if row.revision != move.revision:
            return False
        row.last_tick, row.plan_at = max(row.last_tick, move.last_tick), move.plan_at
        row.trouble, row.revision = move.trouble, row.revision + 1
        # Whoever is not stuck has decided this as well.
        row.starts_at = None if move.trouble is None else row.starts_at
        self._write(move.name, move.ticks)
        return True

    def _write(self, schedule: str, ticks: Sequence[Tick]) -> dict[datetime, int]:
        """Write ticks with their jobs. The ids of these, by tick."""
        now = self.now()
        written = [self._write_one(schedule, tick, now) for tick in ticks if self._is_fresh(schedule, tick)]
        return {row.tick: row.job_id for row in written if row.job_id is not None}

    def _is_fresh(self, schedule: str, tick: Tick) -> bool:
        # What was left out once may be asked for by hand; nothing else is done twice.
        there = self._ticks.get(schedule, {}).get(tick.tick)
        return there is None or (there.outcome == "skipped" and tick.kind == "backfill")

    def _write_one(self, schedule: str, tick: Tick, now: datetime) -> TickRow:
        job_id = None if tick.job is None else self._add([tick.job])[0]
        row = TickRow(schedule, tick.tick, tick.kind, tick.due_at, tick.late_at, job_id, now)
        self._enter(row)
        if job_id is None:
            self._over(row, "skipped", now, tick.reason)
        elif tick.kind == "tick" and schedule in self._schedules:
            self._schedules[schedule].runs += 1
        return row
