"""When a worker runs a suspect: a job that was found among others in a dead worker's hands.

A death with neighbours says nothing about who caused it, so a suspect runs alone. A worker that is never idle makes a
silence for it, by claiming nothing for a while; when that does not help, the suspect runs beside others at last, for
no job may wait for ever. Between two suspects the others have their turn, so that the innocent do not wait for all of
them one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from ..clock import Clock, monotonic

QUIET_SECONDS, PAUSE_SECONDS, TRIES = 10.0, 5.0, 2
MAX_TURN = 30.0

Step = Literal["take", "wait", "go on"]


class Suspects:
    """Decides, and remembers what was decided. Asks for suspects at most every `interval` seconds."""

    def __init__(self, interval: float, clock: Clock = monotonic) -> None:
        self.is_occupied = False
        # A suspect was found just now: who leaves one often leaves many.
        self.may_have_more = False
        self.quiet_until = self.next_try = 0.0
        self._interval = interval
        self._clock = clock
        self._tries = 0
        self._since = 0.0

    def step(self, *, is_busy: bool, is_suspect_due: Callable[[], bool]) -> Step:
        """What to do before the next claim: take a suspect, wait for quiet, or go on as usual."""
        if self.is_too_early:
            return "go on"
        now = self._clock()
        if not is_busy or self._tries >= TRIES:
            return "take"
        if now < self.quiet_until:
            return "wait"
        if self.quiet_until:
            # The silence did not help: something runs for longer.
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
        """Is it too early to ask for a suspect?"""
        return self._clock() < self.next_try

    def record_claim(self, found: bool, *, is_busy: bool) -> None:
        """A suspect was asked for, and `found` or not."""
        now = self._clock()
        self.quiet_until, self._tries, self._since = 0.0, 0, now
        self.is_occupied, self.may_have_more = found and not is_busy, found
        self.next_try = now + (0.0 if found else self._interval)

    def ended(self) -> None:
        """Nothing runs any more. After a suspect, the others have as long a turn as it had."""
        if self.is_occupied:
            now = self._clock()
            self.is_occupied = False
            self.next_try = now + min(now - self._since, MAX_TURN)

    def check_now(self) -> None:
        """There may be suspects now."""
        self.next_try = 0.0
