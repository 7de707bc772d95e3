"""Schedules declared in code. Those of the code of live workers are in force."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..schedules.ticks import Change
from ..schedules.timing import MICROSECOND
from .schedules_tables import ScheduleRow, SchedulesTables

# A schedule that no live worker's code has declared for longer than this starts afresh: no tick is caught up.
RESTART = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Declaration:
    """One schedule as a generation of an app's code declares it."""

    name: str
    definition: str
    generation: str
    app: str

    @property
    def runs_on_start(self) -> bool:
        return bool(json.loads(self.definition).get("run_on_start"))


class Declarations(SchedulesTables):
    """Methods for the code of starting workers."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        # Oldest first: the app, and the definitions that it declares.
        self._generations: dict[str, tuple[str, Mapping[str, str]]] = {}
        self._in_force: list[str] = []

    def declare(self, app: str, generation: str, definitions: Mapping[str, str]) -> None:
        with self._lock:
            self._generations.setdefault(generation, (app, dict(definitions)))

    def reconcile(self) -> list[Change]:
        with self._lock:
            living = self._live_generations()
            if living == self._in_force:
                return []
            declared = self._declared_by(living)
            changes = [self._apply(declared[name]) for name in sorted(declared)]
            apps = {self._generations[generation][0] for generation in living}
            gone = [
                row for row in self._schedules.values()
                if row.origin == "code" and row.retired_at is None and row.app in apps and row.name not in declared
            ]
            changes += [self._retire(row) for row in sorted(gone, key=lambda row: row.name)]
            self._in_force = living
            return [change for change in changes if change is not None]

    # Shared by other methods. The caller holds the lock.

    def _plan_in(self, now: datetime) -> float | None:
        """Return the seconds until a planner has something to do, or None."""
        if self._live_generations() != self._in_force:
            return 0.0
        first = self._planning.first
        return None if first is None else (first - now).total_seconds()

    def _restore_declared(self, name: str) -> None:
        """Apply the declaration of this name in code, which a schedule made at run time had kept out."""
        # `_in_force` is included because workers that are absent for a moment change nothing when they come back.
        declared = self._declared_by([*self._live_generations(), *self._in_force])
        if name in declared:
            self._apply(declared[name], starts=False)

    def _live_generations(self) -> list[str]:
        return sorted({pulse.card.generation for pulse in self._workers.values() if pulse.card.generation})

    def _declared_by(self, generations: Iterable[str]) -> dict[str, Declaration]:
        """Return the declarations of these generations by name; for the same name, that of the newest generation."""
        return {
            name: Declaration(name, definition, generation, app)
            for generation, (app, definitions) in self._generations.items() if generation in generations
            for name, definition in definitions.items()
        }

    def _apply(self, declared: Declaration, *, starts: bool = True) -> Change | None:
        """Put a declaration into force. With `starts`, newly started code also gets its run for `run_on_start`."""
        row, now = self._schedules.get(declared.name), self.now()
        starts = starts and declared.generation not in self._in_force and declared.runs_on_start
        starts_at = self._free_instant(declared.name, now) if starts else None
        if row is None:
            row = self._insert(declared.name, "code", declared.app, declared.definition)
            row.generation, row.starts_at = declared.generation, starts_at
            return Change(declared.name, "new")
        if row.origin == "hand":
            return Change(declared.name, "taken")
        row.generation = declared.generation
        if row.definition == declared.definition and row.retired_at is None:
            return None if starts_at is None else self._start(row, starts_at, now)
        return self._change(row, declared, starts_at, now)

    def _free_instant(self, schedule: str, now: datetime) -> datetime:
        """Return an instant that is not another run's tick, even if the clock stands still, as in tests."""
        near = [tick for tick in self._ticks.get(schedule, ()) if now <= tick <= now + timedelta(milliseconds=1)]
        return max(near) + MICROSECOND if near else now

    def _start(self, row: ScheduleRow, starts_at: datetime, now: datetime) -> Change:
        if row.options.get("after_finish"):
            # The run at the start replaces the next one, and the tick after it counts from its end.
            self._withdraw(row, entirely=False, why="the code was started")
        row.plan_at, row.starts_at, row.revision = now, starts_at, row.revision + 1
        return Change(row.name, "started")

    def _change(self, row: ScheduleRow, declared: Declaration, starts_at: datetime | None, now: datetime) -> Change:
        self._withdraw(row, entirely=False, why="the schedule was changed")
        if row.retired_at is not None and row.retired_at < now - RESTART:
            row.last_tick = max(row.last_tick, now)
        row.retired_at, row.starts_at = None, starts_at
        self._define(row, declared.app, declared.definition)
        return Change(row.name, "changed")

    def _retire(self, row: ScheduleRow) -> Change:
        self._withdraw(row, entirely=True, why="the schedule was removed")
        row.retired_at, row.plan_at, row.starts_at = self.now(), None, None
        row.alarm = row.alarm_tick = row.trouble = None
        return Change(row.name, "retired")
