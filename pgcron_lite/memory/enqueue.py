"""Putting jobs in, and the doorbell that tells workers of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from ..job import NewJob
from .bell import MemoryBell
from .tables import Tables


class Enqueueing(Tables):
    """The verb of producers, and the doorbell."""

    def __init__(self, clock: Callable[[], datetime] | None = None) -> None:
        super().__init__(clock)
        self._bells: list[Callable[[], None]] = []

    def enqueue(self, jobs: Sequence[NewJob]) -> list[int]:
        with self._lock:
            ids = self._add(jobs)
        self.ring()
        return ids

    def ring(self) -> None:
        for bell in list(self._bells):
            bell()

    def open_bell(self, tell: Callable[[], None]) -> MemoryBell:
        """The doorbell as one worker hears it; `tell` ends that worker's sleep."""
        return MemoryBell(self._bells, tell)
