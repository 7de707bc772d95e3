"""Decisions about the ticks of a schedule: the ticks with a job, its due time, and the reason if there is none.

`decide` is pure: its input is a schedule's row and the database's clock. The store writes the result only if the row
has not changed since then. So any number of planners may decide at the same time, with results of any age.

Ticks are decided ahead of time. The table always contains all ticks of the next minute, and one that is more than
`MARGIN` ahead. So a crash of the scheduler has no effect before that time, and no process has to act at a tick.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from ..durations import spoken
from ..errors import OptionError
from ..job import NewJob
from .schedule import Schedule, loads
from .timing import Cron, Every

MARGIN, AHEAD = timedelta(seconds=30), timedelta(seconds=60)
# A planner also plans the schedules that need it within this time, so that many are planned together.
EARLY = timedelta(seconds=10)
# A run that is later than this counts as missed.
LATE = timedelta(seconds=60)
# Maximum number of missed ticks that are caught up (the newest), and of skipped ticks that get a row each.
MAX_CAUGHT_UP, MAX_ROWS = 1000, 100
# Maximum number of on-time ticks of a schedule that wait with overlap="queue", in addition to those that are caught
# up; the second number is for catch_up="all". `pgcron.due_ticks` has the same numbers.
MAX_WAITING, MAX_WAITING_FOR_ALL = 100, 1000
# Maximum number of ticks of a schedule (the newest) that stay due with catch_up="all" while no worker runs them.
MAX_LEFT_DUE = 2000
# A waiting run is released when the run before it ends. If it is not released, it is claimed again after this time.
# `pgcron.admit` has the same number.
ASK_AGAIN = timedelta(minutes=10)
# Interval of the check for runs that are missed, late, or ended without a record.
WATCH_EVERY = timedelta(seconds=15)
TROUBLE_PAUSE = timedelta(seconds=60)
_MOMENT = timedelta(microseconds=1)

Kind = Literal["tick", "start", "manual", "backfill"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A schedule's row, as a planner sees it. All ticks up to `last_tick` are decided."""

    name: str
    definition: str
    revision: int
    last_tick: datetime
    runs: int
    is_paused: bool
    # True if a run is planned or in progress. `last_end` is the end of the last run.
    is_busy: bool
    last_end: datetime | None
    # The start of its code with run_on_start, which requires one run at once.
    starts_at: datetime | None = None
    # True if a future tick has a job. If not, the last planned job was cancelled or deleted by a user.
    is_planned: bool = True


@dataclass(frozen=True, slots=True)
class Tick:
    """One due moment, with a job or the reason why there is none. A run that has not ended by `late_at` is late."""

    tick: datetime
    due_at: datetime
    job: NewJob | None = None
    late_at: datetime | None = None
    reason: str | None = None
    kind: Kind = "tick"


@dataclass(frozen=True, slots=True)
class Move:
    """An update of a schedule's row: the decided ticks, and when to decide the next ones (None for never)."""

    name: str
    revision: int
    last_tick: datetime
    plan_at: datetime | None
    ticks: tuple[Tick, ...] = ()
    trouble: str | None = None
    # The newest tick that was decided late enough to count as missed.
    missed: datetime | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """Permission for the job of a tick to begin; or `wait`, the seconds until a retry; or `refusal`, a final reason."""

    previous: datetime | None = None
    kind: Kind = "tick"
    is_late: bool = False
    wait: float | None = None
    refusal: str | None = None
    ping: str | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """A run that has ended. `recovered`: this ends an alarm. `goes_on`: the next tick counts from it."""

    schedule: str
    tick: datetime
    job_id: int
    outcome: str
    seconds: float | None = None
    ping: str | None = None
    recovered: bool = False
    goes_on: bool = False


@dataclass(frozen=True, slots=True)
class Alarm:
    """A tick that has not begun in time (`missed`), or has not ended in time (`late`)."""

    schedule: str
    tick: datetime
    kind: Literal["missed", "late"]
    job_id: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """A change of a schedule by the declarations of live workers. `started`: no change, but a run is due at once."""

    name: str
    what: Literal["new", "changed", "started", "retired", "taken"]


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule as users see it. `next_tick` is the next tick that has a job, which is due at `next_due_at`."""

    name: str
    definition: str
    origin: Literal["code", "hand"]
    app: str
    paused_at: datetime | None
    retired_at: datetime | None
    next_tick: datetime | None
    last_tick: datetime | None
    last_outcome: str | None
    runs: int
    alarm: str | None
    alarm_tick: datetime | None
    trouble: str | None
    last_planned: datetime
    next_due_at: datetime | None = None
    is_running: bool = False

    @property
    def schedule(self) -> Schedule:
        return loads(self.name, self.definition)


@dataclass(frozen=True, slots=True)
class TickView:
    """The history of one tick. `outcome` is None until it has ended."""

    schedule: str
    tick: datetime
    kind: Kind
    due_at: datetime
    planned_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    outcome: str | None
    reason: str | None
    job_id: int | None

    @property
    def lateness(self) -> timedelta | None:
        """The delay between its due time and its start; None if it has not started."""
        return None if self.started_at is None else max(timedelta(0), self.started_at - self.due_at)


def decide(entry: Entry, now: datetime) -> Move:
    """Decide the open ticks of `entry`. Never raises: a broken schedule does not affect the others."""
    try:
        return _decided(loads(entry.name, entry.definition), entry, now)
    except OptionError as error:
        trouble = str(error)
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}"
    return stuck(entry, now, trouble)


def stuck(entry: Entry, now: datetime, trouble: str) -> Move:
    """Return a move that records why nothing can be decided, and when to retry."""
    return Move(entry.name, entry.revision, entry.last_tick, now + TROUBLE_PAUSE, trouble=trouble)


def _decided(schedule: Schedule, entry: Entry, now: datetime) -> Move:
    if not schedule.enabled:
        return Move(entry.name, entry.revision, max(entry.last_tick, now), None)
    if entry.is_paused:
        return _paused(schedule, entry, now)
    start = () if entry.starts_at is None else (_at_start(schedule, entry.starts_at, now),)
    if schedule.after_finish:
        return _after_finish(schedule, entry, start)
    ticks = [*_missed(schedule, entry.last_tick, now), *_ahead(schedule, entry, now)]
    ticks, is_over = _within_max_runs(schedule, entry, ticks)
    last = max([entry.last_tick, *(tick.tick for tick in ticks)])
    ends = is_over or _following(schedule.timing, last) is None
    missed = max((tick.tick for tick in ticks if now - tick.due_at > LATE), default=None)
    # The run at the start is not among them: it does not count as a run and does not catch up a tick.
    return Move(entry.name, entry.revision, last, None if ends else last - MARGIN, (*start, *ticks), missed=missed)


def _paused(schedule: Schedule, entry: Entry, now: datetime) -> Move:
    left_out = _left_out(_backwards(schedule, entry.last_tick, now), "paused")
    following = schedule.timing.next(max(now, entry.last_tick))
    # A schedule that runs every second is not planned again for each of its ticks.
    again = None if following is None else max(following, now + MARGIN)
    return Move(entry.name, entry.revision, max(entry.last_tick, now), again, tuple(left_out))


def _at_start(schedule: Schedule, asked_at: datetime, now: datetime) -> Tick:
    """Return the run that `run_on_start` requires, at the moment of the start. It must not be a tick of the timing."""
    is_taken = schedule.timing.previous(asked_at + _MOMENT) == asked_at
    tick = asked_at + _MOMENT if is_taken else asked_at
    return Tick(tick, now, schedule.job(tick, now), late_at=late_at(schedule, tick, now), kind="start")


def _after_finish(schedule: Schedule, entry: Entry, start: tuple[Tick, ...]) -> Move:
    """Plan one run at a time, including a run at the start. The record of its end causes the plan of the next."""
    if start or entry.is_busy:
        return Move(entry.name, entry.revision, entry.last_tick, None, start)
    timing = schedule.timing
    tick = (entry.last_end or entry.last_tick) + timing.interval  # type: ignore[union-attr]
    tick = max(tick, entry.last_tick + _MOMENT, timing.start or tick)
    ticks = [] if timing.end is not None and tick > timing.end else [_with_job(schedule, tick)]
    ticks, _ = _within_max_runs(schedule, entry, ticks)
    return Move(entry.name, entry.revision, ticks[0].tick if ticks else entry.last_tick, None, tuple(ticks))


def _within_max_runs(schedule: Schedule, entry: Entry, ticks: list[Tick]) -> tuple[list[Tick], bool]:
    """Return `ticks` up to the last run that `max_runs` allows, and True if that run is among them or in the past."""
    if schedule.max_runs is None:
        return ticks, False
    left = schedule.max_runs - entry.runs
    for place, tick in enumerate(ticks):
        if left <= 0:
            return ticks[:place], True
        left -= tick.job is not None
    return ticks, left <= 0


def _ahead(schedule: Schedule, entry: Entry, now: datetime) -> Iterator[Tick]:
    """Yield ticks that are not due yet: all of the next minute, and in any case one well beyond `MARGIN`."""
    last, is_planned = max(entry.last_tick, now), entry.is_planned
    tick = _following(schedule.timing, last)
    while tick is not None and (tick <= now + AHEAD or last <= now + MARGIN + EARLY or not is_planned):
        yield _with_job(schedule, tick)
        last, tick, is_planned = tick, _following(schedule.timing, tick), True


def _missed(schedule: Schedule, last_tick: datetime, now: datetime) -> list[Tick]:
    """Return ticks that passed before they were decided, oldest first."""
    missed = _backwards(schedule, last_tick, now)
    newest = next(missed, None)
    if newest is None:
        return []
    runs, reason = [newest], "missed; a later tick stands for it"
    within = schedule.start_within
    too_late = "missed" if within is None else f"missed by more than start_within={spoken(within)}"
    if _is_too_late(schedule, newest, now) or (schedule.catch_up == "skip" and now - newest > LATE):
        runs, missed = [], _chained(newest, missed)
        reason = "missed" if schedule.catch_up == "skip" else too_late
    elif schedule.catch_up == "all":
        for tick in missed:
            if len(runs) == MAX_CAUGHT_UP or _is_too_late(schedule, tick, now):
                reason = too_late if len(runs) < MAX_CAUGHT_UP else f"missed, and {MAX_CAUGHT_UP} later ones as well"
                missed = _chained(tick, missed)
                break
            runs.append(tick)
    return [*_left_out(missed, reason), *(_with_job(schedule, tick) for tick in reversed(runs))]


def _is_too_late(schedule: Schedule, tick: datetime, now: datetime) -> bool:
    return schedule.start_within is not None and now - schedule.due_at(tick) > schedule.start_within


def _chained(first: datetime, rest: Iterator[datetime]) -> Iterator[datetime]:
    yield first
    yield from rest


def _backwards(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the ticks after `after` and up to `until`, newest first."""
    if after >= until:
        return
    tick = schedule.timing.previous(until + _MOMENT)
    while tick is not None and tick > after:
        yield tick
        tick = schedule.timing.previous(tick)


def _left_out(newest_first: Iterator[datetime], reason: str) -> list[Tick]:
    """Return a row for each tick that does not run. After `MAX_ROWS`, one more row sums up all earlier ones."""
    rows: list[Tick] = []
    for tick in newest_first:
        if len(rows) == MAX_ROWS:
            rows.append(Tick(tick, tick, reason=f"{reason}; so were all before it, which have no rows"))
            break
        rows.append(Tick(tick, tick, reason=reason))
    return rows[::-1]


def _with_job(schedule: Schedule, tick: datetime) -> Tick:
    due_at = schedule.due_at(tick)
    return Tick(tick, due_at, schedule.job(tick, due_at), late_at=late_at(schedule, tick, due_at))


def late_at(schedule: Schedule, tick: datetime, due_at: datetime) -> datetime | None:
    """Return when a run of `tick` that has not ended raises an alarm: by default at the next tick."""
    if schedule.alert_after is not None:
        return due_at + schedule.alert_after
    return None if schedule.after_finish else _following(schedule.timing, due_at)


# Called three times in a row with the same values: for the next tick, for `late_at`, and to detect the last tick.
@functools.lru_cache(maxsize=16_384)
def _following(timing: Cron | Every, after: datetime) -> datetime | None:
    return timing.next(after)
