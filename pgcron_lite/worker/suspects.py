"""Suspects: jobs that were running in a worker when it died. Decides when a worker runs one, isolated.

When several jobs were running, the death does not show which one caused it, so each suspect runs isolated. A worker
that is never idle makes room for it by claiming nothing for a while. If that does not help, the suspect finally runs
together with other jobs, because no job may wait for ever. Between two suspects the worker runs other jobs, so that
these do not wait for all suspects in sequence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..clock import Clock, monotonic

QUIET_SECONDS, PAUSE_SECONDS, TRIES = 10.0, 5.0, 2
MAX_TURN = 30.0

Step = Literal["take", "wait", "go on"]


class Suspects:
    """The state of these decisions. Queries for suspects at most every `interval` seconds."""

    def __init__(self, interval: float, clock: Clock = monotonic) -> None:
        self.is_occupied = False
        # True if the last query found a suspect: a dead worker often leaves several.
        self.may_have_more = False
        self.quiet_until = self.next_try = 0.0
        self._interval = interval
        self._clock = clock
        self._tries = 0
        self._since = 0.0

    def step(self, *, is_busy: bool, is_suspect_due: Callable[[], bool]) -> Step:
        """Return what to do before the next claim: take a suspect, wait until no job runs, or go on as usual."""
        if self.is_too_early:
            return "go on"
        now = self._clock()
        if not is_busy or self._tries >= TRIES:
            return "take"
        if now < self.quiet_until:
            return "wait"
        if self.quiet_until:
            # The pause did not help: a job runs for longer than that.
            self.quiet_until = 0.0
            self._tries += 1
            self.next_try = now + PAUSE_SECONDS
            return "go on"
        if not is_suspect_due():
            self.next_try = now + self._interval
            return "go on"
        self.quiet_until = now + QUIET_SECONDS
        return "wait"

    @property
    def is_too_early(self) -> bool:
        """True if it is too early to query for a suspect."""
        return self._clock() < self.next_try

    def record_claim(self, found: bool, *, is_busy: bool) -> None:
        """Record that a suspect was queried for, and `found` or not."""
        now = self._clock()
        self.quiet_until, self._tries, self._since = 0.0, 0, now
        self.is_occupied, self.may_have_more = found and not is_busy, found
        self.next_try = now + (0.0 if found else self._interval)

    def ended(self) -> None:
        """Record that no job runs. After a suspect, other jobs get as much time as it took, up to `MAX_TURN`."""
        if self.is_occupied:
            now = self._clock()
            self.is_occupied = False
            self.next_try = now + min(now - self._since, MAX_TURN)

    def check_now(self) -> None:
        """Query for suspects with the next claim: there may be new ones."""
        self.next_try = 0.0
