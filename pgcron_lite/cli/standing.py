"""How a schedule stands, for people and for monitors: in a word, in a sentence, and whether something is wrong."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from ..errors import OptionError
from ..moment import in_utc
from ..plan import Schedule
from ..schedule import Cron
from ..ticks import LATE, ScheduleView, TickView
from . import output

if TYPE_CHECKING:
    from ..app import Store

Word = Literal["ok", "paused", "retired", "off", "over", "stuck", "missed", "late"]

# Longer words than these are put aside for the expression.
LONGEST_WORDS = 60
# How far back the end of a run is looked for.
PAGE, MOST_PAGES = 200, 5


@dataclass(frozen=True, slots=True)
class Condition:
    """How a schedule stands: in a word, and in a sentence if there is more to say."""

    word: Word
    detail: str = ""

    @property
    def is_bad(self) -> bool:
        return self.word in ("stuck", "missed", "late")


def condition(view: ScheduleView, now: datetime) -> Condition:
    """What there is to know about a schedule before anything else."""
    schedule, trouble = reading(view)
    if view.retired_at is not None:
        return Condition("retired", f"{output.ago(view.retired_at, now)}: no living worker's code declares it")
    if view.paused_at is not None:
        how = f"pgcron schedules resume {shlex.quote(view.name)}"
        return Condition("paused", f"{output.ago(view.paused_at, now)}; to go on: {how}")
    if schedule is None or trouble is not None:
        return Condition("stuck", trouble or "")
    if view.alarm is not None and view.alarm_tick is not None:
        what = "was missed" if view.alarm == "missed" else "was not done in time"
        return Condition("missed" if view.alarm == "missed" else "late",
                         f"its run of {in_utc(view.alarm_tick)} {what}, and no later one has been done")  # fmt: skip
    if view.next_due_at is not None and view.next_due_at + LATE < now:
        return Condition("missed", f"its next run has been due for {output.span(now - view.next_due_at)}")
    if not schedule.enabled:
        return Condition("off", "it was made with enabled=False")
    return Condition("over", _why_over(view, schedule)) if _is_over(view, schedule, now) else Condition("ok")


def reading(view: ScheduleView) -> tuple[Schedule | None, str | None]:
    """The schedule if its definition can be read here, and what is wrong with it if anything is."""
    try:
        return view.schedule, view.trouble
    except OptionError as error:
        return None, view.trouble or str(error)


def _is_over(view: ScheduleView, schedule: Schedule, now: datetime) -> bool:
    if view.next_tick is not None or view.last_outcome == "running":
        return False
    if schedule.max_runs is not None and view.runs >= schedule.max_runs:
        return True
    return schedule.timing.next(max(now, view.last_planned)) is None


def _why_over(view: ScheduleView, schedule: Schedule) -> str:
    if schedule.max_runs is not None and view.runs >= schedule.max_runs:
        return f"it has had its {output.count(schedule.max_runs, 'run')}"
    return "there are no more ticks" if schedule.timing.end is None else f"it ended {in_utc(schedule.timing.end)}"


def last_end(store: Store, view: ScheduleView) -> TickView | None:
    """The last of its ticks that ended as done or failed; what was skipped since then says nothing."""
    before = None
    for _ in range(MOST_PAGES):
        page = store.ticks(view.name, before=before, limit=PAGE)
        for tick in page:
            if tick.outcome in ("done", "failed"):
                return tick
        if len(page) < PAGE:
            return None
        before = page[-1].tick
    return None


def in_words(schedule: Schedule) -> str:
    """When it runs, and by whose clock: `at 02:30 every day, Europe/Berlin`."""
    timing = schedule.timing
    if isinstance(timing, Cron):
        return f"{timing.words if len(timing.words) <= LONGEST_WORDS else timing}, {timing.tz}"
    return f"{timing.words}, from the end of the last run" if schedule.after_finish else timing.words
