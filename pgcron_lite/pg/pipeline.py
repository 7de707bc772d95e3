"""Pipelined settle and claim: outcomes are written while the next jobs are claimed, on one connection each.

What it must guarantee is what `settle` and `claim` guarantee one after the other. Each of the two is a transaction on
its own and recovers from a lost reply independently: an outcome that is written again is recognised as ours, and a
claim is found by its token.

Where jobs are short, both take the server about the same time, and the server has more than one core, so it works on
both while the worker processes the previous reply. No third connection is opened for that: the second is the
listener's, which waits for no notification while the worker is busy. Behind a pooler, and where LISTEN does not work,
the listener has no connection that could be used, and the two run one after the other.

The statements and their plans are those of `settle` and `claim`; nothing is different but the connection.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..job import Outcome, PipelineReply
from .claim import Claiming
from .listen import Listener
from .settle import Settling


class Pipelining(Claiming, Settling):
    """The method of a worker whose jobs are short."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Set by `open_bell`.
        self._bell: Listener | None = None

    @contextmanager
    def settle_and_claim(
        self,
        outcomes: Sequence[Outcome],
        worker: uuid.UUID,
        claim: uuid.UUID,
        queues: Sequence[str],
        tasks: Sequence[str],
        limit: int,
    ) -> Iterator[PipelineReply]:
        """Do as `settle` and `claim`. The server works while the block runs; send it nothing else from the block.

        If one of the two fails, the other may or may not have been committed. Call `settle` again with the same
        outcomes, and `held` with the same claim.
        """
        reply = PipelineReply()
        # A direct URL that differs may log in as another role, which may lack the rights for these statements.
        second = self._bell.spare_connection() if self._bell is not None and self.direct == self.address else None
        if second is None:
            yield reply
            reply.settled = self.settle(outcomes)
            jobs = self.claim(worker, claim, queues, tasks, limit)
            reply.count, reply.jobs = len(jobs), lambda: jobs
            return
        with (
            self._settling(outcomes, second) as reply.settled,
            self._claiming(worker, claim, queues, tasks, limit) as claimed,
        ):
            yield reply
        reply.count, reply.jobs = claimed.count, claimed.jobs
