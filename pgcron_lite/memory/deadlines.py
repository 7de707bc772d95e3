"""Items sorted by deadline."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from datetime import datetime
from typing import Generic, TypeVar

T = TypeVar("T")


def earliest(*times: datetime | None) -> datetime | None:
    """Return the earliest of `times`, or None if all are None."""
    return min((time for time in times if time is not None), default=None)


class Deadlines(Generic[T]):
    """A heap of items by deadline. An item whose deadline no longer `holds` is dropped when it reaches the top."""

    def __init__(self, holds: Callable[[datetime, T], bool]) -> None:
        self._holds = holds
        self._entries: list[tuple[datetime, int, T]] = []
        # A tie breaker: items with the same deadline cannot be compared.
        self._numbers = itertools.count()

    def add(self, deadline: datetime, item: T) -> None:
        heapq.heappush(self._entries, (deadline, next(self._numbers), item))

    @property
    def first(self) -> datetime | None:
        """The earliest deadline that holds, or None."""
        entries = self._entries
        while entries and not self._holds(entries[0][0], entries[0][2]):
            heapq.heappop(entries)
        return entries[0][0] if entries else None

    def take(self, until: datetime) -> list[tuple[datetime, T]]:
        """Remove and return all items with a deadline up to `until`, with their deadlines, earliest first."""
        taken = []
        while (first := self.first) is not None and first <= until:
            taken.append((first, heapq.heappop(self._entries)[2]))
        return taken
