"""How many jobs to hold beside those that run: what is done in the blink of an eye, and nothing when tasks are slow.

A claim costs a trip to the database and a commit. Jobs that take a few microseconds are claimed by the hundred, so
that the slots need not wait for it; jobs that take seconds are left where any other worker can take them. Of those
with large arguments or results only dozens are held: it is memory that others need.
"""

from __future__ import annotations

from collections.abc import Sequence

# Work for so many seconds is held, and at most so many jobs: what the shortest take, with all that is around them.
AHEAD_SECONDS, MAX_AHEAD = 0.05, 2000
# Arguments, and results that are to be written, of so many characters together, as far as the last jobs tell.
AHEAD_SIZE = 8_000_000
# Over how many jobs it is averaged.
WINDOW = 64
# Slower than this, and nothing is held: a free slot is filled as fast by a claim.
SLOW_SECONDS = 0.025


class Prefetch:
    """The time a job takes and the size of what it is given and returns, on average, and what follows from it."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # Nothing is known yet, so nothing is held.
        self.seconds = SLOW_SECONDS
        self.given = self.returned = 0.0

    def record_arguments(self, arguments: Sequence[int]) -> None:
        """So large are the arguments of the jobs that have just been claimed."""
        self.given = _averaged(self.given, arguments)

    def record(self, durations: Sequence[float], results: Sequence[int] = ()) -> None:
        """So long took the jobs that have just ended, and so large are their results."""
        self.seconds = _averaged(self.seconds, durations)
        self.returned = _averaged(self.returned, results)

    def slow_down(self, seconds: float) -> None:
        """What was held has waited for so long: the average says too little about what runs now."""
        self.seconds = max(self.seconds, seconds)

    @property
    def ahead(self) -> int:
        """How many jobs to hold beside one for each slot."""
        if self.seconds >= SLOW_SECONDS:
            return 0
        in_time = self.slots * AHEAD_SECONDS / max(self.seconds, 1e-6)
        in_size = AHEAD_SIZE / max(self.given + self.returned, 1.0)
        return min(MAX_AHEAD, int(in_time), int(in_size))


def _averaged(before: float, values: Sequence[float]) -> float:
    """The average, with what is new in it: in full if there is much of it."""
    if not values:
        return before
    mean = sum(values) / len(values)
    return before + (mean - before) * min(1.0, len(values) / WINDOW)
