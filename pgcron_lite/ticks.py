"""What becomes of the ticks of a schedule: which get a job, when that is due, and why the others get none.

Pure: `decide` is given a schedule's row and the database's clock. The answer is written by the store only if the row
is still the one that was judged, so it does not matter how many judge at once, or how old their answer is.

Ticks are decided ahead of time. There is always one in the table that lies more than `MARGIN` ahead, and all of the
next minute, so a scheduler that dies is not missed before that, and nobody has to be awake at the very moment.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from . import plan
from .errors import OptionError
from .job import NewJob
from .moment import spoken
from .plan import Schedule
from .schedule import Cron, Every

MARGIN, AHEAD = timedelta(seconds=30), timedelta(seconds=60)
# Who plans takes along what would be due for it within this: many schedules are then planned together.
EARLY = timedelta(seconds=10)
# Later than this, a run is one that was missed.
LATE = timedelta(seconds=60)
# So many missed ticks are caught up with at most, the newest, and so many that are left out get a row each.
MOST_CAUGHT_UP, MOST_ROWS = 1000, 100
# How often somebody looks for runs that are missed, late, or over and not noted.
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
    # Is a run of it under way or planned, and when did the last one end?
    is_busy: bool
    last_end: datetime | None
    # Its code has come to life then, and asks for one run at once.
    starts_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Tick:
    """One due moment: with a job, or with the reason why there is none. Still going at `late_at`, it is late."""

    tick: datetime
    due_at: datetime
    job: NewJob | None = None
    late_at: datetime | None = None
    reason: str | None = None
    kind: Kind = "tick"


@dataclass(frozen=True, slots=True)
class Move:
    """How a schedule's row goes on: the ticks that were decided, and when to decide the next ones, if ever."""

    name: str
    revision: int
    last_tick: datetime
    plan_at: datetime | None
    ticks: tuple[Tick, ...] = ()
    trouble: str | None = None
    # The newest tick that went by for so long before it was decided that it is one that was missed.
    missed: datetime | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """May the job of a tick begin? `wait` seconds before asking again, or the reason why it never will."""

    previous: datetime | None = None
    kind: Kind = "tick"
    is_late: bool = False
    wait: float | None = None
    refusal: str | None = None
    ping: str | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """A run that has ended, whether that ends an alarm, and whether the next tick counts from it."""

    schedule: str
    tick: datetime
    job_id: int
    outcome: str
    seconds: float | None = None
    ping: str | None = None
    recovered: bool = False
    goes_on: bool = False
    # May another run of the schedule have waited for this one?
    frees: bool = True


@dataclass(frozen=True, slots=True)
class Alarm:
    """A tick that has not begun in time (`missed`), or has not ended in time (`late`)."""

    schedule: str
    tick: datetime
    kind: Literal["missed", "late"]
    job_id: int | None


@dataclass(frozen=True, slots=True)
class Change:
    """What the schedules declared by living workers changed; `started` ones are the same, and ask for a run."""

    name: str
    what: Literal["new", "changed", "started", "retired", "taken"]


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule as people see it. `next_tick` is the next that has a job; it is due at `next_due_at`."""

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

    @property
    def schedule(self) -> Schedule:
        return plan.loads(self.name, self.definition)


@dataclass(frozen=True, slots=True)
class TickView:
    """What became of one tick. `outcome` is None until it has ended."""

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
        """How long after its time it began."""
        return None if self.started_at is None else max(timedelta(0), self.started_at - self.due_at)


def decide(entry: Entry, now: datetime) -> Move:
    """What becomes of the ticks of `entry` that are not decided yet. Never raises: a broken schedule breaks alone."""
    try:
        return _decided(plan.loads(entry.name, entry.definition), entry, now)
    except OptionError as error:
        trouble = str(error)
    except Exception as error:
        trouble = f"{type(error).__name__}: {error}"
    return stuck(entry, now, trouble)


def stuck(entry: Entry, now: datetime, trouble: str) -> Move:
    """Nothing can be decided: note why, and try again in a while."""
    return Move(entry.name, entry.revision, entry.last_tick, now + TROUBLE_PAUSE, trouble=trouble)


def _decided(schedule: Schedule, entry: Entry, now: datetime) -> Move:
    if not schedule.enabled:
        return Move(entry.name, entry.revision, max(entry.last_tick, now), None)
    if entry.is_paused:
        return _paused(schedule, entry, now)
    start = () if entry.starts_at is None else (_at_start(schedule, entry.starts_at, now),)
    if schedule.after_finish:
        return _after_finish(schedule, entry, start)
    ticks = [*_missed(schedule, entry.last_tick, now), *_ahead(schedule, entry.last_tick, now)]
    ticks, is_over = _within_max_runs(schedule, entry, ticks)
    last = max([entry.last_tick, *(tick.tick for tick in ticks)])
    ends = is_over or _following(schedule.timing, last) is None
    missed = max((tick.tick for tick in ticks if now - tick.due_at > LATE), default=None)
    # The run at the start is none of these: it counts for nothing, and makes up for nothing.
    return Move(entry.name, entry.revision, last, None if ends else last - MARGIN, (*start, *ticks), missed=missed)


def _paused(schedule: Schedule, entry: Entry, now: datetime) -> Move:
    left_out = _left_out(_backwards(schedule, entry.last_tick, now), "paused")
    following = schedule.timing.next(max(now, entry.last_tick))
    # A schedule of every second is not asked for each of them.
    again = None if following is None else max(following, now + MARGIN)
    return Move(entry.name, entry.revision, max(entry.last_tick, now), again, tuple(left_out))


def _at_start(schedule: Schedule, asked_at: datetime, now: datetime) -> Tick:
    """The run that code asks for when it comes to life. Its moment is that, and must not be one of the timing."""
    is_taken = schedule.timing.previous(asked_at + _MOMENT) == asked_at
    tick = asked_at + _MOMENT if is_taken else asked_at
    return Tick(tick, now, schedule.job(tick, now), late_at=late_at(schedule, tick, now), kind="start")


def _after_finish(schedule: Schedule, entry: Entry, start: tuple[Tick, ...]) -> Move:
    """One run at a time, be it that of a start; who writes down its end asks for the next."""
    if start or entry.is_busy:
        return Move(entry.name, entry.revision, entry.last_tick, None, start)
    timing = schedule.timing
    tick = (entry.last_end or entry.last_tick) + timing.interval  # type: ignore[union-attr]
    tick = max(tick, entry.last_tick + _MOMENT, timing.start or tick)
    ticks = [] if timing.end is not None and tick > timing.end else [_with_job(schedule, tick)]
    ticks, _ = _within_max_runs(schedule, entry, ticks)
    return Move(entry.name, entry.revision, ticks[0].tick if ticks else entry.last_tick, None, tuple(ticks))


def _within_max_runs(schedule: Schedule, entry: Entry, ticks: list[Tick]) -> tuple[list[Tick], bool]:
    """`ticks` up to the last run there may be, and whether it is among them, or behind us."""
    if schedule.max_runs is None:
        return ticks, False
    left = schedule.max_runs - entry.runs
    for place, tick in enumerate(ticks):
        if left <= 0:
            return ticks[:place], True
        left -= tick.job is not None
    return ticks, left <= 0


def _ahead(schedule: Schedule, last_tick: datetime, now: datetime) -> Iterator[Tick]:
    """Ticks that are not due yet: all of the next minute, and one well beyond `MARGIN` in any case."""
    last = max(last_tick, now)
    tick = _following(schedule.timing, last)
    while tick is not None and (tick <= now + AHEAD or last <= now + MARGIN + EARLY):
        yield _with_job(schedule, tick)
        last, tick = tick, _following(schedule.timing, tick)


def _missed(schedule: Schedule, last_tick: datetime, now: datetime) -> list[Tick]:
    """Ticks whose time went by before anybody decided them, oldest first."""
    missed = _backwards(schedule, last_tick, now)
    newest = next(missed, None)
    if newest is None:
        return []
    runs, reason = [newest], "missed; a later tick stands for it"
    too_late = f"missed by more than the grace of {spoken(schedule.grace)}" if schedule.grace is not None else "missed"
    if _is_too_late(schedule, newest, now) or (schedule.catch_up == "skip" and now - newest > LATE):
        runs, missed = [], _chained(newest, missed)
        reason = "missed" if schedule.catch_up == "skip" else too_late
    elif schedule.catch_up == "all":
        for tick in missed:
            if len(runs) == MOST_CAUGHT_UP or _is_too_late(schedule, tick, now):
                reason = too_late if len(runs) < MOST_CAUGHT_UP else f"missed, and {MOST_CAUGHT_UP} later ones as well"
                missed = _chained(tick, missed)
                break
            runs.append(tick)
    return [*_left_out(missed, reason), *(_with_job(schedule, tick) for tick in reversed(runs))]


def _is_too_late(schedule: Schedule, tick: datetime, now: datetime) -> bool:
    return schedule.grace is not None and now - schedule.due_at(tick) > schedule.grace


def _chained(first: datetime, rest: Iterator[datetime]) -> Iterator[datetime]:
    yield first
    yield from rest


def _backwards(schedule: Schedule, after: datetime, until: datetime) -> Iterator[datetime]:
    """The ticks after `after` and up to `until`, newest first."""
    if after >= until:
        return
    tick = schedule.timing.previous(until + _MOMENT)
    while tick is not None and tick > after:
        yield tick
        tick = schedule.timing.previous(tick)


def _left_out(newest_first: Iterator[datetime], reason: str) -> list[Tick]:
    """A row for each tick that does not run; a long row of them is summed up in its last."""
    rows: list[Tick] = []
    for tick in newest_first:
        if len(rows) == MOST_ROWS:
            rows.append(Tick(tick, tick, reason=f"{reason}; so were all before it, which have no row of their own"))
            break
        rows.append(Tick(tick, tick, reason=reason))
    return rows[::-1]


def _with_job(schedule: Schedule, tick: datetime) -> Tick:
    due_at = schedule.due_at(tick)
    return Tick(tick, due_at, schedule.job(tick, due_at), late_at=late_at(schedule, tick, due_at))


def late_at(schedule: Schedule, tick: datetime, due_at: datetime) -> datetime | None:
    """When a run of `tick` that has not ended is worth an alarm: at the next tick, if nothing else was said."""
    if schedule.alert_after is not None:
        return due_at + schedule.alert_after
    return None if schedule.after_finish else _following(schedule.timing, due_at)


# The same is asked three times in a row: when the next tick is, when this one is late, and whether it is the last.
@functools.lru_cache(maxsize=16_384)
def _following(timing: Cron | Every, after: datetime) -> datetime | None:
    return timing.next(after)
