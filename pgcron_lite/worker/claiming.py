"""Claims whose reply was lost, kept until it is known what they took.

A lost reply says nothing about the claim: it may have been committed, may never be, or may be committed later, when a
frozen backend or a synchronous standby goes on. So an empty answer to the question for its jobs proves nothing either.
What is committed late is found by the worker's comparison of its rows with its jobs; this list only makes that faster,
and keeps a worker from ending too early.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator

from ..clock import Clock, monotonic

# The limit of a statement on the server, see `pg.bounded_connection` for the order of all. What is committed after it
# was held up by more than itself.
UNCERTAIN_SECONDS = 30.0


class UncertainClaims:
    """Tokens of claims in doubt. Each is looked up once, and dropped after `DOUBT_SECONDS`."""

    def __init__(self, clock: Clock = monotonic) -> None:
        self._clock = clock
        self._since: dict[uuid.UUID, float] = {}
        self._not_looked_up: list[uuid.UUID] = []

    def __iter__(self) -> Iterator[uuid.UUID]:
        """Every claim that may still be committed."""
        now = self._clock()
        self._since = {
            claim: since for claim, since in self._since.items()
            if claim in self._not_looked_up or now - since < UNCERTAIN_SECONDS
        }
        return iter(self._since)

    def __bool__(self) -> bool:
        return any(True for _ in self)

    def add(self, claim: uuid.UUID) -> None:
        """Note a claim whose reply is lost, or not there yet."""
        self._since[claim] = self._clock()
        if claim not in self._not_looked_up:
            self._not_looked_up.append(claim)

    @property
    def next(self) -> uuid.UUID | None:
        """The newest claim that has not been looked up; None if there is none."""
        return self._not_looked_up[-1] if self._not_looked_up else None

    def found_nothing(self, claim: uuid.UUID) -> None:
        """Note that the table shows no job of this claim. It may later."""
        self._not_looked_up = [each for each in self._not_looked_up if each != claim]

    def resolve(self, claim: uuid.UUID) -> None:
        """Drop a claim whose jobs are known."""
        self.found_nothing(claim)
        self._since.pop(claim, None)
