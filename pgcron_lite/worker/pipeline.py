"""Results of a pipelined settle + claim, decoded on demand.

A busy worker decodes them while the database works on the next statements.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from functools import cached_property

from ..job import Job, PipelineReply
from ..schedules import schedule
from .execute import Ended


class PipelineResult:
    """The outcomes that were written, and what was claimed, up to `limit` jobs, under the token `claim`."""

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
        """How many jobs it has."""
        return self._reply.count

    @cached_property
    def jobs(self) -> list[Job]:
        return self._reply.jobs()

    @property
    def is_full(self) -> bool:
        """There is more where it came from."""
        return self.count == self.limit

    @property
    def is_plain(self) -> bool:
        """Is nothing to be asked of the database about it?"""
        return self.is_full and not any(
            schedule.SCHEDULE in job.headers for job in [*self.jobs, *(each.job for each, _ in self.written)]
        )
