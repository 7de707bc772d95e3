"""Results of a pipelined settle + claim, decoded on demand.

A busy worker decodes them while the database executes the next pipeline.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cached_property

from ..job import Job, PipelineReply
from ..schedules import schedule
from .execute import Ended


class PipelineResult:
    """The outcomes that were written, and up to `limit` jobs that were claimed with the token `claim`."""

    def __init__(
        self, claim: uuid.UUID, asked_at: float, limit: int, reply: PipelineReply, written: Sequence[tuple[Ended, bool]]
    ) -> None:
        self.claim = claim
        self.asked_at = asked_at
        self.limit = limit
        self.written = written
        self._reply = reply

    @property
    def count(self) -> int:
        """The number of jobs that were claimed."""
        return self._reply.count

    @cached_property
    def jobs(self) -> list[Job]:
        return self._reply.jobs()

    @property
    def is_full(self) -> bool:
        """True if the claim reached its limit, so that more jobs may be due."""
        return self.count == self.limit

    @property
    def is_plain(self) -> bool:
        """True if it can be processed without a query: it is full, and no job belongs to a schedule."""
        return self.is_full and not any(
            schedule.SCHEDULE in job.headers for job in [*self.jobs, *(each.job for each, _ in self.written)]
        )
