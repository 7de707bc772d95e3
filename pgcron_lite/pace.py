"""How many jobs to hold beside those that run: what is done in the blink of an eye, and nothing when tasks are slow.

A claim costs a trip to the database and a commit. Jobs that take a few microseconds are claimed by the hundred, so
that the slots need not wait for it; jobs that take seconds are left where any other worker can take them. Of those
with large arguments only dozens are held: it is memory that others need.
"""

from __future__ import annotations

from collections.abc import Sequence

# Work for so many seconds is held, and at most so many jobs: what the shortest take, with all that is around them.
AHEAD_SECONDS, MOST = 0.05, 2000
# Arguments of so many characters together are held, as far as the last jobs tell.
AHEAD_SIZE = 8_000_000
# Over how many jobs it is averaged.
MEMORY = 64
# Slower than this, and nothing is held: a free slot is filled as fast by a claim.
SLOW_SECONDS = 0.025


class Pace:
    """The time a job takes and the size of its arguments, on average, and what follows from it."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # Nothing is known yet, so nothing is held.
        self.seconds = SLOW_SECONDS
        self.size = 0.0

    def learn(self, durations: Sequence[float]) -> None:
        """So long took the jobs that have just ended."""
        self.seconds = _averaged(self.seconds, durations)

    def weigh(self, sizes: Sequence[int]) -> None:
        """So large are the arguments of the jobs that have just been claimed."""
        self.size = _averaged(self.size, sizes)

    def slow_down(self, seconds: float) -> None:
        """What was held has waited for so long: the average says too little about what runs now."""
        self.seconds = max(self.seconds, seconds)

    @property
    def ahead(self) -> int:
        """How many jobs to hold beside one for each slot."""
        if self.seconds >= SLOW_SECONDS:
            return 0
        in_time = self.slots * AHEAD_SECONDS / max(self.seconds, 1e-6)
        return min(MOST, int(in_time), int(AHEAD_SIZE / max(self.size, 1.0)))


def _averaged(before: float, news: Sequence[float]) -> float:
    """The average, with what is new in it: in full if there is much of it."""
    if not news:
        return before
    mean = sum(news) / len(news)
    return before + (mean - before) * min(1.0, len(news) / MEMORY)
