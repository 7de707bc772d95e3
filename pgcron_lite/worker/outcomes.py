"""Outcomes that wait to be written. Each is kept until the database has confirmed or rejected it."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..clock import Clock, monotonic
from ..errors import DatabaseRefused
from ..job import Job, Outcome, hand_back
from .execute import Ended, describe

if TYPE_CHECKING:
    from ..store import Store

logger = logging.getLogger(__name__)


# An outcome that the database refuses in every form is tried again after this time: the cause may be fixed by then.
REFUSED_SECONDS = 60.0
JUST_NOW_SECONDS = 1.0
# A task with this many refused outcomes is not claimed until some of them are stored: each belongs to a job that has
# run and will run again if this process ends first. Jobs of the task that were claimed earlier may exceed the limit.
MAX_REFUSED = 20


class Outcomes:
    """The outcomes that are not written yet."""

    def __init__(self, store: Store, clock: Clock = monotonic) -> None:
        # Outcomes that currently cannot be stored in any form. Their jobs still count as running.
        self.refused: list[Ended] = []
        # The tasks with at least `MAX_REFUSED` of these outcomes.
        self.blocked_tasks: frozenset[str] = frozenset()
        self._store = store
        self._clock = clock
        self._unwritten: list[Ended] = []
        self._again_at = math.inf

    @property
    def is_empty(self) -> bool:
        """True if no outcome waits to be written."""
        return not self._unwritten

    def retry_soon(self) -> None:
        """Try the refused outcomes again with the next write, unless they were refused just now."""
        if self.refused and self._clock() > self._again_at - REFUSED_SECONDS + JUST_NOW_SECONDS:
            self._again_at = self._clock()

    def add(self, ended: Sequence[Ended]) -> None:
        """Keep `ended` for the next write."""
        self._unwritten += ended

    @property
    def jobs(self) -> list[Job]:
        """The jobs whose outcomes wait to be written, including those that the database refuses for now."""
        return [each.job for each in [*self.refused, *self._unwritten]]

    @property
    def outcomes(self) -> list[Outcome]:
        """The outcomes to write, without those that the database refuses for now."""
        return [each.outcome for each in self._unwritten]

    def write(self, ended: Sequence[Ended]) -> list[tuple[Ended, bool]]:
        """Write `ended` and the outcomes kept before. Return each with True if the job was still ours.

        If the database is not available, all outcomes are kept for the next call.
        """
        self._unwritten += ended
        if self._clock() >= self._again_at:
            self._unwritten, self.refused, self._again_at = [*self.refused, *self._unwritten], [], math.inf
        if self.is_empty:
            return []
        try:
            settled = self._store.settle(self.outcomes)
        except DatabaseRefused as error:
            settled = self._write_one_by_one(error)
        if self.refused or self.blocked_tasks:
            counts = Counter(each.job.task for each in self.refused)
            self.blocked_tasks = frozenset(task for task, count in counts.items() if count >= MAX_REFUSED)
        return self.close(settled)

    def close(self, settled: set[int]) -> list[tuple[Ended, bool]]:
        """Drop the outcomes after a write that returned `settled`, the ids of the jobs that were ours."""
        written, self._unwritten = self._unwritten, []
        return [(each, each.job.id in settled) for each in written]

    def hand_back(self, jobs: Sequence[Job], delay: float | None = None) -> tuple[set[int], list[Ended]]:
        """Hand jobs back. Return the ids of those that were ours, and outcomes of those that cannot be handed back."""
        try:
            return self._store.settle([hand_back(job, delay) for job in jobs]), []
        except DatabaseRefused as refusal:
            logger.error("the database refused to hand back some jobs, handing them back one by one: %s", refusal)
        settled: set[int] = set()
        failed: list[Ended] = []
        for job in jobs:
            try:
                settled |= self._store.settle([hand_back(job, delay)])
            except DatabaseRefused as error:
                logger.error("%s cannot be handed back, and fails: %s", job, error)
                failed.append(_failed(job, error))
        return settled, failed

    def _write_one_by_one(self, refusal: DatabaseRefused) -> set[int]:
        """Write a refused batch one by one. Return the ids of the jobs that were ours.

        A job whose outcome cannot be stored fails, with the reason. If that cannot be stored either, it is set aside.
        """
        logger.error("the database refused some outcomes, writing them one by one: %s", refusal)
        settled: set[int] = set()
        refused: list[Ended] = []
        for index, each in enumerate(self._unwritten):
            try:
                settled |= self._store.settle([each.outcome])
            except DatabaseRefused as error:
                failed = _failed(each.job, error, each.seconds)
                try:
                    settled |= self._store.settle([failed.outcome])
                    self._unwritten[index] = failed
                except DatabaseRefused as second:
                    refused.append(each)
                    logger.error(
                        "the database refuses every outcome of %s, which ended as %s: %s. It is tried again"
                        " in %g s and when this worker stops; until then the job counts as running",
                        each.job, each.outcome.state, second, REFUSED_SECONDS,
                    )  # fmt: skip
        self._set_aside(refused)
        return settled

    def _set_aside(self, refused: Sequence[Ended]) -> None:
        if refused:
            self._unwritten = [each for each in self._unwritten if each not in refused]
            self.refused += refused
            self._again_at = self._clock() + REFUSED_SECONDS


def _failed(job: Job, error: DatabaseRefused, seconds: float = 0.0) -> Ended:
    """Return a failure to store in place of an outcome that the database refuses."""
    assert job.claim is not None
    return Ended(job, Outcome(job.id, job.claim, "failed", error=describe(job, error)), seconds, error)
