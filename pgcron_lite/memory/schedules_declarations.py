"""What code declares, and what of it is in force: that of the workers that live."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ..schedules.ticks import Change
from ..schedules.timing import MICROSECOND
from .schedules_tables import ScheduleRow, SchedulesTables

# A schedule that nobody's code declared for longer than this begins anew.
RESTART = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a generation of an app's code says about one schedule."""

    name: str
    definition: str
    generation: str
    app: str

    @property
    def runs_on_start(self) -> bool:
        return bool(json.loads(self.definition).get("run_on_start"))


class Declarations(SchedulesTables):
    """The verbs of code that comes to life."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        # The oldest first: the app, and what it declares.
        self._generations: dict[str, tuple[str, Mapping[str, str]]] = {}
        self._in_force: list[str] = []

    def declare(self, app: str, generation: str, definitions: Mapping[str, str]) -> None:
        with self._lock:
            self._generations.setdefault(generation, (app, dict(definitions)))

    def reconcile(self) -> list[Change]:
        with self._lock:
            living = self._living()
            if living == self._in_force:
                return []
            declared = self._said_by(living)
            changes = [self._bring(declared[name]) for name in sorted(declared)]
            apps = {self._generations[generation][0] for generation in living}
            gone = [
                row for row in self._schedules.values()
                if row.origin == "code" and row.retired_at is None and row.app in apps and row.name not in declared
            ]
            changes += [self._retire(row) for row in sorted(gone, key=lambda row: row.name)]
            self._in_force = living
            return [change for change in changes if change is not None]

    # What the verbs share; the lock is held.

    def _plan_in(self, now: datetime) -> float | None:
        """Seconds until a planner has something to do."""
        if self._living() != self._in_force:
            return 0.0
        first = self._planning.first
        return None if first is None else (first - now).total_seconds()

    def _reinstate(self, name: str) -> None:
        """Code that declares a schedule of this name, and had to stand back, is in its place now."""
        # Code whose workers are away for the moment brings no news when it comes back.
        declared = self._said_by([*self._living(), *self._in_force])
        if name in declared:
            self._bring(declared[name], starts=False)

    def _living(self) -> list[str]:
        return sorted({pulse.card.generation for pulse in self._workers.values() if pulse.card.generation})

    def _said_by(self, generations: Iterable[str]) -> dict[str, Declaration]:
        """What these say about each schedule; of two that speak of the same one, the newer."""
        return {
            name: Declaration(name, definition, generation, app)
            for generation, (app, definitions) in self._generations.items() if generation in generations
            for name, definition in definitions.items()
        }

    def _bring(self, declared: Declaration, *, starts: bool = True) -> Change | None:
        """Bring it into force; with the run it asks for if its code has just come to life, or without."""
        row, now = self._schedules.get(declared.name), self.now()
        starts = starts and declared.generation not in self._in_force and declared.runs_on_start
        starts_at = self._free_moment(declared.name, now) if starts else None
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

    def _free_moment(self, schedule: str, now: datetime) -> datetime:
        """A moment that is no other run's, also where the clock stands still, as in tests."""
        near = [tick for tick in self._ticks.get(schedule, ()) if now <= tick <= now + timedelta(milliseconds=1)]
        return max(near) + MICROSECOND if near else now

    def _start(self, row: ScheduleRow, starts_at: datetime, now: datetime) -> Change:
        if row.said.get("after_finish"):
            # The run at the start is the next one, and the one after it counts from its end.
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
