"""The status of a schedule, for people and for monitors: a word, a sentence, and True if something is wrong."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ..durations import in_utc
from ..errors import OptionError
from ..schedules.schedule import Schedule
from ..schedules.ticks import LATE, ScheduleView, TickView
from ..schedules.timing import Cron
from . import output

if TYPE_CHECKING:
    from ..store import Store

Word = Literal["ok", "paused", "retired", "off", "over", "stuck", "missed", "late"]

# A longer description in words is replaced by the expression.
MAX_WORDS = 60
# Limits of the search for the last ended run.
PAGE, MAX_PAGES = 200, 5


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """The status of a schedule: a word, and a sentence if the word needs one."""

    word: Word
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        return self.word in ("stuck", "missed", "late")


def condition(view: ScheduleView, now: datetime) -> ScheduleStatus:
    """Return the status of a schedule; of several facts, the most important."""
    schedule, trouble = reading(view)
    if view.retired_at is not None:
        return ScheduleStatus("retired", f"{output.ago(view.retired_at, now)}: no live worker's code declares it")
    if view.paused_at is not None:
        how = f"pgcron schedules resume {shlex.quote(view.name)}"
        return ScheduleStatus("paused", f"{output.ago(view.paused_at, now)}; to go on: {how}")
    if schedule is None or trouble is not None:
        return ScheduleStatus("stuck", trouble or "")
    if view.alarm is not None and view.alarm_tick is not None:
        what = "was missed" if view.alarm == "missed" else "was not done in time"
        return ScheduleStatus("missed" if view.alarm == "missed" else "late",
                         f"its run of {in_utc(view.alarm_tick)} {what}, and no later one has been done")  # fmt: skip
    waits = view.is_running and schedule.overlap != "allow"
    if view.next_due_at is not None and view.next_due_at + LATE < now and not waits:
        return ScheduleStatus("missed", f"its next run has been due for {output.span(now - view.next_due_at)}")
    if not schedule.enabled:
        return ScheduleStatus("off", "it was made with enabled=False")
    return ScheduleStatus("over", _why_over(view, schedule)) if _is_over(view, schedule, now) else ScheduleStatus("ok")


def reading(view: ScheduleView) -> tuple[Schedule | None, str | None]:
    """Return the schedule, or None if its definition cannot be read here, and what is wrong with it, if anything."""
    try:
        return view.schedule, view.trouble
    except OptionError as error:
        return None, view.trouble or str(error)


def takes_turns(view: ScheduleView, tick: TickView) -> bool:
    """Return True if the run of `tick` would wait for a run that is under way."""
    schedule, _ = reading(view)
    if schedule is None or not view.is_running:
        return False
    # With overlap="skip", runs by hand, backfills and starts wait too, and every tick of catch_up="all". Others are
    # skipped.
    return schedule.overlap == "queue" or (
        schedule.overlap == "skip" and (tick.kind != "tick" or schedule.catch_up == "all")
    )


def _is_over(view: ScheduleView, schedule: Schedule, now: datetime) -> bool:
    if view.next_tick is not None or view.is_running:
        return False
    if schedule.max_runs is not None and view.runs >= schedule.max_runs:
        return True
    return schedule.timing.next(max(now, view.last_planned)) is None


def _why_over(view: ScheduleView, schedule: Schedule) -> str:
    if schedule.max_runs is not None and view.runs >= schedule.max_runs:
        return f"it has had its {output.count(schedule.max_runs, 'run')}"
    return "there are no more ticks" if schedule.timing.end is None else f"it ended {in_utc(schedule.timing.end)}"


def last_end(store: Store, view: ScheduleView) -> TickView | None:
    """Return the newest tick that ended as done or failed. Skipped ticks since then are passed over."""
    before = None
    for _ in range(MAX_PAGES):
        page = store.ticks(view.name, before=before, limit=PAGE)
        for tick in page:
            if tick.outcome in ("done", "failed"):
                return tick
        if len(page) < PAGE:
            return None
        before = page[-1].tick
    return None


def in_words(schedule: Schedule) -> str:
    """Return the times of runs and the time zone: `at 02:30 every day, Europe/Berlin`."""
    timing = schedule.timing
    if isinstance(timing, Cron):
        return f"{timing.words if len(timing.words) <= MAX_WORDS else timing}, {timing.tz}"
    return f"{timing.words}, from the end of the last run" if schedule.after_finish else timing.words
