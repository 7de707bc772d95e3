"""Admission and end of the jobs of ticks, and alarms for runs that are missed or late."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Container, Iterator, Sequence
from datetime import datetime, timedelta

from ..schedules.ticks import ASK_AGAIN, LATE, Admission, Alarm, Closing
from ..schedules.timing import MICROSECOND
from .schedules_admission import REMOVED, Decision, Decisions
from .schedules_tables import ScheduleRow, SchedulesTables, TickRow


class SchedulesTicks(SchedulesTables):
    """Methods for workers that run the jobs of ticks."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        # Names of schedules that may have a tick that is missed or late.
        self._overdue: set[str] = set()

    def admit(self, job_ids: Sequence[int]) -> dict[int, Admission]:
        with self._lock:
            now = self.now()
            mine = {job_id: self._tick_of[job_id] for job_id in job_ids if job_id in self._tick_of}
            # All are decided before anything is written, as in a single SQL statement.
            by_schedule = {
                schedule: self._decisions(schedule, now, mine)
                for schedule in {tick.schedule for tick in mine.values()}
            }
            decided = [(job_id, tick, self._decide(tick, by_schedule[tick.schedule])) for job_id, tick in mine.items()]
            for _, tick, ((what, _), _, _) in decided:
                decisions = by_schedule[tick.schedule] if what == "go" and tick.started_at is None else None
                for overtaken in [] if decisions is None else decisions.overtaken():
                    self._undo_begin(overtaken)
            return {job_id: self._admission(tick, *decision, now) for job_id, tick, decision in decided}

    def close_ticks(self, job_ids: Sequence[int], *, unbegun: bool = False) -> list[Closing]:
        with self._lock:
            over = [
                self._tick_of[job_id] for job_id in sorted(set(job_ids))
                if job_id in self._tick_of and job_id not in self._jobs
                and not (unbegun and not self._tick_of[job_id].is_waiting)
            ]
            return [closing for tick in over if (closing := self._closed(tick)) is not None]

    def release(self, job_ids: Sequence[int] | None = None) -> bool:
        with self._lock:
            if job_ids is None:
                schedules = set(self._open_ticks)
            else:
                schedules = {self._tick_of[job_id].schedule for job_id in job_ids if job_id in self._tick_of}
            return any([self._release_next(schedule) for schedule in sorted(schedules)])

    def watch(self) -> tuple[list[Closing], list[Alarm]]:
        with self._lock:
            now = self.now()
            if now < self._next_watch(now):
                return [], []
            self._watched_at = now
            closings = self._close_gone()
            self._find_overdue(now)
            alarms = self._alarms(now)
            self.release()
            self._skip_overdue(now)
            self._plan_past_outdated()
            return closings, alarms

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
            for time, tick in self._by_age.take(before - MICROSECOND):
                if tick.outcome is None or old == limit:
                    self._by_age.add(time, tick)
                else:
                    self._delete_tick(tick)
                    old += 1
            return old

    # Admission. The caller of all methods below holds the lock.

    def _decide(self, tick: TickRow, decisions: Decisions | None) -> tuple[Decision, bool, datetime]:
        """Return the decision on a tick, whether it is late, and the earliest time at which it could have begun."""
        if tick.outcome == "skipped":
            return ("skip", tick.reason), False, tick.due_at
        if decisions is None and tick.is_waiting and tick.kind == "tick":
            return ("skip", REMOVED), False, tick.due_at
        if tick.outcome is not None or decisions is None:
            return ("ended", None), False, tick.due_at
        return decisions.of(tick), decisions.is_late(tick), decisions.ready_at(tick)

    def _decisions(self, schedule: str, now: datetime, asked: Container[int | None] = ()) -> Decisions | None:
        row = self._schedules.get(schedule)
        if row is None:
            return None
        still_open = self._open_ticks.get(schedule, {}).values()
        # A run may have ended while its end is not recorded yet.
        over = [self._history.get(tick.job_id or 0) for tick in still_open if tick.started_at is not None]
        ends = [row.last_end, *(job.finished_at for job in over if job is not None)]
        last_end = max((end for end in ends if end is not None), default=None)
        outdated = {tick.job_id for tick in still_open if self._is_outdated(tick)}
        return Decisions(
            row, self._ticks.get(schedule, {}).values(), still_open, self._jobs, outdated, asked, last_end, now
        )

    def _admission(
        self, tick: TickRow, decision: Decision, is_late: bool, ready_at: datetime, now: datetime
    ) -> Admission:
        what, reason = decision
        if what == "ended":
            return Admission(kind=tick.kind)
        if what == "skip":
            if tick.outcome is None:
                self._finish_tick(tick, "skipped", now, reason)
                if tick.schedule in self._schedules:
                    _uncount_run(self._schedules[tick.schedule], now)
            return Admission(refusal=reason)
        if what == "go" and tick.started_at is None:
            self._begin(tick, now, ready_at - tick.due_at)
        row = self._schedules.get(tick.schedule)
        wait = ASK_AGAIN.total_seconds() if what == "wait" else None
        return Admission(self._previous(tick), tick.kind, is_late, wait, ping=row.options.get("ping") if row else None)

    def _previous(self, tick: TickRow) -> datetime | None:
        """Return the last tick before it whose job is done, or None."""
        done = self._done.get(tick.schedule, [])
        place = bisect.bisect_left(done, tick.tick)
        return done[place - 1] if place else None

    def _release_next(self, schedule: str) -> bool:
        """Make the next waiting run of a schedule due, unless one is in progress. Return True if there is one.

        The first outdated run waits for a run in progress too, but no other run waits for it.
        """
        now = self.now()
        due = [
            tick for tick in self._open_ticks.get(schedule, {}).values()
            if tick.due_at <= now and tick.job_id in self._jobs
        ]
        outdated = [tick for tick in due if self._is_outdated(tick)]
        rest = [tick for tick in due if tick not in outdated]
        if any(tick.started_at is not None for tick in rest):
            return False
        waiting = [tick for tick in outdated if tick.started_at is None]
        return any([self._release_first(ticks, now) for ticks in (rest, waiting)])

    def _release_first(self, waiting: Sequence[TickRow], now: datetime) -> bool:
        first = min(waiting, key=lambda tick: tick.order, default=None)
        if first is None:
            return False
        job = self._jobs[first.job_id or 0]
        if job.state != "queued" or job.execute_after <= now:
            return False
        self._keep(job.changed(execute_after=now))
        return True

    # The end of a run

    def _closed(self, tick: TickRow) -> Closing | None:
        job = self._history.get(tick.job_id or 0)
        state = "deleted" if job is None else job.state
        is_withdrawn = tick.kind == "tick" and tick.is_waiting and state in ("cancelled", "deleted")
        # A failed job may have been queued again by hand.
        if tick.outcome is not None and not (tick.outcome in ("failed", "cancelled") and state == "done"):
            return None
        ended_at = self.now() if job is None or job.finished_at is None else job.finished_at
        self._finish_tick(tick, state, ended_at)
        seconds = None if job is None or tick.started_at is None else (ended_at - tick.started_at).total_seconds()
        row = self._schedules.get(tick.schedule)
        if row is None:
            return Closing(tick.schedule, tick.tick, tick.job_id or 0, state, seconds)
        goes_on = self._goes_on(row, ended_at)
        if is_withdrawn:
            # A run that was cancelled before it began does not count, and the next tick has to be decided.
            row.runs = max(0, row.runs - 1)
            row.plan_at = self.now() if row.retired_at is None else row.plan_at
        recovered = state == "done" and row.alarm_tick is not None and tick.tick >= row.alarm_tick
        if recovered:
            row.alarm = row.alarm_tick = None
        ping = row.options.get("ping")
        return Closing(tick.schedule, tick.tick, tick.job_id or 0, state, seconds, ping, recovered, goes_on)

    def _goes_on(self, row: ScheduleRow, ended_at: datetime) -> bool:
        """Record the end of a run. Return True if the next tick counts from it."""
        row.last_end = max(row.last_end or ended_at, ended_at)
        row.revision += 1
        goes_on = row.retired_at is None and bool(row.options["after_finish"])
        if goes_on:
            row.plan_at = self.now()
        return goes_on

    # Ticks that no worker claims

    def _skip_overdue(self, now: datetime) -> None:
        """Skip the ticks that have been due for a while and would not be admitted any more."""
        for name in sorted(self._overdue & self._schedules.keys()):
            decisions = self._decisions(name, now)
            for tick, reason in [] if decisions is None else decisions.refused():
                self._skip_waiting(self._schedules[name], tick, reason, now)

    def _skip_waiting(self, row: ScheduleRow, tick: TickRow, reason: str, now: datetime) -> None:
        job = self._jobs[tick.job_id or 0]
        if job.state != "queued" or job.attempt != 0:
            return
        self._drop(job.id)
        self._finish_tick(tick, "skipped", now, reason)
        row.runs, row.revision = max(0, row.runs - 1), row.revision + 1
        row.plan_at = None if row.retired_at is not None else row.plan_at or now

    # Alarms

    def _close_gone(self) -> list[Closing]:
        """Close the runs whose end was not recorded."""
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
        still_open = self._open_ticks.get(row.name, {}).values()
        if not reasons and not any(_is_overdue(tick, now) for tick in still_open):
            self._overdue.discard(row.name)
        if not reasons or row.alarm is not None or row.paused_at is not None or row.retired_at is not None:
            return None
        first = min(reasons, key=lambda alarm: alarm.tick)
        row.alarm, row.alarm_tick = first.kind, first.tick
        return first

    def _missed_or_late(self, row: ScheduleRow, now: datetime) -> Iterator[Alarm]:
        still_open = self._open_ticks.get(row.name, {}).values()
        # A run that waits for the run before it is not missed. The run before it may be late instead.
        is_busy = any(tick.started_at is not None for tick in still_open) or (
            row.last_end is not None and row.last_end + LATE >= now
        )
        for tick in still_open:
            if _is_overdue(tick, now):
                if (is_busy and _takes_turns(row, tick)) or (self._is_outdated(tick) and self._is_overtaken(tick)):
                    continue
                yield Alarm(row.name, tick.tick, "missed", tick.job_id)
            elif tick.started_at is not None and tick.late_at is not None and tick.late_at < now:
                yield Alarm(row.name, tick.tick, "late", tick.job_id)
        if row.plan_at is not None and _is_unplanned(row.plan_at, now):
            yield Alarm(row.name, row.plan_at, "missed", None)

    def _is_overtaken(self, tick: TickRow) -> bool:
        """Return True if a newer run has begun in its place."""
        return any(
            other.tick > tick.tick and other.started_at is not None for other in self._ticks[tick.schedule].values()
        )

    def _plan_past_outdated(self) -> None:
        """Plan the next tick of after_finish schedules whose only open run is outdated, so may never end."""
        for name, still_open in self._open_ticks.items():
            row = self._schedules.get(name)
            if (
                still_open and row is not None and row.plan_at is None and row.retired_at is None
                and row.options.get("after_finish") and all(self._is_outdated(tick) for tick in still_open.values())
            ):
                row.plan_at = self.now()


def _is_overdue(tick: TickRow, now: datetime) -> bool:
    return tick.started_at is None and tick.due_at + LATE < now


def _takes_turns(row: ScheduleRow, tick: TickRow) -> bool:
    """Return True if the run waits while another run of its schedule is in progress, and is not skipped."""
    overlap = row.options["overlap"]
    return overlap == "queue" or (overlap == "skip" and (tick.kind != "tick" or row.options["catch_up"] == "all"))


def _uncount_run(row: ScheduleRow, now: datetime) -> None:
    """Subtract a skipped run from those that count towards `max_runs`."""
    row.runs, row.revision = max(0, row.runs - 1), row.revision + 1
    row.plan_at = None if row.retired_at is not None else row.plan_at or now
    if row.options["after_finish"]:
        row.last_end = now


def _is_unplanned(plan_at: datetime | None, now: datetime) -> bool:
    """Return True if the ticks have not been decided long after `plan_at`."""
    return plan_at is not None and plan_at + 2 * LATE < now
