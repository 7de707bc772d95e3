"""Outcomes on their way into the table: what has ended stays here until the database has said whose it was."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .errors import DatabaseRefused
from .execute import Ended, describe
from .job import Outcome

if TYPE_CHECKING:
    from .app import Store

logger = logging.getLogger(__name__)


class Ledger:
    """What became of jobs and is not written yet."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._unwritten: list[Ended] = []

    @property
    def is_empty(self) -> bool:
        return not self._unwritten

    def add(self, ended: Sequence[Ended]) -> None:
        """To be written next time."""
        self._unwritten += ended

    @property
    def outcomes(self) -> list[Outcome]:
        """All that is to be written."""
        return [each.outcome for each in self._unwritten]

    def write(self, ended: Sequence[Ended]) -> list[tuple[Ended, bool]]:
        """Write `ended` and what is left from before; each comes back with whether the job was still ours.

        When the database is not available everything stays for the next time.
        """
        self._unwritten += ended
        if self.is_empty:
            return []
        try:
            settled = self._store.settle(self.outcomes)
        except DatabaseRefused as error:
            settled = self._write_one_by_one(error)
        return self.close(settled)

    def close(self, settled: set[int]) -> list[tuple[Ended, bool]]:
        """All of it was written; those in `settled` were ours."""
        written, self._unwritten = self._unwritten, []
        return [(each, each.job.id in settled) for each in written]

    def _write_one_by_one(self, refusal: DatabaseRefused) -> set[int]:
        """The batch was refused: find the outcome that cannot be stored, and store that it could not."""
        logger.error("the database refused some outcomes, writing them one by one: %s", refusal)
        settled: set[int] = set()
        for index, each in enumerate(self._unwritten):
            try:
                settled |= self._store.settle([each.outcome])
            except DatabaseRefused as error:
                failed = Outcome(each.job.id, each.outcome.claim, "failed", error=describe(each.job, error))
                self._unwritten[index] = Ended(each.job, failed, each.seconds, error)
                settled |= self._store.settle([failed])
        return settled
