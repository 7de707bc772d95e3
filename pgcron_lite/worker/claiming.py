"""Uncertain claims: claims whose reply was lost, kept until their jobs are known.

After a lost reply the outcome of the claim is unknown: it may have been committed, may never be committed, or may be
committed later, when a frozen backend or a synchronous standby continues. So an empty result of a query for its jobs
proves nothing either. The worker finds late commits by comparing its rows in the table with the jobs it knows. This
list only makes that faster, and keeps a worker from ending too early.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from ..clock import Clock, monotonic

# The server's limit for one statement; `pg.bounded_connection` lists all limits in order. A claim that is committed
# after this time was delayed by something other than its own execution.
UNCERTAIN_SECONDS = 30.0


class UncertainClaims:
    """Tokens of uncertain claims. Each is looked up once, and dropped after `UNCERTAIN_SECONDS`."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._since: dict[uuid.UUID, float] = {}
        self._not_looked_up: list[uuid.UUID] = []

    def __iter__(self) -> Iterator[uuid.UUID]:
        """Iterate over the claims that may still be committed."""
        now = self._clock()
        self._since = {
            claim: since for claim, since in self._since.items()
            if claim in self._not_looked_up or now - since < UNCERTAIN_SECONDS
        }
        return iter(self._since)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def add(self, claim: uuid.UUID) -> None:
        """Add a claim whose reply was lost or has not arrived yet."""
        self._since[claim] = self._clock()
        if claim not in self._not_looked_up:
            self._not_looked_up.append(claim)

    @property
    def next(self) -> uuid.UUID | None:
        """The newest claim that has not been looked up; None if there is none."""
        return self._not_looked_up[-1] if self._not_looked_up else None

    def found_nothing(self, claim: uuid.UUID) -> None:
        """Record that the table has no job of this claim yet. It may have some later."""
        self._not_looked_up = [each for each in self._not_looked_up if each != claim]

    def resolve(self, claim: uuid.UUID) -> None:
        """Drop a claim whose jobs are known."""
        self.found_nothing(claim)
        self._since.pop(claim, None)
