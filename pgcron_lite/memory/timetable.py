"""Schedules and ticks in memory: what `pg/planning.py`, `pg/ticking.py` and `pg/schedules.py` do in a database."""

from __future__ import annotations

import bisect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from ..job import Job
from ..moment import in_utc
from ..ticks import (
    EARLY,
    LATE,
    WATCH_EVERY,
    Admission,
    Alarm,
    Change,
    Closing,
    Entry,
    Kind,
    Move,
    ScheduleView,
    Tick,
    TickView,
)
from .agenda import Agenda, earliest
from .tables import Tables

# A schedule that nobody's code declared for longer than this begins anew.
RESTART = timedelta(hours=1)
_MOMENT = timedelta(microseconds=1)


@dataclass(slots=True)
class _Row:
    """A schedule's row."""

    name: str
    origin: Literal["code", "hand"]
    app: str
    definition: str
    said: dict[str, Any]
    last_tick: datetime
    planning: Agenda[_Row]
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
        """When its next ticks are to be decided."""
        return self._plan_at

    @plan_at.setter
    def plan_at(self, moment: datetime | None) -> None:
        self._plan_at = moment
        if moment is not None:
            self.planning.add(moment, self)


@dataclass(slots=True)
class _Tick:
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
    def order(self) -> tuple[datetime, datetime]:
        return self.due_at, self.tick


class Timetable(Tables):
    """The verbs of time."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        # The oldest first: the app, and what it declares.
        self._generations: dict[str, tuple[str, Mapping[str, str]]] = {}
        self._in_force: list[str] = []
        self._schedules: dict[str, _Row] = {}
        # By schedule, and there by tick; those that are not over once more.
        self._ticks: dict[str, dict[datetime, _Tick]] = {}
        self._open_ticks: dict[str, dict[datetime, _Tick]] = {}
        self._tick_of: dict[int, _Tick] = {}
        # Schedules by when to decide their ticks; ticks by age; ticks by when they are late if they have not begun, or
        # not ended; schedules that have one that is late.
        self._planning: Agenda[_Row] = Agenda(self._is_planned)
        self._by_age: Agenda[_Tick] = Agenda(self._is_kept)
        self._unbegun: Agenda[_Tick] = Agenda(lambda _, tick: tick.outcome is None and tick.started_at is None)
        self._begun: Agenda[_Tick] = Agenda(lambda _, tick: tick.outcome is None)
        self._overdue: set[str] = set()
        # Jobs that are gone and may be those of ticks that are open.
        self._gone: set[int] = set()
        # The ticks of each schedule that ended well, sorted.
        self._done: dict[str, list[datetime]] = {}
        self._watched_at: datetime | None = None

    # Planning

    def declare(self, app: str, generation: str, definitions: Mapping[str, str]) -> None:
        with self._lock:
            self._generations.setdefault(generation, (app, dict(definitions)))

    def reconcile(self) -> list[Change]:
        with self._lock:
            living = self._living()
            if living == self._in_force:
                return []
            declared = self._declarations(living)
            changes = [self._declared(name, *declared[name]) for name in sorted(declared)]
            apps = {self._generations[generation][0] for generation in living}
            gone = [
                row for row in self._schedules.values()
                if row.origin == "code" and row.retired_at is None and row.app in apps and row.name not in declared
            ]
            changes += [self._retire(row) for row in sorted(gone, key=lambda row: row.name)]
            self._in_force = living
            return [change for change in changes if change is not None]

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
            if name is None:
                due = {row.name: (moment, row) for moment, row in self._planning.take(now + EARLY)}
                for moment, row in due.values():
                    # Until it is written, it is still to be done.
                    self._planning.add(moment, row)
                rows = [due[name][1] for name in sorted(due, key=lambda name: (due[name][0], name))][:limit]
            else:
                rows = [row for row in self._schedules.values() if row.name == name and row.retired_at is None]
            moves = [decide(self._entry(row), now) for row in rows]
            made = []
            for row, move in zip(rows, moves, strict=True):
                if row.revision != move.revision:
                    continue
                row.last_tick, row.plan_at = max(row.last_tick, move.last_tick), move.plan_at
                row.trouble, row.revision = move.trouble, row.revision + 1
                # Whoever is not stuck has decided this as well.
                row.starts_at = None if move.trouble is None else row.starts_at
                self._write(move.name, move.ticks)
                made.append(move)
            return made

    def add_ticks(self, schedule: str, ticks: Sequence[Tick]) -> dict[datetime, int]:
        with self._lock:
            return self._write(schedule, ticks)

    # Ticks that are due

    def admit(self, job_ids: Sequence[int]) -> dict[int, Admission]:
        with self._lock:
            now = self.now()
            mine = [self._tick_of[job_id] for job_id in job_ids if job_id in self._tick_of]
            # All are judged before anything is written, as one statement would.
            judged = [(tick, self._judged(tick, now)) for tick in mine]
            return {tick.job_id or 0: self._admitted(tick, *verdict, now) for tick, verdict in judged}

    def close_ticks(self, job_ids: Sequence[int]) -> list[Closing]:
        with self._lock:
            over = [
                self._tick_of[job_id] for job_id in sorted(set(job_ids))
                if job_id in self._tick_of and job_id not in self._jobs
            ]
            return [closing for tick in over if (closing := self._closed(tick)) is not None]

    def watch(self) -> tuple[list[Closing], list[Alarm]]:
        with self._lock:
            now = self.now()
            if self._watched_at is not None and now < self._watched_at + WATCH_EVERY:
                return [], []
            self._watched_at = now
            closings = self.close_ticks(
                [job_id for job_id in self._gone if job_id in self._tick_of and self._tick_of[job_id].outcome is None]
            )
            self._gone.clear()
            late = [*self._unbegun.take(now - _MOMENT), *self._begun.take(now - _MOMENT)]
            self._overdue.update(tick.schedule for _, tick in late)
            unplanned = self._planning.first
            if unplanned is not None and unplanned + 2 * LATE < now:
                self._overdue.update(row.name for row in self._schedules.values() if _is_unplanned(row, now))
            names = [name for name in self._schedules if name in self._overdue] if self._overdue else []
            alarms = [self._alarm_of(self._schedules[name], now) for name in names]
            return closings, [alarm for alarm in alarms if alarm is not None]

    def raise_alarm(self, schedule: str, tick: datetime) -> bool:
        with self._lock:
            row = self._schedules.get(schedule)
            if row is None or row.alarm is not None:
                return False
            row.alarm, row.alarm_tick = "missed", tick
            return True

    def prune_ticks(self, keep: timedelta, limit: int = 1000) -> int:
        with self._lock:
            before = self.now() - keep
            old = 0
            for moment, tick in self._by_age.take(before - _MOMENT):
                if tick.outcome is None or old == limit:
                    self._by_age.add(moment, tick)
                else:
                    self._forget(tick)
                    old += 1
            return old

    # The desk

    def schedules(self, name: str | None = None) -> list[ScheduleView]:
        with self._lock:
            return [self._seen(row) for row in sorted(self._schedules.values(), key=lambda row: row.name)
                    if name in (None, row.name)]  # fmt: skip

    def ticks(self, schedule: str, *, before: datetime | None = None, limit: int = 50) -> list[TickView]:
        with self._lock:
            found = [
                TickView(
                    tick.schedule, tick.tick, tick.kind, tick.due_at, tick.planned_at, tick.started_at,
                    tick.finished_at, tick.outcome, tick.reason, tick.job_id,
                )
                for tick in self._ticks.get(schedule, {}).values() if before is None or tick.tick < before
            ]
            return sorted(found, key=lambda view: view.tick, reverse=True)[:limit]

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
            # Code whose workers are away for the moment brings no news when it comes back.
            declared = self._declarations([*self._living(), *self._in_force])
            if name in declared:
                self._declared(name, *declared[name], starts=False)
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

    # What the verbs share; the lock is held.

    def _drop(self, job_id: int) -> Job | None:
        if job_id in self._tick_of:
            self._gone.add(job_id)
        return super()._drop(job_id)

    def _next_alarm(self, now: datetime) -> datetime | None:
        """When the next tick could be found not to have begun or ended in time."""
        first = earliest(self._unbegun.first, self._begun.first)
        if first is None:
            return None
        watch = now if self._watched_at is None else self._watched_at + WATCH_EVERY
        moment = max(first + _MOMENT, watch)
        return moment if moment > now else None

    def _is_planned(self, moment: datetime, row: _Row) -> bool:
        return row.plan_at == moment and self._schedules.get(row.name) is row

    def _is_kept(self, moment: datetime, tick: _Tick) -> bool:
        return self._ticks.get(tick.schedule, {}).get(tick.tick) is tick

    def _living(self) -> list[str]:
        return sorted({pulse.card.generation for pulse in self._workers.values() if pulse.card.generation})

    def _declarations(self, living: Sequence[str]) -> dict[str, tuple[str, str, str]]:
        """What these generations say about each schedule, the newest last: definition, generation and app."""
        return {
            name: (definition, generation, app)
            for generation, (app, definitions) in self._generations.items() if generation in living
            for name, definition in definitions.items()
        }

    def _schedules_due(self, now: datetime) -> float | None:
        """Seconds until a planner has something to do."""
        if self._living() != self._in_force:
            return 0.0
        first = self._planning.first
        return None if first is None else (first - now).total_seconds()

    def _is_to_be_watched(self, now: datetime) -> bool:
        is_time = self._watched_at is None or now >= self._watched_at + WATCH_EVERY
        return is_time and any(row.retired_at is None for row in self._schedules.values())

    def _insert(self, name: str, origin: Literal["code", "hand"], app: str, definition: str) -> _Row:
        now = self.now()
        row = self._schedules[name] = _Row(name, origin, app, definition, json.loads(definition), now, self._planning)
        row.plan_at = now
        return row

    def _define(self, row: _Row, app: str, definition: str) -> None:
        row.app, row.definition, row.said = app, definition, json.loads(definition)
        row.plan_at, row.trouble, row.revision = self.now(), None, row.revision + 1

    def _declared(
        self, name: str, definition: str, generation: str, app: str, *, starts: bool = True
    ) -> Change | None:
        """Bring it into force; with the run it asks for if its code has just come to life, or without."""
        row, now = self._schedules.get(name), self.now()
        said = json.loads(definition)
        starts = starts and bool(said.get("run_on_start")) and generation not in self._in_force
        starts_at = self._free(name, now) if starts else None
        if row is None:
            row = self._insert(name, "code", app, definition)
            row.generation, row.starts_at = generation, starts_at
            return Change(name, "new")
        if row.origin == "hand":
            return Change(name, "taken")
        if row.definition == definition and row.retired_at is None:
            row.generation = generation
            if starts_at is None:
                return None
            if said.get("after_finish"):
                # The run at the start is the next one, and the one after it counts from its end.
                self._withdraw(row, entirely=False, why="the code was started")
            row.plan_at, row.starts_at, row.revision = now, starts_at, row.revision + 1
            return Change(name, "started")
        self._withdraw(row, entirely=False, why="the schedule was changed")
        if row.retired_at is not None and row.retired_at < now - RESTART:
            row.last_tick = max(row.last_tick, now)
        row.generation, row.retired_at, row.starts_at = generation, None, starts_at
        self._define(row, app, definition)
        return Change(name, "changed")

    def _retire(self, row: _Row) -> Change:
        self._withdraw(row, entirely=True, why="the schedule was removed")
        row.retired_at, row.plan_at, row.starts_at = self.now(), None, None
        row.alarm = row.alarm_tick = row.trouble = None
        return Change(row.name, "retired")

    def _free(self, schedule: str, now: datetime) -> datetime:
        """A moment that is no other run's, also where the clock stands still, as in tests."""
        near = [tick for tick in self._ticks.get(schedule, ()) if now <= tick <= now + timedelta(milliseconds=1)]
        return max(near) + _MOMENT if near else now

    def _withdraw(self, row: _Row, *, entirely: bool, why: str) -> None:
        now = self.now()
        for tick in list(self._open_ticks.get(row.name, {}).values()):
            job = self._jobs.get(tick.job_id or 0)
            is_ours = tick.kind == "tick" and tick.started_at is None and (entirely or tick.tick > now)
            if not is_ours or job is None or job.state != "queued" or job.attempt != 0:
                continue
            self._drop(job.id)
            row.runs = max(0, row.runs - 1)
            if tick.tick > now:
                self._forget(tick)
            else:
                self._over(tick, "skipped", now, why)
        kept = [tick.tick for tick in self._ticks.get(row.name, {}).values() if tick.kind == "tick"]
        row.last_tick = max([min(row.last_tick, now), *kept])
        row.revision += 1

    def _entry(self, row: _Row) -> Entry:
        return Entry(
            row.name, row.definition, row.revision, row.last_tick, row.runs, row.paused_at is not None,
            bool(self._open_ticks.get(row.name)), row.last_end, row.starts_at,
        )

    def _write(self, schedule: str, ticks: Sequence[Tick]) -> dict[datetime, int]:
        noted, now = {}, self.now()
        rows = self._ticks.setdefault(schedule, {})
        for tick in ticks:
            there = rows.get(tick.tick)
            if there is not None and not (there.outcome == "skipped" and tick.kind == "backfill"):
                continue
            job_id = self._add([tick.job])[0] if tick.job is not None else None
            row = rows[tick.tick] = _Tick(schedule, tick.tick, tick.kind, tick.due_at, tick.late_at, job_id, now)
            self._by_age.add(row.tick, row)
            if job_id is None:
                self._over(row, "skipped", now, tick.reason)
                continue
            noted[tick.tick] = job_id
            self._tick_of[job_id] = row
            self._unbegun.add(row.due_at + LATE, row)
            self._open_ticks.setdefault(schedule, {})[tick.tick] = row
            if schedule in self._schedules and tick.kind == "tick":
                self._schedules[schedule].runs += 1
        return noted

    def _over(self, tick: _Tick, outcome: str, at: datetime, reason: str | None = None) -> None:
        tick.outcome, tick.finished_at, tick.reason = outcome, at, reason
        self._open_ticks.get(tick.schedule, {}).pop(tick.tick, None)
        if outcome == "done":
            bisect.insort(self._done.setdefault(tick.schedule, []), tick.tick)

    def _forget(self, tick: _Tick) -> None:
        self._ticks[tick.schedule].pop(tick.tick, None)
        self._open_ticks.get(tick.schedule, {}).pop(tick.tick, None)
        self._tick_of.pop(tick.job_id or 0, None)
        if tick.outcome == "done":
            self._done[tick.schedule].remove(tick.tick)

    def _fate(self, tick: _Tick, said: Mapping[str, Any], now: datetime) -> str | None:
        """Why a run that is due will not be, whatever the others do."""
        if tick.started_at is not None or tick.kind != "tick":
            return None
        if "grace" in said and now > tick.due_at + timedelta(seconds=said["grace"]):
            return "too late"
        if said["catch_up"] == "skip" and now > tick.due_at + LATE:
            return "missed"
        if said["catch_up"] == "latest" and any(
            later.kind == "tick" and later.due_at <= now and later.tick > tick.tick
            for later in self._open_ticks[tick.schedule].values()
        ):
            return "missed; a later tick stands for it"
        return None

    def _judged(self, tick: _Tick, now: datetime) -> tuple[str, str | None]:
        row = self._schedules.get(tick.schedule)
        if tick.outcome is not None:
            return ("skip", tick.reason) if tick.outcome == "skipped" else ("over", None)
        if row is None:
            return "go", None
        fate = self._fate(tick, row.said, now)
        if fate is not None:
            return "skip", fate
        if tick.started_at is not None or row.said["overlap"] == "allow":
            return "go", None
        earlier = [
            other for other in self._open_ticks[tick.schedule].values()
            if other is not tick and (other.started_at is not None or other.order < tick.order)
            and other.due_at <= now and other.job_id in self._jobs and self._fate(other, row.said, now) is None
        ]
        if not earlier:
            return "go", None
        # Runs that were asked for, by hand or to catch up with all, are not dropped; they take turns.
        is_made_up = tick.planned_at > tick.due_at or now > tick.due_at + LATE
        is_asked_for = tick.kind != "tick" or (row.said["catch_up"] == "all" and is_made_up)
        if row.said["overlap"] == "skip" and not is_asked_for:
            first = min(earlier, key=lambda other: other.order)
            return "skip", f"overlap: the run of {in_utc(first.tick)} was still going on"
        return "wait", None

    def _admitted(self, tick: _Tick, verdict: str, reason: str | None, now: datetime) -> Admission:
        if verdict == "over":
            return Admission(kind=tick.kind)
        if verdict == "skip":
            if tick.outcome is None:
                self._over(tick, "skipped", now, reason)
                self._gave_back(self._schedules[tick.schedule], now)
            return Admission(refusal=reason)
        wait = None
        if verdict == "wait":
            wait = min(60.0, max(1.0, (now - tick.due_at).total_seconds() / 10))
        elif tick.started_at is None:
            tick.started_at = now
            if tick.late_at is not None:
                self._begun.add(tick.late_at, tick)
        row = self._schedules.get(tick.schedule)
        done = self._done.get(tick.schedule, [])
        place = bisect.bisect_left(done, tick.tick)
        previous = done[place - 1] if place else None
        is_late = (tick.started_at or now) > tick.due_at + LATE
        return Admission(previous, tick.kind, is_late, wait, ping=row.said.get("ping") if row else None)

    def _gave_back(self, row: _Row, now: datetime) -> None:
        row.runs, row.plan_at, row.revision = max(0, row.runs - 1), row.plan_at or now, row.revision + 1
        row.last_end = now

    def _closed(self, tick: _Tick) -> Closing | None:
        job: Job | None = self._history.get(tick.job_id or 0)
        state = "deleted" if job is None else job.state
        if tick.outcome is not None and not (tick.outcome in ("failed", "cancelled") and state == "done"):
            return None
        ended_at = self.now() if job is None or job.finished_at is None else job.finished_at
        self._over(tick, state, ended_at)
        seconds = None if job is None or tick.started_at is None else (ended_at - tick.started_at).total_seconds()
        row = self._schedules.get(tick.schedule)
        if row is None:
            return Closing(tick.schedule, tick.tick, tick.job_id or 0, state, seconds)
        frees = self._wake_next(tick.schedule)
        row.last_end = max(row.last_end or ended_at, ended_at)
        row.revision += 1
        goes_on = row.retired_at is None and bool(row.said["after_finish"])
        if goes_on:
            row.plan_at = self.now()
        recovered = state == "done" and row.alarm_tick is not None and tick.tick >= row.alarm_tick
        if recovered:
            row.alarm = row.alarm_tick = None
        ping = row.said.get("ping")
        return Closing(tick.schedule, tick.tick, tick.job_id or 0, state, seconds, ping, recovered, goes_on, frees)

    def _wake_next(self, schedule: str) -> bool:
        """The first of those that wait for one another is not to find out by itself, a while later. Is there one?"""
        now = self.now()
        waiting = [
            tick for tick in self._open_ticks.get(schedule, {}).values()
            if tick.started_at is None and tick.due_at <= now
        ]
        first = min(waiting, key=lambda tick: tick.order, default=None)
        job = None if first is None else self._jobs.get(first.job_id or 0)
        if job is not None and job.state == "queued" and job.execute_after > now:
            self._keep(job.changed(execute_after=now))
        return first is not None

    def _alarm_of(self, row: _Row, now: datetime) -> Alarm | None:
        found: list[tuple[datetime, Literal["missed", "late"], int | None]] = []
        for tick in self._open_ticks.get(row.name, {}).values():
            if tick.started_at is None and tick.due_at + LATE < now:
                found.append((tick.tick, "missed", tick.job_id))
            elif tick.started_at is not None and tick.late_at is not None and tick.late_at < now:
                found.append((tick.tick, "late", tick.job_id))
        if row.plan_at is not None and row.plan_at + 2 * LATE < now:
            found.append((row.plan_at, "missed", None))
        if not found:
            self._overdue.discard(row.name)
        if not found or row.alarm is not None or row.paused_at is not None or row.retired_at is not None:
            return None
        first, kind, job_id = min(found, key=lambda each: each[0])
        row.alarm, row.alarm_tick = kind, first
        return Alarm(row.name, first, kind, job_id)

    def _seen(self, row: _Row) -> ScheduleView:
        ticks = self._ticks.get(row.name, {}).values()
        waiting = [tick for tick in ticks if tick.outcome is None and tick.started_at is None]
        begun = [tick for tick in ticks if tick.outcome is not None or tick.started_at is not None]
        following = min(waiting, key=lambda tick: tick.due_at, default=None)
        last = max(begun, key=lambda tick: tick.tick, default=None)
        return ScheduleView(
            row.name, row.definition, row.origin, row.app, row.paused_at, row.retired_at,
            following.tick if following else None, last.tick if last else None,
            (last.outcome or "running") if last else None, row.runs, row.alarm, row.alarm_tick, row.trouble,
            row.last_tick, following.due_at if following else None,
        )


def _is_unplanned(row: _Row, now: datetime) -> bool:
    """Has nobody decided its ticks, long after it was time?"""
    return row.plan_at is not None and row.plan_at + 2 * LATE < now
