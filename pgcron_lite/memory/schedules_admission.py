"""The judgement of one schedule's due ticks: which may begin, wait, or will not run.

`pgcron.due_ticks` and `pgcron.admit` say the same; the differential test compares them.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

from ..durations import in_utc
from ..schedules.ticks import LATE, MAX_LEFT_DUE, MAX_WAITING, MAX_WAITING_FOR_ALL
from .schedules_tables import ScheduleRow, TickRow

# What is to be done about a run that is due, and why not to run it.
Decision = tuple[Literal["go", "wait", "skip", "over"], str | None]

REMOVED = "the schedule was removed"


class Decisions:
    """The open ticks of a schedule at one moment. Nothing is written here."""

    def __init__(
        self,
        row: ScheduleRow,
        ticks: Collection[TickRow],
        still_open: Collection[TickRow],
        jobs: Container[int | None],
        outdated: Container[int | None],
        asked: Container[int | None],
        last_end: datetime | None,
        now: datetime,
    ) -> None:
        self._row, self._ticks, self._last_end, self._now = row, ticks, last_end, now
        # Jobs of outdated runs, which are in no other's way, but for those that a worker has claimed and asks about.
        self._outdated, self._asked = outdated, asked
        self._due = sorted(
            (tick for tick in still_open if tick.due_at <= now and tick.job_id in jobs), key=lambda tick: tick.order
        )
        self._is_running = any(tick.started_at is not None and tick.job_id not in outdated for tick in still_open)
        # An outdated tick stands for no other than its like.
        of_timing = [tick for tick in self._due if tick.kind == "tick"]
        self._newest_of_all = max((tick.tick for tick in of_timing), default=now)
        self._newest = max((tick.tick for tick in of_timing if tick.job_id not in outdated), default=now)

    def of(self, tick: TickRow) -> Decision:
        """Return the verdict on `tick`: it begins, waits or is skipped, and why."""
        fate = self._fate(tick)
        if fate is not None:
            return "skip", fate
        overlap, catch_up = self._row.said["overlap"], self._row.said["catch_up"]
        if tick.started_at is not None or overlap == "allow":
            return "go", None
        before = [
            other for other in self._going
            if other is not tick and not self._is_passed(other)
            and (other.started_at is not None or other.order < tick.order)
        ]
        if not before:
            return "go", None
        if overlap == "queue":
            waiting = sum(
                other.is_fresh and other.order < tick.order and other.job_id not in self._outdated for other in before
            )
            is_full = tick.is_fresh and tick.job_id not in self._outdated and waiting >= self._most
            return ("skip", self._full) if is_full else ("wait", None)
        # Runs that were asked for, by hand or to catch up with all, are not dropped; they take turns.
        if tick.kind != "tick" or (catch_up == "all" and self._takes_turns(tick, before)):
            return "wait", None
        return "skip", f"overlap: the run of {in_utc(before[0].tick)} was still going on"

    def left_out(self) -> list[tuple[TickRow, str]]:
        """The waiting ticks that would not be let in, and why: none if all came due a moment ago."""
        due = [tick for tick in self._due if tick.is_waiting and tick.kind == "tick"]
        if not any(tick.due_at + LATE < self._now for tick in due):
            return []
        fates = [(tick, self._fate(tick)) for tick in due]
        going = [tick for tick, fate in fates if fate is None]
        queues, all_run = self._row.said["overlap"] == "queue", self._row.said["catch_up"] == "all"
        fresh = [tick for tick in going if tick.is_fresh and tick.job_id not in self._outdated]
        full = fresh[self._most :] if queues else []
        too_many = going[:-MAX_LEFT_DUE] if all_run else []
        reason = f"missed, and {MAX_LEFT_DUE} later ones as well"
        return [
            *((tick, fate) for tick, fate in fates if fate is not None),
            *((tick, self._full) for tick in full),
            *((tick, reason) for tick in too_many if tick not in full),
        ]

    def passed(self) -> list[TickRow]:
        """The runs that had begun, and lose their place to one that begins now."""
        if self._row.said["overlap"] == "allow":
            return []
        return [tick for tick in self._due if tick.started_at is not None and self._is_passed(tick)]

    def is_late(self, tick: TickRow) -> bool:
        """Return True if the run begins, or began, so late that it makes up for a missed one."""
        return (tick.started_at or self._now) > self.ready_at(tick) + LATE

    def ready_at(self, tick: TickRow) -> datetime:
        """The earliest time it could begin: runs that take turns begin after the run before."""
        takes_turns = self._row.said["overlap"] == "queue" or (
            self._row.said["overlap"] == "skip" and tick.kind != "tick"
        )
        return max(tick.due_at, self._last_end) if takes_turns and self._last_end is not None else tick.due_at

    def _fate(self, tick: TickRow) -> str | None:
        """Return the reason to skip a due run whatever the others do; None if there is none."""
        said, now = self._row.said, self._now
        if tick.started_at is not None or tick.kind != "tick":
            return None
        if self._row.paused_at is not None:
            return "paused"
        if self._row.retired_at is not None:
            return REMOVED
        if "start_within" in said and now > tick.due_at + timedelta(seconds=said["start_within"]):
            return "too late"
        if said["overlap"] == "queue" and (self._is_running or now <= self.ready_at(tick) + LATE):
            # Its turn has come, or comes when the run under way has ended: it is no missed one.
            return None
        if said["catch_up"] == "skip" and now > tick.due_at + LATE:
            return "missed"
        newest = self._newest_of_all if tick.job_id in self._outdated else self._newest
        if said["catch_up"] == "latest" and tick.tick < newest:
            return "missed; a later tick stands for it"
        return None

    def _takes_turns(self, tick: TickRow, before: Sequence[TickRow]) -> bool:
        """With catch_up="all": a tick that is late, or comes after runs that are late or were delayed by such."""
        if tick.planned_at > tick.due_at or self._now > tick.due_at + LATE:
            return True
        return any(
            other.kind == "backfill"
            or (other.kind == "tick" and (
                other.started_at is None or other.started_at > tick.due_at or other.planned_at > other.due_at
                or other.started_at > other.due_at + LATE or self._is_delayed(other)
            ))
            for other in before
        )  # fmt: skip

    def _is_delayed(self, tick: TickRow) -> bool:
        """Return True if the last run before `tick` ended after `tick` was due."""
        ran = (other for other in self._ticks if other.tick < tick.tick and other.started_at is not None)
        last = max(ran, key=lambda other: other.tick, default=None)
        return last is not None and last.finished_at is not None and last.finished_at > tick.due_at

    def _is_passed(self, tick: TickRow) -> bool:
        return tick.job_id in self._outdated and tick.job_id not in self._asked

    @cached_property
    def _going(self) -> list[TickRow]:
        """The runs that go on, or will begin when it is their turn."""
        return [tick for tick in self._due if self._fate(tick) is None]

    @property
    def _most(self) -> int:
        return MAX_WAITING_FOR_ALL if self._row.said["catch_up"] == "all" else MAX_WAITING

    @property
    def _full(self) -> str:
        return f"overlap: {self._most} runs were waiting already"
