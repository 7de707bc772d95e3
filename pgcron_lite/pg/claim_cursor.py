"""Cursor of a worker's claims: hints with which a claim continues behind the last one.

Index entries outlive their rows for as long as some transaction, such as a backup, might still see them. While they
do, a full scan, which is a claim from the beginning of the index, reads the entries of every job claimed since. A
claim that continues from the cursor does not. Jobs before the cursor, such as late commits and jobs made due out of
order, are found by full scans. These run often while they are cheap, and take a limited share of the time when they
are expensive.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from ..clock import monotonic
from ..job import Job

# A claim of at least this many jobs counts as one of a series of claims.
SERIES = 100
# A full scan that takes longer than this, beside the time for the rows it claims, counts as expensive.
EXPENSIVE_SECONDS = 0.02
# Estimated time to find, lock and update one row.
ROW_SECONDS = 0.00002
# Expensive full scans may take one part in this many of the time: during a series, and while there is nothing to claim.
BUSY_SHARE, IDLE_SHARE = 20, 4
MAX_SECONDS = 1.0

Level = tuple[str, int]


class ClaimCursor:
    """The due time and id of the last job claimed, for each level, which is a (queue, priority)."""

    def __init__(self) -> None:
        self.last: dict[Level, tuple[datetime, int]] = {}
        # Of the last full scan: the server's time without that for its rows, when it ended, and the generation of the
        # connection that it ran on.
        self._cost = 0.0
        self._scanned_at = 0.0
        self._generation = -1
        # True if a claim found too few jobs from the cursor, and no full scan followed because the last was expensive.
        self.owes_full_scan = False

    @property
    def is_expensive(self) -> bool:
        return self._cost > EXPENSIVE_SECONDS

    def may_continue(self, limit: int, generation: int) -> bool:
        """Return True if a claim of `limit` jobs may continue from the cursor; otherwise it has to be a full scan."""
        if not self.last or generation != self._generation or not (self.is_expensive or limit >= SERIES):
            return False
        return monotonic() < self._scanned_at + min(self._cost * BUSY_SHARE, MAX_SECONDS)

    def may_scan_now(self) -> bool:
        """Note that a claim found too few jobs from the cursor. Return True if a full scan may follow at once."""
        self.owes_full_scan = self.pause > 0
        return not self.owes_full_scan

    @property
    def pause(self) -> float:
        """Seconds until the next full scan may run while there is nothing to claim."""
        if not self.is_expensive:
            return 0.0
        return max(0.0, self._scanned_at + min(self._cost * IDLE_SHARE, MAX_SECONDS) - monotonic())

    def forget(self) -> None:
        """Discard the cursor, so that the next claim is a full scan."""
        self.last.clear()

    def advance(self, jobs: Iterable[Job]) -> None:
        """Move the cursor behind `jobs`, which were claimed in this order within each level."""
        for job in jobs:
            self.last[job.queue, job.priority] = (job.execute_after, job.id)

    def restart(self, jobs: list[Job], seconds: float, generation: int) -> None:
        """Record a full scan that claimed `jobs` and took the server `seconds`."""
        self._scanned_at = monotonic()
        self._cost = seconds - len(jobs) * ROW_SECONDS
        self._generation = generation
        self.owes_full_scan = False
        if jobs:
            self.forget()
        self.advance(jobs)
