"""Admission of one schedule's due ticks: each begins, waits or is skipped.

`pgcron.due_ticks` and `pgcron.admit` are the same rules in SQL; the differential test compares the two.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Sequence
from datetime import datetime, timedelta
from functools import cached_property
from typing import Literal

from ..durations import in_utc
from ..schedules.ticks import LATE, MAX_LEFT_DUE, MAX_WAITING, MAX_WAITING_FOR_ALL
from .schedules_tables import ScheduleRow, TickRow

# The decision on a due run, and the reason if it is skipped.
Decision = tuple[Literal["go", "wait", "skip", "ended"], str | None]

REMOVED = "the schedule was removed"


class Decisions:
    """Decisions on the open ticks of a schedule at one point in time. Writes nothing."""

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
        # Jobs of outdated runs, and the jobs that a worker has claimed and requests admission for. An outdated run
        # does not block other runs unless it is among the latter.
        self._outdated, self._asked = outdated, asked
        self._due = sorted(
            (tick for tick in still_open if tick.due_at <= now and tick.job_id in jobs), key=lambda tick: tick.order
        )
        self._is_running = any(tick.started_at is not None and tick.job_id not in outdated for tick in still_open)
        # An outdated tick replaces only missed ticks that are outdated too.
        of_timing = [tick for tick in self._due if tick.kind == "tick"]
        self._newest_of_all = max((tick.tick for tick in of_timing), default=now)
        self._newest = max((tick.tick for tick in of_timing if tick.job_id not in outdated), default=now)

    def of(self, tick: TickRow) -> Decision:
        """Return the decision on `tick`: it begins, waits or is skipped, and why it is skipped."""
        reason = self._skip_reason(tick)
        if reason is not None:
            return "skip", reason
        overlap, catch_up = self._row.options["overlap"], self._row.options["catch_up"]
        if tick.started_at is not None or overlap == "allow":
            return "go", None
        before = [
            other for other in self._runnable
            if other is not tick and not self._is_overtaken(other)
            and (other.started_at is not None or other.order < tick.order)
        ]
        if not before:
            return "go", None
        if overlap == "queue":
            waiting = sum(
                other.is_fresh and other.order < tick.order and other.job_id not in self._outdated for other in before
            )
            is_full = tick.is_fresh and tick.job_id not in self._outdated and waiting >= self._max_waiting
            return ("skip", self._queue_full) if is_full else ("wait", None)
        # Runs that a user or catch_up="all" requests are never skipped; they run one after the other.
        if tick.kind != "tick" or (catch_up == "all" and self._takes_turns(tick, before)):
            return "wait", None
        return "skip", f"overlap: the run of {in_utc(before[0].tick)} was still going on"

    def refused(self) -> list[tuple[TickRow, str]]:
        """Return the waiting ticks that would be skipped, with the reasons; [] if none has been due for `LATE`."""
        due = [tick for tick in self._due if tick.is_waiting and tick.kind == "tick"]
        if not any(tick.due_at + LATE < self._now for tick in due):
            return []
        reasons = [(tick, self._skip_reason(tick)) for tick in due]
        runnable = [tick for tick, reason in reasons if reason is None]
        queues, all_run = self._row.options["overlap"] == "queue", self._row.options["catch_up"] == "all"
        fresh = [tick for tick in runnable if tick.is_fresh and tick.job_id not in self._outdated]
        full = fresh[self._max_waiting :] if queues else []
        too_many = runnable[:-MAX_LEFT_DUE] if all_run else []
        too_many_reason = f"missed, and {MAX_LEFT_DUE} later ones as well"
        return [
            *((tick, reason) for tick, reason in reasons if reason is not None),
            *((tick, self._queue_full) for tick in full),
            *((tick, too_many_reason) for tick in too_many if tick not in full),
        ]

    def overtaken(self) -> list[TickRow]:
        """Return the outdated runs that had begun and are queued again; a run that begins now takes their place."""
        if self._row.options["overlap"] == "allow":
            return []
        return [tick for tick in self._due if tick.started_at is not None and self._is_overtaken(tick)]

    def is_late(self, tick: TickRow) -> bool:
        """Return True if the run begins, or began, so late that it counts as a missed run that is caught up."""
        return (tick.started_at or self._now) > self.ready_at(tick) + LATE

    def ready_at(self, tick: TickRow) -> datetime:
        """Return the earliest time at which it can begin: for runs one after the other, the end of the run before."""
        takes_turns = self._row.options["overlap"] == "queue" or (
            self._row.options["overlap"] == "skip" and tick.kind != "tick"
        )
        return max(tick.due_at, self._last_end) if takes_turns and self._last_end is not None else tick.due_at

    def _skip_reason(self, tick: TickRow) -> str | None:
        """Return the reason to skip a due run regardless of other runs, or None."""
        options, now = self._row.options, self._now
        if tick.started_at is not None or tick.kind != "tick":
            return None
        if self._row.paused_at is not None:
            return "paused"
        if self._row.retired_at is not None:
            return REMOVED
        if "start_within" in options and now > tick.due_at + timedelta(seconds=options["start_within"]):
            return "too late"
        if options["overlap"] == "queue" and (self._is_running or now <= self.ready_at(tick) + LATE):
            # It can begin now, or when the current run ends. So it is not missed.
            return None
        if options["catch_up"] == "skip" and now > tick.due_at + LATE:
            return "missed"
        newest = self._newest_of_all if tick.job_id in self._outdated else self._newest
        if options["catch_up"] == "latest" and tick.tick < newest:
            return "missed; a later tick stands for it"
        return None

    def _takes_turns(self, tick: TickRow, before: Sequence[TickRow]) -> bool:
        """Return True if a tick with catch_up="all" waits for the runs before it instead of being skipped.

        This is so if it is late, or if a run before it is late or was delayed by a late run.
        """
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

    def _is_overtaken(self, tick: TickRow) -> bool:
        return tick.job_id in self._outdated and tick.job_id not in self._asked

    @cached_property
    def _runnable(self) -> list[TickRow]:
        """The due runs that are in progress or may still begin."""
        return [tick for tick in self._due if self._skip_reason(tick) is None]

    @property
    def _max_waiting(self) -> int:
        return MAX_WAITING_FOR_ALL if self._row.options["catch_up"] == "all" else MAX_WAITING

    @property
    def _queue_full(self) -> str:
        return f"overlap: {self._max_waiting} runs were waiting already"
