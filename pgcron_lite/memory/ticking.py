"""Ticks that are due: whether their jobs may begin, what became of them, and whether somebody ought to be told."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal

from ..moment import in_utc
from ..schedule import MICROSECOND
from ..ticks import LATE, Admission, Alarm, Closing
from .timetable import ScheduleRow, TickRow, Timetable

# What is to be done about a run that is due, and why not to run it.
Verdict = tuple[Literal["go", "wait", "skip", "over"], str | None]


class Ticking(Timetable):
    """The verbs of workers that run the jobs of ticks."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        # Schedules that may have a tick that is missed or late.
        self._overdue: set[str] = set()

    def admit(self, job_ids: Sequence[int]) -> dict[int, Admission]:
        with self._lock:
            now = self.now()
            mine = {job_id: self._tick_of[job_id] for job_id in job_ids if job_id in self._tick_of}
            # All are judged before anything is written, as one statement would.
            judged = [(job_id, tick, self._judged(tick, now)) for job_id, tick in mine.items()]
            return {job_id: self._admitted(tick, verdict, now) for job_id, tick, verdict in judged}

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
            if now < self._next_watch(now):
                return [], []
            self._watched_at = now
            closings = self._close_gone()
            self._find_overdue(now)
            return closings, self._alarms(now)

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
            for moment, tick in self._by_age.take(before - MICROSECOND):
                if tick.outcome is None or old == limit:
                    self._by_age.add(moment, tick)
                else:
                    self._forget(tick)
                    old += 1
            return old

    # May it begin? The lock is held, from here on.

    def _judged(self, tick: TickRow, now: datetime) -> Verdict:
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
        earlier = self._earlier(tick, row.said, now)
        if earlier is None:
            return "go", None
        if row.said["overlap"] == "skip" and not _is_asked_for(tick, row.said, now):
            return "skip", f"overlap: the run of {in_utc(earlier.tick)} was still going on"
        return "wait", None

    def _fate(self, tick: TickRow, said: Mapping[str, Any], now: datetime) -> str | None:
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

    def _earlier(self, tick: TickRow, said: Mapping[str, Any], now: datetime) -> TickRow | None:
        """The first run of the schedule that goes on, or whose turn comes before this one's."""
        earlier = [
            other for other in self._open_ticks[tick.schedule].values()
            if other is not tick and (other.started_at is not None or other.order < tick.order)
            and other.due_at <= now and other.job_id in self._jobs and self._fate(other, said, now) is None
        ]
        return min(earlier, key=lambda other: other.order, default=None)

    def _admitted(self, tick: TickRow, verdict: Verdict, now: datetime) -> Admission:
        what, reason = verdict
        if what == "over":
            return Admission(kind=tick.kind)
        if what == "skip":
            if tick.outcome is None:
                self._over(tick, "skipped", now, reason)
                _give_back(self._schedules[tick.schedule], now)
            return Admission(refusal=reason)
        if what == "go" and tick.started_at is None:
            self._begin(tick, now)
        row = self._schedules.get(tick.schedule)
        is_late = (tick.started_at or now) > tick.due_at + LATE
        wait = min(60.0, max(1.0, (now - tick.due_at).total_seconds() / 10)) if what == "wait" else None
        return Admission(self._previous(tick), tick.kind, is_late, wait, ping=row.said.get("ping") if row else None)

    def _previous(self, tick: TickRow) -> datetime | None:
        """The last tick before it that ended well."""
        done = self._done.get(tick.schedule, [])
        place = bisect.bisect_left(done, tick.tick)
        return done[place - 1] if place else None

    # What became of it?

    def _closed(self, tick: TickRow) -> Closing | None:
        job = self._history.get(tick.job_id or 0)
        state = "deleted" if job is None else job.state
        # A failed job may have been queued again by hand.
        if tick.outcome is not None and not (tick.outcome in ("failed", "cancelled") and state == "done"):
            return None
        ended_at = self.now() if job is None or job.finished_at is None else job.finished_at
        self._over(tick, state, ended_at)
        seconds = None if job is None or tick.started_at is None else (ended_at - tick.started_at).total_seconds()
        row = self._schedules.get(tick.schedule)
        if row is None:
            return Closing(tick.schedule, tick.tick, tick.job_id or 0, state, seconds)
        frees = self._wake_next(tick.schedule)
        goes_on = self._goes_on(row, ended_at)
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

    def _goes_on(self, row: ScheduleRow, ended_at: datetime) -> bool:
        """Note that a run has ended. Does the next tick count from it?"""
        row.last_end = max(row.last_end or ended_at, ended_at)
        row.revision += 1
        goes_on = row.retired_at is None and bool(row.said["after_finish"])
        if goes_on:
            row.plan_at = self.now()
        return goes_on

    # Ought somebody to be told?

    def _close_gone(self) -> list[Closing]:
        """Close the runs whose end nobody noted."""
        closings = self.close_ticks(
            [job_id for job_id in self._gone if job_id in self._tick_of and self._tick_of[job_id].outcome is None]
        )
        self._gone.clear()
        return closings

    def _find_overdue(self, now: datetime) -> None:
        late = [*self._unbegun.take(now - MICROSECOND), *self._begun.take(now - MICROSECOND)]
        self._overdue.update(tick.schedule for _, tick in late)
        if _is_unplanned(self._planning.first, now):
            self._overdue.update(row.name for row in self._schedules.values() if _is_unplanned(row.plan_at, now))

    def _alarms(self, now: datetime) -> list[Alarm]:
        if not self._overdue:
            return []
        rows = [row for name, row in self._schedules.items() if name in self._overdue]
        return [alarm for row in rows if (alarm := self._alarm_of(row, now)) is not None]

    def _alarm_of(self, row: ScheduleRow, now: datetime) -> Alarm | None:
        reasons = list(self._missed_or_late(row, now))
        if not reasons:
            self._overdue.discard(row.name)
        if not reasons or row.alarm is not None or row.paused_at is not None or row.retired_at is not None:
            return None
        first = min(reasons, key=lambda alarm: alarm.tick)
        row.alarm, row.alarm_tick = first.kind, first.tick
        return first

    def _missed_or_late(self, row: ScheduleRow, now: datetime) -> Iterator[Alarm]:
        for tick in self._open_ticks.get(row.name, {}).values():
            if tick.started_at is None and tick.due_at + LATE < now:
                yield Alarm(row.name, tick.tick, "missed", tick.job_id)
            elif tick.started_at is not None and tick.late_at is not None and tick.late_at < now:
                yield Alarm(row.name, tick.tick, "late", tick.job_id)
        if row.plan_at is not None and _is_unplanned(row.plan_at, now):
            yield Alarm(row.name, row.plan_at, "missed", None)


def _is_asked_for(tick: TickRow, said: Mapping[str, Any], now: datetime) -> bool:
    """Runs that were asked for, by hand or to catch up with all, are not dropped; they take turns."""
    is_made_up = tick.planned_at > tick.due_at or now > tick.due_at + LATE
    return tick.kind != "tick" or (said["catch_up"] == "all" and is_made_up)


def _give_back(row: ScheduleRow, now: datetime) -> None:
    """A run that is left out counts for none of `max_runs`."""
    row.runs, row.plan_at, row.revision = max(0, row.runs - 1), row.plan_at or now, row.revision + 1
    row.last_end = now


def _is_unplanned(plan_at: datetime | None, now: datetime) -> bool:
    """Has nobody decided the ticks, long after it was time?"""
    return plan_at is not None and plan_at + 2 * LATE < now
