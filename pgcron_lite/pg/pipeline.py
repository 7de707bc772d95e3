"""Writing what ended and claiming what comes next at the same time, on a connection each.

Where jobs are short, the one takes the server as long as the other, and it has more than one core. The second
connection is the listener's: in full swing nobody waits for the bell.
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
    """The verbs of a worker whose jobs are short."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Set when it is opened.
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
        """Do as `settle` and `claim` do. The server is at work during the block, and nothing else may be asked of it.

        When one of the two fails, nothing is said about the other: `settle` may be asked again, and `held` knows.
        """
        reply = PipelineReply()
        # Another address may be that of another role.
        second = self._bell.lent() if self._bell is not None and self.direct == self.address else None
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
