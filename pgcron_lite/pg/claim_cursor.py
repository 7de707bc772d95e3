"""Where a worker's last claim ended: hints that spare it a walk over what it has claimed before.

Entries of an index outlive their rows for as long as some transaction, a backup say, might still want to see them.
Then each look from the very beginning walks over everything that has passed since. A claim that starts behind the
last one does not. What lies before the marks, late commits and jobs made due out of order, is found by a look from
the beginning now and then: often while that is cheap, and seldom enough never to take much of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ..clock import monotonic
from ..job import Job

# A claim of so many jobs is one of a series.
SERIES = 100
# What a look from the beginning may cost beside what it brings, before it is called dear.
EXPENSIVE_SECONDS = 0.02
# What a row takes that is found, locked and changed.
ROW_SECONDS = 0.00002
# Shares of the time that dear looks may take: in a series, and when there is nothing better to do.
BUSY_SHARE, IDLE_SHARE = 20, 4
MAX_SECONDS = 1.0

Level = tuple[str, int]


class ClaimCursor:
    """For each level, a (queue, priority), the last job claimed: its due time and id."""

    def __init__(self) -> None:
        self.last: dict[Level, tuple[datetime, int]] = {}
        # Of the last look from the beginning: what it cost the server beside its rows, when it ended, on which
        # connection it was.
        self._cost = 0.0
        self._looked_at = 0.0
        self._generation = -1
        # A claim has found too little at the marks, and has not looked from the beginning, for that was dear.
        self.owe_a_look = False

    @property
    def is_expensive(self) -> bool:
        return self._cost > EXPENSIVE_SECONDS

    def hold(self, limit: int, generation: int) -> bool:
        """May a claim start at the marks?"""
        if not self.last or generation != self._generation or not (self.is_expensive or limit >= SERIES):
            return False
        return monotonic() < self._looked_at + min(self._cost * BUSY_SHARE, MAX_SECONDS)

    def fall_short(self) -> bool:
        """A claim has found too little here. Is it to look from the beginning now? Otherwise that is owed."""
        self.owe_a_look = self.pause > 0
        return not self.owe_a_look

    @property
    def pause(self) -> float:
        """Seconds until a look from the beginning that is owed may be made."""
        if not self.is_expensive:
            return 0.0
        return max(0.0, self._looked_at + min(self._cost * IDLE_SHARE, MAX_SECONDS) - monotonic())

    def forget(self) -> None:
        """There is no claim to start behind."""
        self.last.clear()

    def advance(self, jobs: Iterable[Job]) -> None:
        """These were claimed, in this order within each level."""
        for job in jobs:
            self.last[job.queue, job.priority] = (job.execute_after, job.id)

    def begin(self, jobs: list[Job], seconds: float, generation: int) -> None:
        """A look from the beginning has brought these, and has taken the server so long."""
        self._looked_at = monotonic()
        self._cost = seconds - len(jobs) * ROW_SECONDS
        self._generation = generation
        self.owe_a_look = False
        if jobs:
            self.forget()
        self.advance(jobs)
