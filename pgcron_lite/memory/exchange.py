"""Settling and claiming in one go."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ..job import Exchange, Outcome
from .claim import Claiming
from .settle import Settling


class Exchanging(Claiming, Settling):
    """The verbs of a worker whose jobs are short."""

    @contextmanager
    def exchange(
        self,
        outcomes: Sequence[Outcome],
        worker: uuid.UUID,
        claim: uuid.UUID,
        queues: Sequence[str],
        tasks: Sequence[str],
        limit: int,
    ) -> Iterator[Exchange]:
        exchange = Exchange()
        yield exchange
        exchange.settled = self.settle(outcomes)
        jobs = self.claim(worker, claim, queues, tasks, limit)
        exchange.count, exchange.jobs = len(jobs), lambda: jobs
