"""Prefetch: the number of jobs to claim before a slot is free. Many when tasks are quick, none when they are slow.

A claim costs a round trip to the database and a commit. Jobs that take a few microseconds are claimed by the hundred,
so that the slots do not wait for claims. Jobs that take seconds are left in the table for any other worker. Of jobs
with large arguments or results only dozens are held, to limit the memory.
"""

from __future__ import annotations

from collections.abc import Sequence

# The seconds of work to hold, and the maximum number of jobs, which applies to the shortest tasks: besides its run,
# each job costs the worker some time.
AHEAD_SECONDS, MAX_AHEAD = 0.05, 2000
# The maximum total size of held arguments and results to write, in characters, estimated from the last jobs.
AHEAD_SIZE = 8_000_000
# The number of jobs over which durations and sizes are averaged.
WINDOW = 64
# No prefetch for jobs that take at least this long: a claim fills a free slot soon enough.
SLOW_SECONDS = 0.025


class Prefetch:
    """The average duration, size of arguments and size of results of jobs, and the prefetch that follows from them."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        # No durations are known yet, so there is no prefetch.
        self.seconds = SLOW_SECONDS
        self.given = self.returned = 0.0

    def record_arguments(self, arguments: Sequence[int]) -> None:
        """Record the sizes of the arguments of claimed jobs."""
        self.given = _averaged(self.given, arguments)

    def record(self, durations: Sequence[float], results: Sequence[int] = ()) -> None:
        """Record the durations of finished jobs and the sizes of their results."""
        self.seconds = _averaged(self.seconds, durations)
        self.returned = _averaged(self.returned, results)

    def slow_down(self, seconds: float) -> None:
        """Raise the average to at least `seconds`, the time that a held job has waited for a slot."""
        self.seconds = max(self.seconds, seconds)

    @property
    def ahead(self) -> int:
        """The number of jobs to hold in addition to one per slot."""
        if self.seconds >= SLOW_SECONDS:
            return 0
        in_time = self.slots * AHEAD_SECONDS / max(self.seconds, 1e-6)
        in_size = AHEAD_SIZE / max(self.given + self.returned, 1.0)
        return min(MAX_AHEAD, int(in_time), int(in_size))


def _averaged(before: float, values: Sequence[float]) -> float:
    """Return the average `before`, moved towards `values`; `WINDOW` values or more replace it."""
    if not values:
        return before
    mean = sum(values) / len(values)
    return before + (mean - before) * min(1.0, len(values) / WINDOW)
