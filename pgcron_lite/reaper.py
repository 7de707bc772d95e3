"""Finding the dead. A worker is dead when somebody has watched its beat stand still for a whole lease.

Nobody's wall clock is asked, neither the database's nor ours: the watch is kept on this process's own monotonic clock,
over one unbroken connection. A clock that jumps, an outage in which nobody could beat, a reaper that was frozen: each
only makes the watch begin again.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING

from .clock import Clock, monotonic
from .job import Job

if TYPE_CHECKING:
    from .app import Store


class Reaper:
    """Watches every worker's beat but our own. Any number of reapers may work side by side."""

    def __init__(self, store: Store, lease_seconds: float, clock: Clock = monotonic) -> None:
        self.lease_seconds = lease_seconds
        self.interval = min(5.0, lease_seconds / 6)
        self._store = store
        self._clock = clock
        self._generation = -1
        self._seen: dict[uuid.UUID, tuple[int, float]] = {}

    def step(self, me: uuid.UUID, pulses: Mapping[uuid.UUID, int]) -> list[Job]:
        """Take every beat as it was just seen; bury whose has not moved, and return the jobs that were rescued."""
        now = self._clock()
        if self._store.generation != self._generation:
            # The connection is a new one: for a while nobody could beat, or we could not see it.
            self._seen.clear()
            self._generation = self._store.generation
        watched = {}
        for worker, beat in pulses.items():
            if worker != me:
                last, since = self._seen.get(worker, (None, now))
                watched[worker] = (beat, since if beat == last else now)
        self._seen = watched
        silent = [(w, beat) for w, (beat, since) in watched.items() if now - since >= self.lease_seconds]
        return self._store.reap(silent) if silent else []
