"""Things by the moment at which somebody has to look at them."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

T = TypeVar("T")


def earliest(*moments: datetime | None) -> datetime | None:
    """The first of them, if there is one."""
    return min((moment for moment in moments if moment is not None), default=None)


class Deadlines(Generic[T]):
    """The first comes first. What no longer `holds` for its moment is noticed and left out when its turn comes."""

    def __init__(self, holds: Callable[[datetime, T], bool]) -> None:
        self._holds = holds
        self._entries: list[tuple[datetime, int, T]] = []
        # Things of the same moment are not compared.
        self._numbers = itertools.count()

    def add(self, moment: datetime, thing: T) -> None:
        heapq.heappush(self._entries, (moment, next(self._numbers), thing))

    @property
    def first(self) -> datetime | None:
        """The moment of the first."""
        entries = self._entries
        while entries and not self._holds(entries[0][0], entries[0][2]):
            heapq.heappop(entries)
        return entries[0][0] if entries else None

    def take(self, until: datetime) -> list[tuple[datetime, T]]:
        """Take out everything up to a moment."""
        taken = []
        while (first := self.first) is not None and first <= until:
            taken.append((first, heapq.heappop(self._entries)[2]))
        return taken
