"""How many jobs to hold beside those that run: what is done in the blink of an eye, and nothing when tasks are slow.

A claim costs a trip to the database and a commit. Jobs that take a few microseconds are claimed by the hundred, so
that the slots need not wait for it; jobs that take seconds are left where any other worker can take them.
"""

from __future__ import annotations

from collections.abc import Sequence

# Work for so many seconds is held, and at most so many jobs: what the shortest take, with all that is around them.
AHEAD_SECONDS, MOST = 0.05, 2000
# Over how many jobs the pace is averaged.
MEMORY = 64
# Slower than this, and nothing is held: a free slot is filled as fast by a claim.
SLOW_SECONDS = 0.025


class Pace:
    """The time a job takes, on average, and what follows from it."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # Nothing is known yet, so nothing is held.
        self.seconds = SLOW_SECONDS

    def learn(self, durations: Sequence[float]) -> None:
        """So long took the jobs that have just ended."""
        if durations:
            mean = sum(durations) / len(durations)
            self.seconds += (mean - self.seconds) * min(1.0, len(durations) / MEMORY)

    def slow_down(self, seconds: float) -> None:
        """What was held has waited for so long: the average says too little about what runs now."""
        self.seconds = max(self.seconds, seconds)

    @property
    def ahead(self) -> int:
        """How many jobs to hold beside one for each slot."""
        if self.seconds >= SLOW_SECONDS:
            return 0
        return min(MOST, int(self.slots * AHEAD_SECONDS / max(self.seconds, 1e-6)))
