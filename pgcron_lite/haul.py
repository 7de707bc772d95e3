"""What an exchange with the database has brought, before anybody has looked at it.

A worker in full swing looks at it while the database is at the next one.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cached_property

from . import plan
from .execute import Ended
from .job import Exchange, Job


class Haul:
    """The outcomes that were written, and what was claimed, up to `limit` jobs, under the token `claim`."""

    def __init__(
        self, claim: uuid.UUID, asked_at: float, limit: int, exchange: Exchange, written: Sequence[tuple[Ended, bool]]
    ) -> None:
        self.claim = claim
        self.asked_at = asked_at
        self.limit = limit
        self.written = written
        self._exchange = exchange

    @property
    def count(self) -> int:
        """How many jobs it has."""
        return self._exchange.count

    @cached_property
    def jobs(self) -> list[Job]:
        return self._exchange.jobs()

    @property
    def is_full(self) -> bool:
        """There is more where it came from."""
        return self.count == self.limit

    @property
    def is_plain(self) -> bool:
        """Is nothing to be asked of the database about it?"""
        return self.is_full and not any(
            plan.SCHEDULE in job.headers for job in [*self.jobs, *(each.job for each, _ in self.written)]
        )
